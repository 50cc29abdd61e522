"""The LLVM code of compiled functions, which compiled callers link.

For every function that compiled code calls, Numba makes LLVM code, machine code and a Python wrapper. The callers need
only the LLVM code, so `Linked` holds only that (docs/decisions.md, 61).

Numba has no public interface for this, so these private parts of it are used: the class `JITCodeLibrary` with the
methods in PRIVATE, its attributes `_final_module`, `_finalized` and `_reload_init`, `compile_extra` and `Flags` of its
compiler, `lookup_environment`, and `targetdescr`, `targetctx` and `typingctx` of a dispatcher. pyproject.toml limits
Numba to the versions with which the tests have run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import binding

from . import code_files
from .errors import environment_problem

TESTED = "numba>=0.63,<0.69"  # as in pyproject.toml
PRIVATE = (  # methods of JITCodeLibrary
    "_ensure_finalized",
    "_finalize_dynamic_globals",
    "_finalize_final_module",
    "_get_module_for_linking",
    "_optimize_final_module",
    "_verify_declare_only_symbols",
)
LACKS = "this Numba, {version}, lacks {what}, which the kernels' compiler uses: pip install '{tested}'"


def check(library: type) -> None:
    """Raise EnvironmentProblem if Numba's class lacks a method of PRIVATE."""
    if lacking := [name for name in PRIVATE if not hasattr(library, name)]:
        what = f"{library.__name__}.{lacking[0]}"
        raise environment_problem(LACKS.format(version=numba.__version__, what=what, tested=TESTED))


try:
    from numba.core import compiler
    from numba.core.codegen import JITCodeLibrary
    from numba.core.environment import lookup_environment
except ImportError as error:
    raise environment_problem(LACKS.format(version=numba.__version__, what=error.name, tested=TESTED)) from error
check(JITCodeLibrary)


class Library(JITCodeLibrary):
    """LLVM code that has no machine code. It is optimized only within the machine code of its callers."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True


class Linked:
    """A function's LLVM code for one list of argument types. Numba finds the function's code by this object."""

    lifted = ()  # Numba's cache reads this

    def __init__(self, context: Any, library: Library, fndesc: Any, signature: Any, environments: list[Any]) -> None:
        self.library, self.fndesc, self.signature = library, fndesc, signature
        # the environments of this function, and of the functions that it calls, which are linked with it
        self.environments = environments
        context.insert_user_function(self, fndesc, [library])

    @property
    def codegen(self) -> Any:
        return self.library.codegen


def link(dispatcher: Any, arguments: tuple[Any, ...]) -> Linked:
    """Compile a function to LLVM code for these argument types. The caller holds Numba's compiler lock."""
    description, context = dispatcher.targetdescr, dispatcher.targetctx
    flags: Any = compiler.Flags()
    description.options.parse_as_flags(flags, dispatcher.targetoptions)
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    library = Library(context.codegen(), dispatcher.py_func.__qualname__)
    result = compiler.compile_extra(
        dispatcher.typingctx, context, dispatcher.py_func, arguments, None, flags, dispatcher.locals, library
    )
    library._ensure_finalized()
    return Linked(context, library, result.fndesc, result.signature, [result.environment, *environments(library)])


def environments(library: Any) -> list[Any]:
    """The environments of the functions in a library: the Python objects that they need to raise errors."""
    names = [each.name for each in library._final_module.global_variables if each.name.startswith("_ZN08NumbaEnv")]
    return [found for name in names if (found := lookup_environment(name)) is not None]


def set_environments(library: Any) -> None:
    """Set the environments of a library that was just compiled. For a loaded library Numba itself does this."""
    for each in environments(library):
        library.codegen.set_env(each.env_name, each)


class Cache(code_files.FunctionCache):
    """The cache of one function's LLVM code, beside that of its machine code."""

    def __init__(self, function: Callable[..., Any], locator: type[code_files.Locator]) -> None:
        super().__init__(function, locator, _Parts)


class _Parts(code_files.Parts):
    """Converts a function's LLVM code to bytes and back."""

    suffix = ".linked"

    def reduce(self, linked: Linked) -> tuple[Any, ...]:
        library, fndesc = linked.library, linked.fndesc
        fndesc.typemap = fndesc.calltypes = None  # only the compilation needs them
        code = library._get_module_for_linking().as_bitcode()
        kept = [each for each in linked.environments if each.can_cache()]
        return library.name, code, list(library._reload_init), fndesc, linked.signature, kept

    def rebuild(self, context: Any, kept: tuple[Any, ...]) -> Linked:
        name, code, to_do, fndesc, signature, found = kept
        for each in to_do:
            each()
        library = Library(context.codegen(), name)
        library._reload_init.update(to_do)
        library._final_module = binding.parse_bitcode(code)
        library._finalize_final_module()
        return Linked(context, library, fndesc, signature, found)

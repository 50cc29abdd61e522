"""Compiles with Numba, and keeps compiled code on disk.

`jit` marks a function. Before the function's first call nothing is compiled, and no file is touched. Compiled code is
cached in `$ARISTOS_CACHE` (default `$XDG_CACHE_HOME/aristos` or `~/.cache/aristos`, or a temporary folder if that
cannot be used). Only this user may have access to the cache (`private.py`), and its files have hashes
(`code_files.py`). The cache has a subfolder for each combination of the versions of Python, Numba, llvmlite and NumPy
and the CPU's features. There each module has a folder. The folder's name ends with a hash of the sources that the
module's compiled code reads (`sources.py`), and of what else these sources depend on (`packages.py`), such as the ISA.
Numba's own cache does not notice edits in other files, or another ISA at the same path. Equal sources, such as a
clone, an install and a job's copy, share compiled code. Of the processes of a node that run equal sources, one compiles
at a time. This is not a general build system.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from llvmlite import binding
from numba.core import caching, sigutils, types
from numba.core import config as _config
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import CPUDispatcher
from numba.core.typing.templates import make_concrete_template

from . import code_files, copies, import_lists, linked_code, packages, private, sources
from .errors import EnvironmentProblem, environment_problem

COMPILE_SECONDS = 900  # the longest wait for another process; compiling everything takes far less
FIRST_SECONDS, NEXT_SECONDS = 1.0, 10.0  # seconds before the first progress report, and between reports
STARTED = time.time()
config: Any = _config  # Numba creates its options at run time; type checkers do not know them
_registered: list[Any] = []
_place = ""  # where this process runs, for reports: " on rank 1"


def wanted() -> Path:
    """The cache folder for all versions, as the environment names it. Links in the path above it are resolved."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    place = Path(os.environ.get("ARISTOS_CACHE") or os.path.join(home, "aristos"))
    return place.parent.resolve() / place.name


@cache
def cache_folder() -> Path:
    """The folder for code that these versions compile for this CPU. The folder is made if it is missing.

    Warns if the folder that the environment names cannot be used, or if others could have written to it.
    """
    key = hashlib.sha256(versions().encode()).hexdigest()[:16]
    temporary = Path(tempfile.gettempdir()).resolve()
    for place in (wanted(), temporary / f"aristos-{os.getuid()}"):
        try:
            private.make(place)
            private.make(place / key)
            with tempfile.TemporaryFile(dir=place / key) as probe:
                probe.write(bytes(1 << 20))  # the size of an index and a few functions: this fails if the disk is full
                probe.flush()
            return place / key
        except EnvironmentProblem as refused:
            warnings.warn(str(refused), stacklevel=2)
        except OSError as error:
            if os.environ.get("ARISTOS_CACHE") and place == wanted():
                warnings.warn(
                    f"ARISTOS_CACHE={place} cannot be used: {error}; kernels are kept in a temporary folder",
                    stacklevel=2,
                )
    return Path(tempfile.mkdtemp(prefix="aristos-", dir=temporary)) / key


def root() -> Path:
    """The folder above `cache_folder()`, which holds the code of all versions."""
    return cache_folder().parent


@cache
def versions() -> str:
    """The versions and CPU features on which all compiled code depends, as text."""
    numbers = (sys.version, numba.__version__, llvmlite.__version__, np.__version__)
    return repr((numbers, binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()))


@cache
def source_key(source: Path) -> str:
    """A hash of the sources that a module's compiled code reads, including the lowerings of primitives.

    If a source was edited after this process started, the process may run the old source; then the key is unique to
    this process.
    """
    return digest_of(_read(source))[:16]


def digest_of(read: frozenset[Path]) -> str:
    """A hash of files. It is unique to this process if one was edited after the process started."""
    key = sources.digest(read)
    if any(path.stat().st_mtime > STARTED for path in read):
        key = hashlib.sha256(f"{key} {os.getpid()} {STARTED}".encode()).hexdigest()
    return key


@cache
def code_key(source: Path) -> str:
    """A hash of everything that a module's machine code depends on, except versions and CPU.

    It covers the sources (`source_key`), and the parts that the sources' packages have registered, if a source reads
    them.
    """
    return hashlib.sha256(repr((source_key(source), _parts(_read(source)))).encode()).hexdigest()[:16]


def _parts(read: frozenset[Path]) -> list[tuple[str, Any]]:
    """The registered parts of the packages that files belong to, without parts that none of the files reads."""
    return [(each.name, each.parts()) for each in packages.containing(read) if not each.reader or each.reader in read]


@cache
def _read(source: Path) -> frozenset[Path]:
    """The files that a module's compiled code reads, including the lowerings of functions in these files.

    A file outside the registered packages is assumed to read all their files.
    """
    if not packages.containing([source]):
        return frozenset({source, *_all_files()})
    found: frozenset[Path] = frozenset()
    with known_imports():
        more = sources.files(source)
        while more != found:
            found = more
            more = found.union(
                *(
                    sources.files(path)
                    for each in packages.containing(found)
                    for path in lowerings(each)
                    if (of := sources.lowered(path)) is None or of & found
                )
            )
    return found


@contextlib.contextmanager
def known_imports() -> Iterator[None]:
    """A block that uses the import statements kept in the cache, and adds new ones, if the cache's folder is known."""
    folder = cache_folder() if cache_folder.cache_info().currsize else None
    if folder is not None:
        import_lists.load(folder)
    known = len(sources.statements)
    yield
    if folder is not None and len(sources.statements) > known:
        import_lists.save(folder)


def _all_files() -> Iterator[Path]:
    """The files of all registered packages."""
    for package in packages.every():
        yield from package.root.rglob("*.py")


def lowerings(package: packages.Package) -> frozenset[Path]:
    """The modules of a package that register CPU lowerings with Numba for names of other modules."""
    return sources.importers(package.root, "numba.extending", "overload")


def module_folder(function: Callable[..., Any]) -> Path:
    """The folder for the compiled code of a function's module.

    If several packages have a module made from the same file (`kernels/by_isa.py`, `copies.py`), each has a folder of
    its own.
    """
    source = Path(function.__code__.co_filename)
    package = function.__module__.rpartition(".")[0].rpartition(".")[2]
    name = source.stem if package in ("", source.parent.name) else f"{package}.{source.stem}"
    if copies.read_by(function.__module__):
        name = f"{function.__module__.partition('.')[0]}.{name}"
    return cache_folder() / f"{name}-{_key_of(function)}"


def _key_of(function: Callable[..., Any]) -> str:
    """The key of a function's module: `code_key`, and in a copy also a hash of the files that define the copy."""
    key = code_key(Path(function.__code__.co_filename))
    if read := copies.read_by(function.__module__):
        key = hashlib.sha256(repr((key, digest_of(read), _parts(read))).encode()).hexdigest()[:16]
    return key


class Locator(code_files.Locator):
    """Names a module's cache folder by what the code depends on, instead of the file's path and time."""

    def __init__(self, function: Callable[..., Any], source: str) -> None:
        super().__init__(function, source)
        self._folder = module_folder(function)
        self._key = _key_of(function)

    def get_cache_path(self) -> str:
        return str(self._folder)

    def get_source_stamp(self) -> str:
        return self._key


class LazyCache(caching.NullCache):
    """A function's cache. It touches no file before the function is first loaded or compiled.

    kind: the class of the cache, for machine code or for LLVM code.
    """

    def __init__(self, function: Callable[..., Any], kind: type[code_files.FunctionCache]) -> None:
        self.function, self.kind = function, kind

    @functools.cached_property
    def _kept(self) -> Any:
        return self.kind(self.function, Locator)

    @property
    def cache_path(self) -> str:
        return self._kept.cache_path

    def load_overload(self, signature: Any, target: Any) -> Any:
        return self._kept.load_overload(signature, target)

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep compiled code on disk. One process does so at a time.

        Numba reads a function's index, adds a file to it and writes it. Two processes that do so at the same time might
        use one file for two signatures, and then one signature would get the code of the other.
        """
        with _locked(Path(self.cache_path) / "writing.lock"):
            self._kept.save_overload(signature, compiled)


def jit(function: Callable[..., Any]) -> Any:
    """Like `numba.njit(nogil=True, cache=True)`, but with this cache. With NUMBA_DISABLE_JIT=1 nothing is compiled."""
    if config.DISABLE_JIT:
        return function
    compiled = Compiled.of(
        function, LazyCache(function, code_files.FunctionCache), LazyCache(function, linked_code.Cache)
    )
    _registered.append(compiled)
    return compiled


def inner(function: Callable[..., Any]) -> Any:
    """Like `jit`, but for a function that only compiled functions call.

    Its code becomes part of each of its callers, and is not cached by itself.
    """
    return function if config.DISABLE_JIT else Compiled.of(function, caching.NullCache(), caching.NullCache())


class Compiled(CPUDispatcher):
    """A compiled function. Python calls its machine code; compiled callers link its LLVM code.

    Calls with different constant arguments share the code. Numba itself would compile the function for each constant.
    """

    linked: dict[tuple[Any, ...], linked_code.Linked]  # by the types of the arguments
    linked_cache: caching.NullCache
    _compiler: Any
    _cache_hits: Counter[Any]  # Numba's counts, of machine code and LLVM code
    _cache_misses: Counter[Any]

    @classmethod
    def of(cls, function: Callable[..., Any], cache: caching.NullCache, linked_cache: caching.NullCache) -> Any:
        """Make a compiled function from the caches of its machine code and of its LLVM code."""
        made: Any = numba.njit(nogil=True, error_model="numpy")(function)
        made.__class__ = cls
        made._cache, made.linked_cache, made.linked = cache, linked_cache, {}
        return made

    def compile(self, sig: Any) -> Any:
        """Load machine code from the cache, or compile it. Returns the entry that Python calls."""
        known = len(self.overloads)
        found = super().compile(sig)
        if len(self.overloads) > known:
            result: Any = self.overloads[tuple(sigutils.normalize_signature(sig)[0])]
            linked_code.set_environments(result.library)
        return found

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """Return what Numba needs to compile a call: the signatures for which the function has LLVM code."""
        named = {name: types.unliteral(each) for name, each in kws.items()}
        signature, args = self._compiler.fold_argument_types(tuple(types.unliteral(each) for each in args), named)
        self.link(tuple(args))
        known = [each.signature for each in self.linked.values()]
        template = make_concrete_template(f"calls of {self.py_func.__name__}", self.py_func.__name__, known)
        return template, signature, args, {}

    def get_overload(self, sig: Any) -> Any:
        return self.linked[tuple(sigutils.normalize_signature(sig)[0])]

    def link(self, args: tuple[Any, ...]) -> None:
        """Load LLVM code for these argument types from the cache, or compile it."""
        with global_compiler_lock, self._compiling_counter:
            if args not in self.linked:
                found = self.linked_cache.load_overload(args, self.targetctx)
                self.linked[args] = found or linked_code.link(self, args)
                counted = self._cache_hits if found else self._cache_misses
                counted[args] += 1
                if not found:
                    self.linked_cache.save_overload(args, self.linked[args])


class Inlined(CPUDispatcher):
    """A function that compiled code inlines. A call from Python runs it uncompiled."""

    def __call__(self, *arguments: Any) -> Any:
        return self.py_func(*arguments)


def inlined(function: Callable[..., Any]) -> Any:
    """Mark a small function that compiled code inlines, on CPUs and in CUDA. It is never compiled alone."""
    if config.DISABLE_JIT:
        return function
    compiled = numba.njit(inline="always", error_model="numpy")(function)
    compiled.__class__ = Inlined
    return compiled


def entry(function: Callable[..., Any], signature: Any, locator: type[code_files.Locator]) -> Any:
    """Compile a function alone, for a C signature. The result's `.address` is the function's address in this process.

    Code that calls the function by its address neither inlines nor links it, and so stays small. locator: the class
    that determines the folder and the key of the function's code.
    """
    options = {"nopython": True, "error_model": "numpy"}
    made: Any = CFunc(function, sigutils.normalize_signature(signature), locals={}, options=options)
    made._cache = code_files.FunctionCache(function, locator)
    made.compile()
    linked_code.set_environments(made._library)
    return made


@contextlib.contextmanager
def compiling(quiet: bool = False, name: str = "") -> Iterator[None]:
    """A block in which no other process of this node compiles the same code. Reports on stderr if it takes long.

    quiet: whether to report nothing. name: a name for what the block compiles, if it shares no code with other blocks.
    Then only blocks of that name wait for each other.
    """
    with _compile_lock(name), _progress(quiet):
        yield


def report_as(rank: int) -> None:
    """Add the rank to this process's reports of compilation, because each rank counts its own functions."""
    global _place
    _place = _place or f" on rank {rank}"


def compiled_here() -> int:
    """How many functions this process has compiled. Functions loaded from the cache do not count."""
    return sum(sum(f._cache_misses.values()) for f in _registered)  # `stats` would read all sources


def _compile_lock(name: str = "") -> contextlib.AbstractContextManager[None]:
    """A lock. Of the processes that need the same code, one holds it and compiles. The others then load the code.
    A process with other sources, or with another ISA, does not wait, because it needs other code. name: as in
    `compiling`.
    """
    parts = [(package.name, package.parts()) for package in packages.every()]
    text = hashlib.sha256(repr((name, sources.digest(frozenset(_all_files())), parts)).encode()).hexdigest()
    return _locked(cache_folder() / f"compiling-{text[:16]}.lock")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A block that no other process of this node enters with the same path at the same time."""
    import filelock

    try:
        private.make(path.parent)
        lock: Any = filelock.FileLock(path, timeout=COMPILE_SECONDS, mode=private.file_mode(path.parent))
        lock.acquire()
    except filelock.Timeout:
        raise environment_problem(
            f"another process has held {path} for {COMPILE_SECONDS} s: if no process compiles, remove that file, or set"
            " ARISTOS_CACHE to another folder"
        ) from None
    except (NotImplementedError, OSError):  # where there is no flock, processes compile and write at the same time
        yield
        return
    try:
        yield
    finally:
        lock.release()


def warm_up(entries: list[tuple[Any, tuple[Any, ...]]], *, quiet: bool = False) -> int:
    """Compile or load functions for the given argument types. Reports on stderr if it takes long.

    Of the processes that compile functions of the same packages, one compiles at a time; a copy counts as a package of
    its own. entries: (compiled function, its signature as a tuple of Numba types). Returns the number of functions that
    this process compiled.
    """
    if config.DISABLE_JIT:
        return 0
    before, folder = compiled_here(), cache_folder()
    names = sorted((function.__module__, function.__name__, _key_of(function.py_func)) for function, _ in entries)
    done = folder / f"{hashlib.sha256(repr(names).encode()).hexdigest()[:16]}.compiled"
    packages_of = ",".join(sorted({module.partition(".")[0] for module, _, _ in names}))
    with contextlib.nullcontext() if done.exists() else _compile_lock(packages_of), _progress(quiet):
        for function, signature in entries:
            _compile(function, signature)
    if not code_files.unkept:
        with contextlib.suppress(OSError):
            done.touch()
    return compiled_here() - before


def _compile(function: Any, signature: tuple[Any, ...]) -> None:
    """Load a function from the cache or compile it."""
    try:
        function.compile(signature)
    except OSError as error:
        raise environment_problem(
            f"kernels cannot be read in {cache_folder()}: {error}; set ARISTOS_CACHE to another folder"
        ) from error


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[None]:
    """A block that reports on stderr how many functions are ready, and the time. The first report is after a second.

    Nothing is reported as long as functions are only loaded.
    """
    done = threading.Event()
    start = time.monotonic()

    def report() -> None:
        note = f" (once, for a minute or so; kept in {cache_folder()})"
        wait = FIRST_SECONDS
        while not done.wait(wait):
            if not compiled_here():
                continue  # functions are only loaded so far
            ready = sum(bool(f.overloads or f.linked) for f in _registered)
            text = f"{ready} function{'s'[: ready != 1]} in {time.monotonic() - start:.0f} s"
            print(f"aristos: compiling kernels{_place}, {text}{note}", file=sys.stderr, flush=True)
            wait, note = NEXT_SECONDS, ""

    thread = threading.Thread(target=report, daemon=True)
    if not quiet:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if not quiet:
            thread.join()

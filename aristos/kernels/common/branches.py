"""Generates functions that select by a code. Each has a branch for every entry of a table, so no branch is missing."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any


def implementations(table: Mapping[str, int], names: Mapping[str, Any]) -> dict[int, Callable[..., Any]]:
    """The function for each code. table: names and their codes. names: globals of the module that has the functions.

    Raises ImportError if a function is missing. An imported function of that name does not count: it is only a helper.
    """
    here = names["__name__"]
    missing = [name for name in table if getattr(names.get(name), "__module__", None) != here]
    if missing:
        raise ImportError(f"{here} has no function for {', '.join(missing)}, which config.py names")
    return {code: names[name] for name, code in table.items()}


def unrolled(
    name: str, arguments: str, body: str, functions: Mapping[int, Callable[..., Any]], names: Mapping[str, Any]
) -> Any:
    """A function `name`(code, *arguments) that runs the statements `body`, in which `case` is the function for `code`.

    functions: the function for each code. For unknown codes the last one runs. names: the globals of the module to
    which the new function belongs. Numba caches it as part of that module's file.
    """
    lines = [f"def {name}(code, {arguments}):"]
    for number, code in enumerate(functions):
        head = "else" if number == len(functions) - 1 else f"{'elif' if number else 'if'} code == {code}"
        lines += [f"    {head}:", *(f"        {line}" for line in body.replace("case", f"case_{code}").splitlines())]
    scope = {"__name__": names["__name__"]} | {f"case_{code}": function for code, function in functions.items()}
    exec(compile("\n".join(lines), names["__file__"], "exec"), scope)
    return scope[name]


def by_code(function: Callable[..., Any], kernels: Mapping[int, Callable[..., Any]], names: Mapping[str, Any]) -> Any:
    """An implementation of `function` for `overload`: compiled calls run the kernel whose code is the first argument.

    The kernel gets the other arguments. names: the globals of the function's module.
    """
    arguments = ", ".join(list(inspect.signature(function).parameters)[1:])
    branches = unrolled(f"_{function.__name__}", arguments, f"case({arguments})", kernels, names)
    return functools.wraps(function)(lambda *_: branches)

"""Names, element sizes and shapes of shared arrays, for reports.

PTX has only symbols such as `_cudapy_smem_1` and numbers of bytes. The LLVM code that Numba made of the kernel has the
number of elements and the source line of each array. The source at that line has the array's name and shape. If one of
these cannot be found, reports have the symbol, a flat index, or a number of bytes instead.
"""

from __future__ import annotations

import ast
import linecache
import math
import os
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from .launches import Launch
from .program import Program

ARRAY = re.compile(r'^@"?(_cudapy_smem_\d+)"? = .*?global \[(\d+) x ([^\]]*)\]', re.M)
PLACE = re.compile(r'addrspacecast .*?@"?(_cudapy_smem_\d+)"? to .*!dbg !(\d+)')
NODE = re.compile(r"^!(\d+) = (?:distinct )?!DI\w+\((.*)\)", re.M)
SIZES = {"half": 2, "float": 4, "double": 8, "i8": 1, "i16": 2, "i32": 4, "i64": 8}  # bytes of LLVM's types


@dataclass(frozen=True)
class SharedArray:
    """A shared array.

    name: the array's name in the source, or the symbol if that is unknown. size: bytes of the array. itemsize: bytes of
    an element, 0 if unknown. shape: () if unknown.
    """

    name: str
    start: int
    size: int
    itemsize: int = 0
    shape: tuple[int, ...] = ()

    def element(self, address: int) -> str:
        """An address in the array as array[index], or as array[byte N] if the elements are unknown."""
        offset = address - self.start
        if not self.itemsize:
            return f"{self.name}[byte {offset}]"
        index = offset // self.itemsize
        if len(self.shape) > 1 and 0 <= offset < self.size:
            return f"{self.name}[{', '.join(str(i) for i in np.unravel_index(index, self.shape))}]"
        return f"{self.name}[{index}]"


def name_shared(launch: Launch | None, address: int) -> str:
    """An address in a block's shared memory as array[index]. Between two arrays the nearer one is named."""
    if launch is not None:
        found = arrays(launch)
        nearest = min(found, key=lambda a: max(a.start - address, address - a.start - a.size + 1, 0), default=None)
        if nearest is not None:
            return f"shared {nearest.element(address)}"
    return f"shared[byte {address}]"


def arrays(launch: Launch) -> list[SharedArray]:
    """The arrays in a launch's shared memory."""
    known = described(launch.program)
    found = []
    for symbol, (start, size) in launch.program.shared.items():
        count, _, name, shape = known.get(symbol, (0, 0, plain(symbol), ()))
        itemsize = size // count if count and not size % count else 0
        found.append(SharedArray(name, start, size, itemsize, shape if math.prod(shape) == count else ()))
    if launch.dynamic:
        unsized = {(name, itemsize) for count, itemsize, name, _ in known.values() if not count}
        name, itemsize = unsized.pop() if len(unsized) == 1 else ("dynamic", 0)
        found.append(SharedArray(name, launch.shared - launch.dynamic, launch.dynamic, itemsize))
    return found


def plain(symbol: str) -> str:
    """The name that a shared variable has in the source, PTX or CUDA C++."""
    if "/" in symbol:  # the form kernel/name/number of variables that PTX declares in a function
        symbol = symbol.split("/")[-2]
    mangled = re.finditer(r"E(?=(\d+)([A-Za-z_]\w*)$)", symbol) if symbol.startswith("_ZZ") else ()
    return next((one[2] for one in mangled if len(one[2]) == int(one[1])), symbol)


def described(program: Program) -> dict[str, tuple[int, int, str, tuple[int, ...]]]:
    """The shared arrays of a program that Numba compiled: symbol -> (elements, bytes of one, name, shape).

    The number of elements is 0 for dynamic shared memory. The bytes are 0 if they are unknown.
    """
    if program.described is None:
        program.described = {}
        for text in program.ir:
            nodes = dict(NODE.findall(text))
            places = {symbol: source_of(nodes, number) for symbol, number in PLACE.findall(text)}
            for symbol, count, kind in ARRAY.findall(text):
                name, shape = declared(*places.get(symbol, ("", 0)), int(count))
                program.described[symbol] = int(count), SIZES.get(kind, 0), name or symbol, shape
    return program.described


def source_of(nodes: dict[str, str], number: str) -> tuple[str, int]:
    """Look up a location in a module's debug information. Returns (file, line), or ("", 0) if it is not there."""
    line = re.search(r"\bline: (\d+)", nodes.get(number, ""))
    scope = re.search(r"scope: !(\d+)", nodes.get(number, ""))
    file = re.search(r"file: !(\d+)", nodes.get(scope[1], "")) if scope else None
    parts = dict(re.findall(r'(directory|filename): "([^"]*)"', nodes.get(file[1], ""))) if file else {}
    if line is None or "filename" not in parts:
        return "", 0
    return os.path.join(parts.get("directory", ""), parts["filename"]), int(line[1])


def declared(file: str, line: int, count: int) -> tuple[str, tuple[int, ...]]:
    """Read `name = cuda.shared.array(shape, ...)` at a line of the source. Returns (name, shape), or ("", ())."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError, RecursionError):
        return "", ()
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and node.lineno <= line <= (node.end_lineno or 0)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and node.value.func.attr == "array"
    ]
    if len(found) != 1:
        return "", ()
    call: Any = found[0].value
    given = [word.value for word in call.keywords if word.arg == "shape"] or call.args[:1]
    shape = sizes(given[0], constants(tree)) if given else []
    if shape.count(0) == 1 and not count % (rest := math.prod(n for n in shape if n)):
        shape[shape.index(0)] = count // rest
    return found[0].targets[0].id, tuple(shape)  # type: ignore[attr-defined]


def constants(tree: ast.AST) -> dict[str, int]:
    """The names to which a source assigns exactly once, and their values. Only whole numbers count."""
    values: dict[str, list[Any]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            values.setdefault(node.id, [])
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values.setdefault(node.targets[0].id, []).append(getattr(node.value, "value", None))
    return {name: found[0] for name, found in values.items() if len(found) == 1 and isinstance(found[0], int)}


def sizes(shape: ast.expr, known: dict[str, int]) -> list[int]:
    """The dimensions of a shape in the source. A dimension that is not known as a number is 0."""
    items = shape.elts if isinstance(shape, (ast.Tuple, ast.List)) else [shape]
    found = [item.value if isinstance(item, ast.Constant) else known.get(getattr(item, "id", ""), 0) for item in items]
    return [n if isinstance(n, int) and n > 0 else 0 for n in found]

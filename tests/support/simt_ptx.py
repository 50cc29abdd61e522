"""Runs many PTX instructions on many values in one launch, for tests that state each result.

A `Case` is a piece of PTX in which `$a`, `$b`, ... stand for registers with its inputs and `$d`, `$e` for its results.
This module contains no instruction of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import ptxsim

HEADER = ".version 8.6\n.target sm_90a\n.address_size 64\n"
KINDS = {"b16": np.uint16, "b32": np.uint32, "b64": np.uint64, "pred": np.uint32}
BLOCK = 64


@dataclass
class Case:
    """A piece of PTX. want: a function that takes the inputs' bits and returns the results' bits, or None for any bits.

    inputs: by letter, arrays of uint16, uint32, uint64 or bool (a predicate). out: the kinds of $d and $e. same: (got,
    want) -> bool, if bits need not be equal.
    """

    text: str
    out: str
    inputs: dict[str, np.ndarray]
    want: Callable[..., Any]
    same: Callable[[int, int], bool] | None = None
    results: list[np.ndarray] = field(default_factory=list)


def kernel(cases: Sequence[Case], arrays: list[np.ndarray], offsets: list[int], results: list[int]) -> str:
    """PTX of one kernel: every thread reads its element of every array and writes one of every result."""
    lines = [
        ".visible .entry k(.param .u64 inputs, .param .u64 outputs)",
        "{",
        ".reg .b64 from, to, at, n;",
        ".reg .b32 i, j;",
        "ld.param.u64 from, [inputs];",
        "ld.param.u64 to, [outputs];",
        "mov.u32 i, %ctaid.x;",
        "mov.u32 j, %ntid.x;",
        "mul.lo.u32 i, i, j;",
        "mov.u32 j, %tid.x;",
        "add.u32 i, i, j;",
    ]

    def place(base: str, offset: int, size: int) -> list[str]:
        return [f"mul.wide.u32 n, i, {size};", f"add.u64 at, {base}, n;", f"add.u64 at, at, {offset};"]

    for number, (array, offset) in enumerate(zip(arrays, offsets)):
        if array.dtype == bool:
            lines += [
                f".reg .pred v{number};",
                *place("from", offset, 1),
                "ld.global.u8 j, [at];",
                f"setp.ne.u32 v{number}, j, 0;",
            ]
        else:
            kind = f"b{8 * array.itemsize}"
            lines += [
                f".reg .{kind} v{number};",
                *place("from", offset, array.itemsize),
                f"ld.global.{kind} v{number}, [at];",
            ]
    known = {id(array): f"v{number}" for number, array in enumerate(arrays)}
    at = iter(results)
    for number, case in enumerate(cases):
        names = {letter: known[id(array)] for letter, array in case.inputs.items()}
        kinds = case.out.split()
        for letter, kind in zip("de", kinds):
            names[letter] = f"{letter}{number}"
            lines.append(f".reg .{kind} {letter}{number};")
        lines += ["{", re.sub(r"\$([a-z])", lambda match: names[match[1]], case.text), "}"]  # noqa: B023
        for letter, kind in zip("de", kinds):
            if kind == "pred":
                lines.append(f"selp.u32 j, 1, 0, {letter}{number};")
            lines += place("to", next(at), KINDS[kind]().itemsize)
            lines.append(
                f"st.global.b32 [at], {'j' if kind == 'pred' else letter + str(number)};"
                if KINDS[kind] == np.uint32
                else f"st.global.{kind} [at], {letter}{number};"
            )
    return HEADER + "\n".join([*lines, "ret;", "}"])


def run(cases: Sequence[Case], check: bool = False) -> None:
    """Run the cases in one launch and keep their results."""
    arrays: list[np.ndarray] = []
    for case in cases:
        arrays += [a for a in case.inputs.values() if not any(a is b for b in arrays)]
    n = len(arrays[0])
    assert all(len(a) == n for a in arrays)
    padded = -(-n // BLOCK) * BLOCK
    offsets, position = [], 0
    for _ in arrays:
        offsets.append(position)
        position += padded * 8
    source = np.zeros(position, np.uint8)
    for array, offset in zip(arrays, offsets):
        raw = np.ascontiguousarray(array).view(np.uint8)
        source[offset : offset + len(raw)] = raw
    kinds = [kind for case in cases for kind in case.out.split()]
    places = [i * padded * 8 for i in range(len(kinds))]
    machine = ptxsim.Machine(check=check)
    device = machine.device(0)
    inputs, outputs = device.array(source.view(np.uint64)), device.array(np.zeros(len(kinds) * padded, np.uint64))
    device.launch(kernel(cases, arrays, offsets, places), padded // BLOCK, BLOCK, inputs, outputs)
    assert machine.run() == []
    raw = outputs.copy_to_host().view(np.uint8)
    parts = iter(zip(kinds, places))
    for case in cases:
        case.results = []
        for _ in case.out.split():
            kind, place = next(parts)
            size = KINDS[kind]().itemsize
            case.results.append(raw[place : place + n * size].view(KINDS[kind]))


def check(cases: Sequence[Case], checked: bool = False) -> None:
    """Run the cases and compare every result; the message lists the instructions that are wrong, with examples."""
    run(cases, checked)
    wrong = []
    for case in cases:
        columns = [array.tolist() for array in case.inputs.values()]
        got = [result.tolist() for result in case.results]
        examples, count = [], 0
        for i, values in enumerate(zip(*columns)):
            want = case.want(*values)
            want = want if isinstance(want, tuple) else (want,)
            mine = tuple(column[i] for column in got)
            if not all(w is None or m == w or (case.same is not None and case.same(m, w)) for m, w in zip(mine, want)):
                count += 1
                if len(examples) < 4:
                    shown = ", ".join(f"{x:#x}" for x in values)
                    examples.append(
                        f"  ({shown}) gave {[hex(m) for m in mine]}, not {[w if w is None else hex(w) for w in want]}"
                    )
        if count:
            wrong.append("\n".join([f"{case.text}: {count} of {len(columns[0])} wrong", *examples]))
    assert not wrong, f"{len(wrong)} of {len(cases)} instructions\n" + "\n".join(wrong[:12])


def rejection(text: str) -> str:
    """The message of the PTXError for a piece of PTX; '' if it loads."""
    registers = "".join(
        f".reg .{kind} {name}<9>;\n"
        for kind, name in (("b16", "h"), ("b32", "r"), ("b64", "d"), ("pred", "p"), ("f32", "f"))
    )
    try:
        ptxsim.Machine().device(0).launch(f"{HEADER}.visible .entry k()\n{{\n{registers}{text}\nret;\n}}", 1, 32)
    except ptxsim.PTXError as error:
        return str(error)
    return ""


def launched(
    body: str,
    *arrays: np.ndarray,
    threads: int = 32,
    check: bool = True,
    module: str = "",
    head: str = "",
    arch: str = "sm_90a",
    seed: int = 0,
    machine: Any = None,
) -> tuple[list[np.ndarray], list[Any]]:
    """Run a kernel of one block; registers a0, a1, ... hold the arrays' addresses. Returns (final arrays, reports).

    There are also registers 0 to 39 of each kind: h, r and d of 16, 32 and 64 bits, and predicates p. t and t64 hold
    the thread's number in 32 and 64 bits. module: declarations before the kernel; head: declarations in it.
    """
    params = ", ".join(f".param .u64 x{i}" for i in range(len(arrays)))
    lines = [
        *(f".reg .{kind} {name}<40>;" for kind, name in (("b16", "h"), ("b32", "r"), ("b64", "d"), ("pred", "p"))),
        ".reg .b32 t;",
        ".reg .b64 t64;",
        "mov.u32 t, %tid.x;",
        "cvt.u64.u32 t64, t;",
        head,
    ]
    for i in range(len(arrays)):
        lines += [f".reg .b64 a{i};", f"ld.param.u64 a{i}, [x{i}];"]
    text = HEADER + module + f"\n.visible .entry k({params})\n{{\n" + "\n".join([*lines, body, "ret;", "}"])
    machine = machine or ptxsim.Machine(check=check, arch=arch, seed=seed)
    device = machine.device(0)
    held = [device.array(array) for array in arrays]
    device.launch(text, 1, threads, *held)
    found = machine.run()
    return [array.copy_to_host() for array in held], found


def execute(body: str, *arrays: np.ndarray, **options: Any) -> list[np.ndarray]:
    """The arrays of `launched` afterwards; fails if the machine reports anything."""
    after, found = launched(body, *arrays, **options)
    assert found == []
    return after

"""Random small programs on the PTX machine against a naive interpreter of one lane at a time (simt_scalar)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simt_numbers import F32, F64, float_edges, integer_edges
from simt_ptx import execute
from simt_scalar import REGISTERS, Lane

COUNT = {"h": 3, "r": 5, "d": 4, "p": 3}  # registers a program uses
NAMES = [f"{kind}{i}" for kind, count in COUNT.items() for i in range(count)]
NAN = "0x7ff8000000000000"


def typed(names: str, types: str, shape: str) -> list[tuple[str, str]]:
    """Instructions for several types. In `shape`, x stands for a register of the type's size."""
    sizes = {"16": "h", "32": "r", "64": "d"}
    return [(f"{name}.{kind}", shape.replace("x", sizes[kind[1:]])) for name in names.split() for kind in types.split()]


# (opcode, kinds of its operands; the first is its result). h, r, d, p: registers; n: a small number; k: a table of
# lop3; z: a number other than zero
INSTRUCTIONS = [
    *typed("add sub mul.lo mul.hi min max", "u16 s16 u32 s32 u64 s64", "xxx"),
    *typed("abs neg", "s16 s32 s64", "xx"),
    *typed("mad.lo mad.hi sad", "u32 s32 u64 s64 s16", "xxxx"),
    *typed("div rem", "u32 s32 u64 s64 u16 s16", "xxz"),
    *typed("and or xor", "b16 b32 b64", "xxx"),
    *typed("not cnot", "b16 b32 b64", "xx"),
    *typed("shl", "b16 b32 b64", "xxr"),
    *typed("shr", "u16 s16 u32 s32 u64 s64", "xxr"),
    *typed("shl", "b32 b64", "xxn"),
    *typed("shr", "s32 u64", "xxn"),
    *typed("popc clz", "b32", "rr"),
    *typed("popc clz", "b64", "rd"),
    *typed("brev", "b32 b64", "xx"),
    *typed("bfe", "u32 s32 u64 s64", "xxrr"),
    *typed("bfi", "b32 b64", "xxxrr"),
    *typed("selp", "b16 b32 b64", "xxxp"),
    *typed("add.cc addc.cc sub.cc subc.cc addc subc", "u32 u64", "xxx"),
    *typed("mad.lo.cc madc.hi.cc madc.lo", "u32 s32 u64", "xxxx"),
    *typed("add.rn sub.rn mul.rn add.rz mul.rm sub.rp", "f32 f64", "xxx"),
    *typed("fma.rn fma.rz fma.rp", "f32 f64", "xxxx"),
    ("mul.wide.u32", "drr"),
    ("mul.wide.s32", "drr"),
    ("mul.wide.u16", "rhh"),
    ("mad.wide.s32", "drrd"),
    ("add.sat.s32", "rrr"),
    ("sub.sat.s32", "rrr"),
    ("slct.b32.s32", "rrrr"),
    ("slct.b64.s32", "dddr"),
    ("shf.l.wrap.b32", "rrrr"),
    ("shf.r.clamp.b32", "rrrr"),
    ("prmt.b32", "rrrr"),
    ("lop3.b32", "rrrrk"),
    ("dp4a.s32.u32", "rrrr"),
    ("dp4a.u32.u32", "rrrr"),
    ("mov.b32", "rr"),
    ("mov.b64", "dd"),
    ("mov.b32", "rk"),
    ("and.pred", "ppp"),
    ("or.pred", "ppp"),
    ("xor.pred", "ppp"),
    ("not.pred", "pp"),
    ("mov.pred", "pp"),
    ("testp.finite.f32", "pr"),
    ("testp.subnormal.f64", "pd"),
    ("testp.notanumber.f32", "pr"),
    ("cvt.u32.u16", "rh"),
    ("cvt.s32.s16", "rh"),
    ("cvt.s64.s32", "dr"),
    ("cvt.u64.u32", "dr"),
    ("cvt.u16.u32", "hr"),
    ("cvt.s32.s8", "rr"),
    ("cvt.s8.s32", "rr"),
    ("cvt.u8.u32", "rr"),
    ("cvt.s16.s32", "rr"),
    ("cvt.u32.u64", "rd"),
    ("cvt.sat.s16.s32", "rr"),
    ("cvt.sat.u8.s32", "rr"),
    ("cvt.sat.s32.s64", "rd"),
    ("cvt.sat.u64.s64", "dd"),
    ("cvt.rn.f32.s32", "rr"),
    ("cvt.rz.f32.u64", "rd"),
    ("cvt.rn.f64.s64", "dd"),
    ("cvt.rzi.s32.f32", "rr"),
    ("cvt.rmi.s64.f64", "dd"),
    ("cvt.rzi.u16.f32", "hr"),
    ("cvt.rn.f32.f64", "rd"),
    ("cvt.rzi.u32.f64", "rd"),
    *[
        (f"setp.{test}.{kind}", f"pp{size}{size}")
        for test in ("eq", "lt", "ge")
        for kind, size in (
            ("u32", "r"),
            ("s32", "r"),
            ("s64", "d"),
            ("u16", "h"),
            ("s16", "h"),
            ("f32", "r"),
            ("f64", "d"),
        )
    ],
    *[
        (f"setp.{test}.{kind}", f"pp{size}{size}")
        for test in ("ltu", "geu")
        for kind, size in (("f32", "r"), ("f64", "d"))
    ],
    ("unpack.b64", "rrd"),
    ("pack.b64", "drr"),
    ("unpack.b32", "hhr"),
    ("pack.b32", "rhh"),
    *[
        (f"{op}.local.{kind}", f"{size}@")
        for op in ("ld", "st")
        for kind, size in (
            ("b32", "r"),
            ("s8", "r"),
            ("u16", "r"),
            ("b64", "d"),
            ("s32", "d"),
            ("s16", "h"),
            ("u8", "h"),
        )
    ],
]
SIZES = {"8": 1, "6": 2, "2": 4, "4": 8}  # bytes of a type, by the last digit of its name


def line(choice: int, picks: list[int], guard: int) -> list[str]:
    """The PTX of one drawn instruction."""
    opcode, kinds = INSTRUCTIONS[choice % len(INSTRUCTIONS)]
    operands = []
    for kind, pick in zip(kinds, picks):
        if kind in REGISTERS:
            operands.append(f"{kind}{pick % COUNT[kind]}")
        elif kind == "@":
            size = SIZES[opcode[-1]]
            operands.append(f"[own+{pick % (64 // size) * size}]")
        elif kind == "z":  # a divisor
            operands.append(
                str([1, 2, 3, 7, 10, 127, -1, 100][pick % 8])
                if opcode.split(".")[-1][0] == "s"
                else str([1, 2, 3, 7, 10, 127, 255, 100][pick % 8])
            )
        else:
            operands.append(str(pick % 70) if kind == "n" else str(pick % 256))
    before = ["", "", "", "@p0 ", "@!p0 ", "@p1 ", "@!p2 ", "@p2 "][guard % 8]
    if opcode.startswith("unpack"):
        low, high = (
            operands[0],
            operands[1] if operands[1] != operands[0] else f"{kinds[0]}{(picks[0] + 1) % COUNT[kinds[0]]}",
        )
        return [f"{before}mov.{opcode[7:]} {{{low}, {high}}}, {operands[2]};"]
    if opcode.startswith("pack"):
        return [f"{before}mov.{opcode[5:]} {operands[0]}, {{{operands[1]}, {operands[2]}}};"]
    if opcode.startswith("setp"):
        if operands[0] == operands[1]:
            operands[1] = f"p{(picks[0] + 1) % COUNT['p']}"
        return [f"{before}{opcode} {operands[0]}|{operands[1]}, {operands[2]}, {operands[3]};"]
    if opcode.startswith("st"):
        operands.reverse()
    text = [f"{before}{opcode} {', '.join(operands)};"]
    if opcode.endswith("f64") and kinds[0] == "d" and not opcode.startswith(("cvt.rmi", "cvt.rzi")):
        text += [f"testp.notanumber.f64 p9, {operands[0]};", f"selp.b64 {operands[0]}, {NAN}, {operands[0]}, p9;"]
    return ["\n".join(text)]  # one item, so that no jump ends between these lines


@st.composite
def programs(draw):
    """Lines of a program; lanes in which a predicate holds jump over some of them."""
    small = st.integers(0, 1 << 16)
    steps = draw(
        st.lists(st.tuples(small, st.lists(small, min_size=5, max_size=5), st.integers(0, 7)), min_size=3, max_size=40)
    )
    lines = [text for step in steps for text in line(*step)]
    for number, (at, length, predicate) in enumerate(
        draw(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12), st.integers(0, 5)), max_size=3))
    ):
        place = at % (len(lines) + 1)
        end = min(place + length, len(lines))
        lines.insert(end, f"L{number}:")
        lines.insert(place, f"@{'!' if predicate > 2 else ''}p{predicate % 3} bra L{number};")
    return lines, draw(st.integers(0, 1 << 30))


def initial(seed: int) -> np.ndarray:
    """[32, registers] uint64: the lanes' first values, with edges of integers and floats among them."""
    rng = np.random.default_rng(seed)
    out = np.zeros((32, len(NAMES)), np.uint64)
    for column, name in enumerate(NAMES):
        bits = REGISTERS[name[0]]
        if bits == 1:
            out[:, column] = rng.integers(0, 2, 32)
            continue
        edges = integer_edges(bits) + (float_edges(F32) if bits == 32 else float_edges(F64) if bits == 64 else [])
        drawn = [int.from_bytes(rng.bytes(bits // 8), "little") for _ in range(32)]
        some = rng.random(32) < 0.5
        picked = rng.choice(len(edges), 32)
        out[:, column] = [edges[k] if use else x for x, k, use in zip(drawn, picked, some)]
    return out


def body_of(lines: list[str]) -> str:
    """PTX that loads the registers, runs the program, and stores registers and memory."""
    load, save = [f"mad.wide.u32 d38, t, {8 * len(NAMES)}, a0;"], ["mad.wide.u32 d39, t, 192, a1;"]
    load += [f"st.local.b64 [own+{8 * i}], 0;" for i in range(8)] + ["add.cc.u32 r39, 0, 0;"]
    for column, name in enumerate(NAMES):
        bits = REGISTERS[name[0]]
        if bits == 1:
            load += [f"ld.global.u32 r39, [d38+{8 * column}];", f"setp.ne.u32 {name}, r39, 0;"]
            save += [f"selp.b32 r39, 1, 0, {name};", f"st.global.b32 [d39+{8 * column}], r39;"]
        else:
            load.append(f"ld.global.b{bits} {name}, [d38+{8 * column}];")
            save.append(f"st.global.b{bits} [d39+{8 * column}], {name};")
    save += [f"ld.local.b64 d37, [own+{8 * i}];\nst.global.b64 [d39+{128 + 8 * i}], d37;" for i in range(8)]
    return "\n".join([*load, *lines, *save])


@pytest.mark.parametrize("checked", [False, True])
def test_programs_agree(checked):
    @settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(programs())
    def agree(drawn):
        lines, seed = drawn
        start = initial(seed)
        out = execute(
            body_of(lines), start, np.zeros((32, 24), np.uint64), check=checked, head=".local .align 8 .b8 own[64];"
        )[1]
        for number in range(32):
            lane = Lane({**{name: int(x) for name, x in zip(NAMES, start[number])}, "p9": 0})
            lane.run("\n".join(lines).split("\n"))
            got = {name: int(x) for name, x in zip(NAMES, out[number])}
            want = {name: lane.registers[name] for name in NAMES}
            assert got == want, (number, lines)
            assert out[number, 16:].tobytes() == bytes(lane.memory), (number, lines)

    agree()

"""Loads, stores, atomics and copies on the PTX machine against NumPy views of the same bytes."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from simt_numbers import BF16, F16, F32, F64, cut, flushed, read, rounded, total, value
from simt_ptx import Case, check, execute, rejection

TYPES = [f"{kind}{bits}" for bits in (8, 16, 32, 64) for kind in "usb"] + ["f32", "f64"]
CHECKED = pytest.mark.parametrize("checked", [False, True])
DECLARED = {  # by space: declarations of the module and of the kernel, and the address of a thread's 64 bytes
    "global": ("", "", "mad.wide.u32 d30, t, 64, a1;"),
    "shared": (".shared .align 16 .b8 tile[2048];", "", "mov.u64 d30, tile;\nmad.wide.u32 d30, t, 64, d30;"),
    "local": ("", ".local .align 16 .b8 own[64];", "mov.u64 d30, own;"),
}


def size_of(kind):
    return int(kind[1:]) // 8


def widths(kind):
    return [n for n in (1, 2, 4, 8) if n * size_of(kind) <= 16 or (n * size_of(kind) == 32 and size_of(kind) >= 4)]


def numbers(raw, kind, count):
    """`count` items of a type as the contents of 64-bit registers."""
    size = size_of(kind)
    parts = [int.from_bytes(raw[i * size : (i + 1) * size], "little") for i in range(count)]
    return [cut(read(part, kind), 64) if kind[0] == "s" else part for part in parts]


def fill(space):
    """Copy a thread's 64 bytes of a0 to its part of a space."""
    lines = ["mad.wide.u32 d31, t, 64, a0;"]
    for at in range(0, 64, 16):
        lines += [
            f"ld.global.v4.b32 {{r30, r31, r32, r33}}, [d31+{at}];",
            f"st.{space}.v4.b32 [d30+{at}], {{r30, r31, r32, r33}};",
        ]
    return lines


def place(space):
    module, head, address = DECLARED[space]
    lines = [address]
    return module, head, lines


@CHECKED
@pytest.mark.parametrize("generic", [False, True])
@pytest.mark.parametrize("space", DECLARED)
def test_loads(space, generic, checked):
    """Every type and vector width, from every space, into registers of 64 bits."""
    data = np.random.default_rng(50).integers(0, 256, (32, 64)).astype(np.uint8)
    module, head, lines = place(space)
    lines += fill(space)
    if generic and space != "global":
        lines.append(f"cvta.{space}.u64 d30, d30;")
    wanted, at = [], 0
    name = "" if generic else f".{space}"
    lines.append("mad.wide.u32 d32, t, 4096, a2;")
    for kind in TYPES:
        for count in widths(kind):
            offset = 32 - 32 % (count * size_of(kind))
            registers = [f"d{i}" if kind not in ("f32",) else f"r{i}" for i in range(count)]
            group = "{" + ", ".join(registers) + "}" if count > 1 else registers[0]
            vector = f".v{count}" if count > 1 else ""
            lines.append(f"ld{name}{vector}.{kind} {group}, [d30+{offset}];")
            for register in registers:
                lines.append(f"st.global.{'b32' if kind == 'f32' else 'b64'} [d32+{at}], {register};")
                at += 8
            wanted.append((kind, count, offset))
    out = np.zeros((32, 512), np.uint64)
    assert at <= 4096
    result = execute("\n".join(lines), data, data, out, check=checked, module=module, head=head)[2]
    for lane in range(32):
        got = iter(result[lane].tolist())
        for kind, count, offset in wanted:
            expected = numbers(data[lane, offset:].tobytes(), kind, count)
            assert [next(got) for _ in range(count)] == expected, (space, kind, count, lane)


@CHECKED
@pytest.mark.parametrize("generic", [False, True])
@pytest.mark.parametrize("space", DECLARED)
def test_stores(space, generic, checked):
    """Every type and vector width, to every space; no other bytes change."""
    data = np.random.default_rng(51).integers(0, 256, (32, 64)).astype(np.uint8)
    words = np.random.default_rng(52).integers(0, 1 << 63, (32, 8)).astype(np.uint64)
    kinds = [(kind, count) for kind in TYPES for count in widths(kind)]
    out = np.zeros((len(kinds), 32, 64), np.uint8)
    module, head, lines = place(space)
    name = "" if generic else f".{space}"
    lines += ["mov.u64 d29, d30;"]
    if generic and space != "global":
        lines.append(f"cvta.{space}.u64 d29, d30;")
    lines += ["mad.wide.u32 d33, t, 64, a3;"]
    lines += [f"ld.global.b64 d{i}, [d33+{8 * i}];\ncvt.u32.u64 r{i}, d{i};" for i in range(8)]
    lines.append("mad.wide.u32 d32, t, 64, a2;")
    for number, (kind, count) in enumerate(kinds):
        lines += fill(space)
        registers = [f"r{i}" if kind == "f32" else f"d{i}" for i in range(count)]
        group = "{" + ", ".join(registers) + "}" if count > 1 else registers[0]
        vector = f".v{count}" if count > 1 else ""
        lines.append(f"st{name}{vector}.{kind} [d29+{32 - 32 % (count * size_of(kind))}], {group};")
        for at in range(0, 64, 16):
            lines += [
                f"ld.{space}.v4.b32 {{r30, r31, r32, r33}}, [d30+{at}];",
                f"st.global.v4.b32 [d32+{number * 2048 + at}], {{r30, r31, r32, r33}};",
            ]
    result = execute("\n".join(lines), data, data.copy(), out, words, check=checked, module=module, head=head)[2]
    for number, (kind, count) in enumerate(kinds):
        expected = data.copy()
        offset = 32 - 32 % (count * size_of(kind))
        for i in range(count):
            raw = words[:, i : i + 1].copy().view(np.uint8)[:, : size_of(kind)]
            expected[:, offset + i * size_of(kind) : offset + (i + 1) * size_of(kind)] = raw
        assert np.array_equal(result[number], expected), (space, kind, count)


def test_constants_parameters_and_variables():
    table = np.random.default_rng(53).integers(0, 256, 64).astype(np.uint8)
    listed = ", ".join(str(x) for x in table)
    module = f""".const .align 16 .b8 table[64] = {{{listed}}};
.global .align 8 .u64 where = table;
.global .align 4 .s32 signed[3] = {{-1, 2, -3}};
.global .f32 real = 0f3FC00000;
.global .b16 halves[4] = {{1, 0xFFFF}};
.visible .const .align 8 .u64 place[2] = {{signed, signed+8}};"""
    body = """mov.u64 d1, table;
mad.wide.u32 d1, t, 4, d1;
ld.const.s8 r1, [d1+1];
ld.const.v2.u16 {r2, r3}, [table+8];
ld.global.s32 r4, [signed+8];
ld.const.u64 d2, [place+8];
ld.global.s32 r5, [d2+-4];
ld.global.b32 r6, [real];
ld.global.u16 r7, [halves+2];
ld.global.u16 r8, [halves+4];
mad.wide.u32 d3, t, 32, a0;
st.global.v4.b32 [d3], {r1, r2, r3, r4};
st.global.v4.b32 [d3+16], {r5, r6, r7, r8};"""
    out = execute(body, np.zeros((8, 8), np.uint32), threads=8, module=module)[0]
    pair = struct.unpack("<2H", table[8:12].tobytes())
    for lane in range(8):
        signed_byte = cut(read(int(table[4 * lane + 1]), "s8"), 32)
        expected = [signed_byte, *pair, cut(-3, 32), 2, 0x3FC00000, 0xFFFF, 0]
        assert out[lane].tolist() == expected


def test_parameters_of_every_type():
    """A kernel's parameters lie where their types and alignments put them."""
    import ptxsim

    text = """.version 8.0
.target sm_90
.address_size 64
.visible .entry k(.param .u8 a, .param .s16 b, .param .u64 out, .param .f32 c, .param .f64 e,
                  .param .align 8 .b8 blob[12], .param .s8 f)
{
.reg .b32 r<9>; .reg .b64 d<9>;
ld.param.u64 d1, [out];
ld.param.u8 d2, [a];       st.global.u64 [d1], d2;
ld.param.s16 d2, [b];      st.global.u64 [d1+8], d2;
ld.param.b32 r1, [c];      st.global.b32 [d1+16], r1;
ld.param.b64 d2, [e];      st.global.u64 [d1+24], d2;
ld.param.u16 d2, [blob+2]; st.global.u64 [d1+32], d2;
ld.param.u32 d2, [blob+8]; st.global.u64 [d1+40], d2;
ld.param.s8 d2, [f];       st.global.u64 [d1+48], d2;
ret;
}"""
    machine = ptxsim.Machine()
    out = machine.device(0).array(np.zeros(7, np.uint64))
    blob = bytes(range(1, 13))
    machine.device(0).launch(text, 1, 1, 200, -2, out, np.float32(1.25), 2.5, blob, -7)
    assert machine.run() == []
    got = out.copy_to_host().tolist()
    assert got == [200, cut(-2, 64), 0x3FA00000, 0x4004000000000000, 0x0403, 0x0C0B0A09, cut(-7, 64)]


QUALIFIED = (
    [
        f"ld.global.{q}.b32 $d, [d1];"
        for q in (
            "ca",
            "cg",
            "cs",
            "lu",
            "cv",
            "nc",
            "ca.L2::128B",
            "nc.L1::no_allocate",
            "L1::evict_last",
            "L1::evict_first.L2::256B",
            "nc.L1::evict_last.L2::64B",
        )
    ]
    + [
        f"ld.{order}.{scope}.global.b32 $d, [d1];"
        for order in ("relaxed", "acquire")
        for scope in ("cta", "gpu", "sys", "cluster")
    ]
    + [
        "ld.volatile.global.b32 $d, [d1];",
        "ld.weak.global.b32 $d, [d1];",
        "ld.mmio.relaxed.sys.global.b32 $d, [d1];",
        "ldu.global.b32 $d, [d1];",
        "ld.b32 $d, [d1];",
        "ld.global.b32 $d, [d1+0];",
    ]
)


@CHECKED
def test_qualifiers_do_not_change_values(checked):
    """Cache hints, orders and scopes do not change the values of a single thread."""
    writes = [f"st.global.{q}.b32 [d2], r1;" for q in ("wb", "cg", "cs", "wt", "L1::no_allocate")]
    writes += [
        f"st.{order}.{scope}.global.b32 [d2], r1;"
        for order in ("relaxed", "release")
        for scope in ("cta", "gpu", "sys")
    ]
    writes += [
        "st.volatile.global.b32 [d2], r1;",
        "st.weak.global.b32 [d2], r1;",
        "st.mmio.relaxed.sys.global.b32 [d2], r1;",
    ]
    lines = ["mad.wide.u32 d1, t, 4, a0;", "mad.wide.u32 d3, t, 256, a1;"]
    at = 0
    for text in QUALIFIED:
        lines += ["mov.b32 r1, 0;", text.replace("$d", "r1"), f"st.global.b32 [d3+{at}], r1;"]
        at += 4
    lines.append("ld.global.b32 r1, [d1];")
    for text in writes:
        lines += [f"add.u64 d2, d3, {at};", text]
        at += 4
    assert at <= 256
    source = np.arange(100, 132, dtype=np.uint32)
    out = execute("\n".join(lines), source, np.zeros((32, 64), np.uint32), check=checked)[1]
    assert np.array_equal(out[:, : at // 4], np.repeat(source[:, None], at // 4, 1))


def test_addresses_of_spaces():
    module = ".shared .b32 here[32];\n.global .b32 there[32];"
    body = """mov.u64 d1, here;
cvta.shared.u64 d2, d1;
cvta.to.shared.u64 d3, d2;
setp.eq.u64 p1, d1, d3;
isspacep.shared p2, d2;
isspacep.global p3, d2;
mov.u64 d4, own;
cvta.local.u64 d5, d4;
isspacep.local p4, d5;
cvta.to.local.u64 d5, d5;
setp.eq.u64 p5, d4, d5;
mov.u64 d6, there;
cvta.global.u64 d7, d6;
isspacep.global p6, d7;
isspacep.local p7, d7;
selp.b32 r1, 1, 0, p1; selp.b32 r2, 2, 0, p2; selp.b32 r3, 4, 0, p3; selp.b32 r4, 8, 0, p4;
selp.b32 r5, 16, 0, p5; selp.b32 r6, 32, 0, p6; selp.b32 r7, 64, 0, p7;
or.b32 r1, r1, r2; or.b32 r1, r1, r3; or.b32 r1, r1, r4; or.b32 r1, r1, r5; or.b32 r1, r1, r6; or.b32 r1, r1, r7;
mad.wide.u32 d8, t, 4, a0;
st.global.b32 [d8], r1;"""
    out = execute(body, np.zeros(32, np.uint32), module=module, head=".local .b32 own[2];")[0]
    assert set(out.tolist()) == {1 | 2 | 8 | 16 | 32}


# ---- atomics ----
FLOATS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}


def added(form, flush):
    def want(old, b):
        x, y = value(old, form), value(b, form)
        if flush:
            x, y = flushed(x, form), flushed(y, form)
        bits = rounded(total(x, y), form)
        return rounded(flushed(value(bits, form), form), form) if flush else bits

    return want


def halves(function):
    return lambda old, b: sum(function(old >> s & 0xFFFF, b >> s & 0xFFFF) << s for s in (0, 16))


def updates(space):
    """(instruction, bits, old and operand -> new) of every atomic operation with one operand."""
    found = []
    for kind in ("u32", "s32", "u64"):
        bits = int(kind[1:])
        found.append((f"add.{kind}", bits, lambda old, b, bits=bits: cut(old + b, bits)))
    for kind in ("u32", "s32", "u64", "s64"):
        for name, best in (("min", min), ("max", max)):
            found.append(
                (
                    f"{name}.{kind}",
                    int(kind[1:]),
                    lambda old, b, k=kind, best=best: best(old, b, key=lambda x: read(x, k)),
                )
            )
    for kind in ("b32", "b64"):
        found += [
            (f"and.{kind}", int(kind[1:]), lambda old, b: old & b),
            (f"or.{kind}", int(kind[1:]), lambda old, b: old | b),
            (f"xor.{kind}", int(kind[1:]), lambda old, b: old ^ b),
            (f"exch.{kind}", int(kind[1:]), lambda old, b: b),
        ]
    found += [
        ("inc.u32", 32, lambda old, b: 0 if old >= b else old + 1),
        ("dec.u32", 32, lambda old, b: b if old == 0 or old > b else old - 1),
        ("add.f32", 32, added(F32, space != "shared")),
        ("add.f64", 64, added(F64, False)),
    ]
    for name in ("f16", "bf16"):
        one = added(FLOATS[name], False)
        found += [(f"add.noftz.{name}", 16, one), (f"add.noftz.{name}x2", 32, halves(one))]
    return found


def operands(bits, seed):
    rng = np.random.default_rng(seed)
    top = (1 << bits) - 1
    found = [int.from_bytes(rng.bytes(bits // 8), "little") for _ in range(64)]
    edges = [0, 1, top, top >> 1, (top >> 1) + 1, 5, 6, top - 1, 3, 2]
    found[::5] = (edges * 2)[: len(found[::5])]
    if bits == 32:
        found[1:9] = [0x3F800000, 0x00000003, 0x80000005, 0x00800001, 0x7F7FFFFF, 0x40490FDB, 0xBF800001, 0x00400000]
        found[33:41] = [0xBF800000, 0x00000007, 0x00800000, 0x80800000, 0x7F7FFFFF, 0x33800000, 0x3F800000, 0x00400000]
    return found


@CHECKED
@pytest.mark.parametrize("space", ["global", "shared", ""])
def test_atomics(space, checked):
    """Atomics return the old value and store the new one, each thread at its own place. red stores the new one."""
    module = ".shared .align 8 .b8 tile[256];"
    lines = ["mad.wide.u32 d30, t, 8, a0;", "mov.u64 d31, tile;", "mad.wide.u32 d31, t, 8, d31;"]
    if space != "shared":
        lines.append("mad.wide.u32 d31, t, 8, a3;")
    name = f".{space}" if space else ""
    cases = updates(space)
    for number, (text, bits, _) in enumerate(cases):
        register = {16: "h", 32: "r", 64: "d"}[bits]
        order = ("", ".relaxed.gpu", ".acquire.cta", ".release.sys", ".acq_rel.gpu")[number % 5]
        at = 256 * number
        held = space or "global"
        load = f"st.{held}.b64 [d31], 0;\nst.{held}.b{bits} [d31], {register}1;"
        lines += [
            f"ld.global.b{bits} {register}1, [d30+{at}];",
            "mad.wide.u32 d32, t, 8, a1;",
            f"ld.global.b{bits} {register}2, [d32+{at}];",
            "mad.wide.u32 d33, t, 24, a2;",
            load,
            f"atom{order}{name}.{text} {register}3, [d31], {register}2;",
            f"st.global.b{bits} [d33+{768 * number}], {register}3;",
            f"ld.{held}.b{bits} {register}3, [d31];",
            f"st.global.b{bits} [d33+{768 * number + 8}], {register}3;",
        ]
        if not text.startswith("exch"):
            lines += [
                load,
                f"red{order.replace('.acquire.cta', '').replace('.acq_rel.gpu', '')}{name}.{text} [d31], {register}2;",
                f"ld.{held}.b{bits} {register}3, [d31];",
                f"st.global.b{bits} [d33+{768 * number + 16}], {register}3;",
            ]
    old = np.zeros((len(cases), 32), np.uint64)
    b = np.zeros((len(cases), 32), np.uint64)
    for number, (_, bits, _) in enumerate(cases):
        drawn = operands(bits, number)
        old[number], b[number] = drawn[:32], drawn[32:]
    out = np.zeros((len(cases), 32, 3), np.uint64)
    out = execute("\n".join(lines), old, b, out, np.zeros(32, np.uint64), check=checked, module=module)[2]
    for number, (text, _, want) in enumerate(cases):
        form = next((f for n, f in FLOATS.items() if text.endswith(n)), None)
        for lane in range(32):
            x, y = int(old[number, lane]), int(b[number, lane])
            new = want(x, y)
            got = [int(v) for v in out[number, lane]]
            if form is F64 and value(new, form)[0] == "nan":
                got[1:] = [new if value(v, form)[0] == "nan" else v for v in got[1:]]
            expected = [x, new, 0 if text.startswith("exch") else new]
            assert got == expected, (text, hex(x), hex(y), [hex(v) for v in got], hex(new))


@CHECKED
@pytest.mark.parametrize("space", ["global", "shared"])
def test_compare_and_swap(space, checked):
    module = ".shared .align 8 .b8 tile[256];"
    for bits, register in ((16, "h"), (32, "r"), (64, "d")):
        body = f"""mad.wide.u32 d30, t, 8, a0;
mov.u64 d31, tile;
mad.wide.u32 d31, t, 8, {"d31" if space == "shared" else "a2"};
mad.wide.u32 d32, t, 32, a1;
ld.global.b{bits} {register}1, [d32];
ld.global.b{bits} {register}2, [d32+8];
ld.global.b{bits} {register}3, [d30];
st.{space}.b64 [d31], -1;
st.{space}.b{bits} [d31], {register}3;
atom.{space}.cas.b{bits} {register}4, [d31], {register}1, {register}2;
st.global.b{bits} [d32+16], {register}4;
ld.{space}.b64 d5, [d31];
st.global.b64 [d32+24], d5;"""
        rng = np.random.default_rng(54)
        old = np.array([int.from_bytes(rng.bytes(bits // 8), "little") for _ in range(32)], np.uint64)
        table = np.zeros((32, 4), np.uint64)
        table[:, 0] = np.where(np.arange(32) % 3 == 0, old ^ np.uint64(1 << (bits - 1)), old)
        table[:, 1] = rng.integers(0, 1 << bits, 32, np.uint64) if bits < 64 else old[::-1]
        scratch = np.zeros(32, np.uint64)
        out = execute(body, old, table, scratch, check=checked, module=module)[1]
        for lane in range(32):
            x, expected, swap = int(old[lane]), int(table[lane, 0]), int(table[lane, 1])
            new = swap if x == expected else x
            assert out[lane, 2] == x
            assert int(out[lane, 3]) == cut(-1 << bits, 64) | new


@CHECKED
@pytest.mark.parametrize("space", ["global", "shared"])
def test_atomics_of_one_location(space, checked):
    """64 threads change one word. Exactly one of them gets each intermediate value."""
    module = ".shared .align 8 .b32 word[4];"
    address = "a1" if space == "global" else "d1"
    body = f"""mov.u64 d1, word;
setp.ne.u32 p1, t, 0;
@p1 bra wait;
st.{space}.v2.b32 [{address}], {{5, 5}};
st.{space}.v2.b32 [{address}+8], {{5, 0}};
wait:
bar.sync 0;
atom.{space}.add.u32 r1, [{address}], 3;
atom.{space}.inc.u32 r2, [{address}+4], 20;
atom.{space}.exch.b32 r3, [{address}+8], t;
red.{space}.max.u32 [{address}+12], t;
bar.sync 0;
ld.{space}.v4.b32 {{r4, r5, r6, r7}}, [{address}];
mad.wide.u32 d2, t, 32, a0;
st.global.v4.b32 [d2], {{r1, r2, r3, r4}};
st.global.v4.b32 [d2+16], {{r5, r6, r7, r7}};"""
    out = execute(body, np.zeros((64, 8), np.uint32), np.zeros(4, np.uint32), threads=64, check=checked, module=module)[
        0
    ]
    assert sorted(out[:, 0].tolist()) == [5 + 3 * i for i in range(64)]
    assert set(out[:, 3].tolist()) == {5 + 3 * 64}
    turns = [(5 + i) % 21 for i in range(65)]
    assert sorted(out[:, 1].tolist()) == sorted(turns[:64])
    assert set(out[:, 4].tolist()) == {turns[64]}
    seen = [*out[:, 2].tolist(), int(out[0, 5])]  # all values that were written, and the initial one
    assert sorted(seen) == sorted([*range(64), 5])
    assert set(out[:, 6].tolist()) == {63}


# ---- copies ----
@CHECKED
def test_asynchronous_copies(checked):
    """cp.async copies every size, in groups. It fills with zeros if the source is shorter or ignored."""
    module = ".shared .align 16 .b8 tile[2048];"
    body = """mov.u64 d1, tile;
mad.wide.u32 d1, t, 64, d1;
mad.wide.u32 d2, t, 64, a0;
cp.async.ca.shared.global [d1], [d2], 4;
cp.async.ca.shared.global [d1+8], [d2+8], 8;
cp.async.commit_group;
cp.async.cg.shared.global [d1+16], [d2+16], 16;
cp.async.ca.shared.global.L2::128B [d1+32], [d2+32], 16, 5;
cp.async.commit_group;
setp.lt.u32 p1, t, 7;
cp.async.ca.shared.global [d1+48], [d2+48], 8, p1;
mov.u32 r1, 0;
cp.async.ca.shared::cta.global [d1+56], [d2+56], 4, r1;
cp.async.commit_group;
cp.async.wait_group 1;
ld.shared.b32 r2, [d1];
ld.shared.b64 d3, [d1+8];
ld.shared.v4.b32 {r3, r4, r5, r6}, [d1+16];
cp.async.wait_all;
ld.shared.v4.b32 {r7, r8, r9, r10}, [d1+32];
ld.shared.b64 d4, [d1+48];
ld.shared.b32 r11, [d1+56];
mad.wide.u32 d5, t, 64, a1;
st.global.b32 [d5], r2;
st.global.b64 [d5+8], d3;
st.global.v4.b32 [d5+16], {r3, r4, r5, r6};
st.global.v4.b32 [d5+32], {r7, r8, r9, r10};
st.global.b64 [d5+48], d4;
st.global.b32 [d5+56], r11;"""
    data = np.random.default_rng(55).integers(1, 256, (32, 64)).astype(np.uint8)
    out = execute(body, data, np.zeros((32, 64), np.uint8), check=checked, module=module)[1]
    expected = data.copy()
    expected[:, 4:8] = expected[:, 60:] = expected[:, 56:60] = expected[:, 37:48] = 0
    expected[:7, 48:56] = 0
    assert np.array_equal(out, expected)


def test_hints_have_no_effect():
    body = """prefetch.global.L1 [a0];
prefetch.global.L2 [a0];
prefetchu.L1 [a0];
prefetch.global.L2::evict_last [a0];
createpolicy.fractional.L2::evict_last.b64 d1, 1.0;
ld.global.L2::cache_hint.b32 r1, [a0], d1;
applypriority.global.L2::evict_normal [a0], 128;
fence.proxy.async;
membar.cta; membar.gl; membar.sys; fence.sc.gpu; fence.acq_rel.cta;
nanosleep.u32 20;
pmevent 1;
st.global.b32 [a1], r1;"""
    out = execute(body, np.array([77], np.uint32), np.zeros(1, np.uint32), threads=1)[1]
    assert out.tolist() == [77]


def test_values_survive_memory():
    """A value may be stored narrow and loaded wide, or the other way round."""
    a = np.random.default_rng(56).integers(0, 1 << 32, 128, np.uint32)
    check(
        [
            Case(
                ".local .b32 m;\nst.local.b8 [m], $a;\nld.local.s8 $d, [m];",
                "b32",
                {"a": a},
                lambda a: cut(read(a, "s8"), 32),
            )
        ],
        checked=True,
    )


@pytest.mark.parametrize(
    "text",
    [
        "ld.global.v3.b32 {r1, r2, r3}, [d1];",
        "ld.global.v2.b32 r1, [d1];",
        "ld.global.acquire2.b32 r1, [d1];",
        "ld.shared::x.b32 r1, [d1];",
        "atom.global.add.b32 r1, [d1], r2;",
        "atom.global.min.f32 r1, [d1], r2;",
        "atom.global.inc.u64 d1, [d1], d2;",
        "atom.global.mul.u32 r1, [d1], r2;",
        "red.global.cas.b32 [d1], r2;",
        "cp.async.ca.shared.global [r1], [d1], 12;",
        "cp.async.bulk.shared::cluster.global [r1], [d1], r2, [r3];",
        "atom.global.and.f32 r1, [d1], r2;",
        "atom.global.min.noftz.f16 h1, [d1], h2;",
        "st.global.v2.b32 [d1], r1;",
        "fence.release2.gpu;",
        "membar.cluster2;",
        "ld.mmio.global.b32 r1, [d1];",
        "red.async.relaxed.cluster.global.add.u32 [r1], r2, [r3];",
        "multimem.ld_reduce.global.add.u32 r1, [d1];",
        "tld4.r.2d.v4.f32.f32 {r1,r2,r3,r4}, [d1, {f1,f2}];",
        "mbarrier.complete_tx.release.cta.shared.b64 [r1], 16;",
        "mbarrier.init.global.b64 [d1], 1;",
        "sured.b.add.1d.u32 [d1, {r2}], r1;",
        "ld.f16x3 r1, [d1];",
    ],
)
def test_rejected_at_load(text):
    message = rejection(text)
    assert text.split()[0].rstrip(";") in message
    assert "PTX line" in message

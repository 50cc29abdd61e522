"""Collective instructions of a warp and special registers on the PTX machine."""

from __future__ import annotations

import numpy as np
import pytest
from simt_numbers import F32, cut, lesser, read, rounded, value
from simt_ptx import execute, rejection

LANES = range(32)
MASKS = (0xFFFFFFFF, 0x0000FFFF, 0xF0F0F0F0, 0x80000001, 0x00000400, 0x5A5A1234)


def members(mask):
    return [lane for lane in LANES if mask >> lane & 1]


def among(mask, body):
    """PTX that runs a body on the lanes of a mask; the other lanes skip it."""
    return f"""shr.u32 r39, {mask:#x}, t;
and.b32 r39, r39, 1;
setp.eq.u32 p39, r39, 0;
@p39 bra past;
{body}
past:"""


def source_of(mode, lane, b, c):
    """(lane that is read, predicate) of a shuffle. Lanes outside the segment are not read."""
    b, clamp, segment = b & 31, c & 31, c >> 8 & 31
    low = lane & segment
    high = low | clamp & ~segment & 31
    if mode == "up":
        target = lane - b
        inside = target >= high
    else:
        target = {"down": lane + b, "bfly": lane ^ b, "idx": low | b & ~segment & 31}[mode]
        inside = target <= high
    return (target if inside else lane), inside


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffles(mode):
    rng = np.random.default_rng(60)
    tries = 24
    values = rng.integers(0, 1 << 32, 32, np.uint32)
    table = np.zeros((tries, 32, 2), np.uint32)
    table[:, :, 0] = rng.integers(0, 40, (tries, 32))
    widths = [32, 16, 8, 4, 2, 1]
    for k in range(tries):
        width = widths[k % 6]
        clamp = (32 - width) << 8 | (0 if mode == "up" else 31)
        table[k, :, 1] = clamp if k < 12 else rng.integers(0, 1 << 13, 32)
        table[k, :, 0] = table[k, 0, 0] if k % 2 else table[k, :, 0]
    lines = [
        "mad.wide.u32 d1, t, 4, a0;",
        "ld.global.b32 r1, [d1];",
        "mad.wide.u32 d2, t, 8, a1;",
        "mad.wide.u32 d3, t, 8, a2;",
    ]
    for k in range(tries):
        lines += [
            f"ld.global.v2.b32 {{r2, r3}}, [d2+{256 * k}];",
            f"shfl.sync.{mode}.b32 r4|p1, r1, r2, r3, 0xffffffff;",
            "selp.b32 r5, 1, 0, p1;",
            f"st.global.v2.b32 [d3+{256 * k}], {{r4, r5}};",
        ]
    out = execute("\n".join(lines), values, table, np.zeros((tries, 32, 2), np.uint32))[2]
    for k in range(tries):
        for lane in LANES:
            source, inside = source_of(mode, lane, int(table[k, lane, 0]), int(table[k, lane, 1]))
            assert out[k, lane].tolist() == [values[source], int(inside)], (k, lane)


@pytest.mark.parametrize("mask", MASKS)
def test_shuffles_of_some_lanes(mask):
    lanes = members(mask)
    body = among(
        mask,
        f"""mad.wide.u32 d1, t, 4, a0;
ld.global.b32 r1, [d1];
ld.global.b32 r2, [d1+128];
shfl.sync.idx.b32 r1, r1, r2, 31, {mask:#x};
st.global.b32 [d1+256], r1;""",
    )
    data = np.zeros((3, 32), np.uint32)
    data[0] = np.random.default_rng(61).integers(0, 1 << 32, 32, np.uint32)
    data[1] = [lanes[(7 * lane + 3) % len(lanes)] for lane in LANES]
    out = execute(body, data)[0]
    assert out[2].tolist() == [int(data[0, data[1, lane]]) if lane in lanes else 0 for lane in LANES]


@pytest.mark.parametrize("mask", MASKS)
def test_votes(mask):
    lanes = members(mask)
    rng = np.random.default_rng(62)
    words = np.array(
        [0, mask, 0xFFFFFFFF, mask & -mask, mask ^ (mask & -mask), ~mask & 0xFFFFFFFF, *rng.integers(0, 1 << 32, 4)],
        np.uint32,
    )
    lines = ["mad.wide.u32 d1, t, 16, a1;"]
    for k in range(len(words)):
        lines += [
            f"ld.global.b32 r1, [a0+{4 * k}];",
            "shr.u32 r1, r1, t;",
            "and.b32 r1, r1, 1;",
            "setp.ne.u32 p1, r1, 0;",
            f"vote.sync.all.pred p2, p1, {mask:#x};",
            f"vote.sync.any.pred p3, p1, {mask:#x};",
            f"vote.sync.uni.pred p4, p1, {mask:#x};",
            f"vote.sync.ballot.b32 r5, !p1, {mask:#x};",
            "selp.b32 r2, 1, 0, p2;",
            "selp.b32 r3, 1, 0, p3;",
            "selp.b32 r4, 1, 0, p4;",
            f"st.global.v4.b32 [d1+{512 * k}], {{r2, r3, r4, r5}};",
        ]
    out = execute(among(mask, "\n".join(lines)), words, np.zeros((len(words), 32, 4), np.uint32))[1]
    for k, word in enumerate(words.tolist()):
        bits = [word >> lane & 1 for lane in lanes]
        ballot = sum(1 << lane for lane, bit in zip(lanes, bits) if not bit)
        expected = [int(all(bits)), int(any(bits)), int(len(set(bits)) == 1), ballot]
        for lane in LANES:
            assert out[k, lane].tolist() == (expected if lane in lanes else [0] * 4)


@pytest.mark.parametrize("mask", MASKS)
def test_matches(mask):
    lanes = members(mask)
    rng = np.random.default_rng(63)
    values = rng.integers(0, 4, (4, 32)).astype(np.uint64) << np.uint64(31)
    values[2] = 0x1234567800000000 + 3
    values[3] = values[2]
    values[3, lanes[-1]] += np.uint64(1 << 40)
    lines = ["mad.wide.u32 d1, t, 8, a0;", "mad.wide.u32 d2, t, 32, a1;"]
    for k in range(4):
        lines += [
            f"ld.global.b64 d3, [d1+{256 * k}];",
            "cvt.u32.u64 r1, d3;",
            f"match.any.sync.b32 r2, r1, {mask:#x};",
            f"match.any.sync.b64 r3, d3, {mask:#x};",
            f"match.all.sync.b32 r4|p1, r1, {mask:#x};",
            f"match.all.sync.b64 r5|p2, d3, {mask:#x};",
            f"match.all.sync.b64 r6, d3, {mask:#x};",
            "selp.b32 r7, 1, 0, p1;",
            "selp.b32 r8, 1, 0, p2;",
            f"st.global.v4.b32 [d2+{1024 * k}], {{r2, r3, r4, r5}};",
            f"st.global.v4.b32 [d2+{1024 * k + 16}], {{r6, r7, r8, 0}};",
        ]
    out = execute(among(mask, "\n".join(lines)), values, np.zeros((4, 32, 8), np.uint32))[1]
    for k in range(4):
        for lane in LANES:
            if lane not in lanes:
                assert not out[k, lane].any()
                continue
            narrow = [int(v) & 0xFFFFFFFF for v in values[k]]
            wide = [int(v) for v in values[k]]
            same = [sum(1 << other for other in lanes if v[other] == v[lane]) for v in (narrow, wide)]
            everyone = [mask if s == mask else 0 for s in same]
            assert out[k, lane].tolist() == [*same, *everyone, everyone[1], *(int(e != 0) for e in everyone), 0]


@pytest.mark.parametrize("mask", MASKS)
def test_reductions(mask):
    lanes = members(mask)
    values = np.random.default_rng(64).integers(0, 1 << 32, 32, np.uint32)
    values[::3] |= 0x80000000

    def join(kind, function):
        result = None
        for lane in lanes:
            x = read(int(values[lane]), kind)
            result = x if result is None else function(result, x)
        return cut(result, 32)

    names = {"add": lambda a, b: a + b, "min": min, "max": max}
    operations = [(f"{name}.{kind}", join(kind, f)) for name, f in names.items() for kind in ("u32", "s32")]
    operations += [
        (f"{name}.b32", join("b32", f))
        for name, f in (("and", lambda a, b: a & b), ("or", lambda a, b: a | b), ("xor", lambda a, b: a ^ b))
    ]
    lines = ["mad.wide.u32 d1, t, 4, a0;", "ld.global.b32 r1, [d1];", "mad.wide.u32 d2, t, 4, a1;"]
    for k, (text, _) in enumerate(operations):
        lines += [f"redux.sync.{text} r2, r1, {mask:#x};", f"st.global.b32 [d2+{128 * k}], r2;"]
    out = execute(among(mask, "\n".join(lines)), values, np.zeros((len(operations), 32), np.uint32))[1]
    for k, (text, expected) in enumerate(operations):
        assert [int(out[k, lane]) for lane in LANES] == [expected if lane in lanes else 0 for lane in LANES], text


def test_float_reductions():
    """redux of float32: a NaN wins only with .NaN."""
    rng = np.random.default_rng(65)
    rows = rng.standard_normal((3, 32)).astype(np.float32)
    rows[1, 5] = np.nan
    rows[2, :4] = [-0.0, 0.0, np.inf, -np.inf]
    operations = [(op, nan, size) for op in ("min", "max") for nan in ("", ".NaN") for size in ("", ".abs")]
    lines = ["mad.wide.u32 d1, t, 4, a0;", "mad.wide.u32 d2, t, 4, a1;"]
    at = 0
    for row in range(3):
        lines.append(f"ld.global.b32 r1, [d1+{128 * row}];")
        for op, nan, size in operations:
            lines += [f"redux.sync.{op}{size}{nan}.f32 r2, r1, 0xffffffff;", f"st.global.b32 [d2+{at}], r2;"]
            at += 128
    out = execute("\n".join(lines), rows, np.zeros((3, len(operations), 32), np.uint32), arch="sm_100")[1]
    for row in range(3):
        for k, (op, nan, size) in enumerate(operations):
            numbers = [value(int(x), F32) for x in rows[row].view(np.uint32)]
            if size:
                numbers = [(kind, False, x) for kind, _, x in numbers]
            if nan and any(x[0] == "nan" for x in numbers):
                expected = 0x7FFFFFFF
            else:
                best = None
                for x in numbers:
                    if x[0] != "nan" and (best is None or (lesser(x, best) if op == "min" else lesser(best, x))):
                        best = x
                expected = rounded(best, F32)
            assert set(out[row, k].tolist()) == {expected}, (row, op, nan, size)


def test_active_lanes_and_election():
    body = """activemask.b32 r1;
and.b32 r2, t, 3;
setp.eq.u32 p1, r2, 1;
mov.b32 r3, 0;
@p1 activemask.b32 r3;
mov.b32 r4, 0;
mov.b32 r5, 0;
@!p1 bra past;
activemask.b32 r4;
elect.sync r5|p2, 0x22222222;
selp.b32 r6, 100, 0, p2;
add.u32 r5, r5, r6;
past:
bar.warp.sync 0xffffffff;
activemask.b32 r6;
mad.wide.u32 d1, t, 32, a0;
st.global.v4.b32 [d1], {r1, r3, r4, r5};
st.global.b32 [d1+16], r6;"""
    out = execute(body, np.zeros((32, 8), np.uint32))[0]
    inside = 0x22222222
    chosen = [int(row[3]) for lane, row in enumerate(out) if inside >> lane & 1]
    leader = {x % 100 for x in chosen}
    assert len(leader) == 1
    assert inside >> leader.pop() & 1
    assert sum(x >= 100 for x in chosen) == 1
    for lane, row in enumerate(out.tolist()):
        part = inside if inside >> lane & 1 else 0
        assert row[:3] == [0xFFFFFFFF, part, part]
        assert row[4] == 0xFFFFFFFF


def test_lanes_from_two_branches_share_an_instruction():
    """Lanes in two branches take part in one shuffle and one vote with one mask."""
    body = """setp.lt.u32 p1, t, 16;
mul.lo.u32 r1, t, t;
@p1 bra low;
shfl.sync.bfly.b32 r2, r1, 16, 31, 0xffffffff;
vote.sync.ballot.b32 r3, p1, 0xffffffff;
bra out;
low:
add.u32 r1, r1, 1000;
shfl.sync.bfly.b32 r2, r1, 16, 31, 0xffffffff;
vote.sync.ballot.b32 r3, p1, 0xffffffff;
out:
mad.wide.u32 d1, t, 8, a0;
st.global.v2.b32 [d1], {r2, r3};"""
    out = execute(body, np.zeros((32, 2), np.uint32))[0]
    for lane in LANES:
        other = lane ^ 16
        assert out[lane].tolist() == [other * other + (1000 if other < 16 else 0), 0xFFFF]


def test_barriers_that_reduce():
    body = """setp.lt.u32 p1, t, 40;
setp.lt.u32 p2, t, 99;
setp.gt.u32 p3, t, 99;
bar.red.popc.u32 r1, 0, p1;
barrier.cta.red.popc.aligned.u32 r2, 1, 96, !p1;
bar.red.and.pred p4, 0, p2;
bar.red.and.pred p5, 0, p1;
bar.red.or.pred p6, 2, 96, p1;
bar.red.or.pred p7, 0, p3;
selp.b32 r3, 1, 0, p4; selp.b32 r4, 2, 0, p5; selp.b32 r5, 4, 0, p6; selp.b32 r6, 8, 0, p7;
or.b32 r3, r3, r4; or.b32 r3, r3, r5; or.b32 r3, r3, r6;
mad.wide.u32 d1, t, 16, a0;
st.global.v4.b32 [d1], {r1, r2, r3, 0};"""
    out = execute(body, np.zeros((96, 4), np.uint32), threads=96)[0]
    assert {tuple(row) for row in out.tolist()} == {(40, 56, 1 | 4, 0)}


def test_special_registers():
    import ptxsim

    names = [
        "%tid.x",
        "%tid.y",
        "%tid.z",
        "%ntid.x",
        "%ntid.y",
        "%ntid.z",
        "%ctaid.x",
        "%ctaid.y",
        "%ctaid.z",
        "%nctaid.x",
        "%nctaid.y",
        "%nctaid.z",
        "%laneid",
        "%warpid",
        "%nwarpid",
        "%lanemask_eq",
        "%lanemask_le",
        "%lanemask_lt",
        "%lanemask_ge",
        "%lanemask_gt",
        "WARP_SZ",
        "%smid",
        "%nsmid",
        "%dynamic_smem_size",
    ]
    lines = [
        ".version 8.0",
        ".target sm_90",
        ".address_size 64",
        ".visible .entry k(.param .u64 out)",
        "{",
        ".reg .b32 r<30>; .reg .b64 d<9>;",
        "ld.param.u64 d1, [out];",
    ]
    block, grid = (5, 4, 3), (3, 2, 2)
    threads = 60
    lines += [
        "mov.u32 r1, %ctaid.z;",
        "mov.u32 r2, %ctaid.y;",
        "mov.u32 r3, %ctaid.x;",
        "mad.lo.u32 r1, r1, 2, r2;",
        "mad.lo.u32 r1, r1, 3, r3;",
        "mov.u32 r2, %tid.z;",
        "mov.u32 r3, %tid.y;",
        "mov.u32 r4, %tid.x;",
        "mad.lo.u32 r2, r2, 4, r3;",
        "mad.lo.u32 r2, r2, 5, r4;",
        "mad.lo.u32 r1, r1, 60, r2;",
        f"mad.wide.u32 d1, r1, {4 * len(names)}, d1;",
    ]
    for k, name in enumerate(names):
        lines += [f"mov.u32 r5, {name};", f"st.global.u32 [d1+{4 * k}], r5;"]
    machine = ptxsim.Machine(sm_count=3)
    out = machine.device(0).array(np.zeros((12, threads, len(names)), np.uint32))
    machine.device(0).launch("\n".join([*lines, "ret;", "}"]), grid, block, out, shared=256)
    assert machine.run() == []
    got = out.copy_to_host()
    for b in range(12):
        for thread in range(threads):
            lane = thread % 32
            x = [
                thread % 5,
                thread // 5 % 4,
                thread // 20,
                *block,
                b % 3,
                b // 3 % 2,
                b // 6,
                *grid,
                lane,
                thread // 32,
                2,
            ]
            x += [1 << lane, (2 << lane) - 1, (1 << lane) - 1, cut(-1 << lane, 32), cut(-2 << lane, 32), 32]
            assert got[b, thread, :21].tolist() == x
            assert got[b, thread, 21] < 3
            assert got[b, thread, 22:].tolist() == [3, 256]


def test_clocks_increase():
    body = """mov.u64 d1, %clock64;
mov.u64 d2, %globaltimer;
mov.u32 r1, %clock;
nanosleep.u32 50;
mov.u64 d3, %clock64;
mov.u64 d4, %globaltimer;
mov.u32 r2, %clock;
mad.wide.u32 d5, t, 32, a0;
sub.u64 d3, d3, d1;
sub.u64 d4, d4, d2;
sub.u32 r2, r2, r1;
cvt.u64.u32 d6, r2;
st.global.v2.b64 [d5], {d3, d4};
st.global.v2.b64 [d5+16], {d6, d2};"""
    out = execute(body, np.zeros((32, 4), np.int64))[0]
    assert (out[:, :3] > 0).all()
    assert (out[:, 3] > 0).all()


@pytest.mark.parametrize(
    "text",
    [
        "shfl.up.b32 r1, r2, r3, r4;",
        "shfl.sync.idx.b64 d1, d2, r3, r4, r5;",
        "vote.all.pred p1, p2;",
        "vote.sync.none.pred p1, p2, r1;",
        "match.any.sync.u32 r1, r2, r3;",
        "redux.sync.mul.u32 r1, r2, r3;",
        "redux.sync.add.f32 r1, r2, r3;",
        "redux.sync.and.u32 r1, r2, r3;",
        "redux.sync.min.b32 r1, r2, r3;",
        "barrier.cluster.sync;",
        "bar.red.xor.pred p1, 0, p2;",
        "wgmma.fence.aligned;",
        "redux.sync.min.abs.u32 r1, r2, r3;",
    ],
)
def test_rejected_at_load(text):
    message = rejection(text)
    assert text.split()[0].rstrip(";") in message
    assert "PTX line" in message

# ruff: noqa: E501 (PTX is written as it reads best)
"""Instructions of a whole warp against NumPy: shuffles, votes, matches, reductions, matrices; a tile GEMM by mma.sync."""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")
from aristos import simt

HEAD = ".version 8.6\n.target sm_90\n.address_size 64\n"


def warp(body, given, words=1, check=True, shared=0):
    """Run `body` for one warp: %r0, %r1, ... hold the words given [32, n] uint32, %d0, ... the words stored."""
    n = given.shape[1]
    loads = "".join(f"ld.global.u32 %r{k}, [%in+{4 * k}];\n" for k in range(n))
    stores = "".join(f"st.global.u32 [%out+{4 * k}], %d{k};\n" for k in range(words))
    text = f"""{HEAD}
.visible .entry k(.param .u64 in, .param .u64 out)
{{
.reg .u64 %in, %out, %o, %sp; .reg .b32 %r<{n + 1}>, %d<{words + 1}>, %t, %x; .reg .pred %p, %q;
.shared .align 16 .b8 s[{max(shared, 16)}];
mov.u32 %t, %tid.x;
ld.param.u64 %in, [in]; mul.wide.u32 %o, %t, {4 * n}; add.u64 %in, %in, %o;
ld.param.u64 %out, [out]; mul.wide.u32 %o, %t, {4 * words}; add.u64 %out, %out, %o;
{loads}
{body}
{stores}
ret;
}}"""
    machine = simt.Machine(check=check)
    d = machine.device(0)
    a, out = d.array(np.ascontiguousarray(given, np.uint32)), d.array(np.zeros((32, words), np.uint32))
    d.launch(text, 1, 32, a, out)
    assert machine.run() == []
    return out.copy_to_host()


LANES = np.arange(32)
RANDOM = np.random.default_rng(5)


@pytest.mark.parametrize(
    ("mode", "b", "c", "source"),
    [
        ("idx", 7, 0x1F, lambda t: np.full(32, 7)), ("up", 3, 0, lambda t: np.where(t >= 3, t - 3, t)),
        ("down", 5, 0x1F, lambda t: np.where(t + 5 < 32, t + 5, t)), ("bfly", 9, 0x1F, lambda t: t ^ 9),
        ("down", 2, 0x181F, lambda t: np.where(t % 8 + 2 < 8, t + 2, t)),
        ("idx", 1, 0x1C1F, lambda t: t // 4 * 4 + 1),
    ],
)  # fmt: skip
def test_shuffle(mode, b, c, source):
    given = RANDOM.integers(0, 2**32, (32, 1))
    got = warp(f"shfl.sync.{mode}.b32 %d0|%p, %r0, {b}, {c}, -1; selp.u32 %d1, 1, 0, %p;", given, 2)
    assert np.array_equal(got[:, 0], given[source(LANES), 0])


def test_votes_matches_reductions():
    given = RANDOM.integers(0, 4, (32, 1)).astype(np.uint32)
    text = """
    setp.gt.u32 %p, %r0, 1;
    vote.sync.ballot.b32 %d0, %p, -1;
    vote.sync.all.pred %q, %p, -1; selp.u32 %d1, 1, 0, %q;
    vote.sync.any.pred %q, %p, -1; selp.u32 %d2, 1, 0, %q;
    match.any.sync.b32 %d3, %r0, -1;
    redux.sync.add.s32 %d4, %r0, -1; redux.sync.max.u32 %d5, %r0, -1; redux.sync.xor.b32 %d6, %r0, -1;
    activemask.b32 %d7;
    match.all.sync.b32 %d8|%q, %r0, -1; selp.u32 %d9, 1, 0, %q;
    """
    got = warp(text, given, 10)
    v = given[:, 0]
    bits = 1 << LANES.astype(np.uint64)
    assert set(got[:, 0]) == {int(bits[v > 1].sum())}
    assert set(got[:, 1]) == {int((v > 1).all())}
    assert set(got[:, 2]) == {int((v > 1).any())}
    assert [int(x) for x in got[:, 3]] == [int(bits[v == x].sum()) for x in v]
    assert set(got[:, 4]) == {int(v.sum())}
    assert set(got[:, 5]) == {int(v.max())}
    assert set(got[:, 6]) == {int(np.bitwise_xor.reduce(v))}
    assert set(got[:, 7]) == {0xFFFFFFFF}
    assert set(got[:, 8]) == {0}
    assert set(got[:, 9]) == {0}


def fragments(matrix, rows, columns, bits):
    """The registers [32, n] uint32 of a fragment by PTX's text: groups of lane // 4 and lane % 4.

    matrix: A [rows, columns] by rows, or B given transposed [n, k] with rows = 8.
    """
    per = 32 // bits
    out = []
    for column in range(0, columns, 4 * per):
        for row in range(0, rows, 8):
            words = []
            for lane in range(32):
                part = matrix[row + lane // 4, column + lane % 4 * per : column + (lane % 4 + 1) * per]
                words.append(int.from_bytes(np.ascontiguousarray(part).tobytes(), "little"))
            out.append(words)
    return np.array(out, np.uint64).T.astype(np.uint32)


def accumulator(words):
    """[16, 8] of the four words of C or D of each lane."""
    c = np.zeros((16, 8), words.dtype)
    for lane in range(32):
        for k in range(4):
            c[lane // 4 + 8 * (k // 2), lane % 4 * 2 + k % 2] = words[lane, k]
    return c


def chained(a, b, c):
    """C and the exact products, summed in float32 one by one in k order."""
    for k in range(a.shape[1]):
        c = (c.astype(np.float64) + a[:, k, None].astype(np.float64) * b[None, k, :]).astype(np.float32)
    return c


@pytest.mark.parametrize(
    ("shape", "kind", "k", "bits"),
    [("m16n8k8", "tf32", 8, 32), ("m16n8k4", "tf32", 4, 32), ("m16n8k16", "f16", 16, 16), ("m16n8k8", "f16", 8, 16),
     ("m16n8k16", "bf16", 16, 16), ("m16n8k8", "bf16", 8, 16), ("m16n8k32", "s8", 32, 8), ("m16n8k16", "s8", 16, 8)],
)  # fmt: skip
def test_mma(shape, kind, k, bits):
    if kind == "s8":
        a, b = RANDOM.integers(-128, 128, (16, k)).astype(np.int8), RANDOM.integers(-128, 128, (k, 8)).astype(np.int8)
        raw_a, raw_b = a, b
        c = RANDOM.integers(-1000, 1000, (32, 4)).astype(np.int32)
    else:
        a, b = RANDOM.standard_normal((16, k)).astype(np.float32), RANDOM.standard_normal((k, 8)).astype(np.float32)
        if kind == "f16":
            raw_a, raw_b = a.astype(np.float16), b.astype(np.float16)
            a, b = raw_a.astype(np.float32), raw_b.astype(np.float32)
        else:
            cut = np.uint32(0xFFFF0000 if kind == "bf16" else 0xFFFFE000)
            a, b = (a.view(np.uint32) & cut).view(np.float32), (b.view(np.uint32) & cut).view(np.float32)
            raw_a, raw_b = a, b
            if kind == "bf16":
                raw_a, raw_b = ((x.view(np.uint32) >> 16).astype(np.uint16) for x in (a, b))
        c = RANDOM.standard_normal((32, 4)).astype(np.float32)
    fa, fb = fragments(raw_a, 16, k, bits), fragments(np.ascontiguousarray(raw_b.T), 8, k, bits)
    given = np.concatenate([fa, fb, c.view(np.uint32)], axis=1)
    na, nb = fa.shape[1], fb.shape[1]
    regs = [f"%r{i}" for i in range(given.shape[1])]
    out = "s32" if kind == "s8" else "f32"
    lists = (
        "{%d0,%d1,%d2,%d3}",
        *("{" + ",".join(part) + "}" for part in (regs[:na], regs[na : na + nb], regs[na + nb :])),
    )
    got = warp(f"mma.sync.aligned.{shape}.row.col.{out}.{kind}.{kind}.{out} {', '.join(lists)};", given, 4)
    if kind == "s8":
        want = accumulator(c).astype(np.int64) + a.astype(np.int64) @ b.astype(np.int64)
        assert np.array_equal(accumulator(got.view(np.int32)), want)
    else:
        assert np.array_equal(accumulator(got.view(np.float32)), chained(a, b, accumulator(c)))


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_ldmatrix_and_stmatrix(trans):
    matrix = RANDOM.integers(0, 2**16, (4, 8, 8)).astype(np.uint16)
    rows = matrix.reshape(32, 8).view(np.uint32)  # lane i holds row i
    text = f"""
    mov.u64 %sp, s; cvt.u32.u64 %x, %sp; shl.b32 %t, %t, 4; add.u32 %x, %x, %t;
    st.shared.v4.u32 [%x], {{%r0, %r1, %r2, %r3}};
    bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%d0, %d1, %d2, %d3}}, [%x];
    bar.warp.sync -1;
    stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%x], {{%d0, %d1, %d2, %d3}};
    bar.warp.sync -1;
    ld.shared.v4.u32 {{%d4, %d5, %d6, %d7}}, [%x];
    """
    got = warp(text, rows, 8, shared=512)
    for m in range(4):
        want = matrix[m].T if trans else matrix[m]
        mine = got[:, m].copy().view(np.uint16).reshape(8, 4, 2).reshape(8, 8)
        assert np.array_equal(mine, want)
    assert np.array_equal(got[:, 4:], rows)


def test_a_tile_of_a_product_by_mma():
    """64 x 64 x 64 in bf16, 8 warps: right, and in under 2 s."""
    a = (RANDOM.standard_normal((64, 64)).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    b = (RANDOM.standard_normal((64, 64)).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    to16 = lambda x: (np.ascontiguousarray(x).view(np.uint32) >> 16).astype(np.uint16)  # noqa: E731
    text = f"""{HEAD}
.visible .entry gemm(.param .u64 pa, .param .u64 pb, .param .u64 pc)
{{
.reg .u64 %a, %b, %c, %o; .reg .b32 %t, %w, %g, %q, %m, %n, %k, %x, %f<4>, %h<2>; .reg .f32 %d<4>; .reg .pred %p;
ld.param.u64 %a, [pa]; ld.param.u64 %b, [pb]; ld.param.u64 %c, [pc];
mov.u32 %t, %tid.x; shr.u32 %w, %t, 5; and.b32 %t, %t, 31; shr.u32 %g, %t, 2; and.b32 %q, %t, 3; shl.b32 %q, %q, 1;
shl.b32 %n, %w, 3; mov.u32 %m, 0;
ROWS:
mov.f32 %d0, 0f00000000; mov.f32 %d1, %d0; mov.f32 %d2, %d0; mov.f32 %d3, %d0; mov.u32 %k, 0;
STEP:
add.u32 %x, %m, %g; shl.b32 %x, %x, 6; add.u32 %x, %x, %k; add.u32 %x, %x, %q; mul.wide.u32 %o, %x, 2; add.u64 %o, %a, %o;
ld.global.b32 %f0, [%o]; ld.global.b32 %f1, [%o+1024]; ld.global.b32 %f2, [%o+16]; ld.global.b32 %f3, [%o+1040];
add.u32 %x, %n, %g; shl.b32 %x, %x, 6; add.u32 %x, %x, %k; add.u32 %x, %x, %q; mul.wide.u32 %o, %x, 2; add.u64 %o, %b, %o;
ld.global.b32 %h0, [%o]; ld.global.b32 %h1, [%o+16];
mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{%d0,%d1,%d2,%d3}}, {{%f0,%f1,%f2,%f3}}, {{%h0,%h1}}, {{%d0,%d1,%d2,%d3}};
add.u32 %k, %k, 16; setp.lt.u32 %p, %k, 64; @%p bra STEP;
add.u32 %x, %m, %g; shl.b32 %x, %x, 6; add.u32 %x, %x, %n; add.u32 %x, %x, %q; mul.wide.u32 %o, %x, 4; add.u64 %o, %c, %o;
st.global.v2.f32 [%o], {{%d0, %d1}}; st.global.v2.f32 [%o+2048], {{%d2, %d3}};
add.u32 %m, %m, 16; setp.lt.u32 %p, %m, 64; @%p bra ROWS;
ret;
}}"""
    machine = simt.Machine()
    d = machine.device(0)
    out = d.empty((64, 64), np.float32)
    d.launch(text, 1, 256, d.array(to16(a)), d.array(to16(b.T)), out)
    start = time.perf_counter()
    assert machine.run() == []
    assert time.perf_counter() - start < 2
    assert np.array_equal(out.copy_to_host(), chained(a, b, np.zeros((64, 64), np.float32)))

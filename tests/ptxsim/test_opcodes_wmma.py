"""wmma and clusters of one block on the PTX machine, against NumPy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from simt_ptx import launched, rejection

TYPES = {
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "tf32": np.float32,
    "f64": np.float64,
    "s8": np.int8,
    "u8": np.uint8,
    "f32": np.float32,
    "s32": np.int32,
}
# shape, type of A and B, of C, of D, registers of A, B, C, D as the PTX ISA lists them
CASES = [
    ("m16n16k16", "f16", "f32", "f32", (8, 8, 8, 8)),
    ("m16n16k16", "f16", "f16", "f16", (8, 8, 4, 4)),
    ("m16n16k16", "f16", "f16", "f32", (8, 8, 4, 8)),
    ("m32n8k16", "f16", "f32", "f32", (8, 8, 8, 8)),
    ("m8n32k16", "f16", "f32", "f16", (8, 8, 8, 4)),
    ("m16n16k16", "bf16", "f32", "f32", (4, 4, 8, 8)),
    ("m32n8k16", "bf16", "f32", "f32", (8, 2, 8, 8)),
    ("m8n32k16", "bf16", "f32", "f32", (2, 8, 8, 8)),
    ("m16n16k8", "tf32", "f32", "f32", (4, 4, 8, 8)),
    ("m8n8k4", "f64", "f64", "f64", (1, 1, 2, 2)),
    ("m16n16k16", "s8", "s32", "s32", (2, 2, 8, 8)),
    ("m32n8k16", "u8", "s32", "s32", (4, 1, 8, 8)),
    ("m8n32k16", "s8", "s32", "s32", (1, 4, 8, 8)),
]


def drawn(rng, shape, kind):
    if kind in ("s8", "u8", "s32"):
        limits = np.iinfo(TYPES[kind]) if kind != "s32" else np.iinfo(np.int16)
        return rng.integers(limits.min, limits.max, shape, endpoint=True).astype(TYPES[kind])
    values = rng.standard_normal(shape).astype(TYPES[kind])
    return (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) if kind == "tf32" else values


def held(matrix, layout, extra):
    """(the matrix as it lies in memory, with rows or columns that are longer by `extra` elements; their stride)."""
    stored = matrix if layout == "row" else matrix.T
    wide = np.zeros((stored.shape[0], stored.shape[1] + extra), matrix.dtype)
    wide[:, : stored.shape[1]] = stored
    return wide, wide.shape[1]


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("layouts", ["row row row", "col row col", "row col row", "col col col"])
@pytest.mark.parametrize(("shape", "kind", "kind_c", "kind_d", "counts"), CASES)
def test_products(shape, kind, kind_c, kind_d, counts, layouts, space):
    m, rest = shape[1:].split("n")
    m, n, k = int(m), *(int(x) for x in rest.split("k"))
    rng = np.random.default_rng(1)
    a, b, c = drawn(rng, (m, k), kind), drawn(rng, (k, n), kind), drawn(rng, (m, n), kind_c)
    la, lb, lc = layouts.split()
    extra = 8 if space == "global" else 0
    (a_in, a_step), (b_in, b_step), (c_in, c_step) = held(a, la, extra), held(b, lb, extra), held(c, lc, extra)
    d_in, d_step = held(np.zeros((m, n), TYPES[kind_d]), lc, extra)
    wide = kind == "f64"
    name = "d" if wide else "r"
    starts = np.cumsum([0, *counts])
    a_reg, b_reg, c_reg, d_reg = (
        "{" + ", ".join(f"{name}{i}" for i in range(s, s + w)) + "}" for s, w in zip(starts, counts)
    )
    types = f"{kind_d}.{kind_c}" if kind == "f16" else f"{kind_d}.{kind}.{kind}.{kind_c}"
    copies, at, module = [], 0, ".shared .align 32 .b8 tile[8192];"
    addresses = ["a0", "a1", "a2"]
    if space == "shared":
        for number, array in enumerate((a_in, b_in, c_in)):
            words = array.nbytes // 4
            copies.append(f"""mov.u32 r39, t;
COPY{number}: mul.wide.u32 d38, r39, 4;
add.u64 d37, d38, a{number};
ld.global.b32 r38, [d37];
mov.u64 d36, tile;
add.u64 d38, d38, d36;
st.shared.b32 [d38+{at}], r38;
add.u32 r39, r39, 32;
setp.lt.u32 p1, r39, {words};
@p1 bra COPY{number};""")
            addresses[number] = f"tile+{at}"
            at += array.nbytes
        copies.append("bar.sync 0;")
    steps = [f", {step}" if extra else "" for step in (a_step, b_step, c_step, d_step)]
    load = (
        "\n".join(copies)
        + f"""
wmma.load.a.sync.aligned.{la}.{shape}.{space}.{kind} {a_reg}, [{addresses[0]}]{steps[0]};
wmma.load.b.sync.aligned.{lb}.{shape}.{space}.{kind} {b_reg}, [{addresses[1]}]{steps[1]};
wmma.load.c.sync.aligned.{lc}.{shape}.{space}.{kind_c} {c_reg}, [{addresses[2]}]{steps[2]};
wmma.mma.sync.aligned.{la}.{lb}.{shape}.{types} {d_reg}, {a_reg}, {b_reg}, {c_reg};
wmma.store.d.sync.aligned.{lc}.{shape}.global.{kind_d} [a3], {d_reg}{steps[3]};"""
    )
    raw = [x.view(f"u{x.itemsize}") if kind in ("bf16",) else x for x in (a_in, b_in)]
    out, found = launched(load, *raw, c_in, d_in, module=module)
    assert found == []
    got = out[3][:, : m if lc == "col" else n]
    got = got.T if lc == "col" else got
    total = c.astype(np.float64 if kind in ("f64", "s8", "u8") else np.float32)
    for step in range(k):
        total = (total + a[:, step, None].astype(np.float64) * b[None, step].astype(np.float64)).astype(total.dtype)
    if kind == "f64":  # fused, so the last bits differ
        assert np.allclose(got, total, rtol=1e-14)
    else:
        assert np.array_equal(got, total.astype(TYPES[kind_d]))


def test_integers_saturate():
    """.satfinite limits a sum beyond int32."""
    a, b = np.full((16, 16), 127, np.int8), np.full((16, 16), 127, np.int8)
    c = np.full((16, 16), (1 << 31) - 5, np.int32)
    regs = "{" + ", ".join(f"r{i}" for i in range(8)) + "}"
    body = f"""wmma.load.c.sync.aligned.row.m16n16k16.global.s32 {regs}, [a2];
wmma.load.a.sync.aligned.row.m16n16k16.global.s8 {{r10, r11}}, [a0];
wmma.load.b.sync.aligned.row.m16n16k16.global.s8 {{r12, r13}}, [a1];
wmma.mma.sync.aligned.row.row.m16n16k16.s32.s8.s8.s32.satfinite {regs}, {{r10, r11}}, {{r12, r13}}, {regs};
wmma.store.d.sync.aligned.row.m16n16k16.global.s32 [a2], {regs};"""
    out, found = launched(body, a, b, c)
    assert found == []
    assert (out[2] == (1 << 31) - 1).all()


# ---- clusters of one block ----
def test_a_cluster_of_one_block():
    """The cluster's barrier is one of its own, mapa returns the block's own address, and ranks are 0."""
    body = """mul.wide.u32 d1, t, 4;
mov.u64 d2, tile;
add.u64 d2, d2, d1;
st.shared.b32 [d2], t;
barrier.cluster.arrive.release.aligned;
barrier.cluster.wait.acquire.aligned;
xor.b32 r1, t, 63;
mul.wide.u32 d3, r1, 4;
mov.u64 d4, tile;
add.u64 d4, d4, d3;
mov.u32 r2, %cluster_ctarank;
mapa.shared::cluster.u64 d5, d4, r2;
ld.shared::cluster.b32 r3, [d5];
getctarank.shared::cluster.u64 r4, d5;
add.u32 r3, r3, r4;
mov.u32 r5, %cluster_nctarank;
mul.lo.u32 r3, r3, r5;
add.u64 d6, a0, d1;
st.global.b32 [d6], r3;"""
    out, found = launched(body, np.zeros(64, np.uint32), threads=64, module=".shared .align 4 .b8 tile[256];")
    assert found == []
    assert np.array_equal(out[0], 63 - np.arange(64))
    _, found = launched(
        body.replace("barrier.cluster.wait.acquire.aligned;", ""),
        np.zeros(64, np.uint32),
        threads=64,
        module=".shared .align 4 .b8 tile[256];",
    )
    assert found
    _, found = launched(
        body.replace("%cluster_ctarank", "%cluster_nctarank"),
        np.zeros(64, np.uint32),
        threads=64,
        module=".shared .align 4 .b8 tile[256];",
    )
    assert {report.kind for report in found} == {"out_of_bounds"}


@pytest.mark.parametrize(
    "text",
    [
        "wmma.load.a.sync.aligned.row.m16n16k16.global.f16 {r1, r2, r3}, [d1];",
        "wmma.load.a.sync.aligned.m16n16k16.global.f16 {r1, r2, r3, r4}, [d1];",
        "wmma.mma.sync.aligned.row.col.m8n8k32.s32.s4.s4.s32 {r1, r2}, {r3}, {r4}, {r5, r6};",
        "wmma.mma.sync.aligned.row.col.m16n16k16.f32.bf16.bf16.f32 {r1}, {r2}, {r3}, {r4};",
        "barrier.cluster.arrive.acquire;",
        "mapa.shared::cta.u64 d1, d2, r1;",
    ],
)
def test_rejected_at_load(text):
    message = rejection(text)
    assert text.split()[0].rstrip(";") in message
    assert "PTX line" in message

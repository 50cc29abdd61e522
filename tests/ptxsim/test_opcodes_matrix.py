"""mma, ldmatrix, stmatrix and movmatrix on the PTX machine against the fragments of the PTX ISA.

The layouts below are the ISA's, element by element: lane -> (row, column) of element i of a fragment, written from its
text and not from the machine's code. Products are exact; each element is one chain of additions in k order.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from simt_numbers import BF16, F16, F32, F64, TF32, cut, float_edges, product, read, rounded, saturated, total, value
from simt_ptx import execute, rejection

LANES = range(32)


def high_second(i):  # elements of A come in pairs; elements 2, 3, 6 and 7 are 8 rows below the others
    return 8 if i in (2, 3, 6, 7) else 0


# shape: (elements of A and B in a lane, (lane group, thread in group, i) -> (row, column) of A, of B)
LAYOUTS = {
    "m16n8k16": (
        8,
        4,
        lambda g, t, i: (g + high_second(i), 2 * t + (i & 1) + (8 if i >= 4 else 0)),
        lambda g, t, i: (2 * t + (i & 1) + (8 if i >= 2 else 0), g),
    ),
    "m16n8k8": (4, 2, lambda g, t, i: (g + (8 if i >= 2 else 0), 2 * t + (i & 1)), lambda g, t, i: (2 * t + i, g)),
    "m16n8k8 tf32": (
        4,
        2,
        lambda g, t, i: (g + (8 if i in (1, 3) else 0), t + (4 if i >= 2 else 0)),
        lambda g, t, i: (t + 4 * i, g),
    ),
    "m16n8k4 tf32": (2, 1, lambda g, t, i: (g + 8 * i, t), lambda g, t, i: (t, g)),
    "m16n8k32 8": (
        16,
        8,
        lambda g, t, i: (g + (8 if i in (4, 5, 6, 7, 12, 13, 14, 15) else 0), 4 * t + (i & 3) + (16 if i >= 8 else 0)),
        lambda g, t, i: (4 * t + (i & 3) + (16 if i >= 4 else 0), g),
    ),
    "m16n8k16 8": (8, 4, lambda g, t, i: (g + (8 if i >= 4 else 0), 4 * t + (i & 3)), lambda g, t, i: (4 * t + i, g)),
    "m8n8k16 8": (4, 4, lambda g, t, i: (g, 4 * t + i), lambda g, t, i: (4 * t + i, g)),
    "m8n8k4 f64": (1, 1, lambda g, t, i: (g, t), lambda g, t, i: (t, g)),
    "m16n8k4 f64": (2, 1, lambda g, t, i: (g + 8 * i, t), lambda g, t, i: (t, g)),
    "m16n8k8 f64": (4, 2, lambda g, t, i: (g + 8 * (i & 1), t + 4 * (i // 2)), lambda g, t, i: (t + 4 * i, g)),
    "m16n8k16 f64": (8, 4, lambda g, t, i: (g + 8 * (i & 1), t + 4 * (i // 2)), lambda g, t, i: (t + 4 * i, g)),
    "m8n8k32 4": (8, 8, lambda g, t, i: (g, 8 * t + i), lambda g, t, i: (8 * t + i, g)),
    "m16n8k32 4": (16, 8, lambda g, t, i: (g + 8 * (i >= 8), 8 * t + (i & 7)), lambda g, t, i: (8 * t + i, g)),
    "m16n8k64 4": (
        32,
        16,
        lambda g, t, i: (g + 8 * (8 <= i < 16 or i >= 24), 8 * t + (i & 7) + 32 * (i >= 16)),
        lambda g, t, i: (8 * t + (i & 7) + 32 * (i >= 8), g),
    ),
    "m8n8k128 1": (32, 32, lambda g, t, i: (g, 32 * t + i), lambda g, t, i: (32 * t + i, g)),
    "m16n8k128 1": (64, 32, lambda g, t, i: (g + 8 * (i >= 32), 32 * t + (i & 31)), lambda g, t, i: (32 * t + i, g)),
    "m16n8k256 1": (
        128,
        64,
        lambda g, t, i: (g + 8 * (i // 32 % 2), 32 * t + (i & 31) + 128 * (i >= 64)),
        lambda g, t, i: (32 * t + (i & 31) + 128 * (i >= 32), g),
    ),
}


def size_of(shape):
    m, rest = shape.split()[0][1:].split("n")
    n, k = rest.split("k")
    return int(m), int(n), int(k)


def accumulator(g, t, i):
    return g + (8 if i >= 2 else 0), 2 * t + (i & 1)


def packed(matrix, layout, count, bits):
    """[32, registers] of 32 (or 64) bits: a matrix of bit patterns as the lanes hold it."""
    width = max(bits, 32)
    per = width // bits
    out = np.zeros((32, count // per), np.uint64)
    for lane in LANES:
        for i in range(count):
            row, column = layout(lane // 4, lane % 4, i)
            out[lane, i // per] |= np.uint64(int(matrix[row, column]) << bits * (i % per))
    return out


def unpacked(registers, shape, count, bits):
    m, n, _ = size_of(shape)
    per = max(bits, 32) // bits
    out = np.zeros((m, n), object)
    for lane in LANES:
        for i in range(count):
            out[accumulator(lane // 4, lane % 4, i)] = (
                int(registers[lane, i // per]) >> bits * (i % per) & (1 << bits) - 1
            )
    return out


def multiply(text, shape, bits, a, b, c, bits_c, bits_d):
    """D of one mma. All matrices are given as bit patterns."""
    count_a, count_b, layout_a, layout_b = LAYOUTS[shape]
    count_c = 4 if shape[1:3] == "16" else 2
    parts = [
        packed(a, layout_a, count_a, bits),
        packed(b, layout_b, count_b, bits),
        packed(c, accumulator, count_c, bits_c),
    ]
    wide = bits == 64
    letter, load = ("d", "b64") if wide else ("r", "b32")
    lines, groups, first = ["mad.wide.u32 d30, t, 256, a0;"], [], 1
    for part in parts:
        names = [f"{letter}{first + i}" for i in range(part.shape[1])]
        lines += [f"ld.global.{load} {name}, [d30+{8 * (first + i)}];" for i, name in enumerate(names)]
        groups.append("{" + ", ".join(names) + "}")
        first += len(names)
    results = [f"{letter}{20 + i}" for i in range(count_c * bits_d // max(bits_d, 32))]
    lines.append(f"mma.sync.aligned.{text} {{{', '.join(results)}}}, {', '.join(groups)};")
    lines += [f"st.global.{load} [d30+{128 + 8 * i}], {name};" for i, name in enumerate(results)]
    data = np.zeros((32, 32), np.uint64)
    data[:, 1:first] = np.concatenate(parts, 1)
    out = execute("\n".join(lines), data)[0]
    return unpacked(out[:, 16 : 16 + len(results)], shape, count_c, bits_d)


def drawn(form, shape, seed, edges=False):
    rng = np.random.default_rng(seed)
    numbers = rng.standard_normal(shape) * 2.0 ** rng.integers(-3, 4, shape)
    out = np.zeros(shape, object)
    special = float_edges(form)
    for index, x in np.ndenumerate(numbers):
        bits = rounded(value(int(np.float64(x).view(np.uint64)), F64), form)
        out[index] = special[rng.integers(len(special))] if edges and rng.random() < 0.15 else bits
    return out


def chained(a, b, c, form, form_c, form_d, step=F32):
    """Each element is C plus the products in k order. Each sum is rounded to `step`, the last one to D's type."""
    m, k = a.shape
    out = np.zeros((m, b.shape[1]), object)
    for row in range(m):
        for column in range(b.shape[1]):
            acc = value(rounded(value(int(c[row, column]), form_c), step), step)
            for j in range(k):
                term = product(value(int(a[row, j]), form), value(int(b[j, column]), form))
                acc = value(rounded(total(term, acc), step), step)
            out[row, column] = rounded(acc, form_d)
    return out


FLOATS = [
    ("m16n8k16", "f16", F16, "f32", "f32"),
    ("m16n8k16", "f16", F16, "f16", "f16"),
    ("m16n8k8", "f16", F16, "f32", "f32"),
    ("m16n8k8", "f16", F16, "f16", "f16"),
    ("m16n8k16", "bf16", BF16, "f32", "f32"),
    ("m16n8k8", "bf16", BF16, "f32", "f32"),
    ("m16n8k8 tf32", "tf32", TF32, "f32", "f32"),
    ("m16n8k4 tf32", "tf32", TF32, "f32", "f32"),
    ("m8n8k4 f64", "f64", F64, "f64", "f64"),
    ("m16n8k4 f64", "f64", F64, "f64", "f64"),
    ("m16n8k8 f64", "f64", F64, "f64", "f64"),
    ("m16n8k16 f64", "f64", F64, "f64", "f64"),
]
FORMATS = {"f16": F16, "f32": F32, "f64": F64}


@pytest.mark.parametrize("edges", [False, True])
@pytest.mark.parametrize(("shape", "kind", "form", "type_c", "type_d"), FLOATS)
def test_float_products(shape, kind, form, type_c, type_d, edges):
    m, n, k = size_of(shape)
    form_c, form_d = FORMATS[type_c], FORMATS[type_d]
    a, b, c = drawn(form, (m, k), 1, edges), drawn(form, (k, n), 2, edges), drawn(form_c, (m, n), 3, edges)
    text = f"{shape.split()[0]}.row.col.{type_d}.{kind}.{kind}.{type_c}"
    got = multiply(text, shape, form.bits, a, b, c, form_c.bits, form_d.bits)
    want = chained(a, b, c, form, form_c, form_d, F64 if kind == "f64" else F32)
    for index, bits in np.ndenumerate(got):
        if form_d is F64 and value(int(want[index]), F64)[0] == "nan":
            assert value(int(bits), F64)[0] == "nan"
        else:
            assert bits == want[index], (index, hex(bits), hex(want[index]))


def test_tf32_ignores_low_bits():
    """The low 13 bits of a float32 are not part of tf32."""
    a, b, c = drawn(TF32, (16, 8), 4), drawn(TF32, (8, 8), 5), drawn(F32, (16, 8), 6)
    noise = np.random.default_rng(7).integers(0, 1 << 13, (16, 8))
    text = "m16n8k8.row.col.f32.tf32.tf32.f32"
    clean = multiply(text, "m16n8k8 tf32", 32, a, b, c, 32, 32)
    noisy = multiply(text, "m16n8k8 tf32", 32, a | noise.astype(object), b, c, 32, 32)
    assert (clean == noisy).all()


@pytest.mark.parametrize("limit", ["", ".satfinite"])
@pytest.mark.parametrize("kinds", [("s8", "s8"), ("u8", "s8"), ("s8", "u8"), ("u8", "u8")])
@pytest.mark.parametrize("shape", ["m16n8k32 8", "m16n8k16 8", "m8n8k16 8"])
def test_integer_products(shape, kinds, limit):
    m, n, k = size_of(shape)
    rng = np.random.default_rng(8)
    a, b = rng.integers(0, 256, (m, k)).astype(object), rng.integers(0, 256, (k, n)).astype(object)
    c = rng.integers(0, 1 << 32, (m, n)).astype(object)
    c[: m // 2] = rng.choice([0x7FFFFFF0, 0x80000010, 0x7FFFFFFF, 0x80000000], (m // 2, n))
    text = f"{shape.split()[0]}.row.col{limit}.s32.{kinds[0]}.{kinds[1]}.s32"
    got = multiply(text, shape, 8, a, b, c, 32, 32)
    for row in range(m):
        for column in range(n):
            count = read(int(c[row, column]), "s32") + sum(
                read(int(a[row, j]), kinds[0]) * read(int(b[j, column]), kinds[1]) for j in range(k)
            )
            expected = cut(saturated(count, "s32") if limit else count, 32)
            assert got[row, column] == expected, (row, column)


QUARTERS = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}


@pytest.mark.parametrize("kinds", [("e4m3", "e4m3"), ("e4m3", "e5m2"), ("e5m2", "e5m2")])
@pytest.mark.parametrize("shape", ["m16n8k32 8", "m16n8k16 8"])
@pytest.mark.parametrize("half", [False, True])
def test_products_of_eight_bits(shape, kinds, half):
    """All 256 codes occur, with infinities and NaNs; ml_dtypes says what the codes stand for."""
    m, n, k = size_of(shape)
    rng = np.random.default_rng(12)
    a, b = rng.integers(0, 256, (m, k), np.uint8), rng.integers(0, 256, (k, n), np.uint8)
    a[:6] &= 0xBF  # most numbers are below 2
    b[:, :6] &= 0xBF
    a[7, 0] = 0x7F  # a NaN of both formats
    c = rng.standard_normal((m, n)).astype(np.float16 if half else np.float32)
    text = f"{shape.split()[0]}.row.col.{c.dtype.name.replace('loat', '')}.{kinds[0]}.{kinds[1]}."
    bits = c.view(f"u{c.itemsize}").astype(object)
    got = multiply(
        text + text.split(".")[3], shape, 8, a.astype(object), b.astype(object), bits, 8 * c.itemsize, 8 * c.itemsize
    )
    wide = [x.view(QUARTERS[kind]).astype(np.float64) for x, kind in zip((a, b), kinds)]
    total = c.astype(np.float32)
    with np.errstate(all="ignore"):
        for j in range(k):
            total = (total + wide[0][:, j, None] * wide[1][None, j]).astype(np.float32)
        want = total.astype(c.dtype)
    found = got.astype(f"u{c.itemsize}").view(c.dtype)
    assert np.array_equal(found, want, equal_nan=True)
    assert np.isnan(want).any()
    assert np.isfinite(want).any()


@pytest.mark.parametrize("kinds", [("s4", "s4"), ("u4", "s4"), ("s4", "u4")])
@pytest.mark.parametrize("shape", ["m8n8k32 4", "m16n8k32 4", "m16n8k64 4"])
def test_products_of_four_bits(shape, kinds):
    m, n, k = size_of(shape)
    rng = np.random.default_rng(13)
    a, b = rng.integers(0, 16, (m, k)), rng.integers(0, 16, (k, n))
    c = rng.integers(0, 1 << 16, (m, n))
    text = f"{shape.split()[0]}.row.col.s32.{kinds[0]}.{kinds[1]}.s32"
    got = multiply(text, shape, 4, a.astype(object), b.astype(object), c.astype(object), 32, 32)
    values = [np.where((x > 7) & (kind == "s4"), x - 16, x) for x, kind in zip((a, b), kinds)]
    assert np.array_equal(got.astype(np.uint32).view(np.int32), values[0] @ values[1] + c)


@pytest.mark.parametrize("how", ["and", "xor"])
@pytest.mark.parametrize("shape", ["m8n8k128 1", "m16n8k128 1", "m16n8k256 1"])
def test_products_of_bits(shape, how):
    m, n, k = size_of(shape)
    rng = np.random.default_rng(14)
    a, b, c = rng.integers(0, 2, (m, k)), rng.integers(0, 2, (k, n)), rng.integers(0, 99, (m, n))
    text = f"{shape.split()[0]}.row.col.s32.b1.b1.s32.{how}.popc"
    got = multiply(text, shape, 1, a.astype(object), b.astype(object), c.astype(object), 32, 32)
    met = a[:, :, None] & b[None] if how == "and" else a[:, :, None] ^ b[None]
    assert np.array_equal(got.astype(np.int64), met.sum(1) + c)


# ---- matrices in shared memory ----
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_load_matrix(count, trans, overlap):
    """Lane l holds columns 2(l%4) and 2(l%4)+1 of row l/4. Lane 8m+r has the address of row r of matrix m."""
    rng = np.random.default_rng(9)
    rows = rng.permutation(64)[:32].astype(np.uint32) * 16  # byte offset of each lane's row
    data = rng.integers(0, 1 << 16, 512).astype(np.uint16)
    address = "r11" if overlap else "r5"
    names = ["r11", "r12", "r13", "r14"][:count]
    body = f"""mov.u64 d1, tile;
mad.wide.u32 d2, t, 32, a0;
mad.wide.u32 d3, t, 32, d1;
ld.global.v4.b32 {{r1, r2, r3, r4}}, [d2];
st.shared.v4.b32 [d3], {{r1, r2, r3, r4}};
ld.global.v4.b32 {{r1, r2, r3, r4}}, [d2+16];
st.shared.v4.b32 [d3+16], {{r1, r2, r3, r4}};
bar.sync 0;
mad.wide.u32 d4, t, 4, a1;
ld.global.b32 {address}, [d4];
cvt.u32.u64 r6, d1;
add.u32 {address}, {address}, r6;
ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{", ".join(names)}}}, [{address}];
mad.wide.u32 d5, t, 16, a2;
{"".join(f"st.global.b32 [d5+{4 * i}], {name};" for i, name in enumerate(names))}"""
    out = execute(body, data, rows, np.zeros((32, 4), np.uint32), module=".shared .align 16 .b8 tile[1024];")[2]
    for k in range(count):
        matrix = np.array([data[rows[8 * k + r] // 2 :][:8] for r in range(8)])
        matrix = matrix.T if trans else matrix
        for lane in LANES:
            pair = matrix[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2].tolist()
            assert int(out[lane, k]) == pair[1] << 16 | pair[0], (k, lane)


@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_store_matrix(count, trans):
    rng = np.random.default_rng(10)
    rows = rng.permutation(64)[:32].astype(np.uint32) * 16
    values = rng.integers(0, 1 << 32, (32, 4), np.uint32)
    names = ["r11", "r12", "r13", "r14"]
    body = f"""mov.u64 d1, tile;
mad.wide.u32 d3, t, 32, d1;
st.shared.v4.b32 [d3], {{0, 0, 0, 0}};
st.shared.v4.b32 [d3+16], {{0, 0, 0, 0}};
bar.sync 0;
mad.wide.u32 d4, t, 4, a1;
ld.global.b32 r5, [d4];
cvt.u32.u64 r6, d1;
add.u32 r5, r5, r6;
mad.wide.u32 d5, t, 16, a2;
ld.global.v4.b32 {{r11, r12, r13, r14}}, [d5];
stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [r5], {{{", ".join(names[:count])}}};
bar.sync 0;
mad.wide.u32 d2, t, 32, a0;
ld.shared.v4.b32 {{r1, r2, r3, r4}}, [d3];
st.global.v4.b32 [d2], {{r1, r2, r3, r4}};
ld.shared.v4.b32 {{r1, r2, r3, r4}}, [d3+16];
st.global.v4.b32 [d2+16], {{r1, r2, r3, r4}};"""
    out = execute(body, np.zeros(512, np.uint16), rows, values, module=".shared .align 16 .b8 tile[1024];")[0]
    expected = np.zeros(512, np.uint16)
    for k in range(count):
        matrix = np.zeros((8, 8), np.uint16)
        for lane in LANES:
            matrix[lane // 4, 2 * (lane % 4)] = values[lane, k] & 0xFFFF
            matrix[lane // 4, 2 * (lane % 4) + 1] = values[lane, k] >> 16
        matrix = matrix.T if trans else matrix
        for r in range(8):
            expected[rows[8 * k + r] // 2 :][:8] = matrix[r]
    assert np.array_equal(out, expected)


def test_transpose_in_registers():
    values = np.random.default_rng(11).integers(0, 1 << 32, 32, np.uint32)
    body = """mad.wide.u32 d1, t, 4, a0;
ld.global.b32 r1, [d1];
movmatrix.sync.aligned.m8n8.trans.b16 r1, r1;
st.global.b32 [d1], r1;"""
    out = execute(body, values)[0]
    before, after = values.view(np.uint16).reshape(8, 8), out.view(np.uint16).reshape(8, 8)
    assert np.array_equal(after, before.T)


@pytest.mark.parametrize(
    "text",
    [
        "mma.sync.aligned.m16n8k8.row.row.f32.tf32.tf32.f32 {r1,r2,r3,r4}, {r1,r2,r3,r4}, {r5,r6}, {r1,r2,r3,r4};",
        "mma.sync.aligned.m16n8k64.row.col.s32.s8.s8.s32 {r1,r2,r3,r4}, {r1,r2,r3,r4}, {r5,r6}, {r1,r2,r3,r4};",
        "mma.sync.aligned.m16n8k32.row.col.f32.s8.e4m3.f32 {r1,r2,r3,r4}, {r1,r2,r3,r4}, {r5,r6}, {r1,r2,r3,r4};",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.f16.f32 {r1,r2,r3,r4}, {r1,r2,r3,r4}, {r5,r6}, {r1,r2,r3,r4};",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {r1,r2,r3,r4}, {r1,r2}, {r5,r6}, {r1,r2,r3,r4};",
        "mma.sync.aligned.m16n8k4.row.col.satfinite.f32.tf32.tf32.f32 {r1,r2,r3,r4}, {r1,r2}, {r5}, {r1,r2,r3,r4};",
        "wmma.load.a.sync.aligned.row.m16n16k16.f16 {r1,r2,r3,r4,r5}, [d1];",
        "wmma.mma.sync.aligned.row.col.m16n16k8.f32.f32 {r1,r2,r3,r4}, {r1,r2}, {r3,r4}, {r5,r6,r7,r8};",
        "ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8 {r1, r2}, [r3];",
        "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {r1}, [r3];",
        "movmatrix.sync.aligned.m8n8.b16 r1, r2;",
        "ldmatrix.sync.aligned.m8n8.x4.global.b16 {r1,r2,r3,r4}, [d1];",
        "mma.sp.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {r1,r2,r3,r4}, {r1,r2}, {r5,r6}, {r1,r2,r3,r4}, r7, 0;",
    ],
)
def test_rejected_at_load(text):
    message = rejection(text)
    assert text.split()[0] in message
    assert "PTX line" in message

"""tcgen05.mma with scale factors for blocks, and with floats of 4 and 6 bits, against NumPy and ml_dtypes.

Layouts are those of the PTX ISA and of CUTLASS's tmem_sf_frg: the factors of row r of A, or column r of B, are bytes of
column r // 32 in lane r % 32, in each of the four parts of 32 lanes.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from simt_ptx import rejection
from test_opcodes_tensor_memory import WAIT, multiply, shape_of, staged
from test_opcodes_tensor_pairs import halves, mma, placed, run

FLOATS = {  # the bits of an element, its type, the code in a descriptor of .kind::f8f6f4 and .kind::mxf8f6f4
    "e4m3": (8, ml_dtypes.float8_e4m3fn, 0),
    "e5m2": (8, ml_dtypes.float8_e5m2, 1),
    "e2m3": (6, ml_dtypes.float6_e2m3fn, 3),
    "e3m2": (6, ml_dtypes.float6_e3m2fn, 4),
    "e2m1": (4, ml_dtypes.float4_e2m1fn, 5),
}
SCALES = {"ue8m0": ml_dtypes.float8_e8m0fnu, "ue4m3": ml_dtypes.float8_e4m3fn}
KINDS = {"mxf8f6f4": 32, "mxf4": 64, "mxf4nvf4": 64}  # the depth of each kind with .block_scale
SFA, SFB = 208, 216  # columns of the factors, beyond D
STORE = f"""mad.wide.u32 d11, t, 48, a2;
ld.global.v4.b32 {{r1, r2, r3, r4}}, [d11];
ld.global.v4.b32 {{r5, r6, r7, r8}}, [d11+16];
ld.global.v4.b32 {{r9, r10, r11, r12}}, [d11+32];
tcgen05.st.sync.aligned.32x32b.x4.b32 [r28+{SFA}], {{r1, r2, r3, r4}};
tcgen05.st.sync.aligned.32x32b.x8.b32 [r28+{SFB}], {{r5, r6, r7, r8, r9, r10, r11, r12}};
tcgen05.wait::st.sync.aligned;
add.u32 r24, r29, {SFA};"""
HOLD = """mad.wide.u32 d11, t, 32, a3;
ld.global.v4.b32 {r1, r2, r3, r4}, [d11];
ld.global.v4.b32 {r5, r6, r7, r8}, [d11+16];
tcgen05.st.sync.aligned.32x32b.x8.b32 [r28+160], {r1, r2, r3, r4, r5, r6, r7, r8};
tcgen05.wait::st.sync.aligned;"""


def codes(rng, rows, depth, kind):
    """(bits of elements, their values): all numbers of a type except NaN and infinities."""
    bits, type_, _ = FLOATS[kind]
    got = rng.integers(0, 1 << bits, (rows, depth)).astype(np.uint8)
    if bits == 8:
        got &= 0xBF
    return got, got.view(type_).astype(np.float64)


def strings(got, bits):
    """Elements of a row as one string of bits, the first in the lowest bits: [rows, bytes]."""
    wide = np.unpackbits(got[..., None], axis=-1, bitorder="little")[..., :bits]
    return np.packbits(wide.reshape(len(got), -1), axis=-1, bitorder="little")


def parts(rng, got, kind, packed):
    """[rows, 32] bytes of shared memory: 16 elements in 16 bytes, whose rest is anything, or 32 packed ones."""
    bits = FLOATS[kind][0]
    if packed or bits == 8:
        return strings(got, bits)
    out = rng.integers(0, 256, (len(got), 32)).astype(np.uint8)
    for part in range(2):
        out[:, 16 * part : 16 * part + 2 * bits] = strings(got[:, 16 * part : 16 * part + 16], bits)
    return out


def containers(got, kind, packed):
    """[rows, 8] words of tensor memory: an element in a byte, 4 bits in its middle, or eight packed in a word."""
    wide = strings(got, 4) if packed else got << (2 if kind == "e2m1" else 0)
    return np.ascontiguousarray(wide).view(np.uint32)


def factors(rng, rows, each, scale):
    """(bytes, values) of scale factors [rows, each], without NaN; those of UE8M0 lie around 1."""
    got = rng.integers(107, 148, (rows, each)) if scale == "ue8m0" else rng.integers(0, 127, (rows, each))
    return got.astype(np.uint8), got.astype(np.uint8).view(SCALES[scale]).astype(np.float64)


def words_of(rng, got, first, columns):
    """[128, columns] words of tensor memory with factors, the same in each 32 lanes; other bytes are anything."""
    out = rng.integers(0, 256, (32, columns, 4)).astype(np.uint8)
    for row, each in enumerate(got):
        out[row % 32, row // 32, first : first + len(each)] = each
    return np.tile(out.reshape(32, -1).view(np.uint32), (4, 1))


def summed(d, a, b):
    """d + a b, each sum rounded once to float32, in the order of k. a, b: float64, whose products are exact."""
    total = d.astype(np.float32)
    for k in range(a.shape[1]):
        total = (total.astype(np.longdouble) + a[:, k, None] * b[None, :, k]).astype(np.float32)
    return total


def scaled_shape(rows, n, a=0, b=0, first_a=0, first_b=0, exponents=1, negates=0, more=0):
    return more | first_a << 29 | first_b << 4 | exponents << 23 | negates << 13 | shape_of(rows, n, 0, a, b)


def product(kind, type_a, type_b, n, *, each=1, words="", scale="ue8m0", ids=(0, 0), held=False, adds=True, negates=0,
            mode=3, seed=1, change=None, factor=None, shape=None, **options):  # fmt: skip
    """(D, what it must be, reports) of one product with random operands and factors.

    If n is above 128, only the columns from 128 on are compared. change: from the [128, 12] words of the factors to
    others. factor: from the factors of A to others.
    """
    rng = np.random.default_rng(seed)
    depth, packed = KINDS[kind], kind != "mxf8f6f4"
    a_codes, a = codes(rng, 128, depth, type_a)
    b_codes, b = codes(rng, n, depth, type_b)
    fa_bytes, _ = factors(rng, 128, each, scale)
    fa_bytes = factor(fa_bytes) if factor else fa_bytes
    fa = fa_bytes.view(SCALES[scale]).astype(np.float64)
    fb_bytes, fb = factors(rng, n, each, scale)
    d = (rng.standard_normal((128, n)) * 64).astype(np.float32)
    shared, a_desc, b_desc = staged(parts(rng, a_codes, type_a, packed), parts(rng, b_codes, type_b, packed), mode)
    table = np.concatenate([words_of(rng, fa_bytes, ids[0], 4), words_of(rng, fb_bytes, ids[1], 8)], axis=1)
    table = change(table) if change else table
    before = np.zeros((128, 128), np.float32)
    before[:, : min(n, 128)] = d[:, :128]
    number_a, number_b = (1, 1) if packed else (FLOATS[type_a][2], FLOATS[type_b][2])
    shape = shape or scaled_shape(128, n, number_a, number_b, *ids, int(scale == "ue8m0"), negates)
    more = [table, containers(a_codes, type_a, packed)] if held else [table]
    if n > 128:
        options["wait"] = WAIT + "\nadd.u32 r28, r28, 128;"
    options = {"lanes": f"[r24], [r29+{SFB}], ", "middle": STORE + (HOLD if held else ""), **options}
    got, found = multiply(
        f"{kind}.block_scale{words}",
        shape,
        128,
        128,
        shared,
        before.view(np.uint32),
        a_desc,
        b_desc,
        "p27" if adds else "p26",
        a="[r29+160]" if held else "d20",
        more=more,
        **options,
    )
    sign = (-1) ** bin(negates).count("1")
    want = summed(d * adds, a * np.repeat(fa, depth // each, 1) * sign, b * np.repeat(fb, depth // each, 1))
    if n > 128:
        return np.ascontiguousarray(got[:, : n - 128]).view(np.float32), want[:, 128:], found
    assert found or not got[:, n:].any()
    return np.ascontiguousarray(got[:, :n]).view(np.float32), want, found


PRODUCTS = [
    ("mxf8f6f4", "e4m3", "e4m3", 32, {}),
    ("mxf8f6f4", "e5m2", "e2m1", 128, {"ids": (1, 2), "words": ".scale_vec::1X"}),
    ("mxf8f6f4", "e2m3", "e3m2", 40, {"ids": (3, 1), "words": ".block32", "mode": 1}),
    ("mxf8f6f4", "e2m1", "e5m2", 8, {"ids": (0, 3), "mode": 0, "adds": False}),
    ("mxf8f6f4", "e3m2", "e4m3", 16, {"held": True, "negates": 1}),
    ("mxf8f6f4", "e2m1", "e2m3", 24, {"held": True, "ids": (2, 0), "negates": 3}),
    ("mxf8f6f4", "e4m3", "e5m2", 200, {"adds": False, "ids": (1, 0)}),
    ("mxf4", "e2m1", "e2m1", 32, {"each": 2, "ids": (0, 2)}),
    ("mxf4", "e2m1", "e2m1", 40, {"each": 2, "ids": (2, 0), "words": ".scale_vec::2X.collector::a::fill"}),
    ("mxf4", "e2m1", "e2m1", 16, {"each": 2, "held": True, "words": ".block32", "mode": 2}),
    ("mxf4nvf4", "e2m1", "e2m1", 64, {"each": 4, "words": ".scale_vec::4X", "scale": "ue4m3"}),
    ("mxf4nvf4", "e2m1", "e2m1", 32, {"each": 4, "words": ".block16", "adds": False}),
    ("mxf4nvf4", "e2m1", "e2m1", 40, {"each": 2, "words": ".scale_vec::2X", "ids": (2, 2), "negates": 2}),
    ("mxf4nvf4", "e2m1", "e2m1", 8, {"each": 4, "words": ".block16", "scale": "ue4m3", "held": True}),
]


@pytest.mark.parametrize(("kind", "type_a", "type_b", "n", "options"), PRODUCTS)
def test_products(kind, type_a, type_b, n, options):
    got, want, found = product(kind, type_a, type_b, n, **options)
    assert found == []
    assert np.array_equal(got, want)


@pytest.mark.parametrize(
    ("scale", "each", "words", "nan"),
    [
        ("ue8m0", 1, "", 255),
        ("ue4m3", 4, ".scale_vec::4X", 127),
    ],
)
def test_factors_at_the_ends(scale, each, words, nan):
    """NaN makes its row NaN; the least and the largest factor do not overflow before the sum."""

    def factor(bytes_):
        bytes_[5, 0], bytes_[6, :], bytes_[7, :] = nan, 0, nan - 1
        return bytes_

    kind, type_ = ("mxf8f6f4", "e5m2") if each == 1 else ("mxf4nvf4", "e2m1")
    with np.errstate(over="ignore", invalid="ignore"):
        got, want, found = product(kind, type_, type_, 16, scale=scale, each=each, words=words, factor=factor)
    assert found == []
    assert np.isnan(got[5]).all()
    assert not np.isnan(np.delete(got, (5, 7), 0)).any()
    assert np.array_equal(got, want, equal_nan=True)


def test_factors_from_a_copy():
    """tcgen05.cp with .warpx4 brings the factors; it and the product form a pipeline, without a wait between them."""
    rng = np.random.default_rng(7)
    a_codes, a = codes(rng, 128, 32, "e4m3")
    b_codes, b = codes(rng, 32, 32, "e4m3")
    fa_bytes, fa = factors(rng, 128, 1, "ue8m0")
    fb_bytes, fb = factors(rng, 32, 1, "ue8m0")
    d = np.zeros((128, 128), np.float32)
    d[:, :32] = rng.standard_normal((128, 32))
    shared, a_desc, b_desc = staged(a_codes, b_codes, 1)
    for at, got, columns in ((49152, fa_bytes, 4), (50176, fb_bytes, 4)):  # 32 rows of 16 bytes, without a swizzle
        shared[at : at + 512] = words_of(rng, got, 2, columns)[:32].view(np.uint8).ravel()
    issue = "".join(
        f"mov.b64 d{22 + k}, {(1024 + at) >> 4 | 8 << 32 | 1 << 46:#x};\nadd.u32 r{24 + k}, r29, {column};\n"
        f"@!p29 tcgen05.cp.cta_group::1.32x128b.warpx4 [r{24 + k}], d{22 + k};\n"
        for k, (at, column) in enumerate(((49152, SFA), (50176, SFB)))
    )
    shape = scaled_shape(128, 32, 0, 0, 2, 2)
    got, found = multiply(
        "mxf8f6f4.block_scale",
        shape,
        128,
        128,
        shared,
        d.view(np.uint32),
        a_desc,
        b_desc,
        lanes="[r24], [r25], ",
        after="tcgen05.fence::after_thread_sync;\n" + issue,
    )
    assert found == []
    assert np.array_equal(got[:, :32].copy().view(np.float32), summed(d[:, :32], a * fa, b * fb))


@pytest.mark.parametrize(("type_a", "type_b"), [("e2m1", "e2m1"), ("e3m2", "e2m3"), ("e2m3", "e5m2"), ("e4m3", "e3m2")])
@pytest.mark.parametrize("held", [False, True])
def test_small_floats_without_factors(type_a, type_b, held):
    rng = np.random.default_rng(8)
    a_codes, a = codes(rng, 128, 32, type_a)
    b_codes, b = codes(rng, 32, 32, type_b)
    d = np.zeros((128, 128), np.float32)
    d[:, :32] = rng.standard_normal((128, 32))
    shared, a_desc, b_desc = staged(parts(rng, a_codes, type_a, False), parts(rng, b_codes, type_b, False), 3)
    shape = shape_of(128, 32, 1, FLOATS[type_a][2], FLOATS[type_b][2])
    options = {}
    if held:
        options = {
            "a": "[r29+160]",
            "middle": HOLD,
            "more": [np.zeros(4, np.uint32), containers(a_codes, type_a, False)],
        }
    got, found = multiply("f8f6f4", shape, 128, 128, shared, d.view(np.uint32), a_desc, b_desc, **options)
    assert found == []
    assert np.array_equal(got[:, :32].copy().view(np.float32), summed(d[:, :32], a, b))


@pytest.mark.parametrize(
    ("kind", "type_", "each", "words", "scale"),
    [
        ("mxf8f6f4", "e2m3", 1, "", "ue8m0"),
        ("mxf4nvf4", "e2m1", 4, ".block16", "ue4m3"),
    ],
)
@pytest.mark.parametrize("issuer", [0, 1])
def test_a_pair_of_blocks(kind, type_, each, words, scale, issuer):
    """Each block has the factors of its 128 rows of A, and of all columns of B."""
    rng = np.random.default_rng(9)
    depth, packed, n = KINDS[kind], kind != "mxf8f6f4", 48
    a_codes, a = codes(rng, 256, depth, type_)
    b_codes, b = codes(rng, n, depth, type_)
    fa_bytes, fa = factors(rng, 256, each, scale)
    fb_bytes, fb = factors(rng, n, each, scale)
    d = rng.standard_normal((256, n)).astype(np.float32)
    shared, a_desc, b_desc = halves(parts(rng, a_codes, type_, packed), parts(rng, b_codes, type_, packed), 3)
    before = np.zeros((2, 128, 64), np.uint32)
    before[:, :, :n] = placed(d).view(np.uint32)
    for side in range(2):
        before[side, :, n : n + 4] = words_of(rng, fa_bytes[128 * side : 128 * side + 128], 0, 4)
        before[side, :, n + 4 : n + 8] = words_of(rng, fb_bytes, 0, 4)
    number = 1 if packed else FLOATS[type_][2]
    shape = scaled_shape(256, n, number, number, 0, 0, int(scale == "ue8m0"))
    issue = mma(f"{kind}.block_scale{words}", shape, lanes=f"[r29+{n}], [r29+{n + 4}], ")
    got, found = run(64, shared, before, a_desc, b_desc, issue=issue, issuer=issuer)
    assert found == []
    scaled = a * np.repeat(fa, depth // each, 1), b * np.repeat(fb, depth // each, 1)
    assert np.array_equal(got[:, :, :n].copy().view(np.float32), placed(summed(d, *scaled)))


@pytest.mark.parametrize(
    ("left_out", "kinds"),
    [
        ({"middle": STORE.replace("tcgen05.wait::st.sync.aligned;", "")}, {"missing_wait"}),
        ({"before": ""}, {"missing_fence"}),  # tcgen05.fence::before_thread_sync
    ],
)
def test_factors_are_ordered_like_other_columns(left_out, kinds):
    """A product reads the factors: tcgen05.st of other warps before it needs a wait and fences."""
    got, want, found = product("mxf8f6f4", "e4m3", "e4m3", 16, **left_out)
    assert {report.kind for report in found} == kinds
    assert np.array_equal(got, want)


def other_copy(table):
    table[70, 0] ^= 0xFF
    return table


def other_sign(table):
    table[:, 0] |= 0x80
    return table


MISUSES = [
    ({"change": other_copy}, "the same scale factors"),
    ({"lanes": f"[r24+{32 << 16}], [r29+{SFB}], "}, "must begin in lane 0"),
    ({"lanes": f"[r29+8], [r29+{SFB}], "}, "must not overlap D"),
    ({"lanes": "[r24], [r29+510], "}, "has not allocated"),
    ({"shape": scaled_shape(128, 16, 2, 0)}, "lacks the shape, types or swizzle"),  # no type has this code
    ({"shape": scaled_shape(128, 16, 6, 0)}, "lacks the shape, types or swizzle"),
    ({"shape": scaled_shape(64, 16)}, "lacks the shape, types or swizzle"),
    ({"shape": scaled_shape(128, 0)}, "lacks the shape, types or swizzle"),
    ({"shape": scaled_shape(128, 16, exponents=0)}, "lacks the shape, types or swizzle"),
    ({"shape": scaled_shape(128, 16, 5, more=1 << 15)}, "lacks the shape, types or swizzle"),  # A of 4 bits, transposed
    ({"shape": scaled_shape(128, 16, more=1 << 2)}, "lacks the shape, types or swizzle"),  # sparse
    ({"shape": scaled_shape(128, 8, more=1 << 16)}, "lacks the shape, types or swizzle"),  # B transposed, 8 columns
]
PACKED_MISUSES = [
    ({"change": other_sign, "each": 4, "words": ".block16", "scale": "ue4m3"}, "must be 0"),
    ({"shape": scaled_shape(128, 16, 1, 1, 1), "each": 2, "words": ".block32"}, "multiple of the number of factors"),
    ({"shape": scaled_shape(128, 16, 1, 1, 0, 2), "each": 4, "words": ".block16"}, "multiple of the number of factors"),
    ({"shape": scaled_shape(128, 16, 1, 1, exponents=0), "each": 2, "words": ".block32"}, "lacks the shape"),
    ({"shape": scaled_shape(128, 16, 1, 1, more=1 << 31), "each": 2, "words": ".block32"}, "lacks the shape"),  # K = 96
    ({"shape": scaled_shape(128, 16, 5, 5), "each": 2, "words": ".block32"}, "lacks the shape"),
]


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [("mxf8f6f4", *row) for row in MISUSES] + [("mxf4nvf4", *row) for row in PACKED_MISUSES],
)
def test_misuse(kind, change, said):
    type_ = "e4m3" if kind == "mxf8f6f4" else "e2m1"
    _, _, found = product(kind, type_, type_, 16, **change)
    assert [report.kind for report in found if report.kind != "deadlock"] == ["misuse"]
    assert said in found[0].message


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("kind::mxf8f6f4 [r1], d1, d2, r2, [r3], [r4], p1", "needs .block_scale"),
        ("kind::f16.block_scale [r1], d1, d2, r2, [r3], [r4], p1", "needs one of .kind::mxf8f6f4"),
        ("kind::mxf8f6f4.block_scale.scale_vec::2X [r1], d1, d2, r2, [r3], [r4], p1", "scale_vec::1X, .block32"),
        ("kind::mxf4.block_scale.block16 [r1], d1, d2, r2, [r3], [r4], p1", "needs one of .scale_vec::2X"),
        ("kind::mxf4nvf4.block_scale [r1], d1, d2, r2, [r3], [r4], p1", "needs one of .scale_vec::2X"),
        ("kind::mxf4.block_scale [r1], d1, d2, r2, r3, r4, p1", "addresses in brackets"),
        ("kind::mxf4.block_scale [r1], d1, d2, r2, [r3], [r4], {r5, r6, r7, r8}, p1", "operands must be 7, got 8"),
        ("kind::mxf4.block_scale [r1], d1, d2, r2, p1", "operands must be 7, got 5"),
        ("kind::mxf4.block_scale [r1], d1, d2, r2, [r3], [r4], r5", "does not fit"),
    ],
)
def test_rejected_at_load(form, words):
    """ptxas 12.9 rejects each of these, too."""
    message = rejection(f"tcgen05.mma.cta_group::1.{form};")
    assert words in message
    assert "PTX line" in message

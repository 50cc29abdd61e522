"""wgmma on the PTX machine against the layouts and fragments of the PTX ISA, written in NumPy.

An operand's image in shared memory is written element by element from the ISA's canonical layouts; the machine reads it
through a descriptor. Products are exact. Each element is one chain of float32 additions, which starts from D and goes
in k order.
"""

from __future__ import annotations

import numpy as np
import pytest
from simt_ptx import launched, rejection
from simt_wgmma import (
    BYTES,
    KINDS,
    chained,
    descriptor,
    fragments,
    fragments_of_a,
    image,
    narrow,
    strides,
)

A_AT, B_AT = 0, 32768
STAGE = """mov.u64 d1, tile;
mov.u64 d2, 0;
STAGE: add.u64 d3, d2, t64;
shl.b64 d3, d3, 4;
add.u64 d4, d3, a0;
add.u64 d5, d3, d1;
ld.global.v4.b32 {r1, r2, r3, r4}, [d4];
st.shared.v4.b32 [d5], {r1, r2, r3, r4};
add.u64 d2, d2, 128;
setp.lt.u64 p1, d2, 4096;
@p1 bra STAGE;
"""
TILE = ".shared .align 1024 .b8 tile[65536];"


FENCE = "wgmma.fence.sync.aligned;"
COMMIT = "wgmma.commit_group.sync.aligned;"
WAIT = COMMIT + "\nwgmma.wait_group.sync.aligned 0;"


def multiply(text, n, shared, d, a_desc, b_desc, tail, a_registers=None, before="fence.proxy.async;\nbar.sync 0;",
             after=WAIT, first=FENCE, check=True, seed=0, scale="p2", repeat=1):  # fmt: skip
    """([64, n] D, reports) of wgmma on a warpgroup; a_registers: [128, 4] uint32, A's fragments."""
    names = [f"c{i}" for i in range(n // 2)]
    lines = [STAGE, before, f"mad.wide.u32 d10, t, {2 * n}, a1;"]
    lines += [f"ld.global.b32 {name}, [d10+{4 * i}];" for i, name in enumerate(names)]
    a = f"{a_desc:#x}"
    if a_registers is not None:
        lines += ["mad.wide.u32 d11, t, 16, a2;", "ld.global.v4.b32 {r10, r11, r12, r13}, [d11];"]
        a = "{r10, r11, r12, r13}"
    else:
        lines += [f"mov.b64 d20, {a};"]
        a = "d20"
    lines += [f"mov.b64 d21, {b_desc:#x};", "setp.eq.u32 p2, t, t;", "not.pred p3, p2;", first]
    lines += [
        f"wgmma.mma_async.sync.aligned.{text} {{{', '.join(names)}}}, {a}, d21, {scale}{', ' if tail else ''}{tail};"
    ] * repeat
    lines.append(after)
    lines += [f"st.global.b32 [d10+{4 * i}], {name};" for i, name in enumerate(names)]
    held = np.zeros((128, n // 2), np.float32)
    for thread in range(128):
        for i, (row, column) in enumerate(fragments(thread % 32, n)):
            held[thread, i] = d[thread // 32 * 16 + row, column]
    arrays = [shared, held, *([] if a_registers is None else [a_registers])]
    out, found = launched(
        "\n".join(lines), *arrays, threads=128, module=TILE, check=check, seed=seed, head=f".reg .b32 c<{n // 2}>;"
    )
    result = np.zeros((64, n), np.float32)
    for thread in range(128):
        for i, (row, column) in enumerate(fragments(thread % 32, n)):
            result[thread // 32 * 16 + row, column] = out[1][thread, i]
    return result, found


def drawn(kind, n, seed=1):
    rng = np.random.default_rng(seed)
    depth = KINDS[kind]
    a_bits, a = narrow(rng.standard_normal((64, depth)), kind)
    b_bits, b = narrow(rng.standard_normal((n, depth)), kind)
    return a_bits, a, b_bits, b, rng.standard_normal((64, n)).astype(np.float32)


def operands(kind, n, mode=1, turned_a=False, turned_b=False, seed=1):
    """(shared memory, descriptors of A and B, A, B, D)."""
    a_bits, a, b_bits, b, d = drawn(kind, n, seed)
    shared = np.zeros(65536, np.uint8)
    size = a_bits.itemsize
    to_a, to_b = strides(mode, turned_a, 64, KINDS[kind], size), strides(mode, turned_b, n, KINDS[kind], size)
    shared[:B_AT] = image(a_bits, mode, turned_a, *to_a)
    shared[B_AT:] = image(b_bits, mode, turned_b, *to_b)
    return shared, descriptor(A_AT, mode, *to_a), descriptor(B_AT, mode, *to_b), a, b, d


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(("kind", "n"), [("bf16", 8), ("bf16", 128), ("f16", 64), ("tf32", 40), ("bf16", 256)])
def test_products_of_shared_operands(kind, n, check):
    shared, a_desc, b_desc, a, b, d = operands(kind, n)
    tail = "1, 1" if kind == "tf32" else "1, 1, 0, 0"
    got, found = multiply(f"m64n{n}k{KINDS[kind]}.f32.{kind}.{kind}", n, shared, d, a_desc, b_desc, tail, check=check)
    assert found == []
    assert np.array_equal(got, chained(d, a, b))


BYTE_CASES = [("e4m3", "e4m3", "f32"), ("e4m3", "e5m2", "f16"), ("s8", "s8", "s32"), ("u8", "s8", "s32")]


def codes(shape, kind, seed):
    """Codes of 8 bits without NaNs and infinities."""
    found = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return found & 0xBF if kind[0] == "e" else found


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize(("kind_a", "kind_b", "result"), BYTE_CASES)
def test_products_of_bytes(kind_a, kind_b, result, held):
    """Products of 8-bit floats and integers with k = 32; D is float32, float16 (two in a register) or int32."""
    n, mode = 32, 3
    a, b = codes((64, 32), kind_a, 1), codes((n, 32), kind_b, 2)
    shared = np.zeros(65536, np.uint8)
    to_a, to_b = strides(mode, False, 64, 32, 1), strides(mode, False, n, 32, 1)
    shared[:B_AT], shared[B_AT:] = image(a, mode, False, *to_a), image(b, mode, False, *to_b)
    wide_a, wide_b = (x.view(BYTES[kind]).astype(np.float64) for x, kind in ((a, kind_a), (b, kind_b)))
    rng = np.random.default_rng(3)
    types = {"f32": np.float32, "f16": np.float16, "s32": np.int32}
    d = (rng.standard_normal((64, n)) * 1000).astype(types[result])
    places = fragments(0, n)
    per = 2 if result == "f16" else 1
    registers = np.zeros((128, len(places) // per), np.uint32)
    view = registers.view(types[result])
    fragment = np.zeros((128, 4), np.uint32)
    for thread in range(128):
        first = 16 * (thread // 32)
        for i, (row, column) in enumerate(fragments(thread % 32, n)):
            view[thread, i] = d[first + row, column]
        g, t = thread % 32 // 4, thread % 4
        for i, (row, k) in enumerate(((g, 4 * t), (g + 8, 4 * t), (g, 16 + 4 * t), (g + 8, 16 + 4 * t))):
            fragment[thread, i] = a[first + row, k : k + 4].view(np.uint32)[0]
    names = ", ".join(f"c{i}" for i in range(registers.shape[1]))
    tail = "" if result == "s32" else ", 1, 1"
    a_operand = "{r10, r11, r12, r13}" if held else "d20"
    body = f"""{STAGE}
fence.proxy.async;
bar.sync 0;
mad.wide.u32 d10, t, {4 * registers.shape[1]}, a1;
{"".join(f"ld.global.b32 c{i}, [d10+{4 * i}];" for i in range(registers.shape[1]))}
mad.wide.u32 d11, t, 16, a2;
ld.global.v4.b32 {{r10, r11, r12, r13}}, [d11];
mov.b64 d20, {descriptor(A_AT, mode, *to_a):#x};
mov.b64 d21, {descriptor(B_AT, mode, *to_b):#x};
setp.eq.u32 p2, t, t;
{FENCE}
wgmma.mma_async.sync.aligned.m64n{n}k32.{result}.{kind_a}.{kind_b} {{{names}}}, {a_operand}, d21, p2{tail};
{WAIT}
{"".join(f"st.global.b32 [d10+{4 * i}], c{i};" for i in range(registers.shape[1]))}"""
    head = f".reg .b32 c<{registers.shape[1]}>;"
    out, found = launched(body, shared, registers, fragment, threads=128, module=TILE, head=head)
    assert found == []
    total = d.astype(np.float64 if result == "s32" else np.float32)
    for k in range(32):
        total = (total + wide_a[:, k, None] * wide_b[None, :, k]).astype(total.dtype)
    want, got = total.astype(d.dtype), np.zeros_like(d)
    for thread in range(128):
        for i, (row, column) in enumerate(fragments(thread % 32, n)):
            got[16 * (thread // 32) + row, column] = out[1].view(d.dtype)[thread, i]
    assert np.array_equal(got, want)


def test_integers_wrap_or_saturate():
    """Without .satfinite a sum beyond int32 wraps; with it the sum is the nearest int32."""
    n, mode = 8, 3
    a, b = np.full((64, 32), 127, np.uint8), np.full((n, 32), 127, np.uint8)
    a[32:] = 0x80
    shared = np.zeros(65536, np.uint8)
    to_a, to_b = strides(mode, False, 64, 32, 1), strides(mode, False, n, 32, 1)
    shared[:B_AT], shared[B_AT:] = image(a, mode, False, *to_a), image(b, mode, False, *to_b)
    d = np.where(np.arange(64)[:, None] < 32, (1 << 31) - 100, -(1 << 31) + 100) + np.zeros((1, n), np.int64)
    for limit, want in (
        ("", (d + a.view(np.int8).astype(np.int64) @ b.T.astype(np.int64)).astype(np.int32)),
        (".satfinite", np.where(d > 0, (1 << 31) - 1, -(1 << 31)).astype(np.int32)),
    ):
        got, found = multiply(
            f"m64n8k32{limit}.s32.s8.s8",
            n,
            shared,
            d.astype(np.int32).view(np.float32),
            descriptor(A_AT, mode, *to_a),
            descriptor(B_AT, mode, *to_b),
            "",
        )
        assert found == []
        assert np.array_equal(got.view(np.int32), want)


LAYOUTS = [("bf16", 24, mode, ta, tb) for mode in range(4) for ta in (0, 1) for tb in (0, 1)]
LAYOUTS += [("f16", 160, 2, 0, 1), ("f16", 256, 1, 1, 1)] + [("tf32", 24, mode, 0, 0) for mode in range(4)]


@pytest.mark.parametrize(("kind", "n", "mode", "ta", "tb"), LAYOUTS)
def test_layouts(kind, n, mode, ta, tb):
    shared, a_desc, b_desc, a, b, d = operands(kind, n, mode, bool(ta), bool(tb))
    tail = "1, 1" if kind == "tf32" else f"1, 1, {ta}, {tb}"
    got, found = multiply(f"m64n{n}k{KINDS[kind]}.f32.{kind}.{kind}", n, shared, d, a_desc, b_desc, tail)
    assert found == []
    assert np.array_equal(got, chained(d, a, b))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turned", [0, 1])
def test_fragments_of_a_in_registers(kind, turned):
    turned = turned if kind != "tf32" else 0
    shared, _, b_desc, a, b, d = operands(kind, 32, 1, False, bool(turned))
    bits = narrow(a, kind)[0]
    held = np.zeros((128, 4), np.uint32)
    for thread in range(128):
        elements = [bits[16 * (thread // 32) + row, k] for row, k in fragments_of_a(thread % 32, kind)]
        held[thread] = np.array(elements).view(np.uint32)
    tail = "1, 1" if kind == "tf32" else f"1, 1, {turned}"
    got, found = multiply(f"m64n32k{KINDS[kind]}.f32.{kind}.{kind}", 32, shared, d, 0, b_desc, tail, held)
    assert found == []
    assert np.array_equal(got, chained(d, a, b))


@pytest.mark.parametrize(("scale", "signs"), [("p3", (1, 1)), ("p2", (-1, 1)), ("p3", (1, -1)), ("p2", (-1, -1))])
def test_scales(scale, signs):
    shared, a_desc, b_desc, a, b, d = operands("bf16", 16)
    got, found = multiply(
        "m64n16k16.f32.bf16.bf16", 16, shared, d, a_desc, b_desc, f"{signs[0]}, {signs[1]}, 0, 0", scale=scale
    )
    assert found == []
    assert np.array_equal(got, chained(d * (scale == "p2"), a * signs[0], b * signs[1]))


def test_infinities_nans_and_subnormals():
    """Infinities, NaNs, overflowing sums and subnormal numbers have the results of the chain of float32 sums."""
    a_bits, a, b_bits, b, d = drawn("bf16", 16)
    a_bits[:8, 3], b_bits[:4, 3] = 0x7F7F, [0x7F7F, 0x7F80, 0xFF80, 0x7FC0]
    a_bits[8:16, 5], b_bits[4:8, 5] = 0x0080, 0x3E80
    a, b = ((x.astype(np.uint32) << 16).view(np.float32) for x in (a_bits, b_bits))
    shared = np.zeros(65536, np.uint8)
    shared[:B_AT], shared[B_AT:] = image(a_bits, 1, False, 16, 1024), image(b_bits, 1, False, 16, 1024)
    with np.errstate(all="ignore"):
        want = chained(d, a, b)
    got, found = multiply(
        "m64n16k16.f32.bf16.bf16",
        16,
        shared,
        d,
        descriptor(0, 1, 16, 1024),
        descriptor(B_AT, 1, 16, 1024),
        "1, 1, 0, 0",
    )
    assert found == []
    assert np.array_equal(got, want, equal_nan=True)
    assert np.isnan(got).any()
    assert set(got.view(np.uint32)[np.isnan(got)].tolist()) == {0x7FFFFFFF}


def test_steps_of_k_inside_a_swizzled_tile():
    """A tile has 64 bfloat16 along k, which are rows of 128 bytes. A step of 16 moves both descriptors by 32 bytes."""
    rng = np.random.default_rng(5)
    n = 64
    a_bits, a = narrow(rng.standard_normal((64, 64)), "bf16")
    b_bits, b = narrow(rng.standard_normal((n, 64)), "bf16")
    shared = np.zeros(65536, np.uint8)
    for start, bits in ((0, a_bits), (B_AT, b_bits)):
        for row, part in np.ndindex(bits.shape[0], 8):  # 16-byte part p of row r at p ^ (r & 7)
            at = start + row * 128 + (part ^ (row & 7)) * 16
            shared[at : at + 16] = np.frombuffer(bits[row, 8 * part : 8 * part + 8].tobytes(), np.uint8)
    names = [f"c{i}" for i in range(n // 2)]
    lines = [
        STAGE,
        "fence.proxy.async.shared::cta;\nbar.sync 0;",
        f"mad.wide.u32 d10, t, {2 * n}, a1;",
        FENCE,
        "setp.ne.u32 p2, t, t;",
    ]
    for step in range(4):
        a_desc, b_desc = (descriptor(at + 32 * step, 1, 16, 1024) for at in (0, B_AT))
        lines.append(
            f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{', '.join(names)}}}, {a_desc:#x}, "
            f"{b_desc:#x}, p2, 1, 1, 0, 0;\nsetp.eq.u32 p2, t, t;"
        )
    lines += [WAIT, *(f"st.global.b32 [d10+{4 * i}], {name};" for i, name in enumerate(names))]
    out, found = launched(
        "\n".join(lines),
        shared,
        np.zeros((128, n // 2), np.float32),
        threads=128,
        module=TILE,
        head=f".reg .b32 c<{n // 2}>;",
    )
    assert found == []
    want = chained(np.zeros((64, n), np.float32), a, b)
    for thread in range(128):
        for i, (row, column) in enumerate(fragments(thread % 32, n)):
            assert out[1][thread, i] == want[thread // 32 * 16 + row, column]


# ---- reports ----
def reports_of(**options):
    """The reports of a bfloat16 product."""
    shared, a_desc, b_desc, _, _, d = operands("bf16", 16)
    a_registers = options.pop("a_registers", None)
    return multiply(
        "m64n16k16.f32.bf16.bf16",
        16,
        shared,
        d,
        options.pop("a", a_desc),
        options.pop("b", b_desc),
        "1, 1, 0" if a_registers is not None else "1, 1, 0, 0",
        a_registers,
        **options,
    )[1]


def kinds_of(**options):
    """The kinds of reports of a bfloat16 product."""
    return {report.kind for report in reports_of(**options)}


@pytest.mark.parametrize(
    ("before", "kinds"),
    [
        ("fence.proxy.async;\nbar.sync 0;", set()),
        ("fence.proxy.async.shared::cta;\nbar.sync 0;", set()),
        ("bar.sync 0;\nfence.proxy.async;", set()),
        ("bar.sync 0;", {"missing_fence"}),
        ("fence.proxy.async.global;\nbar.sync 0;", {"missing_fence"}),
        ("fence.proxy.async;", {"race"}),
        ("fence.acq_rel.cta;\nbar.sync 0;", {"missing_fence"}),
        ("setp.ne.u32 p4, t, 0;\n@p4 bra X;\nfence.proxy.async;\nX: bar.sync 0;", {"missing_fence"}),
        (
            "setp.ge.u32 p4, t, 32;\nsetp.eq.or.u32 p4, t, 5, p4;\n@p4 fence.proxy.async;\nbar.sync 0;",
            {"missing_fence"},
        ),
    ],
)
def test_generic_writes_need_a_proxy_fence(before, kinds):
    assert kinds_of(before=before) == kinds


STORE = "st.shared.u32 [tile+32768], 5;"  # a store to B, which all warps read
HELD = "wgmma.wait_group.sync.aligned 0;"


@pytest.mark.parametrize(
    ("after", "kinds"),
    [
        (
            f"{COMMIT}\n{HELD}\nbar.sync 0;\n{STORE}",
            {"race"},
        ),  # 128 threads store the same word without an order
        (f"{COMMIT}\n{HELD}\nbar.sync 0;\nsetp.ne.u32 p4, t, 0;\n@!p4 {STORE}", set()),
        (f"{COMMIT}\nbar.sync 0;\nsetp.ne.u32 p4, t, 0;\n@!p4 {STORE}\n{HELD}", {"race"}),
        (
            f"{COMMIT}\nwgmma.wait_group.sync.aligned 1;\nbar.sync 0;\nsetp.ne.u32 p4, t, 0;\n@!p4 {STORE}\n{HELD}",
            {"race"},
        ),
        (f"{COMMIT}\n{HELD}\nsetp.ne.u32 p4, t, 0;\n@!p4 {STORE}\nbar.sync 0;", {"race"}),  # other warps still read
        (
            f"{COMMIT}\n{COMMIT}\nwgmma.wait_group.sync.aligned 1;\nbar.sync 0;\nsetp.ne.u32 p4, t, 0;\n@!p4 {STORE}",
            set(),
        ),
        (f"{HELD}\nbar.sync 0;\nsetp.ne.u32 p4, t, 0;\n@!p4 {STORE}\n{WAIT}", {"race"}),  # its group is not committed
    ],
)
def test_when_operands_may_be_written(after, kinds):
    assert set().union(*(kinds_of(after=after, seed=seed) for seed in range(8))) == kinds


ADD = "add.f32 c3, c3, c4;"


@pytest.mark.parametrize(
    ("first", "after", "kinds"),
    [
        (FENCE, f"{ADD}\n{WAIT}", {"missing_wait"}),
        (FENCE, f"{WAIT}\n{ADD}", set()),
        (FENCE, f"{COMMIT}\nwgmma.wait_group.sync.aligned 1;\nst.global.b32 [d10], c7;\n{HELD}", {"missing_wait"}),
        (FENCE, f"{COMMIT}\nld.global.b32 c2, [d10];\n{HELD}", {"missing_wait"}),
        (FENCE, f"{COMMIT}\nmov.b32 c2, r9;\n{HELD}", {"missing_wait"}),
        (FENCE, f"{COMMIT}\nmov.b32 r9, c2;\n{HELD}\nadd.f32 r9, r9, r9;", set()),
        (FENCE, f"{COMMIT}\nmov.b32 r9, c2;\nadd.f32 r9, r9, r9;\n{HELD}", {"missing_wait"}),
        ("", WAIT, {"missing_fence"}),
        (f"{FENCE}\n{ADD}", WAIT, {"missing_fence"}),
        (f"{FENCE}\nmov.b32 r9, c2;\nmov.b32 c2, r9;", WAIT, set()),
        (f"{FENCE}\nmov.b32 c2, 0;", WAIT, set()),
        ("".join(f"mov.b32 c{i}, 0;" for i in range(8)), WAIT, {"missing_fence"}),
        (f"{FENCE}\nadd.u32 r20, r20, 1;", f"add.u32 r20, r20, 1;\n{WAIT}", set()),
    ],
)
def test_registers_used_between_fence_and_wait_are_reported(first, after, kinds):
    assert kinds_of(first=first, after=after) - {"uninitialised"} == kinds


@pytest.mark.parametrize(
    ("after", "kinds"),
    [
        (f"add.u32 r10, r10, 1;\n{WAIT}", {"missing_wait"}),
        (f"{WAIT}\nadd.u32 r10, r10, 1;", set()),
        (f"{COMMIT}\nadd.u32 r30, r10, 1;\n{HELD}", {"missing_wait"}),
    ],
)
def test_registers_of_a(after, kinds):
    assert kinds_of(a_registers=np.zeros((128, 4), np.uint32), after=after) == kinds


def test_a_second_product_of_the_same_registers():
    """The same shape needs no fence, unless the registers were used in between; another shape needs a wait."""
    form = "wgmma.mma_async.sync.aligned.m64n{}k16.f32.bf16.bf16 {{{}}}, d20, d21, p2, 1, 1, 0, 0;"
    again, other = form.format(16, "c0, c1, c2, c3, c4, c5, c6, c7"), form.format(8, "c0, c1, c2, c3")
    assert kinds_of(after=f"{again}\n{WAIT}\n{again}\n{WAIT}") == set()
    reports = reports_of(after=f"{WAIT}\n{ADD}\n{again}\n{WAIT}")
    assert {(report.kind, report.missing) for report in reports} == {("missing_fence", "fence")}
    assert {report.repair for report in reports} == {"wgmma.fence between the two"}
    # A wait does not replace a fence.
    assert kinds_of(after=f"{WAIT}\n{ADD}\n{HELD}\n{again}\n{WAIT}") == {"missing_fence"}
    assert kinds_of(after=f"{WAIT}\n{ADD}\n{FENCE}\n{again}\n{WAIT}") == set()
    assert kinds_of(after=f"{other}\n{WAIT}") == {"missing_wait"}
    assert kinds_of(after=f"{WAIT}\n{other}\n{WAIT}") == set()


@pytest.mark.parametrize(
    ("changed", "kinds"),
    [
        ({"b": descriptor(B_AT + 128, 1, 16, 1024)}, {"misuse"}),
        ({"b": descriptor(B_AT, 1, 16, 1024) | 1 << 49}, {"misuse"}),
        ({"b": descriptor(0x3FFF0, 0, 128, 256)}, {"out_of_bounds"}),
        ({"b": descriptor(B_AT, 1, 16, 32768)}, {"out_of_bounds"}),
    ],
)
def test_descriptors(changed, kinds):
    assert kinds_of(**changed) == kinds


def test_unwritten_operands_and_a_missing_warp_are_reported():
    shared, a_desc, b_desc, *_ = operands("bf16", 16)
    body = STAGE.replace("setp.lt.u64 p1, d2, 4096;", "setp.lt.u64 p1, d2, 2048;")
    names = ", ".join(f"c{i}" for i in range(8))
    body += (
        f"fence.proxy.async;\nbar.sync 0;\n{FENCE}\nsetp.ne.u32 p2, t, t;\n"
        f"wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {{{names}}}, {a_desc}, {b_desc}, p2, 1, 1, 0, 0;"
        f"\n{WAIT}"
    )
    for threads, kinds in ((128, {"uninitialised"}), (96, {"misuse"})):
        found = launched(body, shared, threads=threads, module=TILE, head=".reg .b32 c<8>;")[1]
        assert {r.kind for r in found} == kinds


REGISTERS = "{r1, r2, r3, r4}"


@pytest.mark.parametrize(
    "text",
    [
        "wgmma.fence.aligned;",
        "wgmma.wait_group.sync.aligned r1;",
        "wgmma.wait_group.sync.aligned -1;",
        "wgmma.wait_group.sync.aligned 0f3F800000;",
        "wgmma.wait_group.sync.aligned 99999999999999999999;",
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16;",
        f"wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {REGISTERS}, {{h1, h2, h3, h4}}, d2, p1, 1, 1, 0;",
        f"wgmma.mma_async.sync.aligned.m64n8k16.f32.e4m3.e4m3 {REGISTERS}, d1, d2, p1, 1, 1;",
        f"wgmma.mma_async.sync.aligned.m64n8k32.f32.s8.s8 {REGISTERS}, d1, d2, p1;",
        f"wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8 {REGISTERS}, d1, d2, p1, 1, 1;",
        f"wgmma.mma_async.sync.aligned.m64n8k32.satfinite.f32.e4m3.e4m3 {REGISTERS}, d1, d2, p1, 1, 1;",
        f"wgmma.mma_async.sync.aligned.m64n8k16.f16.f16.f16 {REGISTERS}, d1, d2, p1, 1, 1, 0, 0;",
        f"wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.bf16 {REGISTERS}, d1, d2, p1, 1, 1, 0, 0;",
        f"wgmma.mma_async.sync.aligned.m64n12k16.f32.f16.f16 {REGISTERS}, d1, d2, p1, 1, 1, 0, 0;",
        f"wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {REGISTERS}, d1, d2, p1, 1, 1, 0, 0;",
        f"wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {REGISTERS}, d1, d2, p1, 2, 1, 0, 0;",
        f"wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {REGISTERS}, d1, d2, p1, 1, 1, 2, 0;",
        f"wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {REGISTERS}, d1, d2, p1, 1, 1;",
        f"wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {REGISTERS}, d1, d2, p1, 1, 1, 0, 0;",
        f"wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {REGISTERS}, {{r1, r2}}, d2, p1, 1, 1, 0;",
        f"wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.f16.f16 {REGISTERS}, d1, d2, r9, 0, p1, 1, 1, 0, 0;",
    ],
)
def test_rejected_at_load(text):
    message = rejection(text)
    assert text.split()[0].rstrip(";") in message
    assert "PTX line" in message

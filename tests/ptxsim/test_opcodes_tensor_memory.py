"""tcgen05 on the PTX machine: products against NumPy, and the images of tensor memory from the PTX ISA's figures."""

from __future__ import annotations

import numpy as np
import pytest
from simt_ptx import launched, rejection
from simt_wgmma import BYTES, chained, descriptor, image, narrow, strides

import ptxsim
from ptxsim import state as s

B_AT = 32768
TILE_AT = 1024  # where `tile` lies in shared memory, after the two words
MODULE = ".shared .align 8 .b64 bar;\n.shared .align 4 .b32 place;\n.shared .align 1024 .b8 tile[65536];"
START = """shr.u32 r30, t, 5;
setp.ne.u32 p30, r30, 0;
setp.ne.u32 p29, t, 0;
@p30 bra HAVE;
tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [place], {columns};
tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;
HAVE: @p29 bra READY;
mbarrier.init.shared::cta.b64 [bar], 1;
READY: mov.u64 d1, tile;
mov.u64 d2, 0;
STAGE: add.u64 d3, d2, t64;
shl.b64 d3, d3, 4;
add.u64 d4, d3, a0;
add.u64 d5, d3, d1;
ld.global.v4.b32 {{r1, r2, r3, r4}}, [d4];
st.shared.v4.b32 [d5], {{r1, r2, r3, r4}};
add.u64 d2, d2, 128;
setp.lt.u64 p1, d2, 4096;
@p1 bra STAGE;
fence.proxy.async;
bar.sync 0;
ld.shared.b32 r29, [place];
shl.b32 r28, r30, 21;
add.u32 r28, r28, r29;
"""
END = "bar.sync 0;\n@p30 bra GONE;\ntcgen05.dealloc.cta_group::1.sync.aligned.b32 r29, {columns};\nGONE:"
WAIT = """WAIT: mbarrier.try_wait.parity.shared::cta.b64 p28, [bar], 0;
@!p28 bra WAIT;
tcgen05.fence::after_thread_sync;"""
MODES = {0: 0, 1: 2, 2: 4, 3: 6}  # the swizzle of a descriptor, by that of wgmma's


def described(start, mode, leading, stride):
    return descriptor(TILE_AT + start, 0, leading, stride) | 1 << 46 | MODES[mode] << 61


def shape_of(rows, n, result, a, b, negates=0, transposes=0, saturates=0):
    return (
        rows >> 4 << 24
        | n >> 3 << 17
        | transposes << 15
        | negates << 13
        | b << 10
        | a << 7
        | result << 4
        | saturates << 3
    )


def names(count, prefix="c"):
    return "{" + ", ".join(f"{prefix}{i}" for i in range(count)) + "}"


def multiply(kind, shape, rows, n, shared, d, a_desc, b_desc, enabled="p27", a="d20", middle="", lanes="", **options):
    """([rows, n] uint32 D, reports): D goes to tensor memory, one product is added, and D comes back."""
    held = np.zeros((128, n), np.uint32)
    for row in range(rows):
        held[row if rows == 128 else row // 16 * 32 + row % 16] = d[row]
    load, store = (
        "".join(
            f"{op}.global.v4.b32 "
            + (
                f"{{c{i}, c{i + 1}, c{i + 2}, c{i + 3}}}, [d10+{4 * i}];"
                if op == "ld"
                else f"[d10+{4 * i}], {{c{i}, c{i + 1}, c{i + 2}, c{i + 3}}};"
            )
            for i in range(0, n, 4)
        )
        for op in ("ld", "st")
    )
    columns = 256 if n <= 128 else 512
    wide = names(n)
    text = options.pop("commit", "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [bar];")
    body = (
        START.format(columns=columns)
        + f"""mad.wide.u32 d10, t, {4 * n}, a1;
{load}
tcgen05.st.sync.aligned.32x32b.x{n}.b32 [r28], {wide};
tcgen05.wait::st.sync.aligned;
{middle}
{options.pop("before", "tcgen05.fence::before_thread_sync;")}
bar.sync 0;
{options.pop("after", "tcgen05.fence::after_thread_sync;")}
setp.eq.u32 p27, t, t;
not.pred p26, p27;
mov.b64 d20, {a_desc:#x};
mov.b64 d21, {b_desc:#x};
@p29 bra DONE;
tcgen05.mma.cta_group::1.kind::{kind} [r29], {a}, d21, {shape}, {lanes}{enabled};
{text}
DONE: {options.pop("wait", WAIT)}
tcgen05.ld.sync.aligned.32x32b.x{n}.b32 {wide}, [r28];
tcgen05.wait::ld.sync.aligned;
{store}
"""
        + END.format(columns=columns)
    )
    module = options.pop("module", MODULE)
    out, found = launched(
        body,
        shared,
        held,
        *options.pop("more", []),
        threads=128,
        module=module,
        head=f".reg .b32 c<{n}>;",
        arch="sm_100a",
        **options,
    )
    places = [row if rows == 128 else row // 16 * 32 + row % 16 for row in range(rows)]
    return out[1][places], found


def staged(a, b, mode, turned_a=False, turned_b=False):
    """(bytes of shared memory, descriptors of A and B)."""
    depth, size = a.shape[1], a.itemsize
    to_a, to_b = strides(mode, turned_a, len(a), depth, size), strides(mode, turned_b, len(b), depth, size)
    shared = np.zeros(65536, np.uint8)
    shared[:B_AT], shared[B_AT:] = image(a, mode, turned_a, *to_a), image(b, mode, turned_b, *to_b)
    return shared, described(0, mode, *to_a), described(B_AT, mode, *to_b)


def test_a_fence_of_a_block_is_none_of_the_next_block_in_its_slot():
    """The first blocks run tcgen05.fence::before_thread_sync. Those that end last, in the same slots, do not."""
    machine = ptxsim.Machine(sm_count=1, arch="sm_100")
    text = """.version 8.6
.target sm_100a
.address_size 64
.visible .entry k()
{
.reg .u32 r1; .reg .pred p1;
mov.u32 r1, %ctaid.x; setp.lt.u32 p1, r1, 32;
@p1 tcgen05.fence::before_thread_sync;
ret;
}"""
    for blocks, fenced in ((32, True), (320, False)):
        machine.device(0).launch(text, blocks, 32)
        assert machine.run() == []
        assert machine.tables["warps"][:, s.W_BEFORE].any() == fenced


FLOATS = [
    ("f16", 64, 16, 1, False, False),
    ("bf16", 128, 32, 1, False, False),
    ("f16", 128, 64, 0, False, False),
    ("bf16", 64, 32, 3, False, True),
    ("f16", 128, 128, 2, True, True),
    ("bf16", 128, 64, 1, True, False),
    ("tf32", 64, 16, 1, False, False),
    ("tf32", 128, 32, 3, False, False),
]


@pytest.mark.parametrize(("kind", "rows", "n", "mode", "ta", "tb"), FLOATS)
@pytest.mark.parametrize("adds", [True, False])
def test_products_of_floats(kind, rows, n, mode, ta, tb, adds):
    rng = np.random.default_rng(1)
    depth = 8 if kind == "tf32" else 16
    a_bits, a = narrow(rng.standard_normal((rows, depth)), kind)
    b_bits, b = narrow(rng.standard_normal((n, depth)), kind)
    d = rng.standard_normal((rows, n)).astype(np.float32)
    shared, a_desc, b_desc = staged(a_bits, b_bits, mode, ta, tb)
    number = {"f16": 0, "bf16": 1, "tf32": 2}[kind]
    shape = shape_of(rows, n, 1, number, number, transposes=ta | tb << 1)
    got, found = multiply(
        kind.replace("bf", "f"), shape, rows, n, shared, d.view(np.uint32), a_desc, b_desc, "p27" if adds else "p26"
    )
    assert found == []
    assert np.array_equal(got.view(np.float32), chained(d * adds, a, b))


@pytest.mark.parametrize(("kind_a", "kind_b"), [("e4m3", "e4m3"), ("e5m2", "e4m3"), ("s8", "s8"), ("u8", "s8")])
def test_products_of_bytes(kind_a, kind_b):
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 256, (128, 32), np.uint8), rng.integers(0, 256, (32, 32), np.uint8)
    floats = kind_a[0] == "e"
    if floats:
        a, b = a & 0xBF, b & 0xBF  # without NaNs and infinities
    d = (rng.standard_normal((128, 32)) * 1000).astype(np.float32 if floats else np.int32)
    wide = [x.view(BYTES[kind]).astype(np.float64) for x, kind in ((a, kind_a), (b, kind_b))]
    total = d.astype(np.float32 if floats else np.float64)
    for k in range(32):
        total = (total + wide[0][:, k, None] * wide[1][None, :, k]).astype(total.dtype)
    codes = [{"e4m3": 0, "e5m2": 1, "s8": 1, "u8": 0}[kind] for kind in (kind_a, kind_b)]
    shape = shape_of(128, 32, 1 if floats else 2, *codes)
    shared, a_desc, b_desc = staged(a, b, 3)
    got, found = multiply("f8f6f4" if floats else "i8", shape, 128, 32, shared, d.view(np.uint32), a_desc, b_desc)
    assert found == []
    assert np.array_equal(got.view(d.dtype), total.astype(d.dtype))


def test_sums_in_float16():
    """D of float16: one element in each column."""
    rng = np.random.default_rng(3)
    a_bits, a = narrow(rng.standard_normal((64, 16)), "f16")
    b_bits, b = narrow(rng.standard_normal((16, 16)), "f16")
    d = rng.standard_normal((64, 16)).astype(np.float16)
    shared, a_desc, b_desc = staged(a_bits, b_bits, 1)
    got, found = multiply("f16", shape_of(64, 16, 0, 0, 0), 64, 16, shared, d.view(np.uint16), a_desc, b_desc)
    assert found == []
    assert np.array_equal(got.astype(np.uint16).view(np.float16), chained(d, a, b).astype(np.float16))


def test_negated_and_left_out():
    """A's sign, and lanes of D that keep their values."""
    rng = np.random.default_rng(4)
    a_bits, a = narrow(rng.standard_normal((128, 16)), "bf16")
    b_bits, b = narrow(rng.standard_normal((16, 16)), "bf16")
    d = rng.standard_normal((128, 16)).astype(np.float32)
    shared, a_desc, b_desc = staged(a_bits, b_bits, 1)
    got, found = multiply(
        "f16",
        shape_of(128, 16, 1, 1, 1, negates=1),
        128,
        16,
        shared,
        d.view(np.uint32),
        a_desc,
        b_desc,
        lanes="{r20, r21, r22, r23}, ",
        middle="mov.b32 r20, 5;\nmov.b32 r21, 0;\nmov.b32 r22, 0x80000000;\nmov.b32 r23, -1;",
    )
    want = chained(d, -a, b)
    for row in (0, 2, 95, *range(96, 128)):
        want[row] = d[row]
    assert found == []
    assert np.array_equal(got.view(np.float32), want)


@pytest.mark.parametrize(("kind", "rows"), [("bf16", 128), ("f16", 64), ("tf32", 128)])
def test_a_in_tensor_memory(kind, rows):
    """A column holds two elements of 16 bits, or one of 32 bits, of A's row."""
    rng = np.random.default_rng(5)
    depth = 8 if kind == "tf32" else 16
    a_bits, a = narrow(rng.standard_normal((rows, depth)), kind)
    b_bits, b = narrow(rng.standard_normal((16, depth)), kind)
    d = rng.standard_normal((rows, 16)).astype(np.float32)
    shared, _, b_desc = staged(a_bits, b_bits, 1)
    words = np.zeros((128, 8), np.uint32)
    for row in range(rows):
        words[row if rows == 128 else row // 16 * 32 + row % 16] = a_bits[row].view(np.uint32)
    middle = """mad.wide.u32 d11, t, 32, a2;
ld.global.v4.b32 {r1, r2, r3, r4}, [d11];
ld.global.v4.b32 {r5, r6, r7, r8}, [d11+16];
tcgen05.st.sync.aligned.32x32b.x8.b32 [r28+64], {r1, r2, r3, r4, r5, r6, r7, r8};
tcgen05.wait::st.sync.aligned;"""
    number = {"f16": 0, "bf16": 1, "tf32": 2}[kind]
    got, found = multiply(
        kind.replace("bf", "f"),
        shape_of(rows, 16, 1, number, number),
        rows,
        16,
        shared,
        d.view(np.uint32),
        0,
        b_desc,
        a="[r29+64]",
        middle=middle,
        more=[words],
    )
    assert found == []
    assert np.array_equal(got.view(np.float32), chained(d, a, b))


IMAGES = {  # (lane of the warp, register) -> (lane of the slab, column), from the figures of the PTX ISA
    "16x64b": (1, lambda lane, k: (lane // 4 + 8 * (lane % 2), lane // 2 % 2 + 2 * k)),
    "16x128b": (2, lambda lane, k: (lane // 4 + 8 * (k % 2), lane % 4 + 4 * (k // 2))),
    "16x256b": (4, lambda lane, k: (lane // 4 + 8 * (k // 2 % 2), k % 2 + 2 * (lane % 4) + 8 * (k // 4))),
    "16x32bx2": (1, lambda lane, k: (lane % 16, k + 40 * (lane // 16))),
}


@pytest.mark.parametrize("upper", [0, 16])
@pytest.mark.parametrize("shape", IMAGES)
def test_images_of_loads_and_stores(shape, upper):
    """What .32x32b stored, row by row, is read by the other shapes; a store by them is the reverse."""
    per, place = IMAGES[shape]
    count = 4 * per
    split = ", 40" if shape == "16x32bx2" else ""
    data = np.random.default_rng(6).integers(0, 1 << 32, (128, 64), np.uint32)
    loads = "".join(f"ld.global.b32 c{i}, [d10+{4 * i}];" for i in range(64))
    stores = "".join(f"st.global.b32 [d11+{4 * i}], e{i};" for i in range(count))
    rest = "".join(f"st.global.b32 [d10+{4 * i}], c{i};" for i in range(64))
    body = (
        START.format(columns=128)
        + f"""mad.wide.u32 d10, t, 256, a1;
mad.wide.u32 d11, t, {4 * count}, a2;
{loads}
tcgen05.st.sync.aligned.32x32b.x64.b32 [r28], {names(64)};
tcgen05.wait::st.sync.aligned;
tcgen05.ld.sync.aligned.{shape}.x4.b32 {names(count, "e")}, [r28+{upper << 16}]{split};
tcgen05.wait::ld.sync.aligned;
{stores}
{"".join(f"not.b32 e{i}, e{i};" for i in range(count))}
tcgen05.st.sync.aligned.{shape}.x4.b32 [r28+{upper << 16}]{split}, {names(count, "e")};
tcgen05.wait::st.sync.aligned;
tcgen05.ld.sync.aligned.32x32b.x64.b32 {names(64)}, [r28];
tcgen05.wait::ld.sync.aligned;
{rest}
"""
        + END.format(columns=128)
    )
    head = f".reg .b32 c<64>;\n.reg .b32 e<{count}>;"
    out, found = launched(
        body,
        np.zeros(65536, np.uint8),
        data,
        np.zeros((128, count), np.uint32),
        threads=128,
        module=MODULE,
        head=head,
        arch="sm_100a",
    )
    assert found == []
    want, after = np.zeros((128, count), np.uint32), data.copy()
    for thread in range(128):
        for k in range(count):
            row, column = place(thread % 32, k)
            at = thread // 32 * 32 + upper + row, column
            want[thread, k] = data[at]
            after[at] = ~data[at]
    assert np.array_equal(out[2], want)
    assert np.array_equal(out[1], after)


@pytest.mark.parametrize(("left_out", "said"), [("st", "tcgen05.wait::st"), ("ld", "tcgen05.wait::ld"), ("", "")])
def test_a_missing_wait_is_reported(left_out, said):
    """A store that a load of the same warp needs, and a load whose registers a store takes."""
    waits = {op: "" if op == left_out else f"tcgen05.wait::{op}.sync.aligned;" for op in ("st", "ld")}
    body = (
        START.format(columns=32)
        + f"""mad.wide.u32 d10, t, 4, a1;
ld.global.b32 r1, [d10];
tcgen05.st.sync.aligned.32x32b.x1.b32 [r28], {{r1}};
{waits["st"]}
tcgen05.ld.sync.aligned.32x32b.x1.b32 {{r3}}, [r28];
mov.b32 r4, r3;
{waits["ld"]}
st.global.b32 [d10], r4;
"""
        + END.format(columns=32)
    )
    data = np.arange(128, dtype=np.uint32)
    _, found = launched(body, np.zeros(65536, np.uint8), data, threads=128, module=MODULE, arch="sm_100a")
    assert {report.kind for report in found} == ({"missing_wait"} if left_out else set())
    assert all(said in report.message and said in report.repair for report in found)
    assert {report.verdict for report in found} == {"st": {"wrong"}, "ld": {"formal"}, "": set()}[left_out]


def test_two_elements_in_a_register():
    """pack::16b reads the low halves of two columns; unpack::16b writes them."""
    data = np.random.default_rng(7).integers(0, 1 << 32, (128, 2), np.uint32)
    body = (
        START.format(columns=32)
        + """mad.wide.u32 d10, t, 8, a1;
ld.global.v2.b32 {r1, r2}, [d10];
tcgen05.st.sync.aligned.32x32b.x2.unpack::16b.b32 [r28], {r1, r2};
tcgen05.wait::st.sync.aligned;
tcgen05.ld.sync.aligned.32x32b.x2.b32 {r3, r4}, [r28+1];
tcgen05.ld.sync.aligned.32x32b.x1.pack::16b.b32 {r5}, [r28+2];
tcgen05.wait::ld.sync.aligned;
st.global.v2.b32 [d10], {r3, r5};
"""
        + END.format(columns=32)
    )
    out, found = launched(body, np.zeros(65536, np.uint8), data, threads=128, module=MODULE, arch="sm_100a")
    assert found == []
    assert np.array_equal(out[1][:, 0], data[:, 0] >> 16)
    assert np.array_equal(out[1][:, 1], data[:, 1])


A = np.ones((128, 16), np.uint16)
REPORTS = [
    ({"wait": ""}, {"missing_wait"}),
    ({"commit": ""}, {"deadlock"}),
    ({"shape": shape_of(128, 16, 1, 0, 1)}, {"misuse", "deadlock"}),
    ({"shape": shape_of(96, 16, 1, 0, 0)}, {"misuse", "deadlock"}),
    ({"middle": "tcgen05.ld.sync.aligned.32x32b.x1.b32 {r1}, [r29+2097152];"}, {"misuse"}),
    ({"middle": "tcgen05.ld.sync.aligned.32x32b.x1.b32 {r1}, [r28+256];"}, {"misuse"}),
    ({"middle": "st.shared.b32 [tile], 1;"}, {"race", "missing_fence"}),
]
RELAXED = """WAIT: mbarrier.try_wait.parity.relaxed.cluster.shared::cta.b64 p28, [bar], 0;
@!p28 bra WAIT;
{}"""


@pytest.mark.parametrize(("change", "kinds"), REPORTS)
def test_reports(change, kinds):
    shared, a_desc, b_desc = staged(A, A[:16], 1)
    options = {"shape": shape_of(128, 16, 1, 0, 0), **change}
    shape = options.pop("shape")
    d = np.zeros((128, 16), np.uint32)
    _, found = multiply("f16", shape, 128, 16, shared, d, a_desc, b_desc, **options)
    got = {report.kind for report in found}
    assert got
    assert got <= kinds


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"wait": WAIT.partition("tcgen05")[0]}, "after_thread_sync between"),  # before tcgen05.ld
        ({"wait": "tcgen05.fence::after_thread_sync;\n" + WAIT.partition("tcgen05")[0]}, "after_thread_sync between"),
        ({"wait": RELAXED.format("")}, "after_thread_sync between"),
        ({"before": ""}, "before_thread_sync follows"),  # after tcgen05.st of other warps
        ({"after": ""}, "after_thread_sync between"),  # before tcgen05.mma
        ({"wait": RELAXED.format("tcgen05.fence::after_thread_sync;")}, None),
    ],
)
def test_a_missing_fence_is_reported(change, said):
    """Results are right without it, so that its verdict is formal. A relaxed wait with the fence after it is enough."""
    shared, a_desc, b_desc = staged(A, A[:16], 1)
    d = np.zeros((128, 16), np.uint32)
    _, found = multiply("f16", shape_of(128, 16, 1, 0, 0), 128, 16, shared, d, a_desc, b_desc, **change)
    if said is None:
        assert found == []
        return
    assert {(report.kind, report.verdict, report.missing) for report in found} == {("missing_fence", "formal", "fence")}
    assert all(said in report.message for report in found)


HANDED_ON = """{first}
mbarrier.arrive.relaxed.cta.shared::cta.b64 _, [other];
OTHER: mbarrier.try_wait.parity.relaxed.cta.shared::cta.b64 p28, [other], 0;
@!p28 bra OTHER;
tcgen05.fence::after_thread_sync;"""


@pytest.mark.parametrize("order", ["", "tcgen05.fence::before_thread_sync;"])
def test_the_completion_of_a_product_is_handed_on(order):
    """Thread 0 waits for the product and notifies all others by relaxed arrivals at another mbarrier."""
    shared, a_desc, b_desc = staged(A, A[:16], 1)
    first = f"@p29 bra TELL;\n{WAIT}\n{order}\nTELL:"
    options = {
        "before": "@p29 bra MADE;\nmbarrier.init.shared::cta.b64 [other], 128;\nMADE:"
        "tcgen05.fence::before_thread_sync;",
        "wait": HANDED_ON.format(first=first),
        "module": MODULE + "\n.shared .align 8 .b64 other;",
    }
    d = np.zeros((128, 16), np.uint32)
    _, found = multiply("f16", shape_of(128, 16, 1, 0, 0), 128, 16, shared, d, a_desc, b_desc, **options)
    assert {report.kind for report in found} == (set() if order else {"missing_wait"})


@pytest.mark.parametrize("columns", [16, 48])
def test_columns_that_cannot_be(columns):
    _, found = launched(
        f"tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [place], {columns};",
        np.zeros(4),
        module=MODULE,
        arch="sm_100a",
    )
    assert {report.kind for report in found} == {"misuse"}


@pytest.mark.parametrize(
    "text",
    [
        "tcgen05.shift.cta_group::2.down [r1];",
        "tcgen05.alloc.cta_group::1.shared::cta.b32 [r1], 32;",
        "tcgen05.ld.sync.aligned.32x32b.x4.b32 {r1, r2}, [r3];",
        "tcgen05.ld.sync.aligned.16x64b.x1.pack::16b.b32 {r1}, [r3];",
        "tcgen05.ld.sync.aligned.32x32b.x3.b32 {r1, r2, r3}, [r4];",
        "tcgen05.cp.cta_group::1.128x256b.b8x16 [r1], d1;",
        "tcgen05.cp.cta_group::1.128x256b.b4x16_p64 [r1], d1;",
        "tcgen05.mma.sp.cta_group::1.kind::f16 [r1], d1, d2, [r3], r2, p1;",
        "tcgen05.mma.ws.cta_group::1.kind::f16 [r1], d1, d2, r2, p1;",
        "tcgen05.mma.cta_group::1.kind::f16 [r1], d1, d2, r2, r3, p1;",
        "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [r1], h1;",
    ],
)
def test_rejected_at_load(text):
    message = rejection(text)
    assert ("towards lane 0" in message) == (".shift" in text)
    assert text.split()[0] in message
    assert "PTX line" in message

"""tcgen05 with .cta_group::2: products that two blocks of a cluster share, against NumPy; and copies by tcgen05.cp.

The layouts are those of the PTX ISA: with 256 rows each block holds 128, a row a lane; with 128 rows each block holds
64, whose left halves are in lanes 0 to 63, and whose right halves are in the same columns of lanes 64 to 127.
"""

from __future__ import annotations

import numpy as np
import pytest
from simt_ptx import HEADER
from simt_wgmma import BYTES, chained, image, narrow, strides
from test_opcodes_tensor_memory import described, names, shape_of

import ptxsim

B_AT = 32768
SHARED = 65536
KERNEL = """.shared .align 8 .b64 bar;
.shared .align 4 .b32 place;
.shared .align 1024 .b8 tile[65536];
.visible .entry k(.param .u64 x0, .param .u64 x1, .param .u64 x2)
{{
.reg .b32 r<40>; .reg .b64 d<40>; .reg .pred p<40>; .reg .b32 c<{wide}>; .reg .b16 h<4>; .reg .b32 t, rank;
mov.u32 t, %tid.x; mov.u32 rank, %cluster_ctarank;
ld.param.u64 d0, [x0]; ld.param.u64 d1, [x1]; ld.param.u64 d2, [x2];
cvt.u64.u32 d3, t;
shr.u32 r30, t, 5;
setp.ne.u32 p30, r30, 0;
setp.ne.u32 p29, t, 0;
@p30 bra HAVE;
{alloc}
tcgen05.relinquish_alloc_permit.cta_group::{group}.sync.aligned;
HAVE: @p29 bra READY;
mbarrier.init.shared::cta.b64 [bar], 1;
fence.mbarrier_init.release.cluster;
READY: mad.wide.u32 d4, rank, 65536, d0;
mov.u64 d5, tile;
mov.u64 d6, 0;
STAGE: add.u64 d7, d6, d3;
shl.b64 d7, d7, 4;
add.u64 d8, d7, d4;
add.u64 d9, d7, d5;
ld.global.v4.b32 {{r1, r2, r3, r4}}, [d8];
st.shared.v4.b32 [d9], {{r1, r2, r3, r4}};
add.u64 d6, d6, 128;
setp.lt.u64 p1, d6, 4096;
@p1 bra STAGE;
fence.proxy.async;
bar.sync 0;
ld.shared.b32 r29, [place];
shl.b32 r28, r30, 21;
add.u32 r28, r28, r29;
mad.lo.u32 r27, rank, 128, t;
mad.wide.u32 d10, r27, {row}, d1;
mad.wide.u32 d11, r27, 32, d2;
{load}
tcgen05.st.sync.aligned.32x32b.x{wide}.b32 [r28], {all};
tcgen05.wait::st.sync.aligned;
{middle}
tcgen05.fence::before_thread_sync;
{meet}
tcgen05.fence::after_thread_sync;
setp.eq.u32 p27, t, t;
not.pred p26, p27;
setp.ne.u32 p25, rank, {issuer};
or.pred p25, p25, p29;
mov.b64 d21, {b_desc:#x};
mov.b64 d20, {a_desc:#x};
@p25 bra DONE;
{issue}
{commit}
DONE: {wait}
tcgen05.fence::after_thread_sync;
{load_back}
tcgen05.wait::ld.sync.aligned;
{store}
{end}
@p30 bra GONE;
tcgen05.dealloc.cta_group::{group}.sync.aligned.b32 r29, {columns};
GONE: ret;
}}"""
MEET = "barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;"
WAIT = "WAIT: mbarrier.try_wait.parity.shared::cta.b64 p28, [bar], 0;\n@!p28 bra WAIT;"
COMMIT = """mov.b16 h1, 3;
tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.multicast::cluster.b64 [bar], h1;"""


def run(wide, shared, d, a_desc, b_desc, *, more=None, group=2, blocks=2, cluster=(2, 1, 1), seed=0, **parts):
    """([2, 128, wide] words of both blocks' tensor memory, reports). shared: [2, 65536] bytes; d: what was there.

    more: [256, 8] words, a row for each thread, which the kernel may read and write.
    """
    columns = max(32, 1 << (wide + 15).bit_length())
    lines = {
        op: "".join(
            f"{op}.global.v4.b32 "
            + (f"{names4(i)}, [d10+{4 * i}];\n" if op == "ld" else f"[d10+{4 * i}], {names4(i)};\n")
            for i in range(0, wide, 4)
        )
        for op in ("ld", "st")
    }
    text = {
        "alloc": f"tcgen05.alloc.cta_group::{group}.sync.aligned.shared::cta.b32 [place], {columns};",
        "load": lines["ld"],
        "store": lines["st"],
        "all": names(wide),
        "wide": wide,
        "row": 4 * wide,
        "middle": "",
        "load_back": f"tcgen05.ld.sync.aligned.32x32b.x{wide}.b32 {names(wide)}, [r28];",
        "meet": MEET,
        "issuer": 0,
        "commit": COMMIT,
        "wait": WAIT,
        "end": MEET,
        "columns": columns,
        "group": group,
        "a_desc": a_desc,
        "b_desc": b_desc,
        **parts,
    }
    machine = ptxsim.Machine(arch="sm_100a", sm_count=4, seed=seed)
    device = machine.device(0)
    held = device.array(d.astype(np.uint32))
    rest = device.array(np.zeros((256, 8), np.uint32) if more is None else more)
    device.launch(
        HEADER.replace("sm_90a", "sm_100a") + KERNEL.format(**text),
        blocks,
        128,
        device.array(shared),
        held,
        rest,
        cluster=cluster,
    )
    found = machine.run()
    if more is not None:
        more[...] = rest.copy_to_host()
    return held.copy_to_host(), found


def names4(i):
    return f"{{c{i}, c{i + 1}, c{i + 2}, c{i + 3}}}"


def halves(a, b, mode, turned_a=False, turned_b=False):
    """([2, 65536] bytes: each block's half of A's rows and of B's columns, descriptors of A and B in a block)."""
    rows, part, depth = len(a) // 2, len(b) // 2, a.shape[1]
    to_a, to_b = strides(mode, turned_a, rows, depth, a.itemsize), strides(mode, turned_b, part, depth, a.itemsize)
    shared = np.zeros((2, SHARED), np.uint8)
    for side in range(2):
        shared[side, :B_AT] = image(a[side * rows : (side + 1) * rows], mode, turned_a, *to_a)
        shared[side, B_AT:] = image(b[side * part : (side + 1) * part], mode, turned_b, *to_b)
    return shared, described(0, mode, *to_a), described(B_AT, mode, *to_b)


def placed(d):
    """[2, 128, columns]: where D [rows, n] lies in the tensor memory of both blocks."""
    rows, n = d.shape
    if rows == 256:
        return d.reshape(2, 128, n)
    out = np.zeros((2, 128, n // 2), d.dtype)
    for side in range(2):
        out[side, :64] = d[64 * side : 64 * side + 64, : n // 2]
        out[side, 64:] = d[64 * side : 64 * side + 64, n // 2 :]
    return out


def mma(kind, shape, enabled="p27", a="d20", lanes=""):
    return f"tcgen05.mma.cta_group::2.kind::{kind} [r29], {a}, d21, {shape}, {lanes}{enabled};"


FLOATS = [
    ("f16", 256, 32, 1, False, False),
    ("bf16", 128, 64, 3, False, True),
    ("f16", 128, 32, 0, False, False),
    ("bf16", 256, 64, 2, True, False),
    ("tf32", 256, 32, 1, False, False),
    ("tf32", 128, 16, 1, False, False),
]


@pytest.mark.parametrize(("kind", "rows", "n", "mode", "ta", "tb"), FLOATS)
@pytest.mark.parametrize(("issuer", "adds"), [(0, True), (1, False)])
def test_products_of_a_pair(kind, rows, n, mode, ta, tb, issuer, adds):
    """Either block may issue the product. Both wait for its commit, which is multicast."""
    rng = np.random.default_rng(1)
    depth = 8 if kind == "tf32" else 16
    a_bits, a = narrow(rng.standard_normal((rows, depth)), kind)
    b_bits, b = narrow(rng.standard_normal((n, depth)), kind)
    d = rng.standard_normal((rows, n)).astype(np.float32)
    shared, a_desc, b_desc = halves(a_bits, b_bits, mode, ta, tb)
    number = {"f16": 0, "bf16": 1, "tf32": 2}[kind]
    shape = shape_of(rows, n, 1, number, number, transposes=ta | tb << 1)
    issue = mma(kind.replace("bf", "f"), shape, "p27" if adds else "p26")
    before = placed(d).view(np.uint32)
    got, found = run(before.shape[2], shared, before, a_desc, b_desc, issue=issue, issuer=issuer)
    assert found == []
    assert np.array_equal(got.view(np.float32), placed(chained(d * adds, a, b)))


@pytest.mark.parametrize("rows", [128, 256])
def test_a_product_of_bytes(rows):
    rng = np.random.default_rng(2)
    a, b = (rng.integers(0, 256, (count, 32), np.uint8) & 0xBF for count in (rows, 32))
    d = rng.standard_normal((rows, 32)).astype(np.float32)
    shared, a_desc, b_desc = halves(a, b, 3)
    before = placed(d).view(np.uint32)
    got, found = run(before.shape[2], shared, before, a_desc, b_desc, issue=mma("f8f6f4", shape_of(rows, 32, 1, 0, 0)))
    assert found == []
    wide = [x.view(BYTES["e4m3"]).astype(np.float32) for x in (a, b)]
    assert np.array_equal(got.view(np.float32), placed(chained(d, *wide)))


def test_lanes_left_out():
    """Eight masks: four for the lanes of the even block, then four for those of the odd one."""
    rng = np.random.default_rng(3)
    a_bits, a = narrow(rng.standard_normal((256, 16)), "f16")
    b_bits, b = narrow(rng.standard_normal((32, 16)), "f16")
    d = rng.standard_normal((256, 32)).astype(np.float32)
    shared, a_desc, b_desc = halves(a_bits, b_bits, 1)
    masks = [5, 0, 1 << 31, 0, 2, 0, 0, 0xFFFFFFFF]
    registers = "{" + ", ".join(f"r{10 + k}" for k in range(8)) + "}, "
    issue = "".join(f"mov.b32 r{10 + k}, {mask:#x};\n" for k, mask in enumerate(masks))
    got, found = run(
        32,
        shared,
        placed(d).view(np.uint32),
        a_desc,
        b_desc,
        issue=issue + mma("f16", shape_of(256, 32, 1, 0, 0), lanes=registers),
    )
    assert found == []
    want = chained(d, a, b)
    for row in range(256):
        if masks[row // 32] >> row % 32 & 1:
            want[row] = d[row]
    assert np.array_equal(got.view(np.float32), placed(want))


def test_a_in_the_tensor_memory_of_both_blocks():
    rng = np.random.default_rng(4)
    a_bits, a = narrow(rng.standard_normal((256, 16)), "bf16")
    b_bits, b = narrow(rng.standard_normal((32, 16)), "bf16")
    d = rng.standard_normal((256, 32)).astype(np.float32)
    shared, _, b_desc = halves(a_bits, b_bits, 1)
    middle = """ld.global.v4.b32 {r1, r2, r3, r4}, [d11];
ld.global.v4.b32 {r5, r6, r7, r8}, [d11+16];
tcgen05.st.sync.aligned.32x32b.x8.b32 [r28+32], {r1, r2, r3, r4, r5, r6, r7, r8};
tcgen05.wait::st.sync.aligned;"""
    got, found = run(
        32,
        shared,
        placed(d).view(np.uint32),
        0,
        b_desc,
        middle=middle,
        more=a_bits.view(np.uint32),
        issue=mma("f16", shape_of(256, 32, 1, 1, 1), a="[r29+32]"),
    )
    assert found == []
    assert np.array_equal(got.view(np.float32), placed(chained(d, a, b)))


def test_both_blocks_get_the_same_columns():
    """The even block has allocated once more before, so that the first free columns of the two differ."""
    rng = np.random.default_rng(5)
    a_bits, a = narrow(rng.standard_normal((256, 16)), "f16")
    b_bits, b = narrow(rng.standard_normal((32, 16)), "f16")
    shared, a_desc, b_desc = halves(a_bits, b_bits, 1)
    twice = """tcgen05.alloc.cta_group::2.sync.aligned.shared::cta.b32 [place], 64;
bar.warp.sync -1;
ld.shared.b32 r20, [place];
bar.warp.sync -1;
tcgen05.alloc.cta_group::2.sync.aligned.shared::cta.b32 [place], 64;
setp.eq.u32 p20, rank, 1;
@p20 tcgen05.dealloc.cta_group::2.sync.aligned.b32 r20, 64;
tcgen05.alloc.cta_group::2.sync.aligned.shared::cta.b32 [place], 64;"""
    for seed in range(4):
        more = np.zeros((256, 8), np.uint32)
        got, found = run(
            32,
            shared,
            np.zeros((2, 128, 32), np.uint32),
            a_desc,
            b_desc,
            alloc=twice,
            more=more,
            seed=seed,
            middle="st.global.b32 [d11], r29;",
            issue=mma("f16", shape_of(256, 32, 1, 0, 0)),
        )
        assert found == []
        assert set(more[:, 0]) == {128}
        assert np.array_equal(got.view(np.float32), placed(chained(np.zeros((256, 32), np.float32), a, b)))


ONES = np.ones((256, 16), np.float16)
COMMIT_ALONE = "tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.b64 [bar];"
REPORTS = [  # what is changed, and the kinds of reports of which one is expected
    ({}, set()),
    ({"commit": COMMIT_ALONE}, {"deadlock"}),  # the odd block waits for ever
    ({"commit": COMMIT_ALONE, "wait": "@p25 bra PAST;\n" + WAIT + "\nPAST:"}, {"missing_wait"}),
    ({"cluster": (1, 1, 1)}, {"misuse"}),
    (
        {
            "alloc": "setp.eq.u32 p20, rank, 0;\n"
            "@p20 tcgen05.alloc.cta_group::2.sync.aligned.shared::cta.b32 [place], 64;"
        },
        {"deadlock"},
    ),
    (
        {
            "alloc": "shl.b32 r20, rank, 5;\nadd.u32 r20, r20, 32;\n"
            "tcgen05.alloc.cta_group::2.sync.aligned.shared::cta.b32 [place], r20;"
        },
        {"misuse"},
    ),
    ({"meet": "bar.sync 0;"}, {"race", "misuse"}),
    ({"issue": mma("f16", shape_of(64, 32, 1, 0, 0))}, {"misuse"}),
    ({"issue": mma("f16", shape_of(128, 32, 1, 0, 0), a="[r29+32]")}, {"misuse"}),
]


@pytest.mark.parametrize(("change", "kinds"), REPORTS)
def test_reports(change, kinds):
    shared, a_desc, b_desc = halves(ONES.view(np.uint16), ONES[:32].view(np.uint16), 1)
    options = {"issue": mma("f16", shape_of(256, 32, 1, 0, 0)), **change}
    for seed in range(2):
        _, found = run(32, shared, np.zeros((2, 128, 32), np.uint32), a_desc, b_desc, seed=seed, **options)
        got = {report.kind for report in found}
        assert got & kinds if kinds else found == []


def test_an_allocation_needs_a_pair():
    shared, a_desc, b_desc = halves(ONES.view(np.uint16), ONES[:32].view(np.uint16), 1)
    _, found = run(
        32,
        shared,
        np.zeros((2, 128, 32), np.uint32),
        a_desc,
        b_desc,
        cluster=(1, 1, 1),
        issue=mma("f16", shape_of(256, 32, 1, 0, 0)),
    )
    said = [report.message for report in found if report.kind == "misuse"]
    assert {message.partition(".")[2].partition(".")[0] for message in said if "a pair of blocks" in message} >= {
        "alloc"
    }


COPIES = {  # rows, words in a row, lanes that a row fills
    "128x256b": (128, 8, lambda row: [row]),
    "128x128b": (128, 4, lambda row: [row]),
    "4x256b": (4, 8, lambda row: [32 * row]),
    "64x128b.warpx2::02_13": (64, 4, lambda row: [row, row + 64]),
    "64x128b.warpx2::01_23": (64, 4, lambda row: [64 * (row // 32) + row % 32, 64 * (row // 32) + row % 32 + 32]),
    "32x128b.warpx4": (32, 4, lambda row: [row, row + 32, row + 64, row + 96]),
}


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("shape", COPIES)
def test_copies(shape, group):
    """tcgen05.cp by one block: with .cta_group::2 each block copies from its own shared memory."""
    rows, words, lanes = COPIES[shape]
    rng = np.random.default_rng(6)
    data = rng.integers(0, 1 << 32, (2, rows, words), np.uint32)
    before = rng.integers(0, 1 << 32, (2, 128, 16), np.uint32)
    mode = 1 if words == 8 else 0  # 128 bytes: a row of the pattern is longer than the row that is copied
    shared = np.zeros((2, SHARED), np.uint8)
    stride = strides(mode, False, rows, words, 4)
    for side in range(2):
        shared[side, :B_AT] = image(data[side], mode, False, *stride)
    commit = COMMIT if group == 2 else COMMIT_ALONE.replace("group::2", "group::1")
    got, found = run(
        16,
        shared,
        before,
        described(0, mode, *stride),
        0,
        group=group,
        commit=commit,
        issuer=0,
        wait=WAIT if group == 2 else "setp.ne.u32 p24, rank, 0;\n@p24 bra PAST;\n" + WAIT + "\nPAST:",
        issue=f"tcgen05.cp.cta_group::{group}.{shape} [r29+4], d20;",
    )
    assert found == []
    want = before.copy()
    for side in range(group):
        for row in range(rows):
            for lane in lanes(row):
                want[side, lane, 4 : 4 + words] = data[side, row]
    assert np.array_equal(got, want)


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize("shape", COPIES)
def test_copies_that_widen(shape, bits, group):
    """16 elements of 4 or 6 bits lie at the beginning of 16 bytes; each becomes a byte: 4 bits are in its middle."""
    rows, words, lanes = COPIES[shape]
    rng = np.random.default_rng(8)
    codes = rng.integers(0, 1 << bits, (2, rows, words // 4, 16))
    data = np.zeros((2, rows, words // 4, 16), np.uint8)
    for at in np.ndindex(2, rows, words // 4):
        whole = sum(int(code) << bits * k for k, code in enumerate(codes[at]))
        data[at] = np.frombuffer(whole.to_bytes(16, "little"), np.uint8)
    before = rng.integers(0, 1 << 32, (2, 128, 16), np.uint32)
    shared, stride = np.zeros((2, SHARED), np.uint8), strides(0, False, rows, words, 4)
    for side in range(2):
        shared[side, :B_AT] = image(data[side].reshape(rows, -1), 0, False, *stride)
    commit = COMMIT if group == 2 else COMMIT_ALONE.replace("group::2", "group::1")
    form = "b8x16.b4x16_p64" if bits == 4 else "b8x16.b6x16_p32"
    got, found = run(
        16,
        shared,
        before,
        described(0, 0, *stride),
        0,
        group=group,
        commit=commit,
        issuer=0,
        wait=WAIT if group == 2 else "setp.ne.u32 p24, rank, 0;\n@p24 bra PAST;\n" + WAIT + "\nPAST:",
        issue=f"tcgen05.cp.cta_group::{group}.{shape}.{form} [r29+4], d20;",
    )
    assert found == []
    wide = (codes << (2 if bits == 4 else 0)).astype(np.uint8).reshape(2, rows, -1).view(np.uint32)
    want = before.copy()
    for side in range(group):
        for row in range(rows):
            for lane in lanes(row):
                want[side, lane, 4 : 4 + words] = wide[side, row]
    assert np.array_equal(got, want)


FETCH = (
    HEADER.replace("sm_90a", "sm_100a")
    + """.visible .entry k(.param .align 64 .b8 map[128], .param .u64 x0)
{{
.reg .b64 d<9>; .reg .b32 r<9>; .reg .b16 h<3>; .reg .pred p<9>; .reg .b32 t, rank;
.shared .align 8 .b64 bar;
.shared .align 128 .b8 tile[1024];
ld.param.u64 d0, [x0];
mov.u32 t, %tid.x; mov.u32 rank, %cluster_ctarank;
setp.ne.u32 p1, t, 0;
setp.eq.u32 p2, rank, 0;
@p1 bra READY;
mbarrier.init.shared::cta.b64 [bar], 1;
fence.mbarrier_init.release.cluster;
@p2 mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], 2048;
READY: barrier.cluster.arrive.release.aligned;
barrier.cluster.wait.acquire.aligned;
mov.u32 r1, tile;
mov.u32 r2, bar;
and.b32 r2, r2, 0xFEFFFFFF;
{fetch}
mapa.shared::cluster.u32 r3, r2, 0;
@p2 bra WAIT;
bra MET;
WAIT: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p3, [bar], 0;
@!p3 bra WAIT;
MET: barrier.cluster.arrive.release.aligned;
barrier.cluster.wait.acquire.aligned;
shl.b32 r4, t, 2;
add.u32 r4, r4, r1;
mad.lo.u32 r5, rank, 256, t;
mad.wide.u32 d1, r5, 4, d0;
ld.shared.u32 r6, [r4];
st.global.u32 [d1], r6;
ret;
}}"""
)
BOX = "cp.async.bulk.tensor.2d.cta_group::2.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
FETCHES = {
    "one each": f"shl.b32 r7, rank, 3;\n@!p1 {BOX} [r1], [map, {{0, r7}}], [r2];",
    "both by the odd block": f"""or.pred p4, p1, p2;
mov.b16 h1, 1;
mov.b16 h2, 2;
@!p4 {BOX}.multicast::cluster [r1], [map, {{0, 0}}], [r2], h1;
@!p4 {BOX}.multicast::cluster [r1], [map, {{0, 8}}], [r2], h2;""",
}


@pytest.mark.parametrize("how", FETCHES)
def test_boxes_of_a_pair_that_one_mbarrier_counts(how):
    """With .cta_group::2 the mbarrier of the even block counts; kernels clear the lowest bit of the rank to name it."""
    values = np.random.default_rng(7).integers(0, 1 << 30, (16, 32), np.int32)
    for seed in range(3):
        machine = ptxsim.Machine(arch="sm_100a", seed=seed)
        device = machine.device(0)
        map_ = ptxsim.tensor_map(device.array(values), (8, 32))
        out = device.array(np.zeros((16, 32), np.int32))
        device.launch(FETCH.format(fetch=FETCHES[how]), 2, 256, map_, out, cluster=(2, 1, 1))
        assert machine.run() == []
        assert np.array_equal(out.copy_to_host(), values)
    machine = ptxsim.Machine(arch="sm_100a")
    device = machine.device(0)
    alone = FETCH.format(fetch=FETCHES[how].replace(".cta_group::2", "")) + "\n// .cta_group::2 is left out"
    device.launch(
        alone, 2, 256, ptxsim.tensor_map(device.array(values), (8, 32)), device.array(values), cluster=(2, 1, 1)
    )
    assert {report.kind for report in machine.run()} & {"misuse", "deadlock"}

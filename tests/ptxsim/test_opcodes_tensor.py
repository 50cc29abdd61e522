"""Copies of boxes of tensors on the PTX machine, against NumPy: bounds, strides, swizzles, fills, reductions.

The box and the swizzle are written here from the PTX ISA's text ("Tensors"), element by element.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from simt_ptx import HEADER, rejection

import ptxsim

CHECKED = pytest.mark.parametrize("check", [True, False])
SHARED = ".shared .align 8 .b64 bar;\n.shared .align 1024 .b8 tile[32768];\n"
REGISTERS = """.reg .b32 r<40>;
.reg .b64 d<40>;
.reg .pred p<9>;
.reg .b32 t;
mov.u32 t, %tid.x;
setp.ne.u32 p1, t, 0;
ld.param.u64 d9, [out];
"""
# copies the box to `tile`, and `tile` to the array `out`
LOAD = """@p1 bra READY;
mbarrier.init.shared::cta.b64 [bar], 1;
fence.mbarrier_init.release.cluster;
READY: bar.sync 0;
@p1 bra ISSUED;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], {size};
mov.u64 d1, map;
cvta.param.u64 d1, d1;
cp.async.bulk.tensor.{dims}d.shared::cta.global{mode}.mbarrier::complete_tx::bytes [tile], [d1, {{{at}}}], [bar];
ISSUED: mbarrier.try_wait.parity.shared::cta.b64 p2, [bar], 0;
@!p2 bra ISSUED;
mov.u32 r1, 0;
NEXT: mov.u64 d2, tile;
cvt.u64.u32 d3, r1;
add.u64 d2, d2, d3;
add.u64 d4, d9, d3;
ld.shared.v4.b32 {{r4, r5, r6, r7}}, [d2];
st.global.v4.b32 [d4], {{r4, r5, r6, r7}};
add.u32 r1, r1, 16;
setp.lt.u32 p3, r1, {bytes};
@p3 bra NEXT;
"""


def run(body, map_, out, *more, check=True, seed=0, threads=1, machine=None):
    """Run a kernel with a tensor map and an array. Returns (array, reports)."""
    params = ", ".join(
        [".param .align 64 .b8 map[128]", ".param .u64 out", *(f".param .u64 x{i}" for i in range(len(more)))]
    )
    text = f"{HEADER}{SHARED}.visible .entry k({params})\n{{\n{REGISTERS}{body}\nret;\n}}"
    device = machine.device(0)
    device.launch(text, 1, threads, map_, out, *more)
    found = machine.run()
    return out.copy_to_host(), found


def boxed(array, box, at, steps, fill):
    """The box as it is in memory: [rows..., row]; elements outside of the array are 0, or NaN."""
    counts = [-(-b // s) if d < array.ndim - 1 else b for d, (b, s) in enumerate(zip(box, steps))]
    out = np.full(counts, np.nan if fill == "nan" else 0, array.dtype)
    for index in np.ndindex(*counts):
        where = tuple(a + i * (s if d < array.ndim - 1 else 1) for d, (a, i, s) in enumerate(zip(at, index, steps)))
        if all(0 <= w < n for w, n in zip(where, array.shape)):
            out[index] = array[where]
    return out


def placed(rows, span, atom):
    """Bytes of shared memory with these rows of the box, whose pattern has `span` bytes (0: no swizzle)."""
    raw = np.ascontiguousarray(rows).reshape(-1, rows.shape[-1]).view(np.uint8)
    pitch = span or raw.shape[1]
    image, known = np.zeros(32768, np.uint8), np.zeros(32768, bool)
    for number, row in enumerate(raw):
        for k, byte in enumerate(row):
            at = number * pitch + k
            line, part = at // 128, at % 128 // atom  # parts of a line of 128 bytes change places
            if span:
                part ^= line % (span // atom)
            at = line * 128 + part * atom + at % atom
            image[at], known[at] = byte, True
    return image, known


def load(array, box, at, check=True, seed=0, steps=None, swizzle=0, fill="zero", dtype=None, mode=""):
    """([bytes] shared memory after the copy, reports) of the box at a place."""
    machine = ptxsim.Machine(check=check, seed=seed, arch="sm_100")
    held = machine.device(0).array(array)
    map_ = ptxsim.tensor_map(held, box, steps=steps, swizzle=swizzle, fill=fill, dtype=dtype)
    steps = steps or (1,) * array.ndim
    count = 4 * box[-1] if mode else int(np.prod([-(-b // s) for b, s in zip(box[:-1], steps)])) * box[-1]
    size = count * array.itemsize
    pitch = {0: 0, "128_atom_32": 128}.get(swizzle, swizzle) or box[-1] * array.itemsize
    bytes_ = size // (box[-1] * array.itemsize) * pitch
    text = LOAD.format(size=size, dims=array.ndim, at=", ".join(map(str, at[::-1])), bytes=bytes_, mode=mode)
    # parts of a pattern that the box does not cover stay as they were
    clear = (
        "".join(f"st.shared.v4.b32 [tile+{k}], {{0, 0, 0, 0}};\n" for k in range(0, bytes_, 16))
        + "fence.proxy.async;\n"
    )
    out = machine.device(0).array(np.zeros(32768, np.uint8))
    return run((clear if pitch * size != bytes_ * pitch else "") + text, map_, out, machine=machine)


rng = np.random.default_rng(1)
CASES = [
    # shape, type, box, place, steps, swizzle, fill
    ((40, 64), np.float16, (16, 64), (8, 0), None, 128, "zero"),
    ((40, 64), np.float16, (16, 32), (33, 40), None, 64, "zero"),
    ((40, 64), np.float16, (16, 32), (-5, -3), None, 64, "nan"),
    ((40, 64), np.float16, (8, 16), (2, 50), None, 32, "nan"),
    ((40, 64), np.float16, (8, 16), (100, 100), None, 0, "nan"),
    ((40, 48), np.int8, (24, 32), (-1, 17), None, 32, "zero"),
    ((9, 12), np.float32, (3, 8), (7, 6), None, 0, "nan"),
    ((64,), np.int64, (16,), (50,), None, 0, "zero"),
    ((5, 6, 16), np.int32, (2, 4, 8), (4, 3, -2), None, 0, "zero"),
    ((3, 4, 5, 8), np.float64, (2, 2, 3, 4), (1, 3, 3, 2), None, 0, "nan"),
    ((2, 3, 3, 4, 8), np.int16, (2, 2, 2, 3, 8), (0, 2, -1, 2, 1), None, 0, "zero"),
    ((30, 20, 16), np.float16, (9, 5, 16), (3, 2, 0), (4, 2, 1), 32, "zero"),
    ((30, 20, 16), np.float16, (9, 7, 8), (25, 15, 12), (2, 3, 1), 0, "nan"),
    ((32, 32), np.float32, (16, 32), (0, 0), None, "128_atom_32", "zero"),
]


@pytest.mark.parametrize(("shape", "dtype", "box", "at", "steps", "swizzle", "fill"), CASES)
def test_loads(shape, dtype, box, at, steps, swizzle, fill):
    array = (rng.standard_normal(shape) * 50).astype(dtype)
    want, known = placed(
        boxed(array, box, at, steps or (1,) * len(shape), fill),
        128 if swizzle == "128_atom_32" else swizzle,
        32 if swizzle == "128_atom_32" else 16,
    )
    if fill == "nan":  # which NaN is not promised
        kind = f"u{np.dtype(dtype).itemsize}"
        want = np.where(np.isnan(want.view(dtype)), np.full(1, np.nan, dtype).view(kind), want.view(kind)).view(
            np.uint8
        )
    got, found = load(array, box, at, steps=steps, swizzle=swizzle, fill=fill)
    assert found == []
    if fill == "nan":
        got = np.where(np.isnan(got.view(dtype)), np.full(1, np.nan, dtype).view(kind), got.view(kind)).view(np.uint8)
    assert np.array_equal(got[known], want[known])
    assert not got[~known].any()


@CHECKED
def test_bfloat16_from_words(check):
    """The map's type, not the array's, says what fills the outside."""
    array = rng.standard_normal((8, 8)).astype(ml_dtypes.bfloat16)
    got, found = load(array.view(np.uint16), (8, 8), (4, 0), fill="nan", dtype="bfloat16", check=check)
    assert found == []
    values = got[:128].view(ml_dtypes.bfloat16).reshape(8, 8).astype(np.float32)
    assert np.array_equal(values[:4], array[4:].astype(np.float32))
    assert np.isnan(values[4:]).all()


def test_rows_gathered():
    """gather4 reads four rows that the coordinates name; a row outside of the tensor is zero."""
    array = rng.standard_normal((20, 64)).astype(np.float16)
    machine = ptxsim.Machine(arch="sm_100")
    map_ = ptxsim.tensor_map(machine.device(0).array(array), (1, 64), swizzle=128)
    text = LOAD.format(size=512, dims=2, at="16, 7, 3, 19, 20", bytes=512, mode=".tile::gather4")
    got, found = run(text, map_, machine.device(0).array(np.zeros(32768, np.uint8)), machine=machine)
    assert found == []
    rows = np.zeros((4, 64), np.float16)
    rows[:3, :48] = array[[7, 3, 19], 16:]
    want, _ = placed(rows, 128, 16)
    assert np.array_equal(got, want)


STORE = """mov.u32 r1, 0;
FILL: cvt.u64.u32 d3, r1;
mov.u64 d2, tile;
add.u64 d2, d2, d3;
add.u64 d4, d9, d3;
ld.global.v4.b32 {{r4, r5, r6, r7}}, [d4];
st.shared.v4.b32 [d2], {{r4, r5, r6, r7}};
add.u32 r1, r1, 16;
setp.lt.u32 p3, r1, {bytes};
@p3 bra FILL;
{fence}
mov.u64 d1, map;
cvta.param.u64 d1, d1;
cp{reduce}.async.bulk.tensor.{dims}d.global.shared::cta{op}.tile.bulk_group [d1, {{{at}}}], [tile];
cp.async.bulk.commit_group;
{wait}
"""
WAIT = "cp.async.bulk.wait_group 0;"


def store(
    array, rows, box, at, swizzle=0, reduce="", check=True, fence="fence.proxy.async;", wait=WAIT, extra="", seed=0
):
    """(the array after the store of a box with these rows, reports)."""
    machine = ptxsim.Machine(check=check, seed=seed)
    held = machine.device(0).array(array)
    image, _ = placed(rows, swizzle, 16)
    bytes_ = rows.size // rows.shape[-1] * (swizzle or rows.shape[-1] * rows.itemsize)
    body = STORE.format(
        bytes=bytes_,
        dims=array.ndim,
        at=", ".join(map(str, at[::-1])),
        fence=fence,
        wait=wait,
        reduce=".reduce" if reduce else "",
        op=f".{reduce}" if reduce else "",
    )
    map_ = ptxsim.tensor_map(held, box, swizzle=swizzle)
    _, found = run(body + extra, map_, machine.device(0).array(image), held, machine=machine)
    return held.copy_to_host(), found


@pytest.mark.parametrize(("at", "swizzle"), [((4, 0), 128), ((36, 40), 128), ((-3, -9), 0), ((50, 0), 0)])
@CHECKED
def test_stores_leave_out_what_lies_outside(at, swizzle, check):
    array = rng.standard_normal((40, 64)).astype(np.float16)
    rows = rng.standard_normal((8, 64)).astype(np.float16)
    got, found = store(array, rows, (8, 64), at, swizzle, check=check)
    assert found == []
    want = array.copy()
    for index in np.ndindex(8, 64):
        where = (at[0] + index[0], at[1] + index[1])
        if 0 <= where[0] < 40 and 0 <= where[1] < 64:
            want[where] = rows[index]
    assert np.array_equal(got, want)


@pytest.mark.parametrize(
    ("op", "dtype", "function"),
    [
        ("add", np.float32, np.add),
        ("add", np.int32, np.add),
        ("min", np.float16, np.minimum),
        ("max", np.int64, np.maximum),
        ("and", np.uint32, np.bitwise_and),
        ("or", np.uint64, np.bitwise_or),
        ("xor", np.uint32, np.bitwise_xor),
    ],
)
def test_reductions(op, dtype, function):
    array, rows = ((rng.standard_normal((8, 16)) * 1000).astype(np.int64).astype(dtype) for _ in range(2))
    got, found = store(array, rows, (8, 16), (3, 0), 0, op)
    assert found == []
    want = array.copy()
    want[3:] = function(array[3:], rows[:5])
    assert np.array_equal(got, want)


@pytest.mark.parametrize("kind", ["f32", "u64", "f16"])
def test_bulk_reductions(kind):
    """cp.reduce.async.bulk adds bytes of shared memory to an array."""
    dtype = {"f32": np.float32, "u64": np.uint64, "f16": np.float16}[kind]
    a, b = ((rng.random(256) * 100).astype(dtype) for _ in range(2))
    machine = ptxsim.Machine()
    held, source = machine.device(0).array(a), machine.device(0).array(b.view(np.uint8))
    other = machine.device(0).array(np.zeros((8, 8), np.float32))
    size = a.nbytes
    noftz = ".noftz" if kind == "f16" else ""
    body = (
        STORE.split("mov.u64 d1, map;")[0].format(bytes=size, fence="fence.proxy.async;")
        + f"""ld.param.u64 d20, [x0];
cp.reduce.async.bulk.global.shared::cta.bulk_group.add{noftz}.{kind} [d20], [tile], {size};
cp.async.bulk.commit_group;
cp.async.bulk.wait_group 0;"""
    )
    _, found = run(body, ptxsim.tensor_map(other, (8, 8)), source, held, machine=machine)
    assert found == []
    assert np.array_equal(held.copy_to_host(), (a.astype(np.float64) + b.astype(np.float64)).astype(dtype))


REPORTS = [
    ({}, set()),
    ({"fence": ""}, {"missing_fence"}),
    ({"wait": ""}, {"misuse"}),
    (
        {"extra": "ld.param.u64 d20, [x0];\nld.global.b16 r4, [d20+1024];", "wait": ""},
        {"misuse", "race", "missing_wait"},
    ),
    ({"extra": "ld.param.u64 d20, [x0];\nld.global.b16 r4, [d20];", "wait": ""}, {"misuse"}),
    ({"extra": "ld.param.u64 d20, [x0];\nld.global.b16 r4, [d20+1024];"}, set()),
]


@pytest.mark.parametrize(("change", "kinds"), REPORTS)
def test_what_orders_stores(change, kinds):
    array, rows = np.zeros((40, 64), np.float16), np.ones((8, 64), np.float16)
    got = {r.kind for seed in range(6) for r in store(array, rows, (8, 64), (4, 0), 128, seed=seed, **change)[1]}
    assert got == kinds or (len(kinds) == 3 and got <= kinds and got & {"race", "missing_wait"})


def test_reports_of_loads():
    """A map that was not encoded, a place in shared memory that is not aligned, memory that is not the array's."""
    array = np.zeros((8, 64), np.float16)
    machine = ptxsim.Machine(arch="sm_100")
    out = machine.device(0).array(np.zeros(32768, np.uint8))
    good = ptxsim.tensor_map(machine.device(0).array(array), (8, 64))
    text = LOAD.format(size=1024, dims=2, at="0, 0", bytes=16, mode="")
    _, found = run(text, bytes(128), out, machine=machine)
    assert {"misuse"} <= {report.kind for report in found}
    assert "tensor map" in next(r.message for r in found if r.kind == "misuse")
    _, found = run(text.replace("[tile], [d1", "[tile+64], [d1"), good, out, machine=machine)
    assert any("128" in report.message for report in found if report.kind == "misuse")
    longer = bytearray(good)
    longer[36:40] = (9).to_bytes(4, "little")  # a row more than the array has
    _, found = run(text.replace("{0, 0}", "{0, 4}"), bytes(longer), out, machine=machine)
    assert "out_of_bounds" in {report.kind for report in found}


def test_map_made_by_a_kernel():
    """tensormap.replace fills a map in shared memory, cp_fenceproxy copies it, and a load uses the copy."""
    array = rng.standard_normal((16, 32)).astype(np.float16)
    machine = ptxsim.Machine(arch="sm_90a")
    held, out = machine.device(0).array(array), machine.device(0).array(np.zeros(32768, np.uint8))
    place = machine.device(0).array(np.zeros(128, np.uint8))
    replace = "tensormap.replace.tile.{}.shared::cta.b1024.{} [d10], {};"
    fields = [
        ("global_address", "b64", "d20"),
        ("rank", "b32", "1"),
        ("box_dim", "b32", "0, 32"),
        ("box_dim", "b32", "1, 8"),
        ("global_dim", "b32", "0, 32"),
        ("global_dim", "b32", "1, 16"),
        ("global_stride", "b64", "0, 64"),
        ("element_stride", "b32", "0, 1"),
        ("element_stride", "b32", "1, 1"),
        ("elemtype", "b32", "6"),
        ("swizzle_mode", "b32", "2"),
        ("fill_mode", "b32", "1"),
        ("interleave_layout", "b32", "0"),
    ]
    text = "\n".join(replace.format(*field) for field in fields)
    body = (
        f"""ld.param.u64 d20, [x0];
ld.param.u64 d21, [x1];
mov.u64 d10, tile;
add.u64 d10, d10, 16384;
mov.u32 r1, 0;
shl.b32 r2, t, 2;
cvt.u64.u32 d11, r2;
add.u64 d11, d11, d10;
st.shared.b32 [d11], 0;
bar.warp.sync -1;
@p1 bra FILLED;
{text}
FILLED: bar.warp.sync -1;
tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [d21], [d10], 128;
bar.warp.sync -1;
fence.proxy.tensormap::generic.acquire.gpu [d21], 128;
"""
        + LOAD.format(size=512, dims=2, at="0, 12", bytes=512, mode="")
        .replace("mov.u64 d1, map;\ncvta.param.u64 d1, d1;", "mov.u64 d1, d21;")
        .replace("mov.u32 r1, 0;\nNEXT", "@p1 bra END;\nmov.u32 r1, 0;\nNEXT")
        + "END:"
    )
    got, found = run(body, bytes(128), out, held, place, threads=32, machine=machine)
    assert found == []
    want, _ = placed(boxed(array, (8, 32), (12, 0), (1, 1), "nan"), 64, 16)
    values = got[:512].view(np.float16)
    assert np.isnan(values[256 // 2 :]).all()
    assert np.array_equal(got[:256], want[:256])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box": (8, 257)}, "1 to 256"),
        ({"box": (8, 4)}, "multiple of 16 bytes"),
        ({"box": (8,)}, "need 2 numbers"),
        ({"box": (8, 64), "swizzle": 64}, "at most these"),
        ({"box": (8, 64), "swizzle": 96}, "swizzle must be"),
        ({"box": (8, 64), "fill": "one"}, "fill must be"),
        ({"box": (8, 64), "steps": (9, 1)}, "steps must be"),
        ({"box": (8, 64), "dtype": "float32"}, "with 2 bytes"),
    ],
)
def test_maps_that_cannot_be(options, message):
    array = ptxsim.Machine().device(0).array(np.zeros((16, 512), np.float16))
    with pytest.raises(ptxsim.InputError, match=message):
        ptxsim.tensor_map(array, options.pop("box"), **options)


@pytest.mark.parametrize(
    "text",
    [
        "cp.async.bulk.tensor.3d.shared::cta.global.im2col.mbarrier::complete_tx::bytes [r1], [d1, {r2}], [r4], {h1};",
        "cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [r1], [d1, {r2}], [r4];",
        "cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [r1], [d1], [r4];",
        "cp.async.bulk.tensor.2d.shared::cta.global.bulk_group [r1], [d1, {r2, r3}];",
        "cp.async.bulk.tensor.6d.global.shared::cta.bulk_group [d1, {r2, r3}], [r1];",
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.s64 [d1], [r1], 16;",
        "tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [r1], r2, r3;",
        "tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [r1], 4, d1;",
        "tensormap.replace.tile.rank.shared::cta.b1024.b64 [r1], 1;",
        "ld.global.b32 r1, [d1, {r2}];",
    ],
)
def test_rejected_at_load(text):
    message = rejection(text)
    assert text.split()[0] in message
    assert "PTX line" in message

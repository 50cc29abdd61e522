"""Textures without a filter, and surfaces, in CUDA C++ that NVRTC compiles and in PTX. NumPy is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from needs_nvrtc import compiles
from simt_ptx import HEADER, rejection

import ptxsim
from ptxsim import check, nvrtc
from ptxsim.errors import InputError

SOURCE = r"""
template <typename T> struct Channel { using type = T; };
template <> struct Channel<float4> { using type = float; };

template <typename T, int Form> __global__ void fetch(cudaTextureObject_t texture, const float *at, T *out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float x = at[3 * i], y = at[3 * i + 1], z = at[3 * i + 2];
    if constexpr (Form == 1) out[i] = tex1D<T>(texture, x);
    if constexpr (Form == 2) out[i] = tex2D<T>(texture, x, y);
    if constexpr (Form == 3) out[i] = tex3D<T>(texture, x, y, z);
    if constexpr (Form == 4) out[i] = tex1Dfetch<T>(texture, (int)x);
    if constexpr (Form == 5) out[i] = tex1DLayered<T>(texture, x, (int)z);
    if constexpr (Form == 6) out[i] = tex2DLayered<T>(texture, x, y, (int)z);
    if constexpr (Form == 7) out[i] = tex2DLod<T>(texture, x, y, 0.0f);
}

template <typename T> __global__ void turn(cudaSurfaceObject_t from, cudaSurfaceObject_t to, int w, int h) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= w || y >= h) return;
    T value;
    surf2Dread(&value, from, x * (int)sizeof(T), y);
    surf2Dwrite(value, to, y * (int)sizeof(T), x);
}

using Surface = cudaSurfaceObject_t;
__global__ void lines(Surface s, Surface layers, Surface cube, int *out, int shift) {
    int x = threadIdx.x;
    surf1Dwrite(surf1Dread<int>(s, 4 * x) + 1, s, 4 * x);
    surf2DLayeredwrite(x, layers, 4 * x, 1, 2);
    surf3Dwrite(x + 100, cube, 4 * x, 1, 1);
    out[x] = surf1Dread<int>(s, 4 * (x + shift), cudaBoundaryModeZero);
    out[x + 32] = surf1Dread<int>(s, 4 * (x + shift), cudaBoundaryModeClamp);
}

__global__ void beyond(cudaSurfaceObject_t s, int shift) { surf1Dwrite(1, s, 4 * threadIdx.x + shift); }

__global__ void both(cudaTextureObject_t t, float *data, float *out) {
    out[threadIdx.x] = tex1D<float>(t, (float)threadIdx.x);
    if (threadIdx.x == 1) data[3] = 7;
}

__global__ void meet(cudaSurfaceObject_t s, int *out) {
    surf1Dwrite((int)threadIdx.x, s, 0);
    out[threadIdx.x] = surf1Dread<int>(s, 0);
}
"""


@pytest.fixture(scope="module")
def kernels():
    """(PTX, mangled names by names of C++)."""
    names = [f"fetch<{type_}, {form}>" for type_, form in FETCHES] + [f"turn<{type_}>" for type_ in TURNS]
    names += ["lines", "beyond", "both", "meet"]
    return nvrtc.compiled_kernels(SOURCE, "textures.cu", (9, 0), tuple(names))


FETCHES = [
    ("float", 1),
    ("float", 2),
    ("float", 3),
    ("float", 4),
    ("float", 5),
    ("float", 6),
    ("float", 7),
    ("int", 2),
    ("unsigned char", 2),
    ("float4", 2),
]
TURNS = ["int", "unsigned char", "float4", "short2"]
SHAPES = {1: (37,), 2: (9, 37), 3: (5, 9, 37), 4: (37,), 5: (5, 37), 6: (5, 9, 37), 7: (9, 37)}
USED = {1: "x", 2: "xy", 3: "xyz", 4: "x", 5: "xL", 6: "xyL", 7: "xy"}  # the coordinates of each form; L: a layer


def indices(at, size, address, normalized):
    """(elements that coordinates name, whether they are inside), by the CUDA programming guide."""
    at = at.astype(np.float64)
    if normalized:
        if address == "wrap":
            at = at - np.floor(at)
        elif address == "mirror":
            at = np.where(np.floor(at) % 2 == 0, at - np.floor(at), 1 - (at - np.floor(at)))
        at = (at.astype(np.float32) * np.float32(size)).astype(np.float64)
    found = np.floor(at).astype(np.int64)
    if normalized and address in ("wrap", "mirror"):
        found = np.minimum(found, size - 1)
    return np.clip(found, 0, size - 1), (found >= 0) & (found < size)


def expected(data, form, at, address, normalized):
    """What a texture of `data` gives for coordinates [n, 3]."""
    places, inside = [], np.ones(len(at), bool)
    for axis, size in zip(USED[form], SHAPES[form][::-1]):
        if axis == "L":
            places.append(np.clip(at[:, 2].astype(np.int64), 0, size - 1))
            continue
        where = at[:, "xyz".index(axis)]
        found, fits = indices(np.trunc(where) if form == 4 else where, size, address, normalized)
        places.append(found)
        inside &= fits
    values = data[tuple(places[::-1])]
    if address == "border":
        values[~inside] = 0
    return values


def coordinates(form, normalized, rng, count=400):
    at = np.zeros((count, 3), np.float32)
    sizes = SHAPES[form][::-1]
    for k, axis in enumerate(USED[form]):
        column = 2 if axis == "L" else k
        span = 1 if normalized and axis != "L" else sizes[k]
        at[:, column] = rng.uniform(-1.5 * span, 2.5 * span, count)
    at[:8, : len(sizes)] = np.array([-0.0, 0, 0.5, 1, -1, 2, 1.5, -0.5], np.float32)[:, None]
    return at


@compiles
@pytest.mark.parametrize(
    ("address", "normalized"),
    [
        ("clamp", False),
        ("border", False),
        ("wrap", True),
        ("mirror", True),
        ("clamp", True),
        ("border", True),
        ("wrap", False),
    ],
)
@pytest.mark.parametrize("form", SHAPES)
def test_addresses(kernels, form, address, normalized):
    """Every geometry and address mode. Without normalized coordinates, wrap means clamp."""
    if form == 4 and normalized:
        pytest.skip("integers are no normalized coordinates")
    rng = np.random.default_rng(form)
    data = rng.random(SHAPES[form]).astype(np.float32)
    at = coordinates(form, normalized, rng)
    machine = ptxsim.Machine()
    device = machine.device(0)
    handle = ptxsim.texture(device.array(data), layered="L" in USED[form], address=address, normalized=normalized)
    out = device.empty(len(at), np.float32)
    ptx, names = kernels
    device.launch(
        ptx, -(-len(at) // 64), 64, handle, device.array(at), out, len(at), entry=names[f"fetch<float, {form}>"]
    )
    assert machine.run() == []
    meant = "clamp" if address == "wrap" and not normalized else address
    assert np.array_equal(out.copy_to_host(), expected(data, form, at, meant, normalized))


@compiles
@pytest.mark.parametrize(
    ("type_", "dtype", "channels", "read"),
    [
        ("int", np.int16, 1, "element"),
        ("int", np.int32, 1, "element"),
        ("unsigned char", np.uint8, 1, "element"),
        ("float", np.float16, 1, "element"),
        ("float", np.uint8, 1, "normalized"),
        ("float", np.int16, 1, "normalized"),
        ("float4", np.uint8, 4, "normalized"),
        ("float4", np.float32, 4, "element"),
        ("float4", np.float16, 2, "element"),
    ],
)
def test_types(kernels, type_, dtype, channels, read):
    """Integers are extended, or become floats from 0 or -1 to 1. Channels that the array lacks are 0."""
    rng = np.random.default_rng(3)
    shape = (9, 37) if channels == 1 else (9, 37, channels)
    bytes_ = rng.integers(0, 256, np.prod(shape) * np.dtype(dtype).itemsize, np.uint8)
    data = bytes_.view(dtype).reshape(shape) if np.dtype(dtype).kind in "iu" else rng.random(shape).astype(dtype)
    at = coordinates(2, False, rng)
    machine = ptxsim.Machine()
    device = machine.device(0)
    handle = ptxsim.texture(device.array(data), channels=channels, read=read)
    wide = {"int": np.int32, "unsigned char": np.uint8}.get(type_, np.float32)
    lanes = 4 if type_ == "float4" else 1
    out = device.empty((len(at), lanes), wide)
    ptx, names = kernels
    device.launch(ptx, -(-len(at) // 64), 64, handle, device.array(at), out, len(at), entry=names[f"fetch<{type_}, 2>"])
    assert machine.run() == []
    want = expected(data, 2, at, "clamp", False).reshape(len(at), channels)
    if read == "normalized":
        most = np.float32(np.iinfo(dtype).max)
        want = np.maximum(want.astype(np.float32) / most, np.float32(-1))
    padded = np.zeros((len(at), lanes), wide)
    padded[:, :channels] = want.astype(wide)
    assert np.array_equal(out.copy_to_host(), padded)


@compiles
@pytest.mark.parametrize(
    ("type_", "dtype", "channels"),
    [
        ("int", np.int32, 1),
        ("unsigned char", np.uint8, 1),
        ("float4", np.float32, 4),
        ("short2", np.int16, 2),
    ],
)
def test_surfaces(kernels, type_, dtype, channels):
    """A matrix is transposed from one surface to another."""
    rng = np.random.default_rng(4)
    shape = (11, 7, channels) if channels > 1 else (11, 7)
    data = (rng.random(shape) * 200).astype(dtype)
    machine = ptxsim.Machine()
    device = machine.device(0)
    a, b = device.array(data), device.empty((7, 11, *shape[2:]), dtype)
    ptx, names = kernels
    handles = [ptxsim.surface(array, channels=channels) for array in (a, b)]
    device.launch(ptx, (2, 3), (4, 4), *handles, 7, 11, entry=names[f"turn<{type_}>"])
    assert machine.run() == []
    assert np.array_equal(b.copy_to_host(), data.swapaxes(0, 1))


@compiles
def test_geometries_and_bounds_of_surfaces(kernels):
    machine = ptxsim.Machine()
    device = machine.device(0)
    line = device.array(np.arange(32, dtype=np.int32))
    layers, cube = (device.array(np.zeros((3, 4, 32), np.int32)) for _ in range(2))
    out = device.empty(64, np.int32)
    ptx, names = kernels
    device.launch(
        ptx,
        1,
        32,
        ptxsim.surface(line),
        ptxsim.surface(layers, layered=True),
        ptxsim.surface(cube),
        out,
        0,
        entry=names["lines"],
    )
    assert machine.run() == []
    assert np.array_equal(line.copy_to_host(), np.arange(32) + 1)
    for array, place, first in ((layers, (2, 1), 0), (cube, (1, 1), 100)):
        want = np.zeros((3, 4, 32), np.int32)
        want[place] = np.arange(32) + first
        assert np.array_equal(array.copy_to_host(), want)
    device.launch(
        ptx,
        1,
        8,
        ptxsim.surface(line),
        ptxsim.surface(layers, layered=True),
        ptxsim.surface(cube),
        out,
        28,
        entry=names["lines"],
    )
    machine.run()
    assert np.array_equal(out.copy_to_host()[4:8], np.zeros(4))  # cudaBoundaryModeZero
    assert np.array_equal(out.copy_to_host()[36:40], np.full(4, 32))  # cudaBoundaryModeClamp


def found_by(kernels, name, make, threads=32):
    """The reports of a kernel. make: from a device to the kernel's arguments."""
    machine = ptxsim.Machine()
    device = machine.device(0)
    ptx, names = kernels
    device.launch(ptx, 1, threads, *make(device), entry=names[name])
    return machine.run()


@compiles
def test_reports(kernels):
    def line(device, size=32):
        return device.array(np.zeros(size, np.int32))

    texture_words = "the operand is no handle of a texture (ptxsim.texture)"
    surface_words = "the operand is no handle of a surface (ptxsim.surface)"
    outside, other = "the coordinates lie outside the surface", "the texture or surface has other dimensions"
    made = found_by(kernels, "beyond", lambda d: (ptxsim.surface(line(d)), 4))
    assert [(report.kind, outside in report.message) for report in made] == [("misuse", True)]
    made = found_by(kernels, "beyond", lambda d: (ptxsim.surface(line(d)), 2))
    assert {report.kind for report in made} == {"misaligned"}
    made = found_by(kernels, "beyond", lambda d: (ptxsim.surface(d.array(np.zeros((3, 40), np.int32))), 0))
    assert [(report.kind, other in report.message) for report in made] == [("misuse", True)]
    for handle in (0, 12345, 1 << 63):
        made = found_by(kernels, "beyond", lambda d, handle=handle: (handle, 0))
        assert [(report.kind, surface_words in report.message) for report in made] == [("misuse", True)]
    made = found_by(kernels, "beyond", lambda d: (ptxsim.texture(line(d)), 0))
    assert [(report.kind, surface_words in report.message) for report in made] == [("misuse", True)]

    def fetch(d, make, beyond=0):
        handle = make(d.array(np.zeros(32, np.float32))) + beyond
        return handle, d.array(np.zeros((32, 3), np.float32)), d.empty(32, np.float32), 32

    for make, more in ((ptxsim.surface, 0), (ptxsim.texture, 1)):  # a surface's handle, and one that nobody made
        made = found_by(kernels, "fetch<float, 1>", lambda d, make=make, more=more: fetch(d, make, more))
        assert [(report.kind, texture_words in report.message) for report in made] == [("misuse", True)]
    made = found_by(kernels, "meet", lambda d: (ptxsim.surface(line(d)), line(d)))
    assert "race" in {report.kind for report in made}


@compiles
def test_a_texture_whose_memory_the_kernel_writes(kernels):
    def make(d):
        data = d.array(np.zeros(64, np.float32))
        return ptxsim.texture(data), data, d.empty(32, np.float32)

    made = found_by(kernels, "both", make)
    assert {report.kind for report in made} == {"not_coherent", "race"}


@compiles
def test_freed_arrays_are_reported(kernels):
    def make(d):
        array = d.array(np.zeros(32, np.int32))
        handle = ptxsim.surface(array)
        array.free()
        return handle, 0

    assert {report.kind for report in found_by(kernels, "beyond", make)} == {"use_after_free"}


QUERY = (
    HEADER
    + """.visible .entry k(.param .u64 x0, .param .u64 x1, .param .u64 x2)
{
.reg .b64 d<4>; .reg .b32 r<12>;
ld.param.u64 d0, [x0]; ld.param.u64 d1, [x1]; ld.param.u64 d2, [x2];
txq.width.b32 r0, [d0]; txq.height.b32 r1, [d0]; txq.depth.b32 r2, [d0]; txq.array_size.b32 r3, [d0];
txq.normalized_coords.b32 r4, [d0];
suq.width.b32 r5, [d1]; suq.height.b32 r6, [d1]; suq.array_size.b32 r7, [d1];
st.global.v4.b32 [d2], {r0, r1, r2, r3}; st.global.v4.b32 [d2+16], {r4, r5, r6, r7};
mov.b32 r0, 3; mov.b32 r1, 2;
tex.2d.v4.f32.s32 {r0, r1, r2, r3}, [d0, {r0, r1}];
st.global.v4.b32 [d2+32], {r0, r1, r2, r3};
ret;
}"""
)


def test_queries_and_results_over_operands():
    """The results of a tex may go to the registers of its coordinates."""
    machine = ptxsim.Machine()
    device = machine.device(0)
    data = np.random.default_rng(5).random((6, 10, 4)).astype(np.float32)
    layers = device.array(np.zeros((3, 4, 5), np.uint8))
    out = device.array(np.zeros(12, np.uint32))
    device.launch(
        QUERY, 1, 1, ptxsim.texture(device.array(data), channels=4), ptxsim.surface(layers, layered=True), out
    )
    assert machine.run() == []
    assert out.copy_to_host()[:8].tolist() == [10, 6, 0, 0, 0, 5, 4, 3]
    assert np.array_equal(out.copy_to_host()[8:].view(np.float32), data[2, 3])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tex.acube.v4.f32.f32 {f1, f2, f3, f4}, [d1, {r5, f6, f7, f8}];", "only .1d, .2d, .3d, .a1d, .a2d, .cube are"),
        ("tex.cube.v4.f32.s32 {f1, f2, f3, f4}, [d1, {r5, r6, r7, r8}];", "must be .f32"),
        ("suld.b.cube.b32.trap r1, [d1, {r5, r6, r7, r8}];", "only .1d, .2d, .3d, .a1d, .a2d are supported"),
        ("tex.2d.v4.f32.f32 {f1, f2, f3, f4}, [d1, d2, {f5, f6}];", "unified mode"),
        ("tex.2d.v4.f32.f32 {f1, f2, f3, f4}, [d1, {f5}];", "expected 2 coordinates, got 1"),
        ("tld4.r.2d.v4.f32.f32 {f1, f2, f3, f4}, [d1, {f5, f6}];", "opcode 'tld4' is not known"),
        ("sust.p.2d.v4.b32.trap [d1, {r1, r2}], {r3, r4, r5, r6};", "only .b"),
        ("txq.filter_mode.b32 r1, [d1];", "one of .width"),
    ],
)
def test_refusals(text, words):
    assert words in rejection(text)


@pytest.mark.parametrize(
    ("shape", "dtype", "options", "words"),
    [
        ((8, 8), np.float32, {"filter": "cubic"}, "filter must be 'point' or 'linear'"),
        ((8, 8), np.int16, {"filter": "linear"}, "needs floats, got int16: use read='normalized'"),
        ((8, 8), np.float64, {}, "the array's type"),
        ((8, 8), np.float32, {"channels": 3}, "channels must be 1, 2 or 4"),
        ((8, 8), np.float32, {"channels": 4}, "last dimension must be its 4 channels"),
        ((2, 2, 2, 2), np.float32, {}, "1 to 3 dimensions"),
        ((8,), np.float32, {"layered": True}, "1 to 3 dimensions"),
        ((8,), np.float32, {"read": "normalized"}, "integers of 8 or 16 bits"),
        ((8,), np.float32, {"address": "repeat"}, "address must be one of"),
    ],
)
def test_textures_that_cannot_be_made(shape, dtype, options, words):
    array = ptxsim.Machine().device(0).array(np.zeros(shape, dtype))
    with pytest.raises(InputError, match=words):
        ptxsim.texture(array, **options)


FILE = """
// simt: blend<<<1, 64>>>(texture{a:float32[8, 8]=range, wrap, normalized}, {texture{a}, int32 8}, out:float32[64])
// simt: halve<<<1, 64>>>(surface{out})
struct Second { cudaTextureObject_t texture; int width; };
__global__ void blend(cudaTextureObject_t first, Second second, float *out) {
    int x = threadIdx.x % 8, y = threadIdx.x / 8;
    out[threadIdx.x] = tex2D<float>(first, (x + 8.5f) / 8, (y + 0.5f) / 8) + tex2D<float>(second.texture, x + 20, y);
}
__global__ void halve(cudaSurfaceObject_t s) {
    surf1Dwrite(surf1Dread<float>(s, 4 * threadIdx.x) / 2, s, 4 * threadIdx.x);
}
"""


@compiles
def test_a_launch_file(tmp_path):
    (tmp_path / "blend.cu").write_text(FILE)
    machine = ptxsim.Machine()
    assert check.run(tmp_path / "blend.cu", [], machine, (), str(tmp_path)) == []
    image = np.arange(64, dtype=np.float32).reshape(8, 8)
    assert np.array_equal(np.load(tmp_path / "out.npy"), (image + image[:, 7:]).ravel() / 2)


@compiles
@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("texture{5}", "begins with an array"),
        ("texture{float32[8], cubic}", "an option of a texture"),
        ("texture{int32[8], linear}", "needs floats"),
        ("surface{float32[8], linear}", "an option of a surface"),
        ("surface{float32[8], wrap}", "an option of a surface"),
        ("texture{float64[8]}", "the array's type"),
    ],
)
def test_wrong_arguments(tmp_path, argument, words):
    (tmp_path / "blend.cu").write_text(FILE)
    with pytest.raises(InputError, match=words):
        check.run(tmp_path / "blend.cu", [f"halve<<<1, 64>>>({argument})"], ptxsim.Machine())

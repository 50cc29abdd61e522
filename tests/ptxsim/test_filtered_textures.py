"""Linear filters of textures, against the formulas of the CUDA programming guide in NumPy.

tex(x) = (1 - a) T[i] + a T[i + 1] with i = floor(x - 0.5) and a = x - 0.5 - i, and so on along each axis; a has 8 bits
after the point. Elements have 12 bits and weights 24, so that float64 holds every sum exactly, in whichever order.
"""

from __future__ import annotations

import numpy as np
import pytest
from needs_nvrtc import compiles
from test_textures import SHAPES, USED, coordinates, kernels  # noqa: F401

import ptxsim


def axis_of(at, size, address, normalized):
    """(the two elements along an axis [2, n], their weights [2, n])."""
    at = at.astype(np.float64)
    if normalized:
        if address == "wrap":
            at = at % 1
        elif address == "mirror":
            at = 1 - np.abs(at % 2 - 1)
        at = at * size
    left = np.floor(at - 0.5)
    upper = np.rint((at - 0.5 - left) * 256 + 1e-9) / 256  # a half goes up
    places = np.stack([left, left + 1]).astype(np.int64)
    weights = np.stack([1 - upper, upper])
    if address == "border":
        weights = np.where((places >= 0) & (places < size), weights, 0)
    if address == "wrap" and normalized:
        return places % size, weights
    return np.clip(places, 0, size - 1), weights


def expected(data, form, at, address, normalized):
    """What a filtered texture of `data` gives for coordinates [n, 3]: float64, or with channels [n, channels]."""
    axes, layer = [], None
    for axis, size in zip(USED[form], SHAPES[form][::-1]):
        if axis == "L":
            layer = np.clip(at[:, 2].astype(np.int64), 0, size - 1)
        else:
            axes.append(axis_of(at[:, "xyz".index(axis)], size, address, normalized))
    total = 0
    for corner in np.ndindex(*[2] * len(axes)):
        places = [axis[0][side] for axis, side in zip(axes, corner)]
        weight = np.prod([axis[1][side] for axis, side in zip(axes, corner)], axis=0)
        values = data[tuple(([] if layer is None else [layer]) + places[::-1])].astype(np.float64)
        total = total + (weight if values.ndim == 1 else weight[:, None]) * values
    return total


def fetched(kernels, type_, form, data, at, lanes=1, **options):  # noqa: F811
    """[n, lanes] float32 that a kernel reads from a texture of `data`."""
    machine = ptxsim.Machine()
    device = machine.device(0)
    handle = ptxsim.texture(device.array(data), filter="linear", **options)
    out = device.empty((len(at), lanes), np.float32)
    ptx, entries = kernels
    device.launch(
        ptx, -(-len(at) // 64), 64, handle, device.array(at), out, len(at), entry=entries[f"fetch<{type_}, {form}>"]
    )
    assert machine.run() == []
    return out.copy_to_host()


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
@pytest.mark.parametrize("form", [1, 2, 3, 5, 6])
def test_geometries_and_addresses(kernels, form, address, normalized):  # noqa: F811
    rng = np.random.default_rng(form)
    data = (rng.integers(-2047, 2048, SHAPES[form]) / 64).astype(np.float32)
    at = coordinates(form, normalized, rng)
    got = fetched(kernels, "float", form, data, at, address=address, normalized=normalized, layered=form in (5, 6))
    assert np.array_equal(got[:, 0], expected(data, form, at, address, normalized).astype(np.float32))


@compiles
@pytest.mark.parametrize(
    ("type_", "dtype", "channels", "read"),
    [
        ("float", np.float16, 1, "element"),
        ("float4", np.float32, 4, "element"),
        ("float", np.uint8, 1, "normalized"),
        ("float", np.int16, 1, "normalized"),
        ("float4", np.uint8, 2, "normalized"),
    ],
)
def test_types(kernels, type_, dtype, channels, read):  # noqa: F811
    """Elements become floats before they are filtered. Channels are filtered one by one; missing ones are 0."""
    rng = np.random.default_rng(2)
    shape = (9, 37) if channels == 1 else (9, 37, channels)
    data = rng.integers(0, 255, shape).astype(dtype)
    at = coordinates(2, False, rng)
    got = fetched(kernels, type_, 2, data, at, 4 if type_ == "float4" else 1, channels=channels, read=read)
    values = data.astype(np.float32) / np.float32(np.iinfo(dtype).max) if read == "normalized" else data
    want = expected(values, 2, at, "clamp", False).reshape(len(at), channels).astype(np.float32)
    if read == "normalized":  # their floats have 24 bits, so that the order of the sum counts
        assert np.allclose(got[:, :channels], want, rtol=2e-7, atol=1e-12)
    else:
        assert np.array_equal(got[:, :channels], want)
    assert not got[:, channels:].any()


@compiles
def test_the_step_of_weights(kernels):  # noqa: F811
    """Weights have 8 bits after the point: 1000 places between two elements give 257 values."""
    at = np.zeros((1001, 3), np.float32)
    at[:, 0] = 0.5 + np.arange(1001) / 1000
    got = fetched(kernels, "float", 1, np.array([0, 256] + [0] * 35, np.float32), at)[:, 0]
    assert np.array_equal(np.unique(got), np.arange(257))
    at[:, 0] = np.arange(1001) % 37
    data = np.arange(37, dtype=np.float32) ** 2
    assert np.array_equal(fetched(kernels, "float", 4, data, at)[:, 0], data[np.arange(1001) % 37])


@compiles
def test_an_element_without_weight_is_not_read(kernels):  # noqa: F811
    """At the middle of an element only this one counts, so that an infinite neighbour makes no NaN."""
    at = np.zeros((2, 3), np.float32)
    at[:, 0] = 1.5, 2
    got = fetched(kernels, "float", 1, np.array([1, 2, np.inf] + [0] * 34, np.float32), at)[:, 0]
    assert got.tolist() == [2, np.inf]


@compiles
@pytest.mark.parametrize("address", ["clamp", "border", "wrap", "mirror"])
def test_coordinates_without_a_place(kernels, address):  # noqa: F811
    """A NaN counts as 0, and in a pattern that repeats so does an infinite coordinate. Else it lies beyond the end."""
    at = np.zeros((4, 3), np.float32)
    at[:, 0] = 0, np.nan, np.inf, -np.inf
    data = np.arange(1, 38, dtype=np.float32)
    zero, nan, plus, minus = fetched(kernels, "float", 1, data, at, address=address, normalized=True)[:, 0]
    assert nan == zero
    assert (plus, minus) == {"clamp": (37, 1), "border": (0, 0)}.get(address, (zero, zero))

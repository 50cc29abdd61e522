"""Cube maps: a direction through a known texel of a face gives this texel. The faces' axes are those of the guide."""

from __future__ import annotations

import numpy as np
import pytest
from simt_ptx import HEADER

import ptxsim

SIZE = 8
# of each face: the axis that it lies on, and the directions in which its columns and its rows count
X, Y, Z = np.eye(3)
FACES = [(X, -Z, -Y), (-X, Z, -Y), (Y, X, Z), (-Y, X, -Z), (Z, X, -Y), (-Z, -X, -Y)]
FETCH = (
    HEADER
    + """
.visible .entry k(.param .u64 cube, .param .u64 at, .param .u64 out)
{
.reg .b64 t, a, o, n;
.reg .b32 i, j;
.reg .f32 x, y, z, p, q, r, s;
ld.param.u64 t, [cube];
ld.param.u64 a, [at];
ld.param.u64 o, [out];
mov.u32 i, %ctaid.x;
mov.u32 j, %ntid.x;
mul.lo.u32 i, i, j;
mov.u32 j, %tid.x;
add.u32 i, i, j;
mul.wide.u32 n, i, 12;
add.u64 a, a, n;
ld.global.f32 x, [a];
ld.global.f32 y, [a+4];
ld.global.f32 z, [a+8];
tex.cube.v4.f32.f32 {x, q, r, s}, [t, {x, y, z, x}];
mul.wide.u32 n, i, 4;
add.u64 o, o, n;
st.global.f32 [o], x;
ret;
}
"""
)


def fetched(faces, directions, **options):
    """(the values that the directions name, the reports)."""
    machine = ptxsim.Machine()
    device = machine.device(0)
    handle = ptxsim.texture(device.array(faces), layered=True, **options)
    out = device.array(np.zeros(len(directions), np.float32))
    device.launch(FETCH, -(-len(directions) // 32), 32, handle, device.array(directions), out)
    return out, machine.run()


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("address", ["clamp", "wrap"])
def test_every_texel_of_every_face(linear, address):
    """Without a filter anywhere in a texel, with one at its centre; near and far from the origin."""
    rng = np.random.default_rng(4)
    faces = rng.random((6, SIZE, SIZE)).astype(np.float32)
    directions = []
    for axis, right, down in FACES:
        for row in range(SIZE):
            for column in range(SIZE):
                u, v = rng.uniform(0.01, 0.99, 2) if not linear else (0.5, 0.5)
                across, along = (2 * (column + u) / SIZE - 1, 2 * (row + v) / SIZE - 1)
                directions.append((axis + across * right + along * down) * 10 ** rng.uniform(-3, 3))
    out, reports = fetched(
        faces,
        np.array(directions, np.float32),
        normalized=True,
        address=address,
        filter="linear" if linear else "point",
    )
    assert reports == []
    # a coordinate is a step of float32 off, and a weight is rounded to 1/256: both round to the texel itself
    np.testing.assert_array_equal(out.copy_to_host(), faces.ravel())


def test_the_corners_lie_on_a_face():
    """Where two or three axes are the largest, the texel at the edge of the first one's face is read."""
    faces = np.arange(6 * SIZE * SIZE, dtype=np.float32).reshape(6, SIZE, SIZE)
    directions = np.array([[1, 1, 1], [-1, 1, 1], [0, 1, 1], [0, -1, -1]] * 8, np.float32)
    out, reports = fetched(faces, directions, normalized=True, address="wrap")
    assert reports == []
    last = SIZE - 1
    expected = [faces[0, 0, 0], faces[1, 0, last], faces[2, last, SIZE // 2], faces[3, last, SIZE // 2]]
    assert out.copy_to_host()[:4].tolist() == expected


@pytest.mark.parametrize(
    ("shape", "options"),
    [((6, 8, 8), {}), ((5, 8, 8), {"normalized": True}), ((6, 8, 4), {"normalized": True})],
)
def test_other_textures_are_no_cube_maps(shape, options):
    """A cube map has six square faces, and coordinates that are normalized."""
    _, (report,) = fetched(np.zeros(shape, np.float32), np.ones((32, 3), np.float32), **options)
    assert report.kind == "misuse"
    assert "other dimensions" in report.message

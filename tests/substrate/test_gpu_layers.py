"""The bodies of tests/gpu/test_gpu_layer.py on devices of the PTX machine: they pass, and they can fail."""

from __future__ import annotations

import numpy as np
import pytest
import sweeps

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
import gpu_layers
from simt_gpu import on_ranks

from aristos.bench.gpu import clock

pytestmark = [pytest.mark.slow, pytest.mark.parallel]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(clock, "FLUSH", 1 << 12)


def ranks(body, world, *args):
    return on_ranks(world, lambda comm, rank: body(comm, rank, world, *args), gpus=1, blocks=2 * world)


@pytest.mark.parametrize(("world", "dtype"), [(1, "float32"), (2, "bfloat16")])
def test_every_dtype(world, dtype):
    ranks(gpu_layers.every_dtype, world, dtype)


def test_same_bits():
    whole = ranks(gpu_layers.bits, 1)[0]
    for world in (2, 4):
        np.testing.assert_array_equal(np.concatenate(ranks(gpu_layers.bits, world)), whole)


@pytest.mark.parametrize(("world", "dtype"), [(2, "bfloat16"), *sweeps.turn([(1, "float16"), (1, "tf32")])])
def test_device_arrays(world, dtype):
    ranks(gpu_layers.device_arrays, world, dtype)


@pytest.mark.parametrize("world", [1, 2])
def test_captured_in_a_graph(world):
    ranks(gpu_layers.captured, world)


@pytest.mark.parametrize("world", [1, 2])
def test_refusals(world):
    ranks(gpu_layers.refusals, world)


def test_the_bodies_can_fail(monkeypatch):
    """The bodies fail for a layer that is slightly wrong, and for one whose bits differ."""
    monkeypatch.setattr(gpu_layers, "WEIGHTS", gpu_layers.WEIGHTS | {"down": gpu_layers.WEIGHTS["down"] * 1.0001})
    load = gpu_layers.made

    def other(comm, cfg=gpu_layers.CFG):
        moe = load(comm, cfg)
        moe.load(**gpu_layers.WEIGHTS | {"down": gpu_layers.WEIGHTS["down"] * np.float32(1.0001)})
        return moe

    monkeypatch.setattr(gpu_layers, "made", other)
    with pytest.raises(AssertionError):
        ranks(gpu_layers.captured, 1)

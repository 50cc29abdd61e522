"""The persistent kernel over several nodes on the PTX machine, checker on: far peers are served by proxies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
from cuda_layers import SMALL, Layers
from cuda_nodes import NodeLayers

from aristos.reference import error


def close(layers, ys):
    for y, want in zip(ys, layers.expected()):
        assert y.shape == want.shape
        assert want.size == 0 or error(y, want) < 1e-6


def test_two_ranks_on_two_nodes():
    layers = NodeLayers(per_node=1)
    close(layers, layers.run())

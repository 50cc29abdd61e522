"""`reproducible_sum`: a fixed order of additions, written with brackets below; equal bits on any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from mpi import ranks_each

import aristos
from aristos.errors import InputError, MismatchError, PeerInputError


def made(count: int, shape: tuple[int, ...] = (7,), seed: int = 0) -> np.ndarray:
    """Pieces whose sum depends on the order of additions."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, *shape)) * 10.0 ** rng.integers(-4, 4, (count, *shape))).astype(np.float32)


def test_the_order_of_the_sum():
    a, b, c, d, e, f, g = made(7)
    expected = ((a + b) + (c + d)) + ((e + f) + g)
    assert aristos.reproducible_sum(None, [a, b, c, d, e, f, g]).tobytes() == expected.tobytes()
    assert (((((a + b) + c) + d) + e) + f + g).tobytes() != expected.tobytes()
    assert aristos.reproducible_sum(None, [a]).tobytes() == a.tobytes()


def test_the_result_is_a_new_array_and_keeps_the_shape():
    pieces = made(1, (2, 3)).astype(np.float64)
    total = aristos.reproducible_sum(None, pieces)
    assert (total.shape, total.dtype) == ((2, 3), np.float64)
    total[:] = 0
    assert pieces.any()
    assert aristos.reproducible_sum(None, [np.float32(3)] * 3) == 9


@pytest.mark.parametrize("pieces", [[np.zeros(2, "i4")], [np.zeros(2, "f4"), np.zeros(3, "f4")], []])
def test_wrong_pieces(pieces):
    with pytest.raises(InputError, match="pieces must"):
        aristos.reproducible_sum(None, pieces)


@ranks_each(2, 3, 4)
def test_equal_bits_on_any_number_of_ranks(comm, world):
    """Ranks have equal and different numbers of pieces, or none.

    Some arrays have fewer elements than there are ranks.
    """
    for total, shape in ((8, (7,)), (5, (3, 2)), (1, (1,)), (7, (2,)), (12, ())):
        pieces = made(total, shape, seed=total)
        whole = aristos.reproducible_sum(None, pieces)
        for first_share in (total // world, 0, total):
            ends = [0, first_share, *np.linspace(first_share, total, world).astype(int)[1:]]
            mine = pieces[ends[comm.rank] : ends[comm.rank + 1]]
            assert aristos.reproducible_sum(comm, mine).tobytes() == whole.tobytes(), (total, ends)
    with pytest.raises(PeerInputError if comm.rank else InputError, match="float32 or float64"):
        aristos.reproducible_sum(comm, [np.zeros(1, "i4" if comm.rank == 0 else "f4")])
    with pytest.raises(MismatchError, match="one dtype and shape on all ranks"):
        aristos.reproducible_sum(comm, [np.zeros(1 + comm.rank, "f4")])
    with pytest.raises(InputError, match="at least one rank"):
        aristos.reproducible_sum(comm, [])

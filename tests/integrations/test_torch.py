"""`aristos.integrations.torch.Experts` against the reference. Skipped without torch (`make test-hf` has it)."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from cases import PATIENCE, tokens

import aristos
from aristos import reference
from aristos.errors import InputError

torch = pytest.importorskip("torch")
CFG = aristos.MoEConfig(hidden=24, ffn=40, experts=4, top_k=2, activation="silu", gated=True, max_tokens=7)
W = {name: array for name, array in reference.weights(CFG).items() if name != "router"}


def job(count: int, seed: int = 0, dtype: str = "float32"):
    """(x, ids, weights) as tensors."""
    rng = np.random.default_rng(seed)
    ids = np.argsort(rng.random((count, 4)), axis=1)[:, :2].astype(np.int64)
    x = torch.from_numpy(tokens(CFG, count, seed)).to(getattr(torch, dtype))
    return x, torch.from_numpy(ids), torch.from_numpy(rng.random((count, 2), np.float32))


def made(comm=None, **fields):
    """An experts module, as a context that closes it."""
    from aristos.integrations.torch import Experts

    experts = Experts(aristos.MoEConfig(**{**vars(CFG), **fields}), comm, threads=1, timeout=PATIENCE)
    experts.load(**W)
    return contextlib.closing(experts)


def error(x, ids, weights, y) -> float:
    wanted = reference.moe(CFG, x.float().numpy(), ids=ids.numpy(), weights=weights.numpy(), **W)
    return reference.error(y.float().numpy(), wanted)


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_more_tokens_than_a_call_holds(dtype, most):
    with made(dtype=dtype) as experts:
        for count in (0, 1, 7, 8, 23):
            x, ids, weights = job(count, count, dtype)
            y = experts(x, ids, weights)
            assert y.dtype == x.dtype
            assert y.shape == x.shape
            assert count == 0 or error(x, ids, weights, y) < most


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_tensors_that_torch_frees_and_makes_again(dtype, most):
    with made(dtype=dtype) as experts:
        kept = []
        for seed in range(40):
            x, ids, weights = job(1 + seed % 3, seed, dtype)
            kept.append((x, ids, weights, experts(x, ids, weights)))
            del kept[:: 1 + seed % 4]
            assert all(error(*each) < most for each in kept)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tensors_with_steps_and_of_other_types(dtype):
    x, ids, weights = job(5, 1, dtype)
    with made(dtype=dtype) as experts:
        wanted = experts(x, ids, weights)
        wide = torch.stack([x, x], dim=2)[:, :, 1]
        for rows in (wide, x.T.contiguous().T, torch.cat([x, x], dim=1)[:, :24]):
            y = experts(rows, torch.stack([ids, ids], dim=2)[:, :, 0], weights.T.contiguous().T)
            assert torch.equal(y, wanted)
        assert torch.equal(experts(x, ids.int(), weights), wanted)
        assert torch.equal(experts(x, ids, weights.double()), wanted)


def test_tokens_in_several_dimensions():
    x, ids, weights = job(6)
    with made() as experts:
        y = experts(x.view(2, 3, 24), ids.view(2, 3, 2), weights.view(2, 3, 2))
    assert y.shape == (2, 3, 24)
    assert error(x, ids, weights, y.reshape(6, 24)) < 1e-5


def test_gradients_and_other_types_are_refused():
    x, ids, weights = job(3)
    with made() as experts:
        with pytest.raises(InputError, match=r"a gradient is asked for, .* call under torch\.no_grad"):
            experts(x.clone().requires_grad_(), ids, weights)
        with pytest.raises(InputError, match=r"x must be of torch\.float32, .* got torch\.float64"):
            experts(x.double(), ids, weights)


@pytest.mark.ranks(2)
def test_ranks_with_other_numbers_of_tokens(comm):
    with made(comm) as experts:
        for counts in ((3, 20), (20, 3), (0, 9), (0, 0)):
            x, ids, weights = job(counts[comm.rank], comm.rank)
            y = experts(x, ids, weights)
            assert len(x) == 0 or error(x, ids, weights, y) < 1e-5

"""A run of 100 training steps has the same bits on any number of ranks, also if it is stopped and continued."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import MoE, tokens

from aristos import MoEConfig, losses, reference, reproducible_sum
from aristos.train import Adam

pytestmark = pytest.mark.slow

CFG = MoEConfig(
    hidden=16, ffn=8, experts=8, top_k=2, activation="silu", gated=True, shared_ffn=4, bias=True, max_tokens=32
)
CFGS = {"float32": CFG, "bfloat16": replace(CFG, hidden=32, dtype="bfloat16")}
KINDS = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
STEPS, TOKENS, PIECES = 100, 32, 4  # steps of a run, tokens of a step on all ranks, equal parts of these tokens


def run(
    cfg: MoEConfig, comm: Any, first: int, last: int, folder: Path | None = None, save: int = -1, **options: Any
) -> dict[str, np.ndarray]:
    """Take the steps first <= step < last. Returns losses, norms, weights and states by name.

    Experts are those of this rank alone. If first > 0, the run continues from what was saved in `folder`. save: the
    number of steps after which to save.
    """
    rank, world = (0, 1) if comm is None else (comm.rank, comm.size)
    mine = slice(TOKENS // world * rank, TOKENS // world * (rank + 1))
    found: dict[str, np.ndarray] = {}
    values = []
    with MoE(cfg, comm, train=True, **options) as moe:
        moe.load(**reference.weights(cfg, 1))
        optimizer = Adam(moe, 0.01, weight_decay=0.1, clip=0.1)
        if first:
            moe.restore(folder, optimizer)
        for step in range(first, last):
            x, target = tokens(cfg, TOKENS, seed=step)[mine], tokens(cfg, TOKENS, seed=step % 3)[mine]
            y, tape = moe.forward(x.astype(KINDS[cfg.dtype]))
            balance, dlogits = losses.switch(tape.routing, 0.01, comm)
            off, total = y.astype(np.float32) - target, balance
            if step % 10 == 0:  # each collective call of ranks that share cores takes milliseconds
                each = np.square(off, dtype=np.float64).reshape(PIECES // world, -1).sum(axis=1)
                total += float(reproducible_sum(comm, each[:, None])[0]) / (TOKENS * cfg.hidden)
            moe.zero_grads()
            dy = (off * np.float32(2 / (TOKENS * cfg.hidden))).astype(KINDS[cfg.dtype])
            moe.backward(dy, tape, dlogits, PIECES // world)
            values.append((total, optimizer.step()))
            if step + 1 == save:
                moe.save(folder, optimizer)
        for name, array in moe.params().items():
            found[name] = array.copy()
            found |= {f"{name}.{key}": state.copy() for key, state in optimizer.states[0].get(name, {}).items()}
    return found | {"losses and norms": np.array(values)}


COUNTS = (*zip(CFGS, (2, 2)), ("float32", 4))
ON_RANKS = [pytest.param(n, dtype, marks=pytest.mark.ranks(n, timeout=240)) for dtype, n in COUNTS]


@pytest.mark.parallel
@pytest.mark.parametrize(("world", "dtype"), ON_RANKS)
def test_100_steps_have_equal_bits(comm, world, dtype, tmp_path_factory):
    """Losses, norms, and the last weights and states do not depend on ranks, workers, placement and nodes.

    The run of one rank saves in the middle, and two ranks continue from there.
    """
    cfg = CFGS[dtype]
    folder = comm.bcast(tmp_path_factory.mktemp("saved") if comm.rank == 0 else None)
    alone = folder / "alone.npz"
    if comm.rank == 0:
        np.savez(folder / "new.npz", **run(cfg, None, 0, STEPS, folder, save=STEPS // 2, threads=1))  # type: ignore[arg-type]
        (folder / "new.npz").rename(alone)
    while not alone.exists():
        time.sleep(0.1)  # MPI's waits would take the core from rank 0
    whole = dict(np.load(alone))
    values = whole["losses and norms"]
    assert values[-10, 0] < 0.8 * values[0, 0]  # the layer learns
    assert (values[:, 1] > 0.1).any()  # gradients were clipped
    if world == 2:
        places = [0, 1, 0, 0, 1, 0, 1, 1]
        runs: list[tuple[int, dict[str, Any]]] = [(0, {"threads": 2}), (STEPS // 2, {"ranks_per_node": 1})]
    else:
        places, runs = [2, 0, 2, 3, 3, 0, 1, 2], [(0, {"ranks_per_node": 2})]
    for first, options in runs:
        found = run(cfg, comm, first, STEPS, folder, placement=places, **{"threads": 1} | options)
        held = [e for e, rank in enumerate(places) if rank == comm.rank]
        assert set(found) == set(whole)
        for name, value in found.items():
            right = whole[name]
            if name == "losses and norms":
                right = right[first:]
            elif name.partition(".")[0].removesuffix("_bias") in ("up", "gate", "down"):
                right = right[held]
            assert value.tobytes() == np.ascontiguousarray(right).tobytes(), (first, options, name)

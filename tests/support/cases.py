"""Parts that the layer's tests share: random inputs and routings, a one-process layer to compare bits with, and jobs.

A *job* is a separate script under `mpiexec`, for tests that the `ranks` marker cannot run, because ranks are killed,
stopped or interrupted, or end the job on purpose. A job does not judge results: it returns the output of every rank.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import aristos
from aristos import reference
from aristos.placement import Placement

ROOT = Path(__file__).resolve().parents[2]
SKEWS = ("router", "uniform", "one", "none", "some", "zipf")


PATIENCE = 25.0  # the timeout of waits, in seconds; a test's limit is longer, so that hanging waits report errors


class MoE(aristos.MoE):
    """A layer whose `with` block does not wait for other ranks if the test in it has failed on this rank."""

    def __init__(self, *args: Any, timeout: float = PATIENCE, **options: Any) -> None:
        super().__init__(*args, timeout=timeout, **options)

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if kind is None or self.world == 1:
            self.close()


class Exchange(aristos.Exchange):
    """An exchange whose `with` block does not wait for other ranks if the test in it has failed on this rank."""

    def __init__(self, *args: Any, timeout: float = PATIENCE, **options: Any) -> None:
        super().__init__(*args, timeout=timeout, **options)

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if kind is None or self.world == 1:
            self.close()


def tokens(cfg: aristos.MoEConfig, count: int, seed: int) -> np.ndarray:
    """Random x [count, H] float32. For equal H and seed, a larger count only adds rows."""
    return np.random.default_rng(seed).standard_normal((count, cfg.hidden), dtype=np.float32)


def routing(cfg: aristos.MoEConfig, count: int, skew: str, seed: int) -> dict[str, Any]:
    """A call's routing: nothing if skew is "router", else ids [count, k] without repeats and weights [count, k]."""
    if skew == "router":
        return {}
    rng = np.random.default_rng(seed)
    k, experts = cfg.top_k, cfg.experts
    share = np.ones(experts) if skew != "zipf" else 1.0 / np.arange(1, experts + 1) ** 2
    # the k experts with the least exponential times / share are different, and drawn by their shares
    ids = np.argsort(rng.exponential(size=(count, experts)) / share, axis=1)[:, :k].astype(np.int64)
    if skew == "one":
        ids[:] = -1
        ids[:, seed % k] = seed % experts
    elif skew == "none":
        ids[:] = -1
    elif skew == "some":
        ids[rng.random((count, k)) < 0.4] = -1
    return {"ids": ids, "weights": rng.uniform(-1, 1, (count, k)).astype(np.float32)}


def expected(cfg: aristos.MoEConfig, w: dict[str, Any], x: np.ndarray, call: dict[str, Any]) -> np.ndarray:
    """The float64 reference's output for a call. If the call has no routing, the reference computes one."""
    if not call:
        ids, weights = reference.route(cfg, x, w["router"])
        call = {"ids": ids, "weights": weights}
    return reference.moe(cfg, x, **{k: v for k, v in w.items() if k != "router"}, **call)


def near_ties(cfg: aristos.MoEConfig, w: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """[S] bool: whether a token's k-th and next scores are so close that float32 may order them differently."""
    scores = np.sort(x.astype(np.float64) @ w["router"].astype(np.float64), axis=1)[:, ::-1]
    if cfg.top_k == cfg.experts:
        return np.zeros(len(x), bool)
    return scores[:, cfg.top_k - 1] - scores[:, cfg.top_k] < 1e-5 * (1 + np.abs(scores).max(axis=1))


def check(cfg: aristos.MoEConfig, w: dict[str, Any], x: np.ndarray, call: dict[str, Any], y: np.ndarray) -> None:
    """Check that y is within 1e-5 of the reference's largest entry; 1e-6 more is allowed in case all terms cancel."""
    assert y.shape == x.shape
    assert y.dtype == np.float32
    ref = expected(cfg, w, x, call)
    if not call:
        clear = ~near_ties(cfg, w, x)
        y, ref = y[clear], ref[clear]
    if y.size == 0:
        return
    assert np.isfinite(y).all()
    off = float(np.abs(y - ref).max())
    assert off <= 1e-5 * np.abs(ref).max() + 1e-6, f"off by {off:g}, largest entry {np.abs(ref).max():g}"


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are equal bit for bit."""
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def digest(a: np.ndarray) -> str:
    """A short name of an array's bits."""
    return hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()[:16]


@contextlib.contextmanager
def alone(cfg: aristos.MoEConfig, *weights: dict[str, Any], **options: Any) -> Iterator[MoE]:
    """The same layers in one process without MPI. Every other way to compute must give the bits of these layers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="comm is None in one of")
        moe = MoE(cfg, layers=len(weights), **options)
    with moe:
        for layer, w in enumerate(weights):
            moe.load(layer, **w)
        yield moe


@contextlib.contextmanager
def rings_of(rows: int | None, local: int | None = None) -> Iterator[None]:
    """In the `with` block, new layers get rings of `rows` rows; None changes nothing. All ranks must use it.

    local: the rows in the ring of a local peer, if they are fewer.
    """
    if rows is None:
        yield
        return
    from unittest import mock  # imports asyncio, which jobs need not wait for

    with (
        mock.patch("aristos.layer.collective.ring_rows", return_value=rows),
        mock.patch("aristos.layer.collective.local_rows", return_value=local or 0),
    ):
        yield


def wanted_rows(placement: Placement, everyone: list[tuple[np.ndarray, np.ndarray]], rank: int) -> tuple[Any, Any]:
    """The rows [rows, H] that must land on `rank`, and their counts [L, W].

    Rows are ordered by expert, then by source, then as the source's tokens.
    """
    mine = placement.mine(rank)
    counts = np.zeros((len(mine), len(everyone)), np.int64)
    rows = []
    for i, e in enumerate(mine):
        for source, (x, ids) in enumerate(everyone):
            taken = np.flatnonzero((ids == e).any(axis=1))
            counts[i, source] = len(taken)
            rows.append(x[taken])
    return np.concatenate(rows) if rows else np.zeros((0, everyone[0][0].shape[1]), np.float32), counts


def one_exchange(comm: Any, exchange: Any, x: np.ndarray, call: dict[str, Any], experts: int) -> None:
    """Dispatch, check the rows that landed, multiply those of expert e by e + 2, combine, and check the sums."""
    rank = comm.rank if comm is not None else 0
    everyone = comm.allgather((x, call["ids"])) if comm is not None else [(x, call["ids"])]
    rows, handle = exchange.dispatch(x, call["ids"])
    want, counts = wanted_rows(exchange.placement, everyone, rank)
    assert same(rows, want)
    assert np.array_equal(handle.counts, counts)
    assert handle.experts == tuple(exchange.placement.mine(rank))
    factor = np.repeat(np.array(handle.experts, np.float32) + 2, counts.sum(axis=1))
    y = exchange.combine(rows * factor[:, None], handle, call["weights"])
    ids, w = call["ids"], call["weights"].astype("f8")
    ref = (w * np.where(ids >= 0, ids + 2, 0)).sum(axis=1, keepdims=True) * x
    assert y.shape == x.shape
    assert y.dtype == np.float32
    assert np.abs(y - ref).max(initial=0) <= 1e-5 * np.abs(ref).max(initial=0) + 1e-6


# ---- jobs: scripts under mpiexec
# --------------------------------------------------------------------------------------

HEAD = """\
import ctypes, os, signal, sys, threading, time, warnings
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # when the launcher is killed, its ranks are killed too
rank = int(next(os.environ[v] for v in ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK") if v in os.environ))
_out = os.open(f"rank-{rank}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
os.dup2(_out, 1), os.dup2(_out, 2)
sys.path[:0] = PATHS
sys.modules.update(dict.fromkeys(("scipy", "coverage")))  # Numba would import them, and no job uses them
import numpy as np
import aristos
from aristos import errors, reference
from cases import alone, digest, rings_of, routing, same, tokens
from mpi4py import MPI
comm, world = MPI.COMM_WORLD, MPI.COMM_WORLD.size
def say(*words): print(">", *words, flush=True)
"""


@dataclass(frozen=True)
class Job:
    """A job's result: mpiexec's exit code (None if it was killed at its limit), seconds, and each rank's output."""

    code: int | None
    seconds: float
    out: list[str]

    def lines(self, rank: int) -> list[str]:
        """The lines that a rank has printed by `say`."""
        return [line.removeprefix("> ") for line in self.out[rank].splitlines() if line.startswith("> ")]


def clean_environment() -> dict[str, str]:
    """The environment for a process that is not a rank of the launch that this process belongs to."""
    from mpi import FLAG, rank_environment  # imports pytest, which jobs need not wait for

    env = rank_environment(Path())
    del env[FLAG]
    env.pop("HYDI_CONTROL_FD", None)
    return env


@functools.cache
def start_compiling() -> subprocess.Popen[str]:
    """Start a process that fills the cache of compiled code.

    Tests that need no compiled code can run at the same time.
    """
    command = [sys.executable, "-c", USE_EVERYTHING.replace("COMM", "None") + USE_MORE]
    return subprocess.Popen(
        command, cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@functools.cache
def compile_once() -> None:
    """Wait until the cache is full, so that no job and no test on ranks spends its time limit on compiling."""
    process = start_compiling()
    try:
        output, _ = process.communicate(timeout=900)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, output


USE_EVERYTHING = """
import sys
import numpy as np
import aristos
from aristos import kernels, reference
from kernel_cache import compile as compiling
cfg = aristos.MoEConfig(hidden=40, ffn=300, experts=5, top_k=2, gated=True, bias=True, max_tokens=30)
w, x = reference.weights(cfg), np.ones((20, 40), np.float32)
for schedule in ("fused", "bulk"):
    for threads in (1, 2):
        with aristos.MoE(cfg, COMM, schedule=schedule, threads=threads) as moe:
            moe.load(**w)
            y, _ = moe(x, return_stats=True)
            assert reference.error(y, reference.moe(cfg, x, **w)) < 1e-5
with aristos.Exchange(COMM, hidden=40, experts=5, top_k=2, max_tokens=30) as exchange:
    rows, handle = exchange.dispatch(x, np.tile([0, 4], (20, 1)))
    exchange.combine(rows, handle, np.ones((20, 2), np.float32))
kernels.ffn(x, w["up"][0], w["down"][0])
print(">", compiling.compiled_here(), compiling.cache_folder(), flush=True)
"""
USE_MORE = """
for options, dtype in ({"train": True}, "float32"), ({}, "bfloat16"):
    kind = aristos.MoEConfig(hidden=40, ffn=300, experts=5, top_k=2, gated=True, max_tokens=30, dtype=dtype)
    with aristos.MoE(kind, None, **options) as moe:
        moe.load(**reference.weights(kind))
        if options:
            moe.backward(*moe.forward(x))
        else:
            moe(x.astype("bfloat16"))
from aristos.doctor import progress
progress.compiled()
"""


def run_job(
    folder: Path, ranks: int, body: str, timeout: float = 60.0, launcher: tuple[str, ...] = (), **env: str
) -> Job:
    """Run `body` under mpiexec in `folder`.

    The body can use the names of HEAD: rank, world, comm, say, aristos, np and more. launcher: further arguments of
    mpiexec.
    """
    from mpi import find_mpiexec

    if not {"ARISTOS_CACHE", "NUMBA_DISABLE_JIT"} & set(env):
        compile_once()
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "job.py"
    script.write_text(f"PATHS = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\n" + HEAD + textwrap.dedent(body))
    start = time.monotonic()
    with open(folder / "launcher.out", "wb") as out:
        process = subprocess.Popen(
            [*find_mpiexec(), *launcher, "-n", str(ranks), sys.executable, str(script)],
            cwd=folder,
            env={**clean_environment(), **env},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    files = [folder / f"rank-{r}.out" for r in range(ranks)]
    outputs = [file.read_text(errors="replace") if file.exists() else "" for file in files]
    return Job(code, time.monotonic() - start, outputs)

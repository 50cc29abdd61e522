"""A rehearsal without a GPU: the parts run on the PTX machine with small shapes, and one thing goes wrong on purpose.

The times of a rehearsal count events and mean nothing. A rehearsal needs the checkout's tests/support, and numba-cuda.
A fault is planted where it would arise: a product loses its weights, a worker keeps the lock, a package cannot be
imported, files cannot grow, the profiler is missing or forbidden.
"""

from __future__ import annotations

import os
import re
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .parts import ROOT

SHAPE = ("--hidden", "32", "--ffn", "24", "--experts", "3", "--top-k", "2", "--iters", "2", "--warmup", "1")
CALLS = ("--tokens", "6")
FULL = 512  # bytes to which files can grow on a full disk
TILES = 1  # how many tiles of a kind are tried
STAND_IN = "tests/primitives/test_finite.py"  # runs in the place of tests/gpu
LACKING = ("mpi4py", "cupy", "matplotlib")
FORBIDDEN = Path(__file__).with_name("forbidden")  # a folder with an ncu that lacks permission


def rehearse(given: Any) -> int:
    """Run a part of a rehearsal; returns its exit code."""
    sys.path[:0] = [str(ROOT / "tests" / "support")]
    plant(given.fault)
    if given.task in ("tests", "kernels"):
        return {"tests": _tests, "kernels": kernels}[given.task](given)
    shrink()
    given.words = smaller(given.task, given.words)
    from simt_gpu import on_ranks

    from . import tasks

    task = driver if given.task == "driver" else tasks.TASKS[given.task]
    (code,) = on_ranks(1, lambda comm, rank: task(given), check=False)
    return int(code)


def _tests(given: Any) -> int:
    """A quick test stands for tests/gpu."""
    from . import tasks

    given.words = [STAND_IN]
    code = tasks.tests(given)
    print(f"tests/gpu needs a GPU: {STAND_IN} {'failed' if code else 'passed'} in its place", flush=True)
    return code


def driver(given: Any) -> int:
    """The facts of the PTX machine."""
    import json

    from aristos.substrate.cuda import runtime

    from . import machine

    gpu = runtime.CudaDevice.find(0)
    found = {"gpu": gpu.name, "gpu_uuid": gpu.uuid, "gpu_arch": gpu.arch, "gpu_sms": gpu.sms, "cuda_driver": "none"}
    found["rehearsal"] = "on the PTX machine: every time counts events and means nothing"
    print(json.dumps({"facts": found | machine.software()}), flush=True)
    return 0


def kernels(given: Any) -> int:
    """Where the kernels of sm_90 are; none is compiled."""
    from . import compiling

    print(compiling.tally("sm_90", compiling.places("sm_90")), flush=True)
    return 0


def smaller(task: str, words: list[str]) -> list[str]:
    """The words of a part, with a shape that the PTX machine runs in seconds."""
    kept, skip = [], False
    for word in words:
        if word in ("--preset", "--hidden", "--ffn", "--experts", "--scale", "--tokens", "--dtype"):
            skip = True
        elif skip:
            skip = False
        else:
            kept.append(word)
    if task == "bench":
        shape = () if kept[0] in ("put", "signal") else (*SHAPE, *CALLS, "--dtype", "float32")
        return [*kept, *(shape or ("--iters", "2", "--warmup", "1"))]
    return [*SHAPE, *CALLS, "--dtype", "float32"] if task == "phases" else kept


def shrink() -> None:
    """Replace sizes by ones that the PTX machine can run quickly."""
    from aristos.bench import world
    from aristos.bench.gpu import clock, cublas, torch_layer
    from aristos.bench.suites import gemm_gpu, progress_gpu, put_gpu, signal_gpu
    from aristos.kernels.cuda import gemm

    for module, name, value in (
        (clock, "FLUSH", 1 << 12),
        (put_gpu, "ROW_BYTES", (512,)),
        (put_gpu, "BLOCK_BYTES", 2048),
        (put_gpu, "BATCH_BYTES", 1024),
        (signal_gpu, "ROW_BYTES", (16,)),
        (signal_gpu, "ROUNDS", 3),
        (gemm_gpu, "ROWS", (3, 20)),
        (progress_gpu, "CALLS", 2),
        (progress_gpu, "MATRIX", 8),
    ):
        setattr(module, name, value)
    world.connect = lambda *words, **options: world.World()
    sys.modules["torch"] = None  # neither torch nor cuBLAS may touch a real GPU with the machine's addresses
    torch_layer.imported = lambda: _refuse("PyTorch")
    cublas.library = lambda driver="": _refuse("cuBLAS")
    tiles = gemm.tiles
    gemm.tiles = lambda kind, target, *rest: tiles(kind, target, *rest)[:TILES]


def _refuse(what: str) -> Any:
    from aristos.errors import EnvironmentProblem

    raise EnvironmentProblem(f"{what} is not used in a rehearsal, which has no GPU")


def plant(fault: str) -> None:
    """Let one thing go wrong in this process."""
    if fault == "product":
        _wrong_product()
    elif fault == "hang":
        _hang()
    elif fault == "library":
        sys.modules.update(dict.fromkeys(LACKING))  # type: ignore[arg-type]
    elif fault == "disk":
        fill_disk()
    elif fault == "ncu-forbidden":
        os.environ["PATH"] = f"{FORBIDDEN}{os.pathsep}{os.environ['PATH']}"
    elif fault == "ncu-missing":
        from . import profiled

        profiled.PLACES = ()
        os.environ["PATH"] = ""


def fill_disk() -> None:
    """From now on no file grows beyond FULL bytes. The kernel cache is opened before, so that it can still be read."""
    from kernel_cache.compile import cache_folder

    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    cache_folder()
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # bytecode would be truncated, and loaded by later programs
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, hard))


def _wrong_product() -> None:
    """Set the first expert's weights on the GPU to zero after they were copied."""
    from aristos.bench.suites.gemm_gpu import Products

    made = Products.__init__

    def lossy(self: Any, gpu: Any, *rest: Any) -> None:
        made(self, gpu, *rest)
        gpu.device.clear(self.weights, self.step, gpu.stream)

    Products.__init__ = lossy  # type: ignore[method-assign]


def _hang() -> None:
    """Let the second call of a layer never end."""
    from aristos.bench.gpu.calls import Played

    called, calls = Played.__call__, []

    def second(self: Any) -> None:
        calls.append(self)
        if len(calls) == 2:
            self.gpu.device.machine.actor(_endless, self.moe.runtime)
        called(self)

    Played.__call__ = second  # type: ignore[method-assign]


def _endless(runtime: Any) -> Iterator[None]:
    """An actor of the machine that gives the rank's lock to a worker that computes. From then on nothing moves."""
    while (found := re.search(r"workers? (\d+).*: computes share", runtime.standing())) is None:
        yield
    lock = runtime.state_at + runtime.state.itemsize * runtime.tables.words
    runtime.device.copy_in(lock, np.array([1 + int(found[1])]))
    while True:
        time.sleep(1.0)

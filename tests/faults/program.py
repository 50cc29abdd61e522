"""The program of the ranks runs a drawn list of operations and checks each. Drawn faults happen within them.

    mpiexec -n R python program.py JOB.json

Every rank writes its output to rank-N.out. It notes what it does in its row of the file `page`, which the driver
(`driver.py`) reads. Faults that a rank makes itself are in `injected.py`.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import draw
import machine
import numpy as np

PID, OPERATION, FAULT_AT, CONTINUE_AT, DONE, MADE, MET, WORDS = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    8,
)  # words of a rank's row of the page
MOST_RANKS = 8
RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")


def page(path: Path) -> np.ndarray:
    """[MOST_RANKS, WORDS] int64 that ranks and driver share. Times are ns on CLOCK_MONOTONIC."""
    with open(path, "r+b") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 8 * MOST_RANKS * WORDS), np.int64).reshape(-1, WORDS)


class Program:
    """One rank of a job."""

    def __init__(self, job: dict[str, Any], rank: int, comm: Any) -> None:
        import injected

        from aristos import MoEConfig
        from aristos.row_types import ON_CPUS

        self.job, self.rank, self.comm, self.other = job, rank, comm, comm.Dup()
        self.page = page(Path("page"))
        self.row, self.kind = self.page[rank], ON_CPUS[job["dtype"]]
        wire = {name: job[name] for name in ("levels", "combine", "dtype")}
        self.cfg = MoEConfig(hidden=24, ffn=40, experts=5, top_k=2, max_tokens=48, **wire)
        self.weights_of = 0  # the seed of the layer's weights
        self.saved: int | None = None  # the seed of the saved weights
        self.injected = injected.Injected(self, [f for f in job["faults"] if f["rank"] == rank])

    def layer(self) -> Any:
        from aristos import MoE

        return MoE(self.cfg, self.comm, **self.job["options"])

    def warm(self) -> None:
        """Compile everything that jobs use, so that later jobs start soon."""
        from aristos import MoE

        for options in self.job["warm"]:
            with MoE(self.cfg, self.comm, timeout=600.0, **options) as self.moe:
                for name in ("load", "forward", *(("backward",) if options.get("train") else ())):
                    getattr(self, name)(1)

    def run(self) -> None:
        with self.layer() as self.moe:
            self.load(0)
            for number, name in enumerate(self.job["operations"], 1):
                self.row[OPERATION] = number
                self.injected.begin(number)
                common = any(f["operation"] == number and f.get("meet") for f in self.job["faults"])
                if common:
                    self.meet()  # no rank begins before the fault is there
                self.may_refuse(name, number)
                self.injected.over(number)
                if common:
                    self.meet()  # no rank goes on before the fault is gone

    def may_refuse(self, name: str, number: int) -> None:
        """Run an operation. If a fault may make it raise an error, the job goes on after the error."""
        from aristos import errors

        allowed = self.job["refusals"].get(str(number), [])
        try:
            getattr(self, name)(number)
        except errors.AristosError as error:
            if type(error).__name__ not in allowed:
                raise
            print(f"refused: {name}: {type(error).__name__}: {error}", flush=True)
            self.meet()  # the fault ends after all ranks have got the error

    def meet(self) -> None:
        """Wait for all ranks. MPI is not used, since it may need what the fault denies."""
        self.row[MET] += 1
        until = time.monotonic() + 60
        while self.page[: self.comm.size, MET].min() < self.row[MET]:
            time.sleep(0.001)
            assert time.monotonic() < until

    # ------------------------------------------------------------ operations

    def tokens(self, number: int) -> np.ndarray:
        rng = np.random.default_rng([self.job["seed"], number, self.rank])
        count = int(rng.integers(self.cfg.max_tokens + 1))
        return rng.standard_normal((count, self.cfg.hidden), np.float32).astype(self.kind.array)

    def weights(self) -> dict[str, Any]:
        from aristos import reference

        return reference.weights(self.cfg, seed=self.weights_of)

    def used(self) -> dict[str, Any]:
        """The weights that calls use: experts' matrices are rounded to the rows' type, the router is not."""
        return {
            name: array if name == "router" else array.astype(self.kind.array).astype(np.float32)
            for name, array in self.weights().items()
        }

    def check(self, what: str, found: np.ndarray, truth: np.ndarray) -> None:
        """Compare a result with the float64 reference, which knows no nodes.

        With combine="sums" each node's sum is rounded once more, by at most half a unit in its last place: in float32
        far below the limit, in bfloat16 an eighth of it.
        """
        off = float(np.abs(found.astype(np.float64) - truth).max(initial=0))
        if not off <= max(1e-4, self.kind.error) * float(np.abs(truth).max(initial=1)):
            print(f"WRONG: {what} of operation {self.row[OPERATION]} is off by {off:g}", flush=True)
            os._exit(77)

    def forward(self, number: int) -> None:
        from aristos import reference

        x, w = self.tokens(number), self.used()
        y, routing = self.moe(x, return_routing=True)
        given = {"ids": routing.ids, "weights": routing.weights}
        del w["router"]
        self.check("y", y, reference.moe(self.cfg, x, **w, **given))

    def backward(self, number: int) -> None:
        from aristos import reference

        x, w = self.tokens(number), self.used()
        _, tape = self.moe.forward(x)
        dx = self.moe.backward(np.ones_like(x), tape)
        self.check("dx", dx, reference.backward(self.cfg, x, np.ones_like(x), **w)["x"])
        self.moe.reduce_grads()
        self.moe.zero_grads()

    def load(self, number: int) -> None:
        self.weights_of = number
        self.moe.load(**self.weights())

    def save(self, number: int) -> None:
        self.moe.save("disk/saved")
        self.saved = self.weights_of
        if self.rank == 0:
            with open("saved.log", "a") as log:
                log.write(f"{self.weights_of}\n")

    def restore(self, number: int) -> None:
        if self.saved is not None:
            self.moe.restore("disk/saved")
            self.weights_of = self.saved

    def result(self, number: int) -> None:
        """Append a run to a results file on rank 0."""
        from aristos import results

        with self.moe.together("to write a result"):
            if self.rank == 0:
                table = results.Table("faults").dim("x", np.arange(4)).add("y", "x", np.arange(4.0))
                results.append("disk/results.h5", results.Run(f"run-{number}", tables=[table]), lock_seconds=2.0)
                with open("results.log", "a") as log:
                    log.write(f"run-{number}\n")

    def again(self, number: int) -> None:
        """Make another layer on a communicator of its own, for which MPI makes new windows."""
        from aristos import MoE

        options = {**self.job["options"], "train": False}
        with MoE(self.cfg, self.other, **options) as other:
            other.load(**self.weights())
            other(self.tokens(number))

    def user(self, number: int) -> None:
        """Stay in user code for a while, on some ranks longer than on others."""
        time.sleep(0.01 * (1 + (number + self.rank) % 3))


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    rank = int(next(os.environ[v] for v in RANK_VARIABLES if v in os.environ))
    if "started" in job and "ARISTOS_FAULT_CLOCK" not in os.environ:
        machine.started_earlier(job["started"][rank])
        os.environ["ARISTOS_FAULT_CLOCK"] = f"{time.monotonic_ns()} {job['started'][rank]}"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    if job["transport"] == draw.NODES:
        machine.enter(Path(machine.NETWORKS[rank // draw.RANKS_OF_NODE]))
    out = os.open(f"rank-{rank}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # MPICH's launcher sends this signal when another rank is lost
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2, all_threads=True)  # the driver sends this signal to see where a rank hangs
    row = page(Path("page"))[rank]
    row[PID] = os.getpid()
    from mpi4py import MPI

    program = Program(job, rank, MPI.COMM_WORLD)
    program.warm() if "warm" in job else program.run()
    row[DONE] = 1


if __name__ == "__main__":
    main()

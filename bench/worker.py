"""One rank of a team: makes peers, runs and times them when compare.py asks, and sleeps in between.

teams.py starts this program in the environment of its peers, which may lack every package but NumPy. A request is a
pair of a method's name and its arguments; the reply is a pair ("done", value), ("absent", reason) or ("failed",
traceback).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import socket
import sys
import time
import traceback
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jobs
import numpy as np
from barrier import Barrier
from peers import Absent, ran

PACKAGES = ("torch", "kt-kernel", "xllamacpp", "deepspeed", "jax", "numpy")  # a team reports their versions


AGAIN = 4  # a turn makes at most AGAIN times as many calls as asked for
WAITED_SHARE = 0.02  # a call that waited for more than this share of its time is repeated


def _waited() -> float:
    """Seconds for which threads of this process were ready to run and had no core."""
    waited = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended
            waited += int((task / "schedstat").read_text().split()[1])
    return waited / 1e9


class Worker:
    """What a rank does on request.

    comm: the MPI communicator of the team, None for a team of one rank. barrier: the file of the team's barrier.
    """

    def __init__(self, comm: Any, world: int, barrier: Path) -> None:
        self.comm, self.world = comm, world
        self.rank = comm.rank if comm else 0
        self.barrier = Barrier(barrier, self.rank, world)
        self.job: Any = None
        self.peers: dict[str, Any] = {}

    def read(self, folder: str) -> None:
        """Read the job in a folder. The peers that are made next are for this job."""
        self.job = jobs.read(Path(folder), self.rank)

    def make(self, name: str, factory: str, options: dict[str, Any]) -> None:
        """Make a peer for the job by `module:factory`. Raises Absent on every rank if it cannot run. Collective."""
        module, _, called = factory.partition(":")
        self.peers[name] = getattr(importlib.import_module(module), called)(self.comm, self.job, **options)

    def output(self, name: str, i: int, path: str) -> None:
        """Run a peer on input i and write its output, [S, H] in float32, to a file of this rank. Collective."""
        self.peers[name](i)
        np.save(f"{path}-{self.rank}.npy", np.asarray(self.peers[name].output(), dtype=np.float32))

    def ran(self, name: str) -> dict[str, str]:
        """Element type, precision and ISA of a peer's last call, see `peers.ran`."""
        return ran(self.peers[name])

    def turn(self, name: str, calls: int) -> list[float]:
        """This rank's seconds of each timed call; the inputs alternate. Collective.

        A call that is not timed comes first, unless `calls` is 1. On one rank, a call is repeated if a thread of this
        process waited for a core, because its time then contains somebody else's work. A turn makes at most AGAIN times
        `calls` calls.
        """
        peer, inputs = self.peers[name], self.job.shape.inputs
        seconds: list[float] = []
        disturbed: list[float] = []
        untimed = int(calls > 1)
        for i in range((AGAIN if self.world == 1 else 1) * calls + untimed):
            waited = _waited() if self.world == 1 else 0.0
            self.barrier()
            start = time.perf_counter()
            own = peer(i % inputs)
            taken = time.perf_counter() - start
            if i >= untimed and self.world == 1 and _waited() - waited > WAITED_SHARE * taken:
                disturbed.append(taken if own is None else own)
            elif i >= untimed:
                seconds.append(taken if own is None else own)
            if len(seconds) == calls:
                break
        return seconds + sorted(disturbed)[: calls - len(seconds)]

    def run(self, function: str, *arguments: Any) -> Any:
        """Call the function that `module:function` names with this worker and the arguments. Returns its result."""
        module, _, called = function.partition(":")
        return getattr(importlib.import_module(module), called)(self, *arguments)

    def versions(self) -> dict[str, str]:
        """The versions of Python and of the packages that the team's peers use."""
        found = {"Python": ".".join(map(str, sys.version_info[:3]))}
        for name in PACKAGES:
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(name)
        return found

    def close(self) -> None:
        """Free all peers. Collective."""
        for peer in self.peers.values():
            peer.close()
        self.peers, self.job = {}, None


def main(argv: list[str]) -> int:
    """Serve requests until the driver closes the connection."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--address")
    parser.add_argument("--barrier", type=Path)
    parser.add_argument("--world", type=int)
    asked = parser.parse_args(argv)
    try:
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
    except ImportError:
        if asked.world > 1:
            raise
        comm = None
    worker = Worker(comm, asked.world, asked.barrier)
    caller = socket.socket(socket.AF_UNIX)
    caller.connect(asked.address)
    with Connection(caller.detach()) as driver:
        driver.send(worker.rank)
        while True:
            try:
                method, arguments = driver.recv()
            except EOFError:
                return 0
            try:
                reply = ("done", getattr(worker, method)(*arguments))
            except Absent as why:
                reply = ("absent", str(why))
            except Exception:
                reply = ("failed", traceback.format_exc())
            driver.send(reply)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

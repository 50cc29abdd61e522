"""Runs teams. A team is the ranks of one environment, which start once and then work whenever it is their turn.

A team's ranks sleep on a socket between their turns, so that only the peer whose turn it is uses the cores. glibc's
malloc is set to keep freed memory. Otherwise every large array of a call would be new memory, whose pages the kernel
clears one by one, and peers that allocate (torch most of all) would lose up to half of a call to this.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import environments
from barrier import Barrier
from peers import Absent

WORKER = Path(__file__).resolve().with_name("worker.py")
START_SECONDS, REPLY_SECONDS, POLL_SECONDS = 120.0, 600.0, 0.2
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(64 << 20)}
FORCED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # set on some machines for old builds; they slow peers down


class TeamError(Exception):
    """A rank failed, died or did not answer; the message has its traceback or what is known."""


class Team:
    """The processes of one environment, with a connection to each rank. Raises NoEnvironment or TeamError."""

    def __init__(self, environment: str, world: int, folder: Path, mpiexec: list[str]) -> None:
        self.name, self.world = environment, world
        interpreter = environments.python(environment)
        address, barrier = str(folder / f"{environment}.socket"), folder / f"{environment}.barrier"
        Barrier.create(barrier, world)
        command = [str(interpreter), str(WORKER), "--address", address, "--barrier", str(barrier)]
        command += ["--world", str(world)]
        if world > 1:
            own = environment in environments.OWN  # peers of other environments have an MPI library of their own
            command = [*(mpiexec if own else [str(interpreter.with_name("mpiexec"))]), "-n", str(world), *command]
        self._said = (folder / f"{environment}.log").open("w+b")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen(world)
            listener.settimeout(POLL_SECONDS)
            self._process = subprocess.Popen(
                command, env=self._variables(), stdin=subprocess.DEVNULL, stdout=self._said, stderr=subprocess.STDOUT
            )
            ranks = dict(self._accept(listener) for _ in range(world))
        self._ranks: list[Connection] = [ranks[rank] for rank in range(world)]

    @staticmethod
    def _variables() -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in FORCED}
        return kept | KEPT | dict.fromkeys(ONE_THREAD, "1") | {"HYDRA_IFACE": os.environ.get("HYDRA_IFACE", "lo")}

    def _accept(self, listener: socket.socket) -> tuple[int, Connection]:
        """Wait for the next rank that connects. Returns (rank, connection)."""
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                rank = Connection(listener.accept()[0].detach())
                return int(rank.recv()), rank
            except TimeoutError:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise TeamError(f"{self.name}: a rank did not start and connect: {self._tail()}") from None

    def __call__(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method on all ranks. Returns their replies by rank.

        Raises Absent if the method makes a peer that cannot run here, and TeamError if a rank fails.
        """
        try:
            for rank in self._ranks:
                rank.send((method, arguments))
            replies = [self._reply(rank) for rank in self._ranks]
        except (EOFError, ConnectionError):
            raise TeamError(f"{self.name}: a rank ended: {self._tail()}") from None
        for kind, raised in (("failed", TeamError), ("absent", Absent)):
            for said, value in replies:
                if said == kind:
                    raise raised(value)
        return [value for _, value in replies]

    def _reply(self, rank: Connection) -> tuple[str, Any]:
        until = time.monotonic() + REPLY_SECONDS
        while not rank.poll(POLL_SECONDS):
            if time.monotonic() > until:
                raise TeamError(f"{self.name}: a rank does not answer the last request: {self._tail()}")
        reply: tuple[str, Any] = rank.recv()
        return reply

    def _tail(self) -> str:
        self._said.seek(0)
        return self._said.read().decode(errors="replace")[-2000:].strip() or "it printed nothing"

    def close(self) -> None:
        """Close the connections, so that the ranks end. Ranks that do not end are killed."""
        for rank in self._ranks:
            rank.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.terminate()
        self._said.close()

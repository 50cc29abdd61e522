"""Does MPI put from a card's memory, and while a kernel holds the card? A child process tries it: an MPI that does not
dies of it, or never comes back.

The child is alone in an MPI of its own (a singleton), with the environment of this process but for what its launcher
said. It puts a row that a running kernel has written from the card into a window of its own and looks at what came.
`python -m aristos.substrate.device_puts 0` does the same by hand. It puts to itself: what a fabric does between nodes
it cannot know, so `ARISTOS_DEVICE_PUTS=0` keeps rows in pinned memory of the host, which every MPI takes.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AristosError

VARIABLE = "ARISTOS_DEVICE_PUTS"
COMMAND = [sys.executable, "-m", "aristos.substrate.device_puts"]
SECONDS = 60.0  # for the child: MPI and CUDA start, a kernel is compiled
STUCK_SECONDS = 5.0  # for a put beneath a running kernel
WORDS = 8192  # of the row: 64 KiB, which MPIs send by rendezvous
NS = 10**9
# what mpiexec and srun tell their tasks; a child that believed it would join the job
LAUNCHERS = ("PMI_", "PMI2_", "PMIX_", "PRTE_", "OMPI_COMM_WORLD_", "OMPI_UNIVERSE_", "OMPI_NUM_APP_", "OMPI_APP_CTX_",
             "OMPI_FIRST_RANKS", "HYDRA_", "HYDI_", "MPI_LOCAL", "MPIEXEC_", "PALS_", "ALPS_", "SLURM_")  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """takes: whether MPI puts from the card. why: if not, why not."""

    takes: bool
    why: str = ""


def alone(env: Mapping[str, str]) -> dict[str, str]:
    """An environment without what a launcher said, in which this package is found."""
    kept = {name: value for name, value in env.items() if not name.startswith(LAUNCHERS)}
    root = str(Path(__file__).parents[2])
    kept["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [kept.get("PYTHONPATH")])])
    return kept


@functools.cache
def takes(ordinal: int) -> Answer:
    """Whether MPI puts from the memory of a card by its ordinal; tried once in the life of this process."""
    if os.environ.get(VARIABLE) == "0":
        return Answer(False, f"{VARIABLE}=0")
    try:
        done = subprocess.run(
            [*COMMAND, str(ordinal)],
            env=alone(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Answer(False, f"MPI did not come back within {SECONDS:g} s")
    except OSError as error:
        return Answer(False, f"the process that tries it did not start: {error}")
    if done.returncode < 0:
        return Answer(False, f"MPI died of it ({signal.Signals(-done.returncode).name})")
    try:
        said = json.loads(done.stdout.splitlines()[-1])
        return Answer(bool(said["takes"]), str(said["why"]))
    except (IndexError, ValueError, KeyError, TypeError):
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        return Answer(False, f"the process that tries it ended with exit code {done.returncode}: {lines[-1]}")


def beneath_a_kernel(card: Any, put: Callable[[int, int], np.ndarray]) -> Answer:
    """Try it. card: a substrate.device.Card. put: puts so many bytes from an address; [words] int64 of what came."""
    from ..kernels.cuda.catalogue import LEND
    from ..kernels.cuda.lend import LINE, STEP

    row = card.allocate(8 * WORDS)
    told, told_at = card.host(2 * LINE)
    flags = told.view(np.int64)
    came: list[np.ndarray | BaseException] = []

    def put_row() -> None:
        try:
            with card.current():
                came.append(put(row, 8 * WORDS))
        except BaseException as error:
            came.append(error)

    limit = int(3 * STUCK_SECONDS * NS)
    card.launch(card.load(LEND), 1, 0, row, WORDS, told_at, limit)  # on the default stream, where it hinders most
    until = time.monotonic() + STUCK_SECONDS
    while flags[0] == 0:
        if time.monotonic() > until:
            return Answer(False, f"the kernel of this probe has not begun after {STUCK_SECONDS:g} s")
        time.sleep(1e-4)
    thread = threading.Thread(target=put_row, daemon=True)
    thread.start()
    thread.join(STUCK_SECONDS)
    stuck = thread.is_alive()
    flags[LINE // 8] = 1
    card.synchronize()
    if stuck:
        return Answer(False, "MPI waits for the kernel that runs on the card before it puts")
    if isinstance(came[0], BaseException):
        return Answer(False, f"{type(came[0]).__name__}: {came[0]}")
    want = np.arange(1, WORDS + 1, dtype=np.uint64) * np.uint64(STEP)
    if (came[0].view(np.uint64) != want).any():
        return Answer(False, "MPI puts from the card, and something else arrives")
    return Answer(True)


def into_own_window() -> Callable[[int, int], np.ndarray]:
    """A put as `beneath_a_kernel` takes it, by MPI to this process itself."""
    from mpi4py import MPI

    window: Any = MPI.Win.Allocate(8 * WORDS, 1, comm=MPI.COMM_SELF)
    window.Lock_all()
    memory = np.frombuffer(window.tomemory(), np.int64)
    memory[:] = 0

    def put(address: int, nbytes: int) -> np.ndarray:
        window.Put([MPI.memory.fromaddress(address, nbytes), MPI.BYTE], 0)
        window.Flush(0)
        window.Sync()
        return memory.copy()

    return put


def main(ordinal: int, find: Callable[[int], Any]) -> None:
    """Try it on the card that `find` gives and print the answer, a line of JSON; the process ends here in any case."""
    put = into_own_window()  # MPI starts first, as in a job
    try:
        answer = beneath_a_kernel(find(ordinal), put)
    except AristosError as error:
        answer = Answer(False, str(error))
    print(json.dumps({"takes": answer.takes, "why": answer.why}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    from .device import Card

    main(int(sys.argv[1]), Card)

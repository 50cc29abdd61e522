"""Does MPI put from a card's memory, and while a kernel holds the card? A child process tries it: an MPI that does not
dies of it, or never comes back.

The child is alone in an MPI of its own (a singleton), with the environment of this process but for what its launcher
said. It puts what a running kernel has written from the card into a window of its own, in pieces of many sizes, and
looks at what came. By hand: `python -m aristos.substrate.cuda.device_puts 0`. It puts to itself, which some
MPIs do by a plain copy: what a fabric does between nodes it cannot know, so `ARISTOS_DEVICE_PUTS=0` keeps rows in
pinned memory of the host, which every MPI takes.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...host.mpi_facts import PREFIXES

VARIABLE = "ARISTOS_DEVICE_PUTS"
COMMAND = [sys.executable, "-P", "-m", "aristos.substrate.cuda.device_puts"]  # -P: the caller's folder holds no modules
SECONDS = 60.0  # for the child: MPI and CUDA start, a kernel is compiled
STUCK_SECONDS = 5.0  # for puts beneath a running kernel
WORDS = 1 << 19  # of the row: 4 MiB
PIECES = (64, 4 << 10, 64 << 10, 8 * WORDS)  # bytes of a put: inline, eager, rendezvous, in a pipeline
NS = 10**9


@dataclass(frozen=True)
class Answer:
    """takes: whether MPI puts from the card. why: if not, why not."""

    takes: bool
    why: str = ""


# ---- who asks


def alone(env: Mapping[str, str]) -> dict[str, str]:
    """An environment without what a launcher said, in which this package is found."""
    kept = {name: value for name, value in env.items() if not name.startswith(PREFIXES)}
    root = str(Path(__file__).parents[3])
    kept["PYTHONPATH"] = os.pathsep.join([*filter(None, [kept.get("PYTHONPATH")]), root])
    return kept


@functools.cache
def takes(ordinal: int, seconds: float = SECONDS) -> Answer:
    """Whether MPI puts from the memory of a card by its ordinal; tried once in the life of this process.

    It takes `seconds` at most, and raises nothing: other ranks wait for the answer.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "1"):
        return Answer(False, f"{VARIABLE}={wanted}")
    try:
        return _asked(ordinal, seconds)
    except Exception as error:
        return Answer(False, f"the process that tries it could not be asked: {type(error).__name__}: {error}")


def _asked(ordinal: int, seconds: float) -> Answer:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as complaints:  # no pipes: a daemon may keep them
        try:
            code = subprocess.run(
                [*COMMAND, str(ordinal)],
                env=alone(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=complaints,
                timeout=seconds,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return Answer(False, f"MPI did not come back within {seconds:g} s")
        said, complained = (_lines(file) for file in (out, complaints))
    if code < 0:
        return Answer(False, f"MPI died of it ({signal.strsignal(-code) or f'signal {-code}'})")
    for line in said:
        if line.startswith("{"):
            return Answer(**json.loads(line))
    return Answer(
        False, f"the process that tries it ended with exit code {code}: {[*complained, 'it said nothing'][0]}"
    )


def _lines(file: Any) -> list[str]:
    """What was written, the last line first."""
    file.seek(0)
    return [line for line in reversed(file.read().decode(errors="replace").splitlines()) if line.strip()]


# ---- who tries


class OwnWindow:
    """A window of this process alone, of memory that is there: for that Open MPI takes what it takes between nodes.

    words: [WORDS] int64, what has come.
    """

    def __init__(self) -> None:
        from mpi4py import MPI

        self._mpi: Any = MPI
        self.words = np.zeros(WORDS, np.int64)
        self._window = MPI.Win.Create(self.words, 1, comm=MPI.COMM_SELF)
        self._window.Lock_all()

    def put(self, address: int, nbytes: int, at: int) -> None:
        """Put bytes from an address to byte `at`."""
        memory = self._mpi.memory.fromaddress(address, nbytes)
        self._window.Put([memory, self._mpi.BYTE], 0, [at, nbytes, self._mpi.BYTE])

    def flush(self) -> None:
        """Wait for what was put."""
        self._window.Flush(0)
        self._window.Sync()


def beneath_a_kernel(card: Any, window: OwnWindow) -> Answer:
    """Try it. card: a substrate.device.Card. Puts are begun in the card's context, and flushed outside of any.

    In a job the thread that puts has the context; others, which move what is put as well, may have none.
    """
    from ...kernels.cuda.catalogue import LEND
    from ...kernels.cuda.put_probe import LINE, STEP

    row = card.allocate(8 * WORDS)
    told, told_at = card.host(2 * LINE)
    flags = told.view(np.int64)
    want = (np.arange(1, WORDS + 1, dtype=np.uint64) * np.uint64(STEP)).view(np.int64)
    wrong: list[str] = []

    def put_all() -> None:
        try:
            for nbytes in PIECES:
                window.words[:] = 0
                with card.current():
                    for at in pieces(nbytes):
                        window.put(row + at, min(nbytes, 8 * WORDS - at), at)
                window.flush()
                if any((window.words[at // 8 : (at + nbytes) // 8] != want[at // 8 : (at + nbytes) // 8]).any()
                       for at in pieces(nbytes)):  # fmt: skip
                    wrong.append(f"MPI puts {nbytes} bytes from the card, and something else arrives")
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")

    limit = int(3 * STUCK_SECONDS * NS)
    card.launch(card.load(LEND), 1, 0, row, WORDS, told_at, limit)  # on the default stream, where it hinders most
    until = time.monotonic() + STUCK_SECONDS
    while flags[0] == 0:
        if time.monotonic() > until:
            return Answer(False, f"the kernel of this probe has not begun after {STUCK_SECONDS:g} s")
        time.sleep(1e-4)
    thread = threading.Thread(target=put_all, daemon=True)
    thread.start()
    thread.join(STUCK_SECONDS)
    if thread.is_alive():
        wrong.append("MPI waits for the kernel that runs on the card before it puts")
    flags[LINE // 8] = 1
    card.synchronize()
    return Answer(not wrong, wrong[0] if wrong else "")


def pieces(nbytes: int) -> Iterable[int]:
    """Where puts of a size begin: the row's first, and its last."""
    return {0, 8 * WORDS - nbytes}


def leave_nothing() -> None:
    """Unlink the shared memory that this process's MPI has made for itself: nobody ends it as MPI would."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.partition("/dev/shm/")[2]
        if path and not path.endswith("(deleted)"):
            Path("/dev/shm", path).unlink(missing_ok=True)


def main(ordinal: int, find: Callable[[int], Any]) -> None:
    """Try it on the card that `find` gives and print the answer, a line of JSON; the process ends here in any case."""
    signal.alarm(int(SECONDS) + 5)  # also where whoever asked is gone, and MPI does not come back
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # to die is an answer
    try:
        window = OwnWindow()  # MPI starts first, as in a job
        leave_nothing()
        answer = beneath_a_kernel(find(ordinal), window)
    except Exception as error:
        answer = Answer(False, f"{type(error).__name__}: {error}")
    print("\n" + json.dumps(asdict(answer)), flush=True)
    os._exit(0)  # not MPI_Finalize, which may wait for a put


if __name__ == "__main__":
    from .device import Card

    main(int(sys.argv[1]), Card)

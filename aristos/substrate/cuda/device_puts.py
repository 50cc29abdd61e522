"""Probe, in a child process, whether MPI can put from GPU memory while a kernel runs.

An MPI without this ability may crash or hang, so a child process tries such puts. The child initialises MPI alone (a
singleton), and has the environment of this process without the launcher's variables. A running kernel writes a row; the
child puts pieces of several sizes into its own window, and checks what arrives. To run the probe by hand:
`python -m aristos.substrate.cuda.device_puts 0`. Some MPIs implement a put to the own rank as a plain copy, so the
probe cannot show what a fabric does between nodes. `ARISTOS_DEVICE_PUTS=0` keeps rows in pinned host memory, from which
every MPI can put.
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
COMMAND = [sys.executable, "-P", "-m", "aristos.substrate.cuda.device_puts"]  # -P: no modules of the current folder
SECONDS = 60.0  # limit of the child, in which MPI and CUDA start and a kernel is compiled
STUCK_SECONDS = 5.0  # limit of puts while a kernel runs
WORDS = 1 << 19  # the row that is put has 4 MiB
PIECES = (64, 4 << 10, 64 << 10, 8 * WORDS)  # bytes of a put: inline, eager, rendezvous, pipelined
NS = 10**9


@dataclass(frozen=True)
class Answer:
    """The result of a probe. supported: whether MPI puts from GPU memory. why: the reason if it does not."""

    supported: bool
    why: str = ""


# ---- the parent


def alone(env: Mapping[str, str]) -> dict[str, str]:
    """The environment `env` without a launcher's variables, but with the path of this package."""
    kept = {name: value for name, value in env.items() if not name.startswith(PREFIXES)}
    root = str(Path(__file__).parents[3])
    kept["PYTHONPATH"] = os.pathsep.join([*filter(None, [kept.get("PYTHONPATH")]), root])
    return kept


@functools.cache
def probe(ordinal: int, seconds: float = SECONDS) -> Answer:
    """Whether MPI puts from the memory of a GPU, given by its ordinal. A process tries this once.

    The probe takes at most `seconds`, and raises nothing, because other ranks wait for the answer.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "1"):
        return Answer(False, f"{VARIABLE}={wanted}")
    try:
        return _run_child(ordinal, seconds)
    except Exception as error:
        return Answer(False, f"the probe did not start: {type(error).__name__}: {error}")


def _run_child(ordinal: int, seconds: float) -> Answer:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:  # a daemon might keep pipes open
        try:
            code = subprocess.run(
                [*COMMAND, str(ordinal)],
                env=alone(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                timeout=seconds,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return Answer(False, f"MPI did not return within {seconds:g} s")
        printed, complaints = (_lines(file) for file in (out, errors))
    if code < 0:
        return Answer(False, f"MPI crashed ({signal.strsignal(-code) or f'signal {-code}'})")
    for line in printed:
        if line.startswith("{"):
            return Answer(**json.loads(line))
    return Answer(False, f"the probe ended with exit code {code}: {[*complaints, 'it printed nothing'][0]}")


def _lines(file: Any) -> list[str]:
    """The lines of a file, the last one first."""
    file.seek(0)
    return [line for line in reversed(file.read().decode(errors="replace").splitlines()) if line.strip()]


# ---- the child


class OwnWindow:
    """A window of this process alone over allocated memory, for which Open MPI uses the same code as between nodes.

    words: [WORDS] int64, the data that has arrived.
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
        """Complete the puts."""
        self._window.Flush(0)
        self._window.Sync()


def put_during_kernel(device: Any, window: OwnWindow) -> Answer:
    """Put from a `CudaDevice` while a kernel runs. Puts are made in the device's context, flushes outside of it.

    The same holds in a job: the thread that puts has the context, and other threads that call MPI may have none.
    """
    from ...kernels.cuda.catalogue import LEND
    from ...kernels.cuda.put_probe import LINE, STEP

    row = device.allocate(8 * WORDS)
    mapped, flags_at = device.host(2 * LINE)
    flags = mapped.view(np.int64)
    want = (np.arange(1, WORDS + 1, dtype=np.uint64) * np.uint64(STEP)).view(np.int64)
    wrong: list[str] = []

    def put_all() -> None:
        try:
            for nbytes in PIECES:
                window.words[:] = 0
                with device.current():
                    for at in pieces(nbytes):
                        window.put(row + at, min(nbytes, 8 * WORDS - at), at)
                window.flush()
                if any(
                    (window.words[at // 8 : (at + nbytes) // 8] != want[at // 8 : (at + nbytes) // 8]).any()
                    for at in pieces(nbytes)
                ):
                    wrong.append(f"MPI puts {nbytes} bytes from the GPU, but other values arrive")
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")

    limit = int(3 * STUCK_SECONDS * NS)
    legacy = 0  # the hardest case: work in the default stream holds up most other work
    device.launch(device.load(LEND), 1, 0, row, WORDS, flags_at, limit, stream=legacy)
    until = time.monotonic() + STUCK_SECONDS
    while flags[0] == 0:
        if time.monotonic() > until:
            return Answer(False, f"the kernel of this probe has not started after {STUCK_SECONDS:g} s")
        time.sleep(1e-4)
    thread = threading.Thread(target=put_all, daemon=True)
    thread.start()
    thread.join(STUCK_SECONDS)
    if thread.is_alive():
        wrong.append("MPI waits for the kernel that runs on the GPU before it puts")
    flags[LINE // 8] = 1
    device.synchronize(legacy)
    return Answer(not wrong, wrong[0] if wrong else "")


def pieces(nbytes: int) -> Iterable[int]:
    """The offsets in the row at which puts of `nbytes` are tried: the first and the last possible one."""
    return {0, 8 * WORDS - nbytes}


def remove_shared_memory() -> None:
    """Unlink the shared memory of this process's MPI, because the process will not end through MPI_Finalize."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.partition("/dev/shm/")[2]
        if path and not path.endswith("(deleted)"):
            Path("/dev/shm", path).unlink(missing_ok=True)


def main(ordinal: int, find: Callable[[int], Any]) -> None:
    """Probe the device that `find` returns, and print the answer as a line of JSON. Always ends the process."""
    signal.alarm(int(SECONDS) + 5)  # ends this process if the parent is gone and MPI does not return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is an answer, and needs no core file
    try:
        window = OwnWindow()  # MPI starts first, as in a job
        remove_shared_memory()
        answer = put_during_kernel(find(ordinal), window)
    except Exception as error:
        answer = Answer(False, f"{type(error).__name__}: {error}")
    print("\n" + json.dumps(asdict(answer)), flush=True)
    os._exit(0)  # without MPI_Finalize, which may wait for a put


if __name__ == "__main__":
    from .device import CudaDevice

    main(int(sys.argv[1]), CudaDevice)

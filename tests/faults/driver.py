"""Runs a drawn job, makes the faults that come from outside, and watches how every rank ends."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import machine
import program
from draw import NODES, RANKS_OF_NODE, TCP, Job

START = 150.0  # seconds without progress after which the driver gives up; a start is slow on a busy machine
LAST = 60.0  # the same limit after a fault has been made
WARM = 600.0  # the same limit, for the job that compiles
LEFT = 5.0  # seconds within which processes must end after the launcher has ended
POLL = 0.004


@dataclass
class Ended:
    """How a job ended. code: the launcher's; None if it hung. seconds: for each rank, the seconds from the last fault
    to its end. late: by how many seconds this process was late while it watched, a measure of how busy the machine was.
    """

    code: int | None
    fault_at: float | None
    seconds: list[float | None]
    done: list[bool]
    out: list[str]
    launcher: str
    late: float
    processes: int
    made: int  # number of faults
    files: list[str] = field(default_factory=list)
    folder: Path = Path()
    wall: float = 0.0


def launcher_of(mpi: str, job: Job) -> tuple[list[str], Path]:
    """The launcher's words, and the Python of an MPI library's environment."""
    base = Path(sys.prefix)
    bin_ = base / "bin" if mpi == "mpich" else base / "mpi" / mpi / "bin"
    words = [str(bin_ / "mpiexec"), "-n", str(job.ranks)]
    if mpi == "openmpi":
        words += ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
    elif not job.cleanup:
        words.insert(1, "-disable-auto-cleanup")
    if job.transport == NODES:
        words[1:1] = ["-launcher", "fork", "-hosts", f"node-0:{RANKS_OF_NODE},node-1:{job.ranks - RANKS_OF_NODE}"]
    return words, bin_ / "python"


def available(mpi: str) -> bool:
    return (Path(sys.prefix) / ("bin" if mpi == "mpich" else f"mpi/{mpi}/bin") / "mpiexec").exists()


def environment(job: Job, token: str, folder: Path) -> dict[str, str]:
    drop = ("PMI", "OMPI_COMM", "PMIX_", "PRTE_", "HYD", "MPI_LOCAL", "SLURM_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(drop)}
    env |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
    env |= {"HYDRA_IFACE": "lo", "OMPI_MCA_btl": "self,sm,tcp", "OMPI_MCA_osc": "^ucx", "I_MPI_FABRICS": "shm"}
    env |= {"PRTE_MCA_prte_silence_shared_fs": "1", "I_MPI_PIN": "0"}
    if job.transport == TCP:
        env |= {"MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": "lo"}
        env |= {"I_MPI_FABRICS": "ofi"}
    if job.transport == NODES:
        env |= {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": machine.LINK}
    env |= {machine.MARK: token, "TMPDIR": str(folder / "tmp"), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return env


@contextlib.contextmanager
def workplace():
    """A folder with a disk for results and checkpoints, and an empty /dev/shm."""
    with tempfile.TemporaryDirectory(prefix="aristos-faults-") as name:
        folder = Path(name)
        for each in ("disk", "tmp"):
            (folder / each).mkdir()
        with machine.mounted(folder / "disk", "16m"), machine.mounted(Path("/dev/shm"), "1g"):
            yield folder


class Watch:
    """Starts a job and watches it."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder, self.token = job, folder, secrets.token_hex(8)
        about = {name: value for name, value in asdict(job).items() if value is not None}
        (folder / "job.json").write_text(json.dumps(about))
        (folder / "page").write_bytes(bytes(8 * program.MOST_RANKS * program.WORDS))
        self.page = program.page(folder / "page")
        words, python = launcher_of(job.mpi, job)
        with open(folder / "launcher.out", "wb") as out:
            self.process = subprocess.Popen(
                [*words, str(python), str(Path(__file__).with_name("program.py")), "job.json"],
                cwd=folder,
                env=environment(job, self.token, folder),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.ended: list[float | None] = [None] * job.ranks
        self.pending = [dict(fault) for fault in job.faults if fault.get("driver")]
        self.made: set[int] = set()  # operations whose fault from outside has been made
        self.late = 0.0

    def fault_at(self) -> float | None:
        """When the last fault was made."""
        at = int(self.page[:, program.FAULT_AT].max())
        return at * 1e-9 if at else None

    def watch(self) -> int | None:
        """Watch until the launcher ends, or nothing moves for too long. Returns its code, None if it hangs."""
        moved, seen = time.monotonic(), -1
        while (code := self.process.poll()) is None:
            before = time.monotonic()
            progress = int(self.page[:, [program.PID, program.OPERATION, program.DONE]].sum())
            if progress != seen:
                moved, seen = before, progress
            at = self.fault_at()
            if before > moved + (WARM if self.job.warm else START) or (at and before > max(at, moved) + LAST):
                return None
            self.serve(before)
            time.sleep(POLL)
            self.late += max(0.0, time.monotonic() - before - 4 * POLL)
        self.note(time.monotonic())
        return code

    def serve(self, now: float) -> None:
        """Continue paused ranks, make the faults whose time has come, and note which ranks have ended."""
        self.note(now)
        for rank, row in enumerate(self.page[: self.job.ranks]):
            if row[program.CONTINUE_AT] and now * 1e9 > row[program.CONTINUE_AT]:
                row[program.CONTINUE_AT] = 0
                self.signal(rank, signal.SIGCONT)
        for fault in self.pending[:]:
            self.outside(fault, now)

    def outside(self, fault: dict[str, Any], now: float) -> None:
        """Make a fault that comes from outside, once its rank has begun the operation and its time has come."""
        row = self.page[fault["rank"]]
        if row[program.OPERATION] < fault["operation"]:
            return
        at = fault.setdefault("at", now + fault["after"])
        if now < at:
            return
        row[program.FAULT_AT] = row[program.FAULT_AT] or now * 1e9
        self.made.add(fault["operation"])
        if fault["kind"] == "ctrl_c":
            self.process.send_signal(signal.SIGINT)
        elif fault["kind"] == "time_limit":
            how = signal.SIGKILL if "asked" in fault else signal.SIGTERM
            for rank in range(self.job.ranks):
                self.signal(rank, how)
            if "asked" not in fault:
                fault |= {"asked": True, "at": now + 3.0}
                return
        elif fault["kind"] == "link_lost":
            machine.link(self.folder / machine.NETWORKS[fault["rank"] // RANKS_OF_NODE], False)
        elif fault["kind"] == "unplugged":
            machine.network(False)
        elif fault["kind"] in ("cut", "link_cut"):
            if fault["kind"] == "cut":
                machine.network("asked" in fault)
            else:
                machine.link(self.folder / machine.NETWORKS[fault["rank"] // RANKS_OF_NODE], "asked" in fault)
            if "asked" not in fault:
                fault |= {"asked": True, "at": now + fault["seconds"]}
                return
        elif fault["kind"] == "slow" and now < at + fault["seconds"]:
            self.signal(fault["rank"], signal.SIGSTOP)
            time.sleep(0.049)
            self.signal(fault["rank"], signal.SIGCONT)
            time.sleep(0.001)
            return
        self.pending.remove(fault)

    def note(self, now: float) -> None:
        for rank in range(self.job.ranks):
            pid = int(self.page[rank, program.PID])
            if pid and self.ended[rank] is None and not machine.alive(pid):
                self.ended[rank] = now

    def running(self) -> list[int]:
        """Ranks that have not ended.

        `machine.marked` does not find a rank that is ending, since its environment is gone.
        """
        self.note(time.monotonic())
        return [rank for rank in range(self.job.ranks) if self.page[rank, program.PID] and self.ended[rank] is None]

    def signal(self, rank: int, how: int) -> None:
        """Signal a rank unless it has ended, since another process may then have its pid."""
        if rank in self.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(self.page[rank, program.PID]), how)

    def finish(self, code: int | None) -> Ended:
        """Return how the job ended. Kills what is left of it."""
        until = time.monotonic() + LEFT + self.late
        while (left := machine.marked(self.token) or self.running()) and time.monotonic() < until and code is not None:
            time.sleep(0.02)
            self.note(time.monotonic())
        if code is None:  # after a hang, make ranks print their stacks
            for rank in self.running():
                self.signal(rank, signal.SIGUSR2)
            time.sleep(1.0)
        machine.kill_all(self.token)
        machine.network(True)
        self.process.wait()
        at = self.fault_at()
        files = [f"/dev/shm/{name}" for name in os.listdir("/dev/shm")]
        files += [f"tmp/{path.relative_to(self.folder / 'tmp')}" for path in (self.folder / "tmp").rglob("*")]
        outs = [self.folder / f"rank-{rank}.out" for rank in range(self.job.ranks)]
        return Ended(
            code,
            at,
            [None if end is None or at is None else end - at for end in self.ended],
            [bool(row[program.DONE]) for row in self.page[: self.job.ranks]],
            [out.read_text(errors="replace") if out.exists() else "" for out in outs],
            (self.folder / "launcher.out").read_text(errors="replace"),
            self.late,
            len(left),
            len(self.made) + int(self.page[:, program.MADE].sum()),
            files,
            self.folder,
        )


def run(job: Job, folder: Path) -> Ended:
    """Run a job in a workplace."""
    begun = time.monotonic()
    networks = [folder / name for name in machine.NETWORKS]
    with machine.linked(*networks) if job.transport == NODES else contextlib.nullcontext():
        watch = Watch(job, folder)
        code: int | None = None
        try:
            code = watch.watch()
        finally:
            ended = watch.finish(code)
    ended.wall = time.monotonic() - begun
    return ended

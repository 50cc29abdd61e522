"""What ranks know of each other's processes, and the names of MPI's files that they remove."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from aristos.host import mpi_files, processes
from aristos.host.processes import Process, _stat
from aristos.transport import group as group_module
from aristos.transport import watchdog
from aristos.transport.group import Group
from aristos.transport.watchdog import Watchdog


def test_a_process_that_runs_is_stopped_and_ends():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    here = Process.here()
    process = replace(here, pid=child.pid, started=_stat(child.pid)[1])
    try:
        assert here.trouble() == process.trouble() == ""
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        assert process.trouble() == "is stopped"
        assert replace(process, place="elsewhere").trouble() == ""
    finally:
        child.kill()
    until = time.monotonic() + 20
    while process.trouble() != "has ended" and time.monotonic() < until:
        time.sleep(0.01)
    assert process.trouble() == "has ended"  # a zombie
    child.wait()
    assert process.trouble() == replace(here, started="0").trouble() == "has ended"


@contextlib.contextmanager
def name_of_this_thread(name: bytes):
    """Give this thread a name of any bytes, as a program may. The old name is restored."""
    libc, old = ctypes.CDLL(None), Path("/proc/thread-self/comm").read_bytes().strip()
    libc.prctl(15, name, 0, 0, 0)  # PR_SET_NAME
    try:
        yield
    finally:
        libc.prctl(15, old, 0, 0, 0)


def test_a_process_of_any_name():
    with name_of_this_thread(b"\xff) Z"):
        here = Process.here()
        assert here.started
        assert here.trouble() == ""


def test_a_process_of_another_time_namespace_is_not_judged():
    """The process's times since boot are shifted, so that it would seem to be another process."""
    there = "import ctypes, os, sys; ctypes.CDLL(None).unshare(0x80) and sys.exit(3); os.execl(sys.executable, *ARGS)"
    seen = "import sys; from aristos.host.processes import Process; print(Process.here().place)"
    words = [sys.executable, "-c", there.replace("ARGS", repr([sys.executable, "-c", seen]))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    if done.returncode == 3:
        pytest.skip("time namespaces need root and Linux 5.6")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() != Process.here().place


def test_a_process_that_proc_hides_is_not_seen(monkeypatch):
    """hidepid=2 hides the processes of other users, which then look as if they had ended."""
    here = Process.here()
    assert here.seen_here()
    monkeypatch.setattr(processes, "_stat", lambda pid: ("X", ""))
    assert not here.seen_here()


def test_what_is_unknown_is_no_trouble(monkeypatch):
    here = Process.here()
    assert replace(here, started="").trouble() == ""
    assert replace(here, place="").trouble() == ""
    monkeypatch.setattr(processes, "_stat", lambda pid: ("", ""))  # as with no file descriptor left
    assert here.trouble() == ""
    monkeypatch.setattr(os, "readlink", lambda path: "0")  # /proc of another namespace
    assert Process.here().place == ""


def test_a_diagnosis_that_fails_does_not_keep_a_job_running():
    said: list[str] = []
    dog = Watchdog(said.append, "rank 0")

    def fail() -> str:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "a name")

    dog.suspects = fail
    dog._report(time.monotonic(), 1.0, "rank 1", "nothing is known")
    assert said == ["aristos: rank 0 waited 0.0 s (limit 1 s) for rank 1; nothing is known; aborting the job"]


STUCK = """
import fcntl, os, signal, sys, time
from aristos.transport import group
group.ABORT_SECONDS = 0.3
class Comm:
    def Abort(self, code):
        time.sleep(60)
def block():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
def broken():
    read, write = os.pipe()
    os.dup2(write, 1)
    os.dup2(write, 2)
    os.close(read)
def none():
    sys.stdout = sys.stderr = None
def full():
    read, write = os.pipe()
    fcntl.fcntl(write, 1031, 4096)
    os.write(write, bytes(4096))
    os.dup2(write, 1)
    os.dup2(write, 2)
children = {}
for make in (block, full, broken, none):
    pid = os.fork()
    if not pid:
        make()
        group.end_job(Comm(), 86, "last words")
        os._exit(1)
    children[make.__name__] = pid
for name, pid in children.items():
    print(name, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_job_ends_though_its_output_or_its_abort_hangs():
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == [f"{name} -14" for name in ("block", "full", "broken", "none")]
    assert "last words" in done.stderr


def test_a_group_names_the_ranks_that_do_not_run():
    group = Group()
    here = Process.here()
    gone = replace(here, started="0")
    group._processes = {0: here, 1: gone, 2: here, 3: gone}
    assert group.lost() == "rank 1 has ended, rank 3 has ended"
    assert group.suspects() == "rank 1 has ended, rank 3 has ended: see the output of rank 1"
    assert group.ended() == {1, 3}
    assert [group.has_ended(rank) for rank in range(5)] == [False, True, False, True, False]
    for nothing in ({0: here}, {}):
        group._processes = nothing
        assert group.suspects() == ""
        assert group.ended() == set()


def of_a_wait(dog: Watchdog, ended: Callable[[], set[int]], calling: Any = None) -> float:
    """Seconds until a watchdog gives up a wait whose limit is a minute. At most 5."""
    said = threading.Event()
    dog._abort, dog.ended, dog.suspects = (lambda why: said.set()), ended, lambda: "rank 1 has ended"
    begun = time.monotonic()
    dog.calls(calling, lambda: 60.0)
    with dog.watch("a rank", 60.0) if calling is None else contextlib.nullcontext():
        said.wait(5.0)
    dog.close()
    return time.monotonic() - begun


def test_the_watchdog_gives_up_a_rank_that_has_ended():
    """The watchdog waits for some time after it has seen that the rank has ended.

    A rank may end right after a collective that this rank has not left yet.
    """
    since = time.monotonic_ns()
    with ThreadPoolExecutor(5) as pool:
        waits = [
            pool.submit(of_a_wait, Watchdog(lambda why: None, "rank 0"), *asked)
            for asked in (
                (lambda: {1},),
                (lambda: {1}, lambda: (1, since, [])),
                (lambda: {1}, lambda: (2, since, [])),  # the put is to a rank that runs
                (lambda: {1}, lambda: (1, time.monotonic_ns(), [])),  # each put ends soon
                (set,),
            )
        ]
    seconds = [wait.result() for wait in waits]
    least = watchdog.ENDED_SECONDS + (watchdog.ENDED_POLLS - 1) * watchdog.POLL
    assert all(least <= each < 4.5 for each in seconds[:2]), seconds
    assert min(seconds[2:]) >= 5.0


def test_a_group_knows_ranks_of_the_job_from_other_groups(monkeypatch):
    """The group knows these ranks even while it is being made."""
    here = Process.here()
    comm = mock.Mock(**{"Get_rank.return_value": 0, "Get_size.return_value": 3})
    monkeypatch.setattr(group_module, "_job", {4: here, 6: replace(here, started="0")})
    monkeypatch.setattr(group_module, "_ranks_of_job", lambda comm: [4, 5, 6])
    found: list[set[int]] = []
    monkeypatch.setattr(Group, "meet", lambda self, what, comm=None: found.append(self._watchdog.ended()) or 1 / 0)
    monkeypatch.setattr(Group, "abort_at_exit", lambda self, why, comm=None: None)  # this process goes on
    with pytest.raises(ZeroDivisionError):
        Group(comm)
    assert found == [{2}]


def test_names_of_mapped_files_are_removed(tmp_path):
    """Only the names of MPICH's files in this folder are removed.

    If another job has since made a file of the same name, that file is kept.
    """
    kept = ["mpich_shm_replaced_0", "sm_segment.vm.0.1", "elsewhere/mpich_shm_mine_0", "mpich_shm_\udcff (deleted)"]
    (tmp_path / "elsewhere").mkdir()
    lines = ["7f00-7f01 r--p 00000000 00:1c 9 /data/\udce9t\udce9", "7f01-7f02 rw-p 00000000 00:00 0"]
    for name in ("mpich_shm_mine_0", "mpich_shm_\udcff", *kept):
        (tmp_path / name).write_bytes(b"x")
        about = (tmp_path / name).stat()
        device = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}"
        lines.append(f"7f02-7f03 rw-s 00000000 {device} {about.st_ino} {' ' * 20}{tmp_path / name}")
    lines.append(f"7f03-7f04 rw-s 00000000 ff:1c {(tmp_path / kept[1]).stat().st_ino} {tmp_path}/mpich_shm_device_0")
    os.link(tmp_path / kept[1], tmp_path / "mpich_shm_device_0")
    (tmp_path / "other").write_bytes(b"x")
    os.replace(tmp_path / "other", tmp_path / "mpich_shm_replaced_0")
    maps = tmp_path / "maps"
    maps.write_bytes(os.fsencode("\n".join(lines)))
    assert mpi_files.forget_names(str(maps), str(tmp_path)) == 2
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*kept, "maps", "mpich_shm_device_0"}
    assert mpi_files.forget_names(str(tmp_path / "none")) == 0


@pytest.mark.skipif(not os.access(mpi_files.SHM, os.W_OK), reason="no /dev/shm")
def test_the_name_of_a_file_in_shared_memory_is_removed():
    path = Path(mpi_files.SHM, f"mpich_shm_of_a_test_{os.getpid()}")
    path.write_bytes(bytes(4096))
    try:
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 4096) as held:
            assert mpi_files.forget_names() >= 1
            assert not path.exists()
            assert held[:1] == b"\0"
    finally:
        path.unlink(missing_ok=True)

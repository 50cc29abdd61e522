"""What ranks know of each other's processes, and the names of MPI's files that they remove."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

from aristos.host import mpi_files
from aristos.host.processes import Process, _stat
from aristos.transport.group import Group


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


def test_a_group_names_the_ranks_that_do_not_run():
    group = Group()
    here = Process.here()
    group._processes = [here, replace(here, started="0"), here, replace(here, started="0")]
    assert group.suspects() == "rank 1 has ended, rank 3 has ended: see the output of rank 1"
    group._processes = [here]
    assert group.suspects() == ""
    group._processes = []
    assert group.suspects() == ""


def test_names_of_mapped_files_are_removed(tmp_path):
    """MPICH's alone, and not one that another job has made under the same name since."""
    names = ["mpich_shm_mine_0", "mpich_shm_replaced_0", "sm_segment.vm.0.1"]
    held = []
    for name in names:
        (tmp_path / name).write_bytes(bytes(4096))
        with open(tmp_path / name, "r+b") as file:
            held.append(mmap.mmap(file.fileno(), 4096))
    maps = tmp_path / "maps"
    with open("/proc/self/maps") as lines:
        maps.write_text("".join(line for line in lines if str(tmp_path) in line))
    (tmp_path / "other").write_bytes(bytes(4096))
    os.replace(tmp_path / "other", tmp_path / "mpich_shm_replaced_0")
    (tmp_path / "mpich_shm_not_mapped_0").write_bytes(b"x")
    assert mpi_files.forget_names(str(maps)) == 1
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"maps", "mpich_shm_replaced_0", "sm_segment.vm.0.1", "mpich_shm_not_mapped_0"}
    assert mpi_files.forget_names(str(tmp_path / "none")) == 0
    assert held

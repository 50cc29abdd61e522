"""Every reader of a path from a user refuses a pipe, a device or too large a file at once."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys

import pytest

from kernel_cache import regular

CONFIG = (
    '{"model_type": "mixtral", "hidden_size": 16, "intermediate_size": 8, "num_local_experts": 2,'
    ' "num_experts_per_tok": 1, "num_hidden_layers": 1, "hidden_act": "silu"}'
)
# name of a file that is not regular -> code that reads it from the file's folder
READERS = {
    "config.json": "import aristos; aristos.Checkpoint('.')",
    "model.safetensors": "import aristos; aristos.Checkpoint('.').check(0)",
    "model-00001-of-00001.safetensors": "import aristos; aristos.Checkpoint('.').check(0)",
    "model.safetensors.index.json": "import aristos; aristos.Checkpoint('.').check(0)",
    "saved.json": "from aristos.layer import saving; saving.read_manifest(Path('.'))",
    "dense.npz": "from aristos.layer import saved_files as s; s.read_arrays(Path('dense.npz'), {}, True, None)",
    "trace.npz": "from aristos.primitives import npz; npz.load('trace.npz', 'the trace')",
    "read.h5": "import aristos.results as r; r.load('read.h5')",
    "append.h5": "import aristos.results as r; r.append('append.h5', r.Run('run', {}, []))",
    "check.h5": "import aristos.results as r; r.hdf5.check('check.h5')",
    "problem.json": "from aristos.planner import load; load('problem.json')",
    "cluster.json": "from aristos.planner import machine; machine.load('cluster.json')",
    "links.json": "from aristos.topology import links; links.load('links.json')",
    "smi.txt": "from aristos.topology import texts; texts.read('smi.txt')",
    "timeline.json": "from aristos.bench.plots import timeline; timeline.timelines(['timeline.json'])",
    "kernel.ptx": "from ptxsim.check import text_of; text_of(Path('kernel.ptx'))",
    "kernel.cu": "from ptxsim.linking import of_file; of_file('kernel.cu', (9, 0))",
    "array.npy": "from ptxsim.launch_arguments import Arguments; Arguments(None, Path('.')).of_file('array.npy')",
}
PROGRAM = f"""
import os, resource, signal, sys
from pathlib import Path
readers = {READERS!r}
def late(*_): raise SystemExit("hangs")
signal.signal(signal.SIGALRM, late)
import aristos, aristos.results, aristos.planner, aristos.topology, aristos.layer.saving, ptxsim.check
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (2 << 30)
resource.setrlimit(resource.RLIMIT_AS, (size, size))
for kind in ("pipe", "device"):
    for name, code in readers.items():
        folder = Path(f"{{kind}}-{{name}}"); folder.mkdir(); os.chdir(folder)
        if name.startswith("model"): Path("config.json").write_text({CONFIG!r})
        os.mkfifo(name) if kind == "pipe" else os.symlink("/dev/zero", name)
        signal.alarm(8)
        try: exec(code); said = "fine"
        except (aristos.errors.AristosError, ptxsim.PtxsimError, OSError) as error: said = f"refused: {{error}}"
        except BaseException as error: said = f"{{type(error).__name__}} {{error}}"
        signal.alarm(0)
        print(kind, name, said, flush=True)
        os.chdir("..")
"""


def test_every_reader_of_a_path_refuses_what_is_no_regular_file(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    said = [line.split(" ", 2) for line in done.stdout.splitlines()]
    fine = "must be a regular file, but it is a {kind}", "{name} is a {kind}: give - in its place"
    assert [line for line in said if not any(text.format(kind=line[0], name=line[1]) in line[2] for text in fine)] == []
    assert [line[1] for line in said] == [*READERS] * 2, done.stderr


def test_a_regular_file_of_bounded_size_is_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes("ä".encode() * 5)
    assert regular.read(path, 10) == path.read_bytes()
    assert regular.text(str(path)) == "äääää"
    with pytest.raises(OSError, match="must have at most 9 bytes, but it has 10") as raised:
        regular.read(path, 9)
    assert raised.value.errno == errno.EFBIG
    with regular.opened(path) as file:
        assert not os.get_inheritable(file.fileno())


def test_a_file_without_a_size_is_read_up_to_the_limit():
    with pytest.raises(OSError, match="must have at most 100 bytes, but it has more"):
        regular.read("/proc/self/status", 100)
    assert b"VmRSS" in regular.read("/proc/self/status")


def test_what_is_no_regular_file_is_named(tmp_path):
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        regular.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="No such file"):
        regular.read(tmp_path / "none")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError, match="socket"):
            regular.read(tmp_path / "socket")
        with pytest.raises(OSError, match="must be a regular file, but it is a socket"):
            regular.refuse_others(tmp_path / "socket")
    regular.refuse_others(tmp_path / "none")

"""`make gpu-kit`: what the archive holds, its size, and the environment that it makes on another machine."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "kit"))
try:
    import gpu_kit
    import install
finally:
    sys.path.pop(0)
    sys.path.pop(0)

from aristos.kernels.cuda import ahead, build
from aristos.kernels.cuda.catalogue import LEND

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A kit of the checkout's files, one wheel and one kernel; the fixture is the function that packs it."""

    def wheels(folder):
        (folder / "numpy-2.4.6-cp312-any.whl").write_bytes(b"a wheel")
        return sorted(folder.iterdir())

    def kernels(folder, archs):
        (folder / "route.sm_90a.0123").write_bytes(b"a kernel")
        return sorted(folder.iterdir())

    monkeypatch.setattr(gpu_kit, "wheels", wheels)
    monkeypatch.setattr(gpu_kit, "kernels", kernels)
    return lambda name, *words: (gpu_kit.main(["--out", str(tmp_path / name), *words]), tmp_path / name)


def test_the_kit_holds_source_wheels_kernels_and_the_command(small, tmp_path):
    """Its parts lie where run.sh and the package look for them, and packing again gives the same bytes."""
    code, archive = small("a.tar.gz")
    assert code == 0
    assert small("b.tar.gz")[1].read_bytes() == archive.read_bytes()
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    kit = tmp_path / "aristos-gpu-kit"
    assert (kit / "run.sh").stat().st_mode & 0o111
    assert (kit / "wheels" / "numpy-2.4.6-cp312-any.whl").read_bytes() == b"a wheel"
    place = ahead.FOLDER.relative_to(ROOT)
    assert (kit / "source" / place / "route.sm_90a.0123").read_bytes() == b"a kernel"
    for name in ("bench/gpu_report.py", "bench/kit/install.py", "tests/gpu/conftest.py", "pyproject.toml"):
        assert (kit / "source" / name).is_file()
    assert len((kit / "source" / "aristos" / "commit.txt").read_text().rstrip("+")) == 40


def test_a_kit_that_is_too_large_is_removed(small, monkeypatch, capsys):
    monkeypatch.setattr(gpu_kit, "MOST_BYTES", 1 << 10)
    code, archive = small("a.tar.gz", "--without-wheels")
    assert code == 1
    assert not archive.exists()
    assert "was removed" in capsys.readouterr().err


def test_the_wheels_are_those_of_the_lock(monkeypatch):
    """Equal versions; equal hashes where a wheel is for every Python."""
    locked = dict(_lines(max((ROOT / ".ci").glob("lock-3.*-x86_64.txt"))))
    found = dict(_lines(gpu_kit.WHEELS))
    assert {name: line[0] for name, line in found.items()} == {name: locked[name][0] for name in found}
    assert sum(found[name][1] == locked[name][1] for name in found) >= 10
    assert {"numpy", "mpich", "numba-cuda"} <= set(found)
    assert not {"llvmlite", "numba"} & set(found), "they do not fit"


def _lines(path):
    for line in path.read_text().splitlines():
        name, _, rest = line.partition("==")
        version, _, digest = rest.partition(" --hash=sha256:")
        yield name, (version, digest)


def test_what_the_machine_has_in_a_fitting_version_is_not_installed(monkeypatch):
    """numpy 2.5 does not fit numba-cuda 0.30; a package that is missing does not fit either."""
    found = {"numpy": "2.5.2", "numba": "0.68.1", "rich": "", "pluggy": "1.0", "mpich": ""}
    monkeypatch.setattr(install, "versions", lambda python, packages: {name: found[name] for name in packages})
    monkeypatch.setattr(install, "mpi_failure", lambda python: why)
    why = ""

    def lacking():
        return install.lacking(Path(), list(found), install.wanted())

    assert lacking() == ["numpy", "rich"], "an MPI library loads here"
    found["numpy"], why = "2.4.1", "RuntimeError: cannot load MPI library"
    assert lacking() == ["rich", "mpich"]


@pytest.mark.parametrize(("program", "why"), [
    ("print('fine')", ""),
    ("import os, sys; print('MPI_Init: no fabric', file=sys.stderr, flush=True); os.abort()",
     "exit code -6: MPI_Init: no fabric"),
    ("import os; os._exit(1)", "exit code 1: no message"),
    ("import time; time.sleep(60)", "it did not start within 0.5 s"),
], ids=["starts", "aborts", "exits", "hangs"])  # fmt: skip
def test_an_mpi_that_aborts_or_hangs_is_a_missing_one(monkeypatch, program, why):
    monkeypatch.setattr(install, "MPI", program)
    monkeypatch.setattr(install, "MPI_SECONDS", 0.5 if "sleep" in program else 20.0)
    assert install.mpi_failure(Path(sys.executable)) == why


def test_a_report_runs_without_an_mpi_that_aborts(monkeypatch, tmp_path):
    """Its parts get an ImportError, as where MPI is missing."""
    monkeypatch.setattr(install, "packages_folder", lambda python: tmp_path)
    install.without_mpi(Path(sys.executable), "exit code -6: 'no fabric'")
    words = [sys.executable, "-c", "import mpi4py.MPI"]
    done = subprocess.run(words, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "ImportError: exit code -6: 'no fabric'"


@pytest.mark.slow
def test_an_environment_sees_the_packages_of_its_python(tmp_path, capsys):
    """This Python is a virtual environment itself. Nothing is installed; its MPI library is not seen."""
    assert install.main([str(tmp_path / "env"), str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[:1] == ["from the kit: nothing"]
    program = "import numpy, numba.cuda; print(numpy.__file__)"
    done = subprocess.run([tmp_path / "env/bin/python", "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().startswith(sys.prefix), done.stderr


@pytest.mark.slow
def test_what_the_kit_lacks_too_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(install.NEEDED, "nowhere_at_all", "nowhere")
    with pytest.raises(install.MissingPart, match="nowhere is missing or does not load here"):
        install.main([str(tmp_path / "env"), str(tmp_path)])


@pytest.mark.slow
@pytest.mark.parallel
def test_kernels_of_the_kit_are_found_as_compiled_ahead(tmp_path, monkeypatch):
    """They are written without line numbers and without their PTX."""
    monkeypatch.setattr(gpu_kit, "listed", lambda arch: {"lend": LEND})
    path = gpu_kit.write_kernel(tmp_path, "lend", "sm_90")
    assert path.name.startswith("lend.sm_90a.")
    monkeypatch.setattr(ahead, "FOLDER", tmp_path)
    assert build.place(LEND, "sm_90") == build.COMPILED_AHEAD
    assert build.build(LEND, "sm_90") == build.bare(LEND, "sm_90")
    usual = build.compile_and_keep(LEND, "sm_90").cubin
    assert b"debug_ptx_txt" in usual
    assert b"debug_ptx_txt" not in build.bare(LEND, "sm_90").cubin
    assert len(build.bare(LEND, "sm_90").cubin) < len(usual)

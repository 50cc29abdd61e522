"""Compiled code is kept: one process of a node compiles, later ones load; where it cannot be kept, all still works."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cases import ROOT, USE_EVERYTHING, Job, clean_environment, run_job
from mpi import find_mpiexec

from aristos.primitives import compile as compiling

ALONE = USE_EVERYTHING.replace("COMM", "None")
RANKS = USE_EVERYTHING.replace("COMM", "comm")

pytestmark = pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH")


def use(code: str = ALONE, root: Path = ROOT, start: Callable[[], None] | None = None, **env: str) -> tuple[int, Path]:
    """(functions compiled, cache folder) of one process that runs `code` with the package in `root`."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**clean_environment(), **env},
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=start,
    )
    assert done.returncode == 0, done.stderr
    _, count, folder = done.stdout.strip().split(maxsplit=2)
    return int(count), Path(folder)


@pytest.fixture(scope="module")
def cold(tmp_path_factory) -> tuple[Path, Job]:
    """A cache that three ranks, started at once, have filled; and how they ended."""
    place = tmp_path_factory.mktemp("cold")
    cache = place / "not there yet" / "cache"
    return cache, run_job(place / "job", 3, RANKS, timeout=280, ARISTOS_CACHE=str(cache))


@pytest.mark.slow
def test_ranks_with_a_cold_cache_compile_once(cold):
    cache, job = cold
    assert job.code == 0, job.out
    counts = [int(job.lines(r)[0].split()[0]) for r in range(3)]
    compiled = len(list(cache.rglob("*.nbc")))
    assert sum(counts) <= compiled * 1.1, "a function was compiled by several ranks"
    assert max(counts) > 20
    assert all(str(cache) in job.lines(r)[0] for r in range(3))
    assert any("aristos: compiling kernels" in out for out in job.out), "nobody was told"


@pytest.mark.slow
def test_a_second_process_compiles_nothing(cold, tmp_path):
    cache, _ = cold
    before = {p: p.stat().st_mtime_ns for p in cache.rglob("*.nb?")}
    count, folder = use(ARISTOS_CACHE=str(cache))
    assert count == 0
    assert folder.parent == cache
    job = run_job(tmp_path, 2, RANKS, ARISTOS_CACHE=str(cache), timeout=120)
    assert job.code == 0, job.out
    assert [job.lines(r)[0].split()[0] for r in range(2)] == ["0", "0"]
    assert {p: p.stat().st_mtime_ns for p in cache.rglob("*.nb?")} == before


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_falls_back(cold, tmp_path):
    """ARISTOS_CACHE below a file: the temporary folder takes its place, and is kept for the next process too."""
    cache, _ = cold
    (tmp_path / "file").write_text("")
    fallback = tmp_path / f"aristos-{os.getuid()}"
    shutil.copytree(cache, fallback)
    count, folder = use(ARISTOS_CACHE=str(tmp_path / "file" / "cache"), TMPDIR=str(tmp_path))
    assert folder.parent == fallback
    assert count == 0


def give_up_privileges() -> None:
    """Let file modes count for root too: without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH after the next exec."""
    if os.getuid() == 0:
        for capability in (1, 2):
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


LITTLE = """
import numpy as np
from aristos.primitives import compile as compiling
from aristos.kernels.cpu import activation, llvm
x = np.ones(4, np.float32)
activation.activate(0, x.ctypes.data, 4)
print(">", compiling.compiled_here(), compiling.cache_folder())
"""


def test_a_read_only_install_home_and_cache(tmp_path):
    """Nothing may be written but the temporary folder: compiled code goes there, and is found there again."""
    shutil.copytree(ROOT / "aristos", tmp_path / "site" / "aristos", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "home").mkdir()
    (tmp_path / "tmp").mkdir()
    shut = [tmp_path / "home", tmp_path / "site", *(tmp_path / "site").rglob("*")]
    for path in shut:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        probe = subprocess.run(["touch", str(tmp_path / "home" / "x")], preexec_fn=give_up_privileges)
        if probe.returncode == 0:
            pytest.skip("this user may write everywhere")
        for variable in ("XDG_CACHE_HOME", "ARISTOS_CACHE"):
            where = {"ARISTOS_CACHE": "", variable: str(tmp_path / "home")}  # whatever this environment has set
            where |= {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
            counts, folders = zip(*(use(LITTLE, tmp_path / "site", give_up_privileges, **where) for _ in range(2)))
            assert {folder.parent for folder in folders} == {tmp_path / "tmp" / f"aristos-{os.getuid()}"}
            assert counts[0] > 0 or variable == "ARISTOS_CACHE"
            assert counts[1] == 0
        assert not list((tmp_path / "site").rglob("__pycache__"))
    finally:
        for path in shut:
            path.chmod(0o755)


@pytest.mark.skipif(not hasattr(compiling.config, "CACHE_LOCATOR_CLASSES"), reason="Numba too old to be told")
def test_a_copy_of_the_package_finds_what_another_compiled(tmp_path):
    """A clone, an install, a job's copy: neither the path nor the files' times count."""
    copy = tmp_path / "site" / "aristos"
    shutil.copytree(ROOT / "aristos", copy, ignore=shutil.ignore_patterns("__pycache__"))
    for path in copy.rglob("*.py"):
        os.utime(path, (1e9, 1e9))
    counts = [use(LITTLE, root, ARISTOS_CACHE=str(tmp_path / "cache"))[0] for root in (ROOT, copy.parent, ROOT)]
    assert counts[0] > 0
    assert counts[1:] == [0, 0]


def test_progress_says_for_how_long(monkeypatch, capsys):
    monkeypatch.setattr(compiling, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(compiling, "NEXT_SECONDS", 0.01)
    with compiling._progress(quiet=False):
        time.sleep(0.3)
    first, *more = capsys.readouterr().err.splitlines()
    assert first.endswith(f"(once, for a minute or so; kept in {compiling.cache_folder()})")
    assert more
    assert all(re.fullmatch(r"aristos: compiling kernels, \d+ functions in \d+ s", line) for line in more)
    with compiling._progress(quiet=True):
        time.sleep(0.1)
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_a_damaged_cache_is_no_harm(cold, tmp_path):
    """A file cut short by a full disk: it is said, and all is compiled again.

    What the first process had loaded before it met the damage is no longer kept: the next one compiles that little.
    """
    cache, _ = cold
    mine = tmp_path / "cache"
    shutil.copytree(cache, mine)
    victims = [*mine.rglob("cpu.work-*.nbc"), *mine.rglob("cpu.run_alone-*.nbc")]
    assert len(victims) >= 2
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[:100])
    counts = [use(ARISTOS_CACHE=str(mine))[0] for _ in range(3)]
    assert counts[0] > 20
    assert counts[1] < 10
    assert counts[2] == 0


def test_the_key_follows_sources_versions_and_cpu(monkeypatch):
    key = compiling.cache_key()
    assert len(key) == 16

    def fresh() -> str:
        compiling.cache_key.cache_clear()
        return compiling.cache_key()

    try:
        assert fresh() == key
        for name in ("numba.__version__", "llvmlite.__version__", "np.__version__"):
            with monkeypatch.context() as patch:
                patch.setattr(f"aristos.primitives.compile.{name}", "0.0")
                assert fresh() != key, name
        for name in ("get_host_cpu_name", "get_host_cpu_features"):
            with monkeypatch.context() as patch:
                patch.setattr(compiling.binding, name, lambda: OtherCpu("another"))
                assert fresh() != key, name
        with monkeypatch.context() as patch:
            real = Path.read_bytes
            patch.setattr(Path, "read_bytes", lambda p: real(p) + b"#" * (p.name == "steps.py"))
            assert fresh() != key
        with monkeypatch.context() as patch:  # what is not compiled does not count
            patch.setattr(Path, "read_bytes", lambda p: real(p) + b"#" * ("bench" in p.parts))
            assert fresh() == key
    finally:
        fresh()


class OtherCpu(str):
    """A CPU's name, or its features."""

    def flatten(self) -> str:
        return str(self)

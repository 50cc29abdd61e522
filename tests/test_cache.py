"""Compiled code is kept: one process of a node compiles, all later ones load; where it cannot be kept, things still work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cases import ROOT, Job, clean_environment, run_job
from mpi import find_mpiexec

from aristos import compile as compiling

USE = """
import sys
import numpy as np
import aristos
from aristos import compile as compiling, kernels, reference
cfg = aristos.MoEConfig(hidden=40, ffn=72, experts=5, top_k=2, gated=True, bias=True, max_tokens=30)
w, x = reference.weights(cfg), np.ones((20, 40), np.float32)
for schedule in ("fused", "bulk"):
    for threads in (1, 2):
        with aristos.MoE(cfg, COMM, schedule=schedule, threads=threads) as moe:
            moe.load(**w)
            y, _ = moe(x, return_stats=True)
            assert reference.error(y, reference.moe(cfg, x, **w)) < 1e-5
with aristos.Exchange(COMM, hidden=40, experts=5, top_k=2, max_tokens=30) as exchange:
    rows, handle = exchange.dispatch(x, np.tile([0, 4], (20, 1)))
    exchange.combine(rows, handle, np.ones((20, 2), np.float32))
kernels.ffn(x, w["up"][0], w["down"][0])
print(">", compiling.compiled_here(), compiling.cache_folder(), flush=True)
"""
ALONE = USE.replace("COMM", "None")
RANKS = USE.replace("COMM", "comm")

pytestmark = pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH")


def use(**env: str) -> tuple[int, Path, str]:
    """(functions compiled, cache folder, stderr) of one process that uses everything."""
    environment = {**clean_environment(), **env}
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    _, count, folder = done.stdout.split()
    return int(count), Path(folder), done.stderr


@pytest.fixture(scope="module")
def cold(tmp_path_factory) -> tuple[Path, Job]:
    """A cache that three ranks, started at once, have filled; and how they ended."""
    place = tmp_path_factory.mktemp("cold")
    cache = place / "not there yet" / "cache"
    return cache, run_job(place / "job", 3, RANKS, timeout=280, ARISTOS_CACHE=str(cache))


def test_ranks_with_a_cold_cache_compile_once(cold):
    cache, job = cold
    assert job.code == 0, job.out
    counts = [int(job.lines(r)[0].split()[0]) for r in range(3)]
    compiled = len(list(cache.rglob("*.nbc")))
    assert sum(counts) <= compiled * 1.1, "a function was compiled by several ranks"
    assert max(counts) > 20
    assert all(str(cache) in job.lines(r)[0] for r in range(3))
    assert any("aristos: compiling kernels" in out for out in job.out), "nobody was told"


def test_a_second_process_compiles_nothing(cold, tmp_path):
    cache, _ = cold
    before = {p: p.stat().st_mtime_ns for p in cache.rglob("*.nb?")}
    count, folder, _ = use(ARISTOS_CACHE=str(cache))
    assert count == 0
    assert folder.parent == cache
    job = run_job(tmp_path, 2, RANKS, ARISTOS_CACHE=str(cache), timeout=120)
    assert job.code == 0, job.out
    assert [job.lines(r)[0].split()[0] for r in range(2)] == ["0", "0"]
    assert {p: p.stat().st_mtime_ns for p in cache.rglob("*.nb?")} == before


def test_a_folder_that_cannot_be_made_falls_back(cold, tmp_path):
    """ARISTOS_CACHE below a file: the temporary folder takes its place, and is kept for the next process too."""
    cache, _ = cold
    (tmp_path / "file").write_text("")
    fallback = tmp_path / f"aristos-{os.getuid()}"
    shutil.copytree(cache, fallback)
    count, folder, _ = use(ARISTOS_CACHE=str(tmp_path / "file" / "cache"), TMPDIR=str(tmp_path))
    assert folder.parent == fallback
    assert count == 0


def test_a_read_only_install_and_home(cold, tmp_path):
    """A package nobody may write to, run by a user without a home: compiled code goes elsewhere."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become a user who may write nothing")
    cache, _ = cold
    place = Path("/tmp") / f"aristos-test-{os.getpid()}"  # below tmp_path another user may not even look
    try:
        shutil.copytree(ROOT / "aristos", place / "aristos", ignore=shutil.ignore_patterns("__pycache__"))
        (place / "tmp").mkdir(mode=0o777)
        shutil.copytree(cache, place / "tmp" / "aristos-65534")
        for path in [place / "aristos", *(place / "aristos").rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        for path in [place / "tmp", *(place / "tmp").rglob("*")]:
            os.chown(path, 65534, 65534)
        env = {**clean_environment(), "HOME": "/nonexistent", "TMPDIR": str(place / "tmp")}
        env.pop("XDG_CACHE_HOME", None)
        command = [sys.executable, "-c", ALONE]
        try:
            done = subprocess.run(
                command, cwd=place, env=env, user=65534, group=65534, capture_output=True, text=True, timeout=300
            )
        except PermissionError:
            pytest.skip("another user may not run this Python")
        if "Permission denied" in done.stderr and "aristos" not in done.stderr:
            pytest.skip("another user may not read this Python")
        assert done.returncode == 0, done.stderr
        _, count, folder = done.stdout.split()
        assert Path(folder).parent == place / "tmp" / "aristos-65534"
        assert count == "0"
        assert not list((place / "aristos").rglob("__pycache__"))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def test_a_damaged_cache_is_no_harm(cold, tmp_path):
    """A file cut short by a full disk: its function is compiled again."""
    cache, _ = cold
    mine = tmp_path / "cache"
    shutil.copytree(cache, mine)
    victims = sorted(mine.rglob("tokens.*.nbc"))[:2]
    assert victims
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[:100])
    assert use(ARISTOS_CACHE=str(mine))[0] <= 60


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
                patch.setattr(f"aristos.compile.{name}", "0.0")
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

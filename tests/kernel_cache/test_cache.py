"""The kernel cache: one process of a node compiles, and later ones load.

Everything works even if nothing can be stored.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numba
import pytest
from cache_keys import forget
from cases import ROOT, USE_EVERYTHING, Job, clean_environment, compile_once, run_job
from mpi import find_mpiexec

from aristos.errors import EnvironmentProblem
from kernel_cache import code_files, packages, private
from kernel_cache import compile as compiling

KERNELS = """
import numpy as np
from aristos import kernels
from kernel_cache import compile as compiling
x = np.ones((4, 4), np.float32)
kernels.ffn(x, x, x)
print(">", compiling.compiled_here(), compiling.cache_folder(), flush=True)
"""

pytestmark = pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH")


def use(
    code: str = KERNELS, root: Path = ROOT, start: Callable[[], None] | None = None, **env: str
) -> tuple[int, Path]:
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
    """A cache that three ranks have filled, which started together, and the result of their job."""
    place = tmp_path_factory.mktemp("cold")
    cache = place / "not there yet" / "cache"
    return cache, run_job(place / "job", 3, KERNELS, timeout=280, ARISTOS_CACHE=str(cache))


@pytest.mark.slow
def test_ranks_with_a_cold_cache_compile_once(cold):
    cache, job = cold
    assert job.code == 0, job.out
    counts = [int(job.lines(r)[0].split()[0]) for r in range(3)]
    compiled = len(list(cache.rglob("*.nbc")))
    assert sum(counts) <= compiled * 1.1, "a function was compiled by several ranks"
    assert max(counts) > 20
    assert all(str(cache) in job.lines(r)[0] for r in range(3))
    assert any("aristos: compiling kernels" in out for out in job.out), "no rank reported that it compiles"


@pytest.mark.slow
def test_a_second_process_compiles_nothing(cold):
    cache, _ = cold
    before = {p: p.stat().st_mtime_ns for p in cache.rglob("*.nb?")}
    assert use(ARISTOS_CACHE=str(cache)) == (0, next(cache.iterdir()))
    assert {p: p.stat().st_mtime_ns for p in cache.rglob("*.nb?")} == before


@pytest.mark.slow
def test_layers_on_ranks_load_what_a_process_alone_compiled(tmp_path):
    """The ranks use layers and an exchange, fused and bulk, with the cache of all tests."""
    compile_once()
    job = run_job(tmp_path, 2, USE_EVERYTHING.replace("COMM", "comm"), timeout=120)
    assert job.code == 0, job.out
    assert [job.lines(r)[0].split()[0] for r in range(2)] == ["0", "0"]


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_falls_back(cold, tmp_path):
    """If ARISTOS_CACHE lies below a file, the temporary folder takes its place, also for the next process."""
    cache, _ = cold
    (tmp_path / "file").write_text("")
    fallback = tmp_path / f"aristos-{os.getuid()}"
    shutil.copytree(cache, fallback)
    count, folder = use(ARISTOS_CACHE=str(tmp_path / "file" / "cache"), TMPDIR=str(tmp_path))
    assert folder.parent == fallback
    assert count == 0


def give_up_privileges() -> None:
    """Let file modes count for root too: the next exec drops CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    if os.getuid() == 0:
        for capability in (1, 2):
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


LITTLE = """
from kernel_cache import compile as compiling
from aristos.primitives import taped
assert taped.entry(8, 1) == 9
print(">", compiling.compiled_here(), compiling.cache_folder())
"""


@pytest.mark.slow
@pytest.mark.compiled
def test_a_read_only_install_home_and_cache(tmp_path):
    """Only the temporary folder can be written to. Compiled code goes there, and is found there again."""
    shutil.copytree(ROOT / "aristos", tmp_path / "site" / "aristos")  # the copy has bytecode too, which saves time
    (tmp_path / "home").mkdir()
    (tmp_path / "tmp").mkdir()
    shut = [tmp_path / "home", tmp_path / "site", *(tmp_path / "site").rglob("*")]
    for path in shut:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        probe = subprocess.run(["touch", str(tmp_path / "home" / "x")], preexec_fn=give_up_privileges)
        if probe.returncode == 0:
            pytest.skip("this user may write everywhere")
        for variable, processes in (("XDG_CACHE_HOME", 2), ("ARISTOS_CACHE", 1)):
            where = {"ARISTOS_CACHE": "", variable: str(tmp_path / "home")}  # instead of what this environment has set
            where |= {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
            found = [use(LITTLE, tmp_path / "site", give_up_privileges, **where) for _ in range(processes)]
            assert {folder.parent for _, folder in found} == {tmp_path / "tmp" / f"aristos-{os.getuid()}"}
            assert [count > 0 for count, _ in found] == [True, False][-processes:]
        assert [tmp_path / "site", *(tmp_path / "site").rglob("*")] == shut[1:]
    finally:
        for path in shut:
            path.chmod(0o755)


@pytest.mark.slow
@pytest.mark.compiled
def test_a_copy_of_the_package_finds_what_another_compiled(tmp_path):
    """A clone, an install and a job's copy share compiled code: neither paths nor file times count."""
    copy = tmp_path / "site" / "aristos"
    shutil.copytree(ROOT / "aristos", copy, ignore=shutil.ignore_patterns("__pycache__"))
    for path in copy.rglob("*.py"):
        os.utime(path, (1e9, 1e9))
    counts = [use(LITTLE, root, ARISTOS_CACHE=str(tmp_path / "cache"))[0] for root in (ROOT, copy.parent, ROOT)]
    assert counts[0] > 0
    assert counts[1:] == [0, 0]


def outcome(body: Callable[[], None]) -> BaseException | None:
    """What `body` raises on another thread. This thread could not wait for a lock that it holds."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(body).exception()


def test_only_processes_that_compile_the_same_code_wait_for_each_other(copy, monkeypatch, tmp_path):
    monkeypatch.setattr(compiling, "COMPILE_SECONDS", 0.2)
    monkeypatch.setattr(compiling, "cache_folder", lambda: tmp_path)  # another process may be filling the usual one

    def compile_nothing(name: str = "") -> None:
        with compiling.compiling(quiet=True, name=name):
            pass

    def compile_for_another_isa() -> None:
        with monkeypatch.context() as patch:
            other = packages.Package("aristos", copy, lambda: "another ISA")
            patch.setitem(packages._registered, "aristos", other)
            compile_nothing()

    with compiling.compiling(quiet=True):
        other = outcome(compile_nothing)
        assert outcome(lambda: compile_nothing("a kernel alone")) is None
        assert outcome(compile_for_another_isa) is None
        (copy / "models.py").write_text((copy / "models.py").read_text() + "\n# edited\n")
        forget()
        assert outcome(compile_nothing) is None, "another checkout waits"
    assert isinstance(other, EnvironmentProblem)
    assert re.search(r"another process has held .*/compiling-\w+\.lock for 0\.2 s.*ARISTOS_CACHE", str(other))


@pytest.mark.parametrize(("second", "waits"), [("house.door", True), ("house_copy.room", False)])
def test_code_of_a_copy_compiles_beside_the_package(monkeypatch, tmp_path, second, waits):
    """A copy of a package (`copies.py`) shares no compiled code with it."""

    def functions(module: str) -> list[tuple[SimpleNamespace, tuple[()]]]:
        made = SimpleNamespace(__module__=module, __name__="step", py_func=outcome, compile=lambda signature: None)
        return [(made, ())]

    monkeypatch.setattr(compiling, "COMPILE_SECONDS", 0.2)
    monkeypatch.setattr(compiling, "cache_folder", lambda: tmp_path)
    refused: list[BaseException | None] = []
    first = functions("house.room")
    first[0][0].compile = lambda signature: refused.append(outcome(lambda: compiling.warm_up(functions(second))))
    compiling.warm_up(first, quiet=True)
    assert [isinstance(each, EnvironmentProblem) for each in refused] == [waits]


def test_two_processes_do_not_write_one_index_at_once(tmp_path):
    """Otherwise Numba's index could give one signature the code of another."""
    inside: list[int] = []
    most: list[int] = []

    class Kept:
        """Numba's cache of a function."""

        cache_path = str(tmp_path / "loop-key")

        def save_overload(self, signature: int, compiled: None) -> None:
            inside.append(signature)
            time.sleep(0.05)
            most.append(len(inside))
            inside.remove(signature)

    def save(signature: int) -> None:
        kept = compiling.LazyCache(save, code_files.FunctionCache)
        vars(kept)["_kept"] = Kept()
        kept.save_overload(signature, None)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(save, range(3)))
    assert most == [1, 1, 1]


def test_progress_reports_how_long_it_has_taken(monkeypatch, capsys):
    """Functions that are compiled are reported, those that are loaded are not."""
    compiled, loaded = (SimpleNamespace(_cache_misses=n, overloads={1: 1}, linked={}) for n in ({1: 1}, {}))
    monkeypatch.setattr(compiling, "_registered", [compiled, loaded])
    monkeypatch.setattr(compiling, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(compiling, "NEXT_SECONDS", 0.01)
    monkeypatch.setattr(compiling, "_place", "")
    with compiling._progress(quiet=False):
        time.sleep(0.3)
    first, *more = capsys.readouterr().err.splitlines()
    assert first.endswith(f"(once, for a minute or so; kept in {compiling.cache_folder()})")
    assert more
    assert all(re.fullmatch(r"aristos: compiling kernels, \d+ functions? in \d+ s", line) for line in more)
    monkeypatch.setattr(compiling, "_place", "")
    compiling.report_as(3)
    with compiling._progress(quiet=False):
        time.sleep(0.1)
    assert capsys.readouterr().err.startswith("aristos: compiling kernels on rank 3, 2 functions in 0 s")
    with compiling._progress(quiet=True):
        time.sleep(0.1)
    monkeypatch.setattr(compiling, "_registered", [loaded])
    with compiling._progress(quiet=False):
        time.sleep(0.1)
    assert not capsys.readouterr().err


TWO_FUNCTIONS = """
from numba import int64
from kernel_cache import compile as compiling
from aristos.kernels.cpu import llvm  # what the names of memory compile to
from aristos.primitives import wire
compiling.warm_up([(wire.try_lock, (int64,)), (wire.tend, (int64,))])
print(">", compiling.compiled_here(), compiling.cache_folder())
"""


@pytest.mark.slow
@pytest.mark.compiled
def test_a_damaged_cache_is_rebuilt(tmp_path):
    """A full disk may cut a file short. The next process compiles that function again, and no other."""
    whole, folder = use(TWO_FUNCTIONS, ARISTOS_CACHE=str(tmp_path))
    assert whole >= 4, "the two functions call others"
    (victim,) = folder.rglob("wire.tend-*.nbc")
    victim.write_bytes(victim.read_bytes()[:100])
    assert [use(TWO_FUNCTIONS, ARISTOS_CACHE=str(tmp_path))[0] for _ in range(2)] == [1, 0]


def squared(n: int) -> int:
    return n * n


@pytest.mark.compiled
def test_functions_are_compiled_although_the_disk_is_full(monkeypatch, tmp_path):
    monkeypatch.setattr(compiling, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(code_files, "unkept", [])
    monkeypatch.setattr(private, "write", mock.Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    function = compiling.jit(squared)
    with pytest.warns(UserWarning, match="kernels cannot be kept in .*No space left on device; set ARISTOS_CACHE"):
        compiling.warm_up([(function, (numba.int64,))])
    assert function(3) == 9
    assert not list(tmp_path.glob("*.compiled")), "later processes would compile without waiting for each other"


@pytest.fixture
def copy(tmp_path, monkeypatch) -> Path:
    """A copy of the package, whose keys `keys` computes."""
    copy = tmp_path / "site" / "aristos"
    shutil.copytree(ROOT / "aristos", copy, ignore=shutil.ignore_patterns("__pycache__"))
    reader = copy / "kernels" / "cpu" / "target.py"
    monkeypatch.setitem(packages._registered, "aristos", packages.Package("aristos", copy, lambda: "an ISA", reader))
    forget()
    yield copy
    forget()


def keys(package: Path, *modules: str) -> list[str]:
    """The keys of modules as a new process would compute them."""
    forget()
    return [compiling.source_key(package / module) for module in modules]


LOOP, PERSISTENT, TIMEOUT = "substrate/cpu/loop.py", "substrate/cuda/persistent.py", "engine/timeout_check.py"


def test_a_modules_key_follows_the_sources_that_its_compiled_code_reads(copy):
    before = keys(copy, TIMEOUT, PERSISTENT, LOOP)
    assert before == [compiling.source_key(copy / module) for module in (TIMEOUT, PERSISTENT, LOOP)]
    codes = copy / "engine" / "codes.py"
    codes.write_text(codes.read_text().replace("RUN_UP, RUN_DOWN = range(2)", "RUN_UP, RUN_DOWN = range(1, 3)"))
    timeout, persistent, _ = after = keys(copy, TIMEOUT, PERSISTENT, LOOP)
    assert timeout != before[0], "overdue() calls a function that has the codes as constants"
    assert persistent != before[1], "the persistent kernel calls overdue()"
    for other in [*copy.glob("bench/plots/*.py"), copy / "doctor" / "main.py", copy / "__init__.py"]:
        other.write_text(other.read_text() + "\n# edited\n")
    assert keys(copy, TIMEOUT, PERSISTENT, LOOP) == after, "nothing compiled reads the plots"
    lowering = copy / "kernels" / "cpu" / "llvm.py"
    lowering.write_text(lowering.read_text() + "\n# edited\n")
    assert keys(copy, TIMEOUT) != [timeout], "memory's names compile to what this file registers"


def test_the_engines_code_depends_neither_on_arithmetic_nor_on_the_isa(copy, monkeypatch):
    """The engine calls kernels by address. So an edited kernel, or another ISA, compiles no step again."""

    def code(*modules: str) -> list[str]:
        forget()
        return [compiling.code_key(copy / module) for module in modules]

    steps, kernels = (LOOP, "engine/experts.py", "engine/combine.py"), "kernels/cpu/entries.py"
    before, arithmetic = code(*steps), code(kernels)
    edited = copy / "kernels" / "cpu" / "gemm.py"
    edited.write_text(edited.read_text() + "\n# edited\n")
    assert code(*steps) == before
    assert code(kernels) != arithmetic
    arithmetic, package = code(kernels), packages._registered["aristos"]
    monkeypatch.setitem(packages._registered, "aristos", package._replace(parts=lambda: "another ISA"))
    assert code(*steps) == before
    assert code(kernels) != arithmetic


def test_a_source_edited_after_the_start_makes_a_key_of_this_process_alone(copy, monkeypatch):
    """The process runs the text that it imported. It must not store its code under the key of the new text."""
    (copy / "engine" / "codes.py").write_text((copy / "engine" / "codes.py").read_text() + "\n# edited\n")
    own = keys(copy, TIMEOUT)
    monkeypatch.setattr(compiling, "STARTED", time.time() + 1)
    assert keys(copy, TIMEOUT) != own


def test_the_folder_follows_versions_and_cpu(monkeypatch):
    versions = compiling.versions()
    for name in ("numba.__version__", "llvmlite.__version__", "np.__version__"):
        with monkeypatch.context() as patch:
            patch.setattr(f"kernel_cache.compile.{name}", "0.0")
            assert compiling.versions.__wrapped__() != versions, name
    for name in ("get_host_cpu_name", "get_host_cpu_features"):
        with monkeypatch.context() as patch:
            patch.setattr(compiling.binding, name, lambda: OtherCpu("another"))
            assert compiling.versions.__wrapped__() != versions, name


class OtherCpu(str):
    """A CPU's name, or its features."""

    def flatten(self) -> str:
        return str(self)


IMPORT_ALL = """
import importlib, pathlib, sys
import aristos
count = 0
root = pathlib.Path(aristos.__file__).parent
for path in sorted(root.rglob("*.py")):
    name = ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__")
    if not name.endswith("__main__"):
        try:
            importlib.import_module(name)
            count += 1
        except (ImportError, aristos.AristosError):
            pass  # an extra is not installed
print(">", count, root)
"""


def test_importing_every_module_writes_nothing(tmp_path):
    """Importing makes no folder and no file, wherever HOME, the cache and temporary files are."""
    import matplotlib

    places = {name: tmp_path / name for name in ("HOME", "ARISTOS_CACHE", "TMPDIR")}
    for name in ("HOME", "TMPDIR"):
        places[name].mkdir()
    env = {name: str(place) for name, place in places.items()} | {"PYTHONDONTWRITEBYTECODE": "1"}
    env["MPLCONFIGDIR"] = matplotlib.get_cachedir()  # other packages may write files when they are imported
    before = sorted(tmp_path.rglob("*"))
    count, _ = use(IMPORT_ALL, **env)
    assert count > 200
    assert sorted(tmp_path.rglob("*")) == before


FIRST = """
import ml_dtypes, numpy as np, aristos
from aristos import reference
from kernel_cache import compile as compiling
cfg = aristos.MoEConfig(hidden=24, ffn=40, experts=5, top_k=2, max_tokens=48, shared_ffn={shared}, dtype="{dtype}")
x = np.ones((20, 24), np.float32).astype(cfg.dtype if cfg.dtype == "float32" else ml_dtypes.bfloat16)
def code():
    return sorted((f.py_func.__module__, f.py_func.__name__) for f in compiling._registered if f.overloads)
with aristos.MoE(cfg, None, schedule="{schedule}", train=True) as moe:
    moe.load(**reference.weights(cfg))
    y, tape = moe.forward(x)
    before = code()
    moe.backward(x, tape)
    print(">", [each for each in code() if each not in before])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "shared", "dtype"), [("fused", 32, "float32"), ("bulk", 0, "float32"), ("bulk", 32, "bfloat16")]
)
def test_a_backward_call_finds_its_kernels_loaded(schedule, shared, dtype):
    """If a rank loaded or compiled kernels within a call, the other ranks would wait for it."""
    code = FIRST.format(schedule=schedule, shared=shared, dtype=dtype)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1:] == ["> []"], done.stdout + done.stderr


def test_a_full_disk_leaves_no_index_that_names_other_code(tmp_path, monkeypatch):
    """If the index is damaged and the code of a second signature cannot be written, the new index does not name it."""
    files = code_files._Files(str(tmp_path), "f", "stamp")
    monkeypatch.setattr(files, "_load_index", dict)
    index: list[dict] = []
    monkeypatch.setattr(files, "_save_index", index.append)

    def full(name: str, data: object) -> None:
        raise OSError(28, "No space left on device", name)

    monkeypatch.setattr(files, "_save_data", full)
    with pytest.raises(OSError, match="No space left"):
        files.save("signature", b"code")
    assert index == []

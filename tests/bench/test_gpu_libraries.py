"""NVIDIA's libraries, which the rivals call by ctypes: where they are found, and what their functions get."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import simt_gpu

from aristos.bench.gpu import alltoall, cublas, libraries
from aristos.bench.world import World
from aristos.errors import EnvironmentProblem

pytestmark = pytest.mark.parallel


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty folder of packages, the only folder that is searched. Libraries that are loaded already do not count."""
    monkeypatch.setattr(sys, "path", ["", str(tmp_path)])
    monkeypatch.setattr(libraries, "loaded", lambda name: "")
    return tmp_path


def put(site, path):
    """Make a shared library at this path: a copy of one of Python's own."""
    import _ctypes

    to = site / path
    to.parent.mkdir(parents=True)
    shutil.copy(_ctypes.__file__, to)
    return str(to)


@pytest.mark.parametrize(
    "path", ["nvidia/cublas/lib/libcublas.so.12", "nvidia/cu13/lib/libcublas.so.13", "torch/lib/libcublas.so.12"]
)
def test_cublas_is_found_in_wheels_and_where_pytorch_brings_it(site, path):
    there = put(site, path)
    assert cublas.library("13.0").path == there


def test_a_driver_of_cuda_12_gets_cublas_12(site):
    put(site, "nvidia/cu13/lib/libcublas.so.13")
    twelve = put(site, "nvidia/cublas/lib/libcublas.so.12")
    assert cublas.library("12.9").path == twelve
    assert list(libraries.candidates(("libcublas.so.13",)))[-1] == "libcublas.so.13"  # found by the loader


def test_a_library_that_is_loaded_already_comes_first(tmp_path, monkeypatch):
    maps = tmp_path / "maps"
    maps.write_text(
        "7f00-7f10 r-xp 0 08:01 42    /opt/a b/libnccl.so.2\n7f10-7f20 rw-p 0 0:0 0 \n7f20-7f30 /libnccl.so.22\n"
    )
    assert libraries.loaded("libnccl.so.2", maps) == "/opt/a b/libnccl.so.2"
    assert libraries.loaded("libcublas.so.13", maps) == ""
    assert libraries.loaded("libnccl.so.2", tmp_path / "none") == ""
    monkeypatch.setattr(libraries, "loaded", lambda name: f"/a/{name}")
    assert next(libraries.candidates(("libnccl.so.2",))) == "/a/libnccl.so.2"


def test_a_missing_library_is_named_with_the_extra(site):
    with pytest.raises(
        EnvironmentProblem, match=r"NCCL is not installed \(libnccl.so.2\): pip install 'aristos\[cuda12\]'"
    ):
        alltoall.library()


class Library:
    """A library that keeps its calls in `made`. Calls of functions in `failing` fail."""

    path = "/lib/it.so"

    def __init__(self, failing=()):
        self.made, self.failing = [], failing

    def call(self, name, *arguments):
        self.made.append((name, [getattr(a, "value", a) for a in arguments]))
        if name in self.failing:
            raise EnvironmentProblem(f"{name} failed")

    def number(self, name, *arguments):
        return {"cublasGetProperty": 13, "ncclGetVersion": 22805}[name]


class Gpu:
    stream, world = 7, World()
    device = SimpleNamespace(current=contextlib.nullcontext, driver="13.0", uuid="GPU-0")

    @staticmethod
    def allocate(nbytes):
        return 4096


def test_cublas_gets_rows_as_columns(monkeypatch):
    """cuBLAS stores columns, so it computes C^T = B A^T. Arguments have the order of cublas_api.h (12.9 and 13.1)."""
    monkeypatch.setattr(cublas, "library", lambda driver: library)
    library = Library()
    blas = cublas.Cublas(Gpu)
    assert blas.used == "cuBLAS 13.13.13 (/lib/it.so)"
    blas.product("bf16", 3, 5, 7, 100, 8, 200, 16, 300, 24)
    name, (_, op_a, op_b, m, n, k, _, a, a_type, lda, b, b_type, ldb, _, c, c_type, ldc, compute, algo) = library.made[
        -1
    ]
    assert (name, op_a, op_b, m, n, k) == ("cublasGemmEx", 1, 0, 5, 3, 7)
    assert (a, lda, b, ldb, c, ldc) == (200, 16, 100, 8, 300, 24)
    assert {a_type, b_type, c_type} == {14}
    assert (compute, algo) == (68, -1)
    library.failing = ("cublasGemmEx",)
    with pytest.raises(EnvironmentProblem, match="cublasGemmEx failed"):
        blas.product("f32", 1, 1, 1, 0, 1, 0, 1, 0, 1)


def test_nccl_gets_the_parts_of_every_rank(monkeypatch):
    """Arguments have the order of nccl.h. Nothing is sent to ranks that get no rows."""
    library = Library()
    monkeypatch.setattr(alltoall, "library", lambda: library)
    exchange = alltoall.Nccl(Gpu)
    assert exchange.used == "NCCL 2.28.5 (/lib/it.so)"
    first, (_, size, key, rank) = library.made[1]
    assert (first, size, rank, ctypes.sizeof(key)) == ("ncclCommInitRank", 1, 0, 128)
    library.made.clear()
    exchange(1000, 2000, *(alltoall.np.array(each) for each in ([8, 0, 4], [0, 16, 2])))
    assert [name for name, _ in library.made] == [
        "ncclGroupStart",
        "ncclSend",
        "ncclSend",
        "ncclRecv",
        "ncclRecv",
        "ncclGroupEnd",
    ]
    assert [arguments[:4] for _, arguments in library.made[1:5]] == [
        [2000, 8, 0, 0],
        [2008, 4, 0, 2],
        [1000, 16, 0, 1],
        [1016, 2, 0, 2],
    ]
    assert library.made[1][1][5] == Gpu.stream


def test_nccl_that_fails_on_one_rank_fails_on_all(monkeypatch):
    """The other rank's NCCL would wait for the failed rank without end, but the wait is bounded.

    Both ranks name the rank and the function that failed.
    """
    release = threading.Event()

    class Lonely(Library):
        def call(self, name, *arguments):
            super().call(name, *arguments)
            if name == "ncclCommInitRank":
                release.wait(60)

    def body(comm, rank):
        world = World(comm)
        gpu = SimpleNamespace(world=world, device=SimpleNamespace(current=contextlib.nullcontext, uuid=f"GPU-{rank}"))
        for failing, seconds, why in (
            (("ncclCommInitRank",), 0.5, "rank 1: ncclCommInitRank failed"),
            ((), 0.1, "rank 0: ncclCommInitRank has not returned after 0.1 s: another rank has failed"),
            (("ncclGetUniqueId",), 60.0, "rank 0: ncclGetUniqueId failed"),
        ):
            fails = failing if rank == (0 if failing == ("ncclGetUniqueId",) else 1) else ()
            monkeypatch.setattr(alltoall, "START_SECONDS", seconds)
            monkeypatch.setattr(alltoall, "library", lambda: Lonely(made.failing))
            made.failing = fails
            world.barrier()
            found, said = libraries.or_why(alltoall.Nccl, gpu)
            assert found is None
            assert said.startswith(why), said
            world.barrier()

    made = threading.local()
    simt_gpu.as_threads(simt_gpu.Together(2, None), body)
    release.set()


def test_a_call_that_fails_names_function_file_and_status(site):
    put(site, "nvidia/nccl/lib/libnccl.so.2")
    library = libraries.Library("NCCL", ("libnccl.so.2",), "ncclResult_t")
    library._library = SimpleNamespace(ncclGroupEnd=lambda: 3)
    with pytest.raises(EnvironmentProblem, match=r"ncclGroupEnd of .*libnccl.so.2 failed with ncclResult_t 3"):
        library.call("ncclGroupEnd")
    assert Path(library.path).is_file()

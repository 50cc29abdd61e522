"""Launch files of libraries and of several devices: tables of addresses, arrays of every device, results in files."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from needs_nvrtc import compiles

import ptxsim
from ptxsim import nvcc, waiting
from ptxsim.command import main
from ptxsim.errors import MemoryProblem

SHARED_LIBRARY = {
    "k.cu": """
#include <reduce.cuh>
// simt: each x:float32[64]=seed:1
// simt: each window:uint32[64]=0
// simt: each out:float32[64]
// simt: @* comm::add<float, 2><<<1, 64>>>(&{x@0, x@1}, {window@0, window@1, ...}, window, out, device)
""",
    "headers/reduce.cuh": """#pragma once
#include <linux/types.h>
#include <errno.h>
#include <stdexcept>
#include <macros.h>
namespace comm {
struct Table { const float *data[8]; };
struct Windows { unsigned *words[8]; };
template <int N> constexpr int half() {
    for (int i = 1; i < N; i++)
        if (2 * i == N) return i;
    throw std::logic_error("an odd number;");
}
CODE bool same(float a, double) { return std::is_same<float, decltype(a)>::value; }
template <int N> INLINE unsigned *of(const Windows &all, int rank) {
    return std::is_same<int, decltype(rank)>::value ? all.words[rank] : nullptr;
}
template <typename T, int N> __global__ void add(Table *from, Windows all, __be32 *mine, T *out, int rank) {
    cudaGridDependencySynchronize();
    if (threadIdx.x == 0) {
        unsigned *peer = of<N>(all, 1 - rank);
        asm volatile("st.FLAG.sys.global.u32 [%0], %1;" :: "l"(peer), "r"(EIO));
        unsigned got;
        do asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(got) : "l"(mine)); while (got != EIO);
    }
    __syncthreads();
    out[threadIdx.x] = from->data[0][threadIdx.x] + half<N>() * from->data[1][threadIdx.x] * same(0, 0);
}
}
""",
    "headers/macros.h": "#define CODE static __device__\n#define INLINE CODE \\\n  __forceinline__\n",
}


@compiles
def test_a_collective_of_a_library_is_launched_from_comments(tmp_path, capsys, monkeypatch):
    """A table of addresses, a structure that is not filled, arrays and launches on each device, results in files.

    The library marks device code by macros of another header; a constexpr function throws; headers of Linux are there.
    """
    monkeypatch.setattr(nvcc, "found", lambda: None)
    for name, text in SHARED_LIBRARY.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text.replace("FLAG", "release"))
    words = ["check", "--devices", "2", "-I", str(tmp_path / "headers"), "--save", str(tmp_path / "made")]
    assert main([*words, str(tmp_path / "k.cu")]) == 0, capsys.readouterr()
    made = {file.stem: np.load(file) for file in (tmp_path / "made").iterdir()}
    assert sorted(made) == [f"{name}@{rank}" for name in ("out", "window", "x") for rank in (0, 1)]
    for rank in (0, 1):
        assert (made[f"out@{rank}"] == made["x@0"] + made["x@1"]).all()
        assert made[f"window@{rank}"][0] == 5
    assert (made["x@0"] != made["x@1"]).any()
    assert main([*words, str(tmp_path / "k.cu"), str(tmp_path / "k.cu")]) == 2
    assert "--save is for one file" in capsys.readouterr().err


def test_symmetric_arrays_are_at_equal_distances():
    machine = ptxsim.Machine(devices=3)
    before = machine.device(1).empty(5, np.int8)
    made = machine.symmetric((4, 5), np.float32, "window")
    more = machine.symmetric(3, np.int8, "more", 1 << 30)
    after = [machine.device(0).array(np.arange(9)) for _ in range(50)]
    assert [one.ptr - made[0].ptr for one in made] == [0, 1 << 32, 2 << 32]
    assert [one.ptr - more[0].ptr for one in more] == [0, 1 << 30, 2 << 30]
    spans = sorted((one.ptr, one.ptr + one.nbytes) for one in [before, *made, *more, *after])
    assert all(low[1] < high[0] for low, high in itertools.pairwise(spans))
    assert [one.allocation.device for one in made] == [0, 1, 2]
    assert str(made[1].allocation.name) == "window@1"
    for one in [*made, *more, before, *after]:
        one.free()
    with pytest.raises(MemoryProblem, match="no space for 3 arrays"):
        machine.symmetric(1 << 30, np.int64)
    with pytest.raises(MemoryProblem, match="100 bytes apart"):
        machine.symmetric(4, np.int8, "near", 100)


def test_symmetric_arrays_are_freed_if_one_does_not_fit(monkeypatch):
    machine, made = ptxsim.Machine(devices=3), []
    allocate = machine.memory.allocate

    def limited(*args):
        if len(made) == 2:
            raise MemoryProblem("no cells")
        made.append(allocate(*args))
        return made[-1]

    monkeypatch.setattr(machine.memory, "allocate", limited)
    with pytest.raises(MemoryProblem, match="no cells"):
        machine.symmetric(4, np.int8)
    assert [one.freed for one in made] == [True, True]


def test_a_number_is_no_structure(tmp_path, capsys):
    path = tmp_path / "k.ptx"
    path.write_text(
        ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k(.param .align 8 .b8 job[24])\n{\nret;\n}\n"
    )
    assert main(["check", "--launch", "k<<<1, 1>>>(0)", str(path)]) == 2
    assert "give its 24 bytes, as bytes or a structure" in capsys.readouterr().err
    for members in ("uint64 0, ...", "...", "int32 1, int32 1, int64 1, int64 2"):
        assert main(["check", "--launch", f"k<<<1, 1>>>({{{members}}})", str(path)]) == 0
    for members, message in (
        ("{int32 1, int32 1, ..., int64 2}", "or &{MEMBERS}, got '...'"),
        ("&{int32 1, ...}", "a structure in memory must have members"),
        ("&{}", "a structure in memory must have members"),
        ("{uint64 0}", "has 24 bytes, got 8"),
    ):
        assert main(["check", "--launch", f"k<<<1, 1>>>({members})", str(path)]) == 2
        assert message in capsys.readouterr().err
    for text in ("each x", "each x:5", "each device:int8[4]"):
        assert main(["check", "--launch", text, "--launch", "k<<<1, 1>>>({...})", str(path)]) == 2
        assert "expected 'each NAME:ARRAY'" in capsys.readouterr().err


def test_a_note_is_printed_while_the_machine_is_compiled(capsys, monkeypatch):
    monkeypatch.setattr(waiting, "NOTE_S", 0.01)
    monkeypatch.setattr(waiting, "addresses", lambda: time.sleep(0.5))
    waiting.compile_machine()
    assert capsys.readouterr().err.count("is being compiled") == 1
    monkeypatch.setattr(waiting, "NOTE_S", 60)
    monkeypatch.setattr(waiting, "addresses", lambda: None)
    waiting.compile_machine()
    assert capsys.readouterr().err == ""

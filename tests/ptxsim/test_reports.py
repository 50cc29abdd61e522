"""How reports name arrays, how reports are grouped, and what else the user of a script sees."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
import ptxsim
from ptxsim import profile, shared_arrays
from ptxsim.command import main, options
from ptxsim.findings import Report, lines, total

HEAD = """import numpy as np
from numba import cuda, float32, int64
ROWS = 8
SIZE = np.zeros(5).size
"""
SHARED = """
def made(columns):
    @cuda.jit
    def kernel(y):
        tile = cuda.shared.array(32, float32)
        square = cuda.shared.array(
            shape=(ROWS, 4),
            dtype=int64,
        )
        part = cuda.shared.array((columns, 3), np.float16)
        odd = cuda.shared.array((columns, SIZE), float32)
        i = cuda.threadIdx.x
        y[i] = tile[7 + i] + square[2 + i, 3] + part[4, 1 + i] + odd[1, 1 + i]
        tile[32 + i] = 1

    return kernel

made(6)[1, 1](cuda.device_array(1, np.float32))
"""
DYNAMIC = """
@cuda.jit
def kernel(y):
    fixed = cuda.shared.array(3, int64)
    buffer = cuda.shared.array(0, int64)
    y[0] = buffer[5] + fixed[2]

kernel[1, 1, 0, 64](cuda.device_array(1, np.int64))
"""
HOST = """
@cuda.jit
def kernel(x, same, pair, held, out):
    out[0] = x[40] + same[41] + pair[1][42] + held[43]

x = np.zeros(32)
kernel[1, 1](x, x, (x, x), cuda.In(x), cuda.Out(x))
"""
SUM = """
@cuda.jit
def kernel(x, out):
    tile = cuda.shared.array(64, float32)
    i = cuda.threadIdx.x
    tile[i] = x[i]
    s = 32
    while s:
        if i < s:
            tile[i] += tile[i + s]
        s //= 2
    out[0] = tile[0] if i == 0 else out[0]

kernel[1, 64](np.ones(64, np.float32), np.zeros(1, np.float32))
"""


def addresses(tmp_path: Path, text: str) -> set[str]:
    """The addresses in the reports of a script."""
    path = tmp_path / "script.py"
    path.write_text(HEAD + text)
    machine = ptxsim.Machine()
    assert profile.run_script(machine, path, []) == (0, None)
    return {report.address for report in machine.reports}


def test_shared_arrays_have_the_names_and_indices_of_the_source(tmp_path):
    """If the source leaves one size open, it is computed from the others. If it leaves two open, the index is flat."""
    wanted = {"tile[7]", "square[2, 3]", "part[4, 1]", "odd[6]", "tile[32]"}
    assert addresses(tmp_path, SHARED) == {f"shared {name}" for name in wanted}


def test_dynamic_shared_memory_has_the_name_of_its_only_array(tmp_path):
    assert addresses(tmp_path, DYNAMIC) == {"shared buffer[5]", "shared fixed[2]"}


def test_arrays_of_the_host_have_the_names_of_parameters(tmp_path):
    assert addresses(tmp_path, HOST) == {"x[40]", "same[41]", "pair[1][42]", "held[43]"}


@pytest.mark.filterwarnings("ignore:Could not find source")
def test_an_array_without_source_keeps_its_symbol_and_index(tmp_path):
    found = addresses(tmp_path, f'exec("""{DYNAMIC}""")')
    assert all(name.startswith("shared _cudapy_smem_") for name in found)
    assert {name.rpartition("[")[2] for name in found} == {"5]", "2]"}


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("_ZZ7reversePfS_E4tile", "tile"),
        ("_ZZN2ns3addIfEEvPT_E5E4abc", "E4abc"),
        ("kernel/buffer/2", "buffer"),
        ("tile", "tile"),
        ("_ZZ3addvE9tile", "_ZZ3addvE9tile"),
    ],
)
def test_names_of_ptx_and_c(symbol, name):
    assert shared_arrays.plain(symbol) == name


def test_a_missing_barrier_is_few_lines(tmp_path, capsys):
    """Reports of one kind at one pair of lines and one array are printed as one, with their number and two threads."""
    path = tmp_path / "script.py"
    path.write_text(HEAD + SUM)
    assert main(["check", str(path)]) == 1
    out, err = capsys.readouterr()
    printed = out.splitlines()
    assert len(printed[:-2]) == len(set(printed[:-2])) == 3
    assert any(" more of these lines and this array)" in line for line in printed)
    assert all("thread (" in line.rpartition("with nothing")[2] for line in printed[:-2])
    assert all("[missing barrier: __sync" in line for line in printed[:-2])
    assert printed[-2].startswith("covered: 1 kernel, 1 launch, seed 0, ")
    assert printed[-1] == "3 reports"
    assert "Warning" not in err


def test_lines_of_reports():
    def report(line: int, address: str, message: str = "") -> Report:
        return Report("race", "k", "f.py", line, (0, 0, 0), (line, 0, 0), message, address)

    found = lines([report(1, "a[0]"), report(1, "a[1, 2]"), report(2, "a[0]"), report(1, "b[0]"), report(1, "a[7]")])
    assert [line.partition(")")[2].partition("(and")[2] for line in found] == [
        " 2 more of these lines and this array)",
        "",
        "",
    ]
    assert len(lines([report(1, "", "one"), report(1, "", "other")])) == 2
    assert [total(n) for n in range(3)] == ["0 reports", "1 report", "2 reports"]


def test_the_warnings_of_a_script_itself_stay(tmp_path, capsys, recwarn):
    path = tmp_path / "script.py"
    path.write_text(HEAD + "import warnings\nwarnings.warn('mine')\n" + HOST.replace("40", "0"))
    main(["check", str(path)])
    assert [str(warning.message) for warning in recwarn] == ["mine"]


def test_the_help_names_the_page_that_has_the_forms(capsys):
    with pytest.raises(SystemExit):
        options(["check", "--help"])
    assert "docs/ptxsim-check.md has all forms" in " ".join(capsys.readouterr().out.split())
    assert "| argument | meaning |" in (Path(__file__).parents[2] / "docs" / "ptxsim-check.md").read_text("utf-8")

"""Units of the interpreter: registered by name, and compiled again when a file that they are made of changes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
import ptxsim
from kernel_cache import sources
from ptxsim import isa, units

FOLDER = Path(ptxsim.__file__).parent


def stamp(file: str) -> str:
    return units.Locator(stamp, str(FOLDER / file)).get_source_stamp()


def test_a_second_unit_of_a_name_is_rejected():
    import ptxsim.interpreter  # noqa: F401  (it has a unit `run`)

    def run(x):
        return x

    with pytest.raises(ValueError, match=r"unit run of .* has the name of one in ptxsim\.interpreter"):
        units.unit(run)


def test_a_unit_after_the_first_compilation_is_rejected():
    def late(x):
        return x

    units.addresses()
    with pytest.raises(ValueError, match=r"unit late of .* comes after units were compiled"):
        units.unit(late)
    assert "late" not in units.names()


def test_places_follow_the_names():
    assert units.names() == sorted(units.names())
    assert len(units.addresses()) == len(units.names()) == len(set(units.addresses()))


def test_a_change_of_the_names_compiles_units_again(monkeypatch):
    before = stamp("rounding.py")
    monkeypatch.setitem(units._units, "one_more", None)
    assert stamp("rounding.py") != before


def test_the_cache_says_whether_it_has_the_code_of_every_unit(monkeypatch):
    units.addresses()
    assert units.kept()
    monkeypatch.setitem(units._units, "one_more", stamp)
    assert not units.kept()


def test_units_depend_on_what_they_are_compiled_from():
    """Units depend on the interpreter's files, but not on lowering and reports."""
    files = {path.name for path in sources.files(FOLDER / "interpreter.py")}
    assert {"interpreter.py", "blocks.py", "rows.py", "state.py", "rounding.py", "units.py"} <= files
    assert not {"lowering.py", "explain.py", "machine.py", "arrays.py"} & files
    assert stamp("rounding.py") != stamp("interpreter.py")


# ---- opcodes

MEANINGS = {  # an opcode's number // 100, its group -> the files that execute the group's opcodes
    0: ("integer.py", "arithmetic.py"),
    1: ("floating.py",),
    2: ("arithmetic.py",),
}
# Opcodes that a file handles in a last `else`, where they are not named.
LAST = {"MAX2", "FTANH", "CVTPACK"}


def opcodes() -> dict[str, int]:
    """Opcode's name -> its number."""
    groups = re.findall(r"^\((.*?)\) = range\((.*?)\)", Path(isa.__file__).read_text(), re.M | re.S)
    names = [name for text, _ in groups for name in re.findall(r"\w+", text)]
    numbered = {name: getattr(isa, name) for name in names}
    return {name: number for name, number in numbered.items() if names.index(name) >= names.index("ADD")}


def test_every_arithmetic_opcode_has_a_branch():
    """An opcode without a branch would act as another one: the last branch of a chain takes whatever is left."""
    found = opcodes()
    assert (found["ADD"], found["FTANH"], found["CVTPACK"]) == (isa.ADD, isa.FTANH, isa.CVTPACK)
    for group, files in MEANINGS.items():
        text = "".join((FOLDER / file).read_text() for file in files)
        missing = [
            name
            for name, number in found.items()
            if number // 100 == group and name not in LAST and not re.search(rf"\bisa\.{name}\b", text)
        ]
        assert not missing, f"{' or '.join(files)} must say what {', '.join(missing)} does"


def test_opcodes_that_the_interpreter_finds_by_comparison_end_their_groups():
    names = {number: name for name, number in opcodes().items()}
    ends = {
        isa.ADDC: "ADDC SUBC MADC MADCHI",
        isa.BULKLOAD: "BULKLOAD BULKSTORE BULKCOMMIT BULKWAIT STASYNC TENSORLOAD TENSORSTORE BULKREDUCE "
        "MAPCOPY TCMMA TCCOPY TCCOMMIT",
        isa.TEX: "TEX TEXQUERY SULOAD SUSTORE BULKLOAD BULKSTORE BULKCOMMIT BULKWAIT STASYNC TENSORLOAD TENSORSTORE "
        "BULKREDUCE MAPCOPY TCMMA TCCOPY TCCOMMIT",
        isa.MBINIT: "MBINIT MBINVAL MBARRIVE MBEXPECT MBWAIT MBCOPIES PROXYFENCE INITFENCE TCFENCE",
        isa.MMA: "MMA LDMATRIX STMATRIX MOVMATRIX TCALLOC TCDEALLOC TCLOAD TCSTORE TCWAIT "
        "WGMMA WGFENCE WGCOMMIT WGWAIT",
    }
    for first, wanted in ends.items():
        assert [names[n] for n in sorted(names) if first <= n < first // 100 * 100 + 100] == wanted.split()

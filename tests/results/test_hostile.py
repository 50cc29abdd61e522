"""Reading any results file shows no other file's bytes, takes no more memory than its size, and never crashes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from aristos import results
from aristos.errors import ResultsError
from aristos.results import Run, Table, guarded, hdf5

REFERENCES = "DIMENSION_LIST"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of one run with a table `t` over `n`, and beside it a file with a secret."""
    results.append(tmp_path / "r.h5", Run("x", {}, [Table("t").dim("n", range(3)).add("v", "n", [1.0, 2.0, 3.0])]))
    (tmp_path / "secret").write_bytes(b"password")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["n"] = np.frombuffer(b"password", np.uint8)
    return tmp_path / "r.h5"


def replaced(**options: object) -> Callable[[h5py.Group, Path], None]:
    """Put another dataset in the place of the dimension `n`."""

    def change(table: h5py.Group, folder: Path) -> None:
        del table["n"]
        table.create_dataset("n", **options)

    return change


def external_storage(table: h5py.Group, folder: Path) -> None:
    replaced(shape=(8,), dtype="u1", external=[(str(folder / "secret"), 0, 8)])(table, folder)


def external_link(table: h5py.Group, folder: Path) -> None:
    del table["n"]
    table["n"] = h5py.ExternalLink(str(folder / "other.h5"), "/n")


def soft_link(table: h5py.Group, folder: Path) -> None:
    del table["n"]
    table["n"] = h5py.SoftLink("/runs/x/t/v")


def virtual(table: h5py.Group, folder: Path) -> None:
    layout = h5py.VirtualLayout((8,), "u1")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "n", (8,))
    del table["n"]
    table.create_virtual_dataset("n", layout)


def linked_table(table: h5py.Group, folder: Path) -> None:
    table.parent["self"] = table.parent


def escape(table: h5py.Group, folder: Path) -> None:
    table.parent.copy(table, "t\x1b]0;owned\x07")


def long_text(table: h5py.Group, folder: Path) -> None:
    """A dataset with one long text: NumPy's array would have this length for every element."""
    del table["n"]
    table.create_dataset("n", data=["a" * 10_000] + ["b"] * 5_000, dtype=h5py.string_dtype())


def cyclic(table: h5py.Group, folder: Path) -> None:
    table["v2"] = table


def scales(**options: object) -> Callable[[h5py.Group, Path], None]:
    """Give the variable another DIMENSION_LIST."""

    def change(table: h5py.Group, folder: Path) -> None:
        del table["v"].attrs[REFERENCES]
        table["v"].attrs.create(REFERENCES, **options)

    return change


def unwritten(shape: tuple[int, ...], dtype: np.dtype) -> Callable[[h5py.Group, Path], None]:
    """Give the variable a DIMENSION_LIST of empty lists."""

    def change(table: h5py.Group, folder: Path) -> None:
        del table["v"].attrs[REFERENCES]
        kind, space = h5py.h5t.py_create(dtype, logical=True), h5py.h5s.create_simple(shape)
        h5py.h5a.create(table["v"].id, REFERENCES.encode(), kind, space)

    return change


def plain_references(table: h5py.Group, folder: Path) -> None:
    scales(data=[table["n"].ref], dtype=h5py.ref_dtype)(table, folder)


def attribute(name: str, value: object, of: str = ".") -> Callable[[h5py.Group, Path], None]:
    def change(table: h5py.Group, folder: Path) -> None:
        table[of].attrs[name] = value

    return change


def no_scales(table: h5py.Group, folder: Path) -> None:
    del table["v"].attrs[REFERENCES]


def no_suite(table: h5py.Group, folder: Path) -> None:
    del table.attrs["suite"]


CHANGES = [
    (external_storage, "lies in another file"),
    (external_link, "n is a link, which may lead to another file"),
    (soft_link, "n is a link"),
    (virtual, "lies in another file"),
    (linked_table, "self is no table: it must have the attributes suite, a text, and dims"),
    (no_suite, "t is no table: it must have the attributes suite, a text, and dims"),
    (attribute("suite", [1, 2]), "the attribute suite of t must be a text, got "),
    (attribute("dims", "n"), "t is no table"),
    (attribute("dims", ["n", "m"]), "the table t has no dimension 'm'"),
    (attribute("dims", ["n", "n"]), "the table t has no dimension 'n', or has it twice"),
    (attribute("units", 3, "v"), "the attribute units of /runs/x/t/v must be a text, got 3"),
    (no_scales, "must be a list of references"),
    (escape, r"the name 't\\x1b\]0;owned\\x07' has characters that cannot be shown"),
    (cyclic, "v2 must be a dataset"),
    (long_text, "declares 200.* bytes, far more than the file holds"),
    (replaced(shape=(1 << 33,), dtype="i1", chunks=(1 << 20,), compression="gzip"), "declares 8589934592 bytes"),
    (replaced(shape=(3,), maxshape=(None,), dtype="f8", chunks=(1 << 24,), compression="gzip"), "declares 1342"),
    (replaced(shape=(1 << 45,), dtype="f8", chunks=(1 << 10,)), "declares 281474976710656 bytes"),
    (replaced(shape=(5,), dtype="S200000000"), "declares .* bytes"),
    (replaced(data=h5py.Empty("f8")), "is empty"),
    (replaced(data=np.zeros(3, "f8,f8")), "numbers or text"),
    (scales(data=[1]), "must be a list of references"),
    (scales(data=["a"]), "must be a list of references"),
    (scales(data=np.zeros(1)), "must be a list of references"),
    (scales(data=h5py.Empty("f8")), "must be a list of references"),
    (scales(data=np.zeros((2, 2))), "must be a list of references"),
    (unwritten((3,), h5py.vlen_dtype(h5py.ref_dtype)), "must be a list of references"),
    (unwritten((1,), h5py.vlen_dtype(h5py.ref_dtype)), "an axis without a dimension"),
    (unwritten((1,), h5py.vlen_dtype("i8")), "must be a list of references"),
    (plain_references, "must be a list of references"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES, ids=[str(at) for at in range(len(CHANGES))])
def test_a_changed_file_is_refused(path, change, words):
    with h5py.File(path, "r+") as file:
        change(file["runs/x/t"], path.parent)
    tracemalloc.start()
    try:
        with pytest.raises(ResultsError, match=f"r.h5: cannot be read: .*{words}"):
            hdf5.read(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * path.stat().st_size + (64 << 20)
    finally:
        tracemalloc.stop()


def test_the_command_is_shown_without_escapes(tmp_path):
    results.append(tmp_path / "r.h5", Run("x", {"command": "a\x1b[31m"}))
    assert repr(hdf5.read(tmp_path / "r.h5")).endswith(r"(a\x1b[31m)")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.kill(os.getpid(), 11)", r"HDF5 crashed \(signal 11\): the file is damaged"),
        (
            "import time; time.sleep(60)",
            "HDF5 took more than 1 s: the file is damaged, or its disk does not answer",
        ),
        (guarded.CODE.replace("hdf5.read(", "any(iter(int, 1)) or hdf5.read("), "took more than 0 s of processor time"),
    ],
)
def test_a_crash_or_a_loop_inside_hdf5_is_an_error(path, monkeypatch, code, words):
    monkeypatch.setattr(guarded, "CODE", code)
    monkeypatch.setattr(guarded, "SECONDS", guarded.SECONDS if "kill" in code else 0.2)
    monkeypatch.setattr(guarded, "WALL", 6 if "sleep" in code else 100)
    with pytest.raises(ResultsError, match=words):
        results.load(path)


def test_the_trial_reads_the_file(path, monkeypatch):
    """The error that the trial gets is raised. The trial's memory is bounded."""
    assert guarded.trial(path) == ""
    monkeypatch.setattr(guarded, "CODE", guarded.CODE.replace("hdf5.read(", "bytes(1 << 30), hdf5.read("))
    assert guarded.trial(path) == "out of memory"
    monkeypatch.undo()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ResultsError, match=r"r\.h5: cannot be read: .*truncated file"):
        results.load(path)


def test_a_trial_runs_no_module_of_the_current_folder(path, monkeypatch):
    """A folder that somebody sent may hold a file of results, and h5py.py beside it."""
    (path.parent / "h5py.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(path.parent)
    assert guarded.trial(path) == ""
    assert not Path("ran").exists()


def test_numbers_and_texts_that_json_lacks_become_plain(path):
    """What other programs write: bytes, bytes that are no UTF-8, long doubles."""
    with h5py.File(path, "r+") as file:
        run = file["runs/x"]
        run.attrs["bytes"] = np.bytes_(b"a\xff")
        run.attrs["more"] = np.array([b"a", b"b"])
        run.attrs["long"], run.attrs["longs"] = np.longdouble(1), np.ones(2, np.longdouble)
        replaced(data=np.ones(3, np.longdouble))(run["t"], path.parent)
        run["t/n"].make_scale("n")
        del run["t/v"].attrs[REFERENCES]
        run["t/v"].dims[0].attach_scale(run["t/n"])
    (found,) = hdf5.read(path).runs
    assert found.attributes == {
        "schema": hdf5.SCHEMA,
        "bytes": "a\udcff",
        "more": ["a", "b"],
        "long": 1.0,
        "longs": [1.0, 1.0],
    }
    assert type(found.attributes["long"]) is float
    assert found.tables[0].dims["n"].values.dtype == np.float64


def test_a_file_has_a_largest_size(path, monkeypatch):
    """A sparse file takes no space on the disk, whatever its size, and would be read for hours."""
    held, most = path.stat().st_size, guarded.MOST_FILE
    with open(path, "r+b") as file:
        file.truncate(most + 1)
    for use in (results.load, lambda target: results.append(target, Run("y"))):
        with pytest.raises(ResultsError, match=f"at most {most} bytes, but it has {most + 1}"):
            use(path)
    with open(path, "r+b") as file:
        file.truncate(held)
    monkeypatch.setattr(guarded, "MOST_FILE", held)
    with pytest.raises(ResultsError, match=f"but may have at most {held}: choose another file"):
        results.append(path, Run("y", {}, [Table("t").dim("n", range(3000))]))
    monkeypatch.setattr(guarded, "MOST_DATA", 8)
    with pytest.raises(ResultsError, match="far more than the file holds"):
        hdf5.read(path)

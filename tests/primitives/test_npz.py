"""Reading foreign traces: no pickles, no more memory than the file's size needs, no traceback."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from aristos.errors import InputError
from aristos.primitives import npz


def archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(path / "t.npz", "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return str(path / "t.npz")


def member(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY" + bytes(version) + len(text).to_bytes(2, "little") + text + data


def declared(shape: str, dtype: str = "'<i8'") -> bytes:
    return member(f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}")


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    return file.getvalue()


def test_arrays_of_numbers_and_text_are_read(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.uint16).reshape(2, 3), "b": np.float32(2.5), "c": np.array(["x", "yz"])}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "t.npz", **arrays, time=np.array([1], "m8[s]"), none=np.zeros((0, 4)))
        found = npz.load(str(tmp_path / "t.npz"), "the trace")
        assert set(found) == {"a", "b", "c", "none"}
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)


REFUSED = {
    "a bomb": {"x.npy": declared("(5000000,)") + bytes(8 * 20_000_000)},
    "declares more than it has": {"x.npy": declared("(10000000000,)") + bytes(100)},
    "a negative shape": {"x.npy": declared("(-1,)") + bytes(100)},
    "huge factors": {"x.npy": declared("(4611686018427387904, 4)") + bytes(100)},
    "true is no number": {"x.npy": declared("(True,)") + bytes(100)},
    "no end of the header": {"x.npy": member("{'descr': '<i8', 'shape': (", bytes(8))},
    "an indented header": {"x.npy": member("{'descr': '<i8',\n   }\n  x", bytes(8))},
    "deep nesting": {"x.npy": member("(" * 5000, bytes(8))},
    "no header": {"x.npy": b"\x93NUMPY\1"},
    "another version": {"x.npy": member("{}", version=(9, 9))},
    "no dtype": {"x.npy": declared("(1,)", "'<q9'")},
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_trace_is_an_input_error(tmp_path, case):
    path = archive(tmp_path, REFUSED[case])
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"cannot read the trace .*t\.npz: .{1,400}$"):
            npz.load(path, "the trace")
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_pickles_and_other_members_are_left_out(tmp_path):
    path = archive(tmp_path, {"x.npy": pickled(), "notes.txt": b"text", "n.npy": declared("(1,)") + bytes(8)})
    assert list(npz.load(path, "the trace")) == ["n"]


def test_other_compressions_are_refused(tmp_path):
    path = archive(tmp_path, {"n.npy": declared("(1,)") + bytes(8)}, zipfile.ZIP_LZMA)
    with pytest.raises(InputError, match="compressed in a way"):
        npz.load(path, "the trace")


def test_a_trace_has_a_largest_size(tmp_path, monkeypatch):
    np.savez(tmp_path / "t.npz", a=np.zeros(1000))
    np.savez_compressed(tmp_path / "c.npz", a=np.zeros(1000))
    monkeypatch.setattr(npz, "MOST", 4000)  # the first has 8,000 bytes, the second as many once it is expanded
    for name, message in (("t.npz", "must have at most 4000 bytes"), ("c.npz", "or more than 4000")):
        with pytest.raises(InputError, match=message):
            npz.load(str(tmp_path / name), "the trace")

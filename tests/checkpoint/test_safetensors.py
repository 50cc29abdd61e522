"""The reader of safetensors: values of every dtype, and files with wrong headers."""

from __future__ import annotations

import json
import time
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import header_of, pack, write

from aristos.checkpoint.directory import Directory
from aristos.checkpoint.safetensors import SafetensorsFile, save
from aristos.errors import CheckpointError

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(8, dtype=np.float16),
    "c": np.arange(5).astype(ml_dtypes.bfloat16),
    "odd": np.array([1, 2, 3], np.uint8),
    "d": np.array([[0.5, -448.0]]).astype(ml_dtypes.float8_e4m3fn),
    "late": np.array([7.0, 8.0], np.float32),  # at an odd address
    "none": np.zeros((0, 4), np.float32),
}
HEADER, DATA = header_of(TENSORS)


def opened(tmp_path, content: bytes) -> SafetensorsFile:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return SafetensorsFile(path)


def changed(name: str, **line) -> dict:
    return {**HEADER, name: {**HEADER[name], **line}}


def test_values_are_read_as_they_were_written(tmp_path):
    file = opened(tmp_path, pack(HEADER, DATA))
    assert set(file.entries) == set(TENSORS)
    for name, array in TENSORS.items():
        got = file.array(name)
        assert got.dtype == array.dtype
        assert got.shape == array.shape
        assert got.tobytes() == array.tobytes()
        file.release(got)
        assert np.array_equal(got.astype(np.float64), array.astype(np.float64))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "too few"),
        (b"\xff" * 20, "the header should have"),
        (pack(HEADER, DATA)[:40], "the header should have"),
        (pack(HEADER, DATA[:-1]), "'late' claims bytes"),
        (pack(HEADER, DATA + b"x"), "the file holds"),
        (pack(b"{", b""), "not JSON"),
        (pack(b"\xff\xfe", b""), "not JSON"),
        (pack(b"[" * 5000, b""), "not JSON"),
        (pack([1], b""), "JSON object"),
        (pack(b'{"a": NaN}', b""), "NaN"),
        (pack(b'{"a": ' + b"9" * 5000 + b"}", b""), "not JSON"),
        (pack(b'{"x": 1, "x": 2}', b""), "'x' is named twice"),
        (pack({**HEADER, "__metadata__": 3}, DATA), "__metadata__"),
        (pack({**HEADER, "a": 3}, DATA), "'a' must have dtype"),
        (pack(changed("a", dtype="F31"), DATA), "'a' has dtype 'F31'"),
        (pack(changed("a", dtype=[1]), DATA), "'a' has dtype"),
        (pack(changed("a", shape=[2, 4]), DATA), "'a' of shape"),
        (pack(changed("a", shape=[2, -3]), DATA), "'a' must have a shape"),
        (pack(changed("a", shape=[True, 6]), DATA), "'a' must have a shape"),
        (pack(changed("a", shape=[2, 2**60]), DATA), "'a' must have a shape"),
        (pack(changed("a", shape=[2**40] * 30), DATA), "'a' of shape"),
        (pack(changed("a", shape=[1] * 40), DATA), "'a' must have a shape"),
        (pack(changed("a", shape="six"), DATA), "'a' must have a shape"),
        (pack(changed("a", data_offsets=[0]), DATA), "two data_offsets"),
        (pack(changed("a", data_offsets=[24, 0]), DATA), "'a' claims bytes"),
        (pack(changed("a", data_offsets=[0, 2**60]), DATA), "data_offsets"),
        (pack(changed("a", data_offsets=[0.0, 24.0]), DATA), "two data_offsets"),
        (pack(changed("b", data_offsets=[8, 24]), DATA), "overlaps"),
        (pack({k: v for k, v in HEADER.items() if k != "b"}, DATA), "begins at byte"),
    ],
)
def test_a_file_with_a_wrong_header_is_refused_by_name(tmp_path, content, words):
    tracemalloc.start()
    with pytest.raises(CheckpointError) as error:
        opened(tmp_path, content)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000  # sizes in the header cause no allocation
    tracemalloc.stop()
    assert words in str(error.value)
    assert "model.safetensors" in str(error.value)
    assert len(str(error.value)) < 1000


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_read_as_the_format_says(tmp_path_factory, data):
    """If this reader accepts a file, the format's own library accepts it too, with the same values."""
    content = bytearray(pack(HEADER, DATA))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["flip", "digit", "cut", "insert"]))
        if kind == "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "digit":
            content[at] = data.draw(st.sampled_from(b'0123456789"[]{},:-'))
        elif kind == "cut":
            del content[at : at + data.draw(st.integers(1, 9))]
        else:
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        if not content:
            return
    path = tmp_path_factory.mktemp("damaged") / "x.safetensors"
    path.write_bytes(bytes(content))
    try:
        file = SafetensorsFile(path)
    except CheckpointError:
        return
    theirs = dict(safetensors.deserialize(bytes(content)))
    assert set(theirs) == set(file.entries)
    for name, line in theirs.items():
        assert list(file.entries[name].shape) == line["shape"]
        assert file.array(name).tobytes() == bytes(line["data"])


def test_the_formats_own_library_reads_a_saved_file(tmp_path):
    path = tmp_path / "x.safetensors"
    save(path, {"turned": TENSORS["a"].T, **TENSORS})
    theirs = dict(safetensors.deserialize(path.read_bytes()))
    assert bytes(theirs["turned"]["data"]) == np.ascontiguousarray(TENSORS["a"].T).tobytes()
    assert {name: bytes(theirs[name]["data"]) for name in TENSORS} == {n: a.tobytes() for n, a in TENSORS.items()}
    assert theirs["c"]["dtype"] == "BF16"
    with pytest.raises(CheckpointError, match="dtype >f4"):
        save(path, {"x": np.zeros(2, ">f4")})


def shards(tmp_path, count: int = 3) -> Directory:
    return Directory(write(tmp_path, {}, {name: TENSORS[name] for name in "abcd"}, count))


def test_shards_are_opened_when_they_are_asked_for(tmp_path):
    directory = shards(tmp_path)
    (tmp_path / directory.where["b"]).write_bytes(b"broken")
    assert directory.array("a").tolist() == TENSORS["a"].tolist()
    assert directory.names("a") == ["a"]
    with pytest.raises(CheckpointError, match="model-00002-of-00003"):
        directory.array("b")


def test_an_index_that_names_a_missing_shard_is_refused(tmp_path):
    (tmp_path / "model-00002-of-00003.safetensors").unlink(missing_ok=True)
    directory = shards(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"'b' lies in 'model-00002-of-00003.safetensors', which is missing"):
        _ = directory.where


def test_an_index_may_name_a_file_that_no_system_can_have(tmp_path):
    directory = shards(tmp_path)
    index = {"weight_map": {"a": "x" * 5000 + ".safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"'a' lies in 'x+\.\.\.', which is missing"):
        _ = directory.where


@pytest.mark.parametrize("file", ["../x.safetensors", "/etc/passwd", "a\0b.safetensors", "x.bin"])
def test_an_index_names_files_of_its_directory_alone(tmp_path, file):
    directory = shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(CheckpointError, match="no safetensors file of this directory"):
        _ = directory.where


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {"a": 3}}', '{"weight_map": {}, "weight_map": {}}'])
def test_a_damaged_index_is_refused(tmp_path, text):
    directory = shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        _ = directory.where


def test_a_tensor_that_is_not_where_the_index_says_is_refused(tmp_path):
    directory = shards(tmp_path)
    index = {"weight_map": {"zz": "model-00001-of-00003.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"must hold tensor 'zz', as .*index\.json says"):
        directory.array("zz")
    with pytest.raises(CheckpointError, match="has no tensor 'a'"):
        directory.array("a")


def test_shards_without_an_index_must_be_complete_and_name_each_tensor_once(tmp_path):
    directory = shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert set(directory.where) == set("abcd")
    first = (tmp_path / "model-00001-of-00003.safetensors").read_bytes()
    (tmp_path / "model-00003-of-00003.safetensors").write_bytes(first)
    with pytest.raises(CheckpointError, match=r"tensor 'a' is in model-00001-of-00003.safetensors too"):
        _ = Directory(tmp_path).where
    (tmp_path / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00003-of-00003.safetensors is missing"):
        _ = Directory(tmp_path).where


def test_a_directory_without_safetensors_says_what_it_has(tmp_path):
    with pytest.raises(CheckpointError, match="must be a model directory"):
        Directory(tmp_path / "absent")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        _ = Directory(tmp_path).where
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        _ = Directory(tmp_path).config


def test_a_name_that_comes_twice_among_many_is_found(tmp_path):
    names = [f"{n:06d}" for n in range(200_000)]
    (tmp_path / "config.json").write_text("{" + ", ".join(f'"{name}": 1' for name in names + names[-1:]) + "}")
    begun = time.process_time()
    with pytest.raises(CheckpointError, match="'199999' is named twice"):
        _ = Directory(tmp_path).config
    assert time.process_time() - begun < 5

"""What `save` writes and removes, and what `restore` accepts: manifests, digests, other folders, crashes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import MoE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aristos import MoEConfig, reference
from aristos.errors import CheckpointError, InputError, MismatchError, PeerInputError
from aristos.layer import saved_files, saving
from aristos.train import SGD, Adam
from kernel_cache import regular

CFG = MoEConfig(hidden=12, ffn=20, experts=2, top_k=2, max_tokens=16)
W = reference.weights(CFG)


@pytest.fixture
def moe():
    with MoE(CFG, threads=1, train=True) as made:
        made.load(**W)
        yield made


def names(folder: Path) -> list[str]:
    """The names of all files and folders but the lock file, which always stays."""
    return sorted(path.name for path in folder.iterdir() if path.name != "saved.json.lock")


def up(moe: MoE, value: float) -> None:
    moe.update(up=np.full_like(W["up"], value))


def first_up(moe: MoE) -> float:
    return float(moe.params()["up"].flat[0])


# ------------------------------------------------------------ folders


def test_a_save_removes_nothing_that_no_save_wrote(moe, tmp_path):
    moe.save(tmp_path)
    for name in ("saved-1-best", "saved-7", "saved-old"):
        shutil.copytree(tmp_path / "saved-1", tmp_path / name)
    (tmp_path / "saved-pictures").mkdir()
    (tmp_path / "saved-2").mkdir()
    (tmp_path / "saved-2" / "dense.npz").write_text("mine")
    (tmp_path / "saved-9").symlink_to(tmp_path / "saved-7")
    (tmp_path / "saved-1" / "notes").write_text("mine")
    before = names(tmp_path)
    moe.save(tmp_path)
    assert names(tmp_path / "saved-1") == ["folder.json", "notes"]
    assert names(tmp_path) == sorted([*before, "saved-3"])
    assert len(names(tmp_path / "saved-7")) == len(names(tmp_path / "saved-3")) == 4
    assert names(tmp_path / "saved-2") == ["dense.npz"]


def test_what_an_interrupted_save_left_is_removed_by_the_next(moe, tmp_path):
    moe.save(tmp_path)
    left = saving.begin(tmp_path, moe._saved.saves)
    (tmp_path / left.folder / "layer-0-common.npz").write_text("half")
    assert names(tmp_path) == ["saved-1", "saved-2", "saved.json"]
    saving.RUNNING.remove(left.id)  # as after Ctrl-C
    moe.save(tmp_path)
    assert names(tmp_path) == ["saved-2", "saved.json"]
    left = saving.begin(tmp_path, moe._saved.saves)
    mark = tmp_path / left.folder / saving.MARK
    written = json.loads(mark.read_text())
    mark.write_text(json.dumps(written | {"writer": written["writer"] | {"place": "another machine"}}))
    begun = saving.begin(tmp_path, moe._saved.saves)
    assert (tmp_path / left.folder).exists()  # its writer on the other machine may still run
    saving.undo(tmp_path, begun)
    moe.save(tmp_path)
    assert names(tmp_path) == ["saved-3", "saved-4", "saved.json"]  # that writer may be about to replace saved.json
    moe.save(tmp_path)
    assert names(tmp_path) == ["saved-5", "saved.json"]  # by now that writer would be refused


def test_the_largest_number_of_a_folder_is_followed_by_the_smallest_free_one(moe, tmp_path):
    moe.save(tmp_path)
    content = json.loads((tmp_path / "saved.json").read_text()) | {"folder": f"saved-{'9' * 18}"}
    del content["digest"]
    content["digest"] = saving.digest_of(saving.canonical(content))
    (tmp_path / "saved-1").rename(tmp_path / content["folder"])
    (tmp_path / "saved.json").write_text(json.dumps(content))
    moe.restore(tmp_path)
    moe.save(tmp_path)
    moe.restore(tmp_path)
    assert saving.read_manifest(tmp_path).folder == "saved-1"


def test_no_folder_gets_a_number_above_the_largest(moe, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "LARGEST", 3)
    for _ in range(2):
        moe.save(tmp_path)
    (tmp_path / "saved-3").mkdir()
    moe.save(tmp_path)
    assert names(tmp_path) == ["saved-1", "saved-3", "saved.json"]


def test_a_file_in_a_folder_that_is_being_removed_blocks_no_later_save(moe, tmp_path, monkeypatch):
    rename = Path.rename

    def straggle(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        if moved.name.startswith(".saved-aside"):
            (moved / ".nfs1").touch()
        return moved

    moe.save(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", straggle)
        moe.save(tmp_path)
    moe.save(tmp_path)
    left, *others = names(tmp_path)
    assert others == ["saved-3", "saved.json"]
    (tmp_path / left / ".nfs1").unlink()
    moe.save(tmp_path)
    assert names(tmp_path) == ["saved-4", "saved.json"]


def test_undo_removes_no_folder_without_a_mark(tmp_path):
    begun = saving.begin(tmp_path, ())
    (tmp_path / begun.folder / saving.MARK).unlink()
    (tmp_path / begun.folder / "dense.npz").write_text("mine")
    saving.undo(tmp_path, begun)
    assert names(tmp_path / begun.folder) == ["dense.npz"]


def test_a_writer_of_another_user_is_not_known_to_have_ended(moe, tmp_path, monkeypatch):
    moe.save(tmp_path)
    left = saving.begin(tmp_path, moe._saved.saves)
    mark = tmp_path / left.folder / saving.MARK
    written = json.loads(mark.read_text())
    mark.write_text(json.dumps(written | {"writer": written["writer"] | {"started": "1"}}))
    user = os.geteuid()
    for other, ended in ((user + 1, False), (user, True)):
        monkeypatch.setattr(os, "geteuid", lambda other=other: other)
        saving.undo(tmp_path, saving.begin(tmp_path, moe._saved.saves))
        assert (tmp_path / left.folder).exists() is not ended


def test_an_object_replaces_no_save_that_it_has_neither_made_nor_restored(moe, tmp_path):
    moe.save(tmp_path)
    with MoE(CFG, threads=1, train=True) as other:
        other.load(**W)
        up(other, 2.0)
        with pytest.raises(
            CheckpointError, match=r"neither made nor restored.*: restore\(\) that save first .* save else"
        ):
            other.save(tmp_path)
        assert names(tmp_path) == ["saved-1", "saved.json"]
        other.restore(tmp_path)  # a program that continues a run does this
        up(other, 3.0)
        other.save(tmp_path)
        with pytest.raises(CheckpointError, match="neither made nor restored"):
            moe.save(tmp_path)
        moe.restore(tmp_path)
        assert first_up(moe) == 3.0
        (tmp_path / "saved.json").unlink()
        other.save(tmp_path)
        assert names(tmp_path) == ["saved-1", "saved.json"]


def test_one_of_two_objects_that_save_at_once_is_refused(moe, tmp_path):
    begun = saving.begin(tmp_path, set())
    up(moe, 4.0)
    moe.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"another object has saved into .* meanwhile"):
        saving.finish(tmp_path, begun, {})
    moe.restore(tmp_path)
    assert first_up(moe) == 4.0


NOTHING: dict[str, Any] = {"layers": [], "optimizer": None, "extra": {}, "files": {}}


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "locks that do not reach the other host"])
def test_two_writers_that_replace_a_save_at_the_same_moment_leave_a_whole_save(tmp_path, monkeypatch, locks):
    """The first writer is stopped between its last check and the replacement of saved.json."""
    saving.finish(tmp_path, saving.begin(tmp_path, ()), NOTHING)
    old = saving.read_manifest(tmp_path).id
    begun = [saving.begin(tmp_path, {old}) for _ in range(2)]
    ended, replace_file = threading.Event(), os.replace
    said: dict[int, str] = {}

    def finish(number: int) -> None:
        try:
            saving.finish(tmp_path, begun[number], NOTHING)
            said[number] = "saved"
        except CheckpointError as error:
            said[number] = str(error)

    other = threading.Thread(target=lambda: (finish(1), ended.set()))

    def replaced(source: Path, target: Path) -> None:
        if threading.current_thread() is not other:
            other.start()
            assert ended.wait(0.5 if locks else 60) is not locks
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", replaced)
    if not locks:
        monkeypatch.setattr(saving.atomic_file, "locked", lambda path, seconds: contextlib.nullcontext())
    finish(0)
    other.join(60)
    kept = saving.read_manifest(tmp_path)
    assert kept.id == begun[0].id
    assert names(tmp_path / kept.folder) == [saving.MARK]
    assert said == {
        0: "saved",
        1: f"another object has saved into {tmp_path} meanwhile: that save stays; save elsewhere",
    } | ({} if locks else {1: "saved"})


def test_a_save_whose_mark_was_removed_is_refused(tmp_path):
    saving.finish(tmp_path, saving.begin(tmp_path, ()), NOTHING)
    old = saving.read_manifest(tmp_path)
    begun = saving.begin(tmp_path, {old.id})
    shutil.rmtree(tmp_path / begun.folder)
    (tmp_path / begun.folder).mkdir()
    with pytest.raises(CheckpointError, match=r"folder\.json was removed or changed meanwhile: save again"):
        saving.finish(tmp_path, begun, NOTHING)
    assert saving.read_manifest(tmp_path) == old


def test_a_save_that_waits_too_long_for_another_writer_names_the_lock(moe, tmp_path, monkeypatch):
    moe.save(tmp_path)
    monkeypatch.setattr(saving, "LOCK_SECONDS", 0.1)
    with (
        saving.atomic_file.locked(tmp_path / "saved.json", 1.0),
        pytest.raises(CheckpointError, match=r"another writer held .*saved\.json\.lock for 0\.1 s; if no writer runs"),
    ):
        moe.save(tmp_path)
    moe.save(tmp_path)


def test_a_save_stops_waiting_for_the_lock_before_other_ranks_time_out(tmp_path):
    assert saving.lock_seconds(1200.0) == 60
    with MoE(CFG, threads=1, train=True, absent_timeout=0.2) as moe:
        moe.load(**W)
        moe.save(tmp_path)
        with (
            saving.atomic_file.locked(tmp_path / "saved.json", 1.0),
            pytest.raises(
                CheckpointError, match=r"another writer held .*saved\.json\.lock for 0\.1 s; if no writer runs"
            ),
        ):
            moe.save(tmp_path)
        moe.save(tmp_path)


def test_undo_removes_no_folder_that_saved_json_might_name(moe, tmp_path):
    moe.save(tmp_path)
    begun = saving.begin(tmp_path, moe._saved.saves)
    (tmp_path / "saved.json").write_text("{")
    saving.undo(tmp_path, begun)
    assert names(tmp_path) == ["saved-1", "saved-2", "saved.json"]


# ------------------------------------------------------------ crashes

EVENTS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.listdir", "os.scandir"}


def child(moe: MoE, folder: Path, number: int, fail: bool) -> int:
    """Save in a fork. Before its `number`-th operation on a file it is killed, or that operation fails if `fail`."""
    process = os.fork()
    if process == 0:
        left = number

        def hook(event: str, given: tuple[Any, ...]) -> None:
            nonlocal left
            if event in EVENTS and not str(given[0]).startswith("/proc"):
                left -= 1
                if left == 0:
                    if not fail:
                        os.kill(os.getpid(), signal.SIGKILL)
                    raise OSError(errno.EIO, os.strerror(errno.EIO))

        code = 1
        try:
            moe.runtime._pid = os.getpid()  # forks are refused, because they lack the threads; save needs none
            sys.addaudithook(hook)
            with contextlib.suppress(CheckpointError):
                moe.save(folder)
                code = 0
            code = 0 if left > 0 else code + 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    "fail", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["killed", "a disk that fails"]
)
def test_a_save_that_ends_at_any_operation_leaves_the_old_or_the_new_save(moe, tmp_path, fail):
    moe.save(tmp_path / "first")
    seen = set()
    for number in range(1, 200):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "first", folder)
        up(moe, 2.0)
        code = child(moe, folder, number, fail)
        if code == 0:
            break
        assert code in ((2, 3) if fail else (-signal.SIGKILL,))
        moe.restore(folder)
        seen.add(first_up(moe))
        if code == 2:  # save has returned
            assert first_up(moe) == 2.0
        up(moe, 5.0)
        moe.save(folder)
        up(moe, 0.0)
        moe.restore(folder)
        assert first_up(moe) == 5.0
        kept = saving.read_manifest(folder).folder
        assert names(folder) == [kept, "saved.json"]
    assert 10 < number < 199
    assert seen == {float(W["up"].flat[0]), 2.0}


# ------------------------------------------------------------ what restore believes


def test_a_changed_manifest_and_files_of_others_are_refused_before_anything_changes(moe, tmp_path):
    optimizer = Adam(moe)
    moe.save(tmp_path, optimizer)
    up(moe, 7.0)
    manifest = tmp_path / "saved.json"
    text = manifest.read_text()
    for changed in (
        text.replace('"Adam",\n  0', '"Adam",\n  8'),
        text.replace("12", "13"),
        text[:-2],
        "[]",
        "[" * 10**5,
    ):
        assert changed != text
        manifest.write_text(changed)
        with pytest.raises(CheckpointError, match=r"saved\.json is damaged, .*: put back a copy of the file, or rem"):
            moe.restore(tmp_path, optimizer)
        with pytest.raises(
            CheckpointError, match=r"saved\.json is damaged, .* or remove the file to give that save up$"
        ):
            moe.save(tmp_path, optimizer)
    manifest.write_text(text)
    one, other, common = (tmp_path / "saved-1" / saved_files.name_of(0, expert) for expert in (0, 1, -1))
    contents = [path.read_bytes() for path in (one, other)]
    one.write_bytes(contents[1]), other.write_bytes(contents[0])
    with pytest.raises(
        CheckpointError,
        match=r"expert-0.npz is damaged, or belongs to another save: the file has other content than was saved",
    ):
        moe.restore(tmp_path, optimizer)
    one.write_bytes(contents[0]), other.write_bytes(contents[1] + b"\0")
    with pytest.raises(CheckpointError, match=rf"expert-1.npz is .*: the file has {len(contents[1]) + 1} bytes, not"):
        moe.restore(tmp_path, optimizer)
    other.write_bytes(contents[1])
    common.unlink()
    with pytest.raises(CheckpointError, match=r"common.npz is missing"):
        moe.restore(tmp_path, optimizer)
    assert (first_up(moe), optimizer.steps) == (7.0, 0)


def test_what_is_no_regular_file_is_refused_at_once(moe, tmp_path):
    moe.save(tmp_path)
    file = tmp_path / "saved-1" / saved_files.name_of(0, 1)
    for path in (file, tmp_path / "saved.json"):
        for make in (os.mkfifo, lambda at: os.symlink("/dev/zero", at)):
            path.rename(tmp_path / "aside")
            make(path)
            with pytest.raises(
                CheckpointError, match=r"cannot be read: must be a regular file, but it is a (pipe|dev)"
            ):
                moe.restore(tmp_path)
            path.unlink()
            (tmp_path / "aside").rename(path)
    moe.restore(tmp_path)
    os.unlink(tmp_path / "saved-1" / saving.MARK)
    os.mkfifo(tmp_path / "saved-1" / saving.MARK)
    moe.save(tmp_path)
    moe.restore(tmp_path)


def test_a_link_that_leads_nowhere_is_named(moe, tmp_path):
    (tmp_path / "saved.json").symlink_to("elsewhere.json")
    said = r"saved\.json is a link to elsewhere\.json, which does not exist: put that file back, or remove the link"
    for act in (moe.save, moe.restore):
        with pytest.raises(CheckpointError, match=said):
            act(tmp_path)
    assert names(tmp_path) == ["saved.json"]


def test_a_directory_without_a_name_is_refused(moe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for act in (moe.save, moe.restore):
        with pytest.raises(
            InputError, match=r"directory must have a name, got '': pass '\.' for the current directory"
        ):
            act("")
    assert names(tmp_path) == []
    moe.save(".")
    moe.restore(tmp_path)


def test_a_file_that_cannot_be_opened_is_not_called_damaged(moe, tmp_path, monkeypatch):
    moe.save(tmp_path)
    for code, said in (
        (errno.EMFILE, r"Too many open files: close files, or allow more \(ulimit -n\)$"),
        (errno.EIO, "In"),
    ):
        for name in ("saved.json", saved_files.name_of(0, 0)):

            def opened(path: Any, *most: Any, code: int = code, name: str = name) -> Any:
                if Path(path).name == name:
                    raise OSError(code, os.strerror(code), str(path))
                return open(path, "rb")

            with monkeypatch.context() as patched:
                patched.setattr(regular, "opened", opened)
                with pytest.raises(CheckpointError, match=f"{name} cannot be read: {said}"):
                    moe.restore(tmp_path)


def written_by_schema_1(folder: Path, moe: MoE, optimizer: Any) -> None:
    """Write a save as earlier versions did: without digests, ids and a mark."""
    (folder / "saved-4").mkdir()
    for expert in (0, 1, -1):
        np.savez(folder / "saved-4" / saved_files.name_of(0, expert), **moe._saved.parts(0, optimizer)[expert])
    np.savez(folder / "saved-4" / "dense.npz", **optimizer.dense_arrays())
    layers = [repr(replace(CFG, max_tokens=1))]
    about = {"schema": "aristos-training/1", "folder": "saved-4", "layers": layers, "optimizer": ["Adam", 11]}
    (folder / "saved.json").write_text(json.dumps(about, indent=1))


def test_a_save_of_schema_1_is_restored_and_then_replaced(moe, tmp_path):
    dense = {"head": np.ones(3, np.float32)}
    optimizer = Adam(moe, dense=dense)
    written_by_schema_1(tmp_path, moe, optimizer)
    up(moe, 7.0)
    dense["head"][:] = 7
    with pytest.raises(CheckpointError, match="neither made nor restored"):
        moe.save(tmp_path, optimizer)
    assert moe.restore(tmp_path, optimizer) == {}
    assert (first_up(moe), optimizer.steps, dense["head"].tolist()) == (float(W["up"].flat[0]), 11, [1, 1, 1])
    moe.save(tmp_path, optimizer, {"step": 11})
    assert names(tmp_path) == ["saved-5", "saved.json"]
    assert moe.restore(tmp_path, optimizer) == {"step": 11}


@pytest.mark.parametrize("schema", [1, 2])
def test_only_fields_that_differ_are_named(moe, tmp_path, schema):
    if schema == 1:
        written_by_schema_1(tmp_path, moe, Adam(moe))
    else:
        moe.save(tmp_path)
    cfg = replace(CFG, top_k=1, gated=True, max_tokens=99)
    with MoE(cfg, threads=1, train=True) as other:
        other.load(**reference.weights(cfg))
        with pytest.raises(CheckpointError) as caught:
            other.restore(tmp_path)
    said = (
        f"{tmp_path} must hold layers like this object's, but layer 0 differs: top_k: the save has 2, this object has"
        " 1;"
    )
    assert str(caught.value) == f"{said} gated: the save has False, this object has True"


# ------------------------------------------------------------ what save accepts

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(width=64) | st.text(max_size=5)
VALUES = st.recursive(
    PLAIN, lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=3), each, max_size=3)
)
EXTRA = st.dictionaries(st.text(max_size=3) | st.integers(), VALUES, max_size=3)
NAMES = st.sampled_from(
    ["norm", "norm.mean", "norm.velocity", "file", "allow_pickle", "a/../b", "x.npy", "", "\0", "ü", 0]
)
ARRAYS = st.builds(
    lambda shape, order, seed: np.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32), order=order),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from("CF"),
    st.integers(0, 9),
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    dense=st.dictionaries(NAMES | st.text(max_size=4), ARRAYS, max_size=3),
    extra=st.none() | EXTRA,
    kind=st.sampled_from([Adam, SGD]),
    steps=st.integers(-1, 3),
)
def test_what_save_accepts_restore_gives_back(moe, tmp_path, dense, extra, kind, steps):
    before = (tmp_path / "saved.json").read_bytes() if (tmp_path / "saved.json").exists() else None
    folder = names(tmp_path)
    try:
        optimizer = kind(moe, 0.1, dense=dense)
        optimizer.steps = steps
        moe.save(tmp_path, optimizer, extra)
    except InputError:
        assert names(tmp_path) == folder
        assert before is None or (tmp_path / "saved.json").read_bytes() == before
        return
    kept = {name: array.copy() for name, array in dense.items()}
    for array in (*dense.values(), *(a for state in optimizer.dense_states.values() for a in state.values())):
        array[...] = -7
    optimizer.steps = 99
    up(moe, -7.0)
    found = moe.restore(tmp_path, optimizer)
    assert found == (extra or {})
    assert json.dumps(found) == json.dumps(extra or {})  # as text, because 1, 1.0 and True are equal
    assert optimizer.steps == steps
    assert all(array.tobytes() == kept[name].tobytes() for name, array in dense.items())
    assert all(not a.any() for state in optimizer.dense_states.values() for a in state.values())
    assert first_up(moe) == float(W["up"].flat[0])


def test_names_and_values_that_would_be_lost_are_refused(moe, tmp_path):
    one = np.ones(3, np.float32)
    for dense, said in (
        (
            {"norm": one, "norm.mean": one},
            "dense arrays norm and norm.mean would both be saved as norm.mean: rename one",
        ),
        ({0: one}, "names of dense arrays must have 1 to 200 printable characters, got 0"),
        ({"a\0": one}, "printable"),
    ):
        with pytest.raises(InputError, match=said):
            Adam(moe, dense=dense)  # type: ignore[arg-type]
    optimizer = Adam(moe, dense={"norm": one})
    optimizer.dense["new"] = one
    with pytest.raises(InputError, match=r"dense must have the same names .*; these are new or missing: \['new'\]"):
        moe.save(tmp_path, optimizer)
    deep: Any = {}
    for _ in range(30):
        deep = {"a": deep}
    for extra, said in (
        ([1], r"extra must be a dict, got \[1\]"),
        ({"loss": float("nan")}, r"extra\['loss'\] must be None, .* got nan"),
        ({"a": [one]}, r"extra\['a'\]\[0\] must be .*: save an array as its tolist\(\)"),
        ({1: 2}, "keys of extra must be strings, got 1"),
        ({"a": (1, 2)}, r"extra\['a'\] must be"),
        ({"loss": np.float64(2)}, r"extra\['loss'\] must be .* own types, .* a NumPy number as its item\(\)"),
        ({"a": OrderedDict(b=1)}, r"extra\['a'\] must be"),
        (OrderedDict(b=1), "extra must be a dict, got OrderedDict"),
        ({"a": np.str_("b")}, r"extra\['a'\] must be"),
        ({"a": signal.SIGINT}, r"extra\['a'\] must be"),
        ({"a": "x" * (1 << 20)}, "extra must have at most 1048576 bytes as JSON, got 1048585"),
        ({"a": 10**5000}, "extra cannot be saved"),
        (deep, "is nested too deep"),
    ):
        with pytest.raises(InputError, match=said):
            moe.save(tmp_path, None, extra)
    assert names(tmp_path) == []
    with MoE(CFG, threads=1, train=True) as other:
        other.load(**W)
        with pytest.raises(InputError, match="optimizer must belong to this layer object"):
            other.save(tmp_path, optimizer)


@pytest.mark.ranks(2)
def test_ranks_that_save_or_restore_different_things_are_refused_before_the_old_save_is_touched(comm, tmp_path_factory):
    base = comm.bcast(tmp_path_factory.mktemp("saved") if comm.rank == 0 else None)
    folder = base / "one"
    with MoE(CFG, comm, threads=1, train=True) as moe:
        moe.load(**W)
        adam, sgd = Adam(moe), SGD(moe, 0.1)
        moe.save(base / "other", adam)
        moe.save(folder, adam, {"step": 1})
        assert moe.restore(folder, adam) == {"step": 1}
        manifest = (folder / "saved.json").read_bytes()
        odd = comm.rank == 1
        for optimizer, extra, said in (
            (None if odd else adam, None, "differ in what they save: optimizer: rank 0 has Adam, rank 1 has None$"),
            (sgd if odd else adam, None, "save: optimizer: rank 0 has Adam, rank 1 has SGD"),
            (adam, {"step": comm.rank}, r'save: extra: rank 0 has {"step": 0}, rank 1 has {"step": 1}$'),
        ):
            with pytest.raises(MismatchError, match=said):
                moe.save(folder, optimizer, extra)
        with pytest.raises(InputError if odd else PeerInputError, match="keys of extra must be strings, got 0"):
            moe.save(folder, adam, {0: 1} if odd else {})
        adam.steps += comm.rank
        with pytest.raises(MismatchError, match=r"save: steps: rank 0 has 0, rank 1 has 1$"):
            moe.save(folder, adam)
        with pytest.raises(MismatchError, match="differ in what they restore: save: rank 0 has"):
            moe.restore(folder if odd else base / "other", adam)
        with pytest.raises(MismatchError, match=r"restore: optimizer: rank 0 has Adam, rank 1 has None$"):
            moe.restore(folder, None if odd else adam)
        assert (folder / "saved.json").read_bytes() == manifest
        assert names(folder) == ["saved-1", "saved.json"]
        third = base / "third"
        said = "saved-1 is not the folder that rank 0 has made for this save: all ranks need the same directory on the"
        with pytest.raises(CheckpointError if odd else PeerInputError, match=said):
            moe.save(base / "other" if odd else third, sgd)
        comm.Barrier()
        assert (names(base / "other"), names(third)) == (["saved-1", "saved.json"], [])
        moe.restore(folder, adam)
        moe.save(folder, adam)
        comm.Barrier()
        assert names(folder) == ["saved-2", "saved.json"]

"""Compiled code lies only in private folders: no links, closed to other users, and not replaceable by them."""

from __future__ import annotations

import os
import pickle
import stat
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from aristos.errors import EnvironmentProblem
from kernel_cache import code_files, private
from kernel_cache import compile as compiling


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A private folder three levels below tmp_path, made under the umask of a group that shares its files."""
    before = os.umask(0o002)
    try:
        private.make(tmp_path / "root" / "key" / "module")
    finally:
        os.umask(before)
    return tmp_path / "root" / "key" / "module"


def test_made_folders_and_files_are_closed_to_others_whatever_the_umask(folder):
    private.write(folder / "file", b"code")
    assert [mode(path) for path in (folder, folder.parent, folder.parent.parent)] == [0o700] * 3
    assert mode(folder / "file") == 0o600
    assert private.read(folder / "file") == b"code"
    assert os.listdir(folder) == ["file"]


def open_to(place: str, bits: int) -> Callable[[Path], None]:
    return lambda folder: {"module": folder, "root": folder.parent.parent}[place].chmod(bits)


def link(folder: Path) -> None:
    """Move the file's folder away, and put a link to it in its place."""
    folder.rename(folder.with_name("moved"))
    folder.symlink_to("moved")


def linked_above(folder: Path) -> None:
    link(folder.parent)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (open_to("module", 0o720), "module, which others can write to"),
        (open_to("module", 0o750), "module, which others can read"),
        (open_to("root", 0o777), "a folder inside .*root: others can write to .*root"),
        (link, "module, which is a link"),
        (linked_above, "a folder inside .*key: .*key is a link"),
    ],
)
def test_a_folder_is_checked_whenever_a_file_is_read(folder, change, words):
    private.write(folder / "file", b"code")
    change(folder)
    with pytest.raises(
        EnvironmentProblem, match=f"not loaded from .*{words}: remove that file or folder, or export ARISTOS_CACHE"
    ):
        private.read(folder / "file")


def test_a_sticky_folder_above_is_fine(folder):
    folder.parent.parent.chmod(0o1777)
    assert private.problem(folder) == ""


@pytest.mark.parametrize("which", ["module", "key", "file"])
def test_what_belongs_to_another_user_is_refused(folder, monkeypatch, which):
    """The test changes nothing but the owner of one path."""
    private.write(folder / "file", b"code")
    other = {"module": folder, "key": folder.parent, "file": folder / "file"}[which].stat()

    def owned(stat_of: Callable) -> Callable:
        def get(*args: object) -> os.stat_result:
            found = stat_of(*args)
            return os.stat_result((*found[:4], 12345, *found[5:])) if found.st_ino == other.st_ino else found

        return get

    monkeypatch.setattr(Path, "lstat", owned(Path.lstat))
    monkeypatch.setattr(private.os, "fstat", owned(os.fstat))
    with pytest.raises(EnvironmentProblem, match="belongs to user 12345: remove that file or folder"):
        private.read(folder / "file")


def test_a_linked_or_open_file_is_refused(folder, tmp_path):
    private.write(folder / "file", b"code")
    (folder / "link").symlink_to("file")
    with pytest.raises(OSError, match="symbolic links"):
        private.read(folder / "link")
    (folder / "file").chmod(0o620)
    with pytest.raises(EnvironmentProblem, match="file, which others can write to"):
        private.read(folder / "file")
    os.mkfifo(folder / "pipe")
    with pytest.raises(EnvironmentProblem, match="pipe, which is not a file"):
        private.read(folder / "pipe")


def test_a_folder_that_others_can_only_read_is_closed(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old").chmod(0o755)
    private.make(tmp_path / "old")
    assert mode(tmp_path / "old") == 0o700


def test_a_shared_cache_is_an_explicit_setting(folder, monkeypatch):
    folder.parent.parent.chmod(0o770)
    with pytest.raises(EnvironmentProblem, match="ARISTOS_CACHE_SHARED=1 accepts the folder"):
        private.make(folder)
    monkeypatch.setenv(private.SETTING, "1")
    private.make(folder.parent.parent / "new" / "module")
    private.write(folder.parent.parent / "new" / "module" / "file", b"code")
    assert mode(folder.parent.parent / "new" / "module") == 0o770
    assert mode(folder.parent.parent / "new" / "module" / "file") == 0o660


class Planted:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def function(x: int) -> int:
    return x


def locator(folder: Path) -> type[code_files.Locator]:
    class Place(code_files.Locator):
        def get_cache_path(self) -> str:
            return str(folder)

        def get_source_stamp(self) -> str:
            return "stamp"

    return Place


def test_a_planted_index_is_not_run(folder, tmp_path):
    """An index is not unpickled if others could have written it, or if its hash is missing."""
    files = code_files.FunctionCache(function, locator(folder))._cache_file
    files.save("key", b"code")
    assert files.load("key") == b"code"
    (index,) = folder.glob("*.nbi")
    index.write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
    with pytest.warns(UserWarning, match="is damaged"):
        assert files.load("key") is None
    private.write(index, pickle.dumps(Planted(tmp_path / "ran")))
    folder.chmod(0o770)
    with pytest.raises(EnvironmentProblem, match="not loaded from"):
        files.load("key")
    assert not (tmp_path / "ran").exists()
    folder.chmod(0o700)
    files._load_index = lambda: {"key": "planted"}
    private.write(folder / "planted", pickle.dumps(Planted(tmp_path / "ran")))
    files.load("key")
    assert (tmp_path / "ran").exists(), "the test plants nothing that runs"


def test_damaged_code_is_missing_code(folder):
    files = code_files.FunctionCache(function, locator(folder))._cache_file
    files.save("key", b"code" * 100)
    for path in folder.iterdir():
        whole = path.read_bytes()
        for damaged in (b"", whole[:50], whole[:80], whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
            path.write_bytes(damaged)
            with pytest.warns(UserWarning, match="is damaged"):
                assert files.load("key") is None
        path.write_bytes(whole)
    assert files.load("key") == b"code" * 100


@pytest.fixture
def fresh(monkeypatch, tmp_path) -> Path:
    """The place of the cache in a new environment. `cache_folder.__wrapped__` chooses the folder again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ARISTOS_CACHE", raising=False)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(compiling.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    return tmp_path / "home" / "aristos"


def test_the_root_and_the_folder_of_the_versions_are_private(fresh):
    fresh.mkdir(parents=True)
    fresh.chmod(0o755)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compiling.cache_folder.__wrapped__()
    assert found.parent == fresh
    assert (mode(fresh), mode(found)) == (0o700, 0o700)


@pytest.mark.parametrize("change", ["writable", "link"])
def test_a_root_that_is_not_private_is_refused_and_the_temporary_folder_used(fresh, tmp_path, change):
    """The root in the home folder is refused, and so is one in the temporary folder that somebody else made first."""
    temporary = tmp_path / "tmp" / f"aristos-{os.getuid()}"
    for root in (fresh, temporary):
        root.parent.mkdir(exist_ok=True)
        if change == "link":
            (tmp_path / "other").mkdir(exist_ok=True)
            root.symlink_to(tmp_path / "other")
        else:
            root.mkdir()
            root.chmod(0o775)
    with pytest.warns(
        UserWarning, match="not loaded from .*remove that file or folder, or export ARISTOS_CACHE"
    ) as warned:
        found = compiling.cache_folder.__wrapped__()
    assert len(warned) == 2
    assert found.parent.parent == tmp_path / "tmp"
    assert found.parent != temporary
    assert mode(found.parent) == 0o700


def test_a_link_above_the_root_is_followed_once(fresh, tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "scratch")
    assert compiling.cache_folder.__wrapped__().parent == tmp_path / "scratch" / "aristos"

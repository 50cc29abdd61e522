"""Checkpoints on a disk that is full or cannot be written."""

from __future__ import annotations

import errno
import os
import pathlib

import numpy as np
import pytest

from aristos.errors import CheckpointError
from aristos.layer import saved_files, saving

LOCK = f"{saving.MANIFEST}.lock"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, r"No space left on device: 400 bytes are needed in .*, \d+ are free: free some space, or save"),
        (errno.EDQUOT, r"Disk quota exceeded: 400 bytes are needed in .*, \d+ are free: free some space, or save"),
        (errno.EROFS, "cannot be written: Read-only file system: save elsewhere$"),
    ],
)
def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch, code, message):
    """The message has the bytes that are free after the unfinished file has been removed."""

    def fail(number: int) -> None:
        raise OSError(code, os.strerror(code))

    path = tmp_path / "layer.npz"
    real = os.statvfs

    def statvfs(folder):
        assert not path.exists()
        return real(folder)

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(os, "statvfs", statvfs)
    with pytest.raises(CheckpointError, match=message):
        saved_files.write_arrays(path, {"up": np.zeros(100, np.float32)})
    assert not path.exists()


def test_a_failed_save_leaves_the_previous_checkpoint(tmp_path):
    saving.undo(tmp_path, saving.begin(tmp_path, set()))
    assert os.listdir(tmp_path) == [LOCK]
    first = saving.begin(tmp_path, set())
    saving.finish(tmp_path, first, {"layers": [], "optimizer": None, "extra": {}, "files": {}})
    saving.undo(tmp_path, first)  # the failure comes after saved.json was replaced
    second = saving.begin(tmp_path, {first.id})
    saving.undo(tmp_path, second)
    assert second.folder != first.folder
    assert set(os.listdir(tmp_path)) == {first.folder, saving.MANIFEST, LOCK}


def test_a_folder_that_cannot_be_marked_is_removed(tmp_path, monkeypatch):
    def full(*given: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        saving.begin(tmp_path, set())
    assert os.listdir(tmp_path) == [LOCK]

"""A checkpoint on a disk that cannot take it."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from aristos.errors import CheckpointError
from aristos.layer import saving


def test_a_file_that_cannot_be_written_is_named_with_what_is_free(tmp_path, monkeypatch):
    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        CheckpointError, match=r"No space left on device: 400 bytes are needed .* are free; .* elsewhere"
    ):
        saving.write_arrays(tmp_path / "layer.npz", {"up": np.zeros(100, np.float32)})

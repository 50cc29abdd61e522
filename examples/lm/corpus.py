"""Python's standard library as bytes: text to learn from that is on every machine with Python."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
HELD_OUT = 20  # of this many files one is for validation
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"}


def files(folder: Path | None = None) -> list[Path]:
    """The sources below `folder`, the standard library by default, without tests and installed packages; sorted."""
    folder = folder or Path(sysconfig.get_path("stdlib"))
    found = [f for f in folder.rglob("*.py") if not SKIPPED & set(f.relative_to(folder).parts)]
    return sorted(found, key=lambda f: f.relative_to(folder).as_posix())


def load(folder: Path | None = None) -> tuple[Bytes, Bytes]:
    """(training, validation) bytes: whole files one after another."""
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for i, file in enumerate(files(folder)):
        parts[i % HELD_OUT == HELD_OUT - 1].append(file.read_bytes())
    training, validation = (np.frombuffer(b"".join(part), np.uint8) for part in parts)
    return training, validation


def batch(text: Bytes, sequences: int, length: int, *key: int) -> NDArray[np.int64]:
    """Random windows of the text: [sequences, length + 1]. key: seed and step, so that all ranks draw the same."""
    starts = np.random.default_rng(list(key)).integers(0, len(text) - length, sequences)
    return text[starts[:, None] + np.arange(length + 1)].astype(np.int64)

"""A trained layer object on disk: the old state or the new one, never a half; for any number of ranks.

`dir/saved.json` names the folder of what was saved last. For each layer the folder has one file for each expert, which
the first rank that holds the expert writes, and one for router and shared expert, which rank 0 writes. A file is
NumPy's npz: arrays by `load`'s names, the optimizer's states as `name.state`. Rank 0 also writes a file of the
optimizer's dense arrays and their states. A save writes a new folder, syncs it, replaces saved.json, and only then
removes the old folder. All ranks need the same file system. Not a format for other programs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import MoEConfig
from ..errors import AristosError, CheckpointError, InputError, quoted
from ..primitives import regular
from ..results import atomic, npz
from .given import Arrays

if TYPE_CHECKING:
    from ..train import Optimizer
    from .collective import Collective

MANIFEST, DENSE, SCHEMA = "saved.json", "dense.npz", "aristos-training/1"
FOLDER = re.compile(r"saved-[0-9]{1,18}")
COMMON = -1  # instead of an expert's id: router and shared expert


def file_of(folder: Path, layer: int, expert: int) -> Path:
    """The file of an expert's arrays; with COMMON, of those of router and shared expert."""
    return folder / f"layer-{layer}-{'common' if expert == COMMON else f'expert-{expert}'}.npz"


def dense_arrays(optimizer: Optimizer) -> Arrays:
    """Views of an optimizer's dense arrays and of their states."""
    states = {f"{name}.{key}": a for name, each in optimizer.dense_states.items() for key, a in each.items()}
    return optimizer.dense | states


def together(layer: Collective, what: str, work: Callable[[], Any]) -> Any:
    """Do `work` on this rank; raises on every rank if it fails on one. Collective."""
    problem: AristosError | None = None
    found = None
    try:
        found = work()
    except AristosError as error:
        problem = error
    except (OSError, ValueError, KeyError) as error:
        problem = CheckpointError(f"cannot {what}: {type(error).__name__}: {error}")
    layer.agree(problem, f"to {what}")
    return found


def read_manifest(directory: Path) -> dict[str, Any]:
    """What saved.json holds: folder, layers, and the optimizer as [name, steps] or None. Raises CheckpointError."""
    path = directory / MANIFEST
    try:
        found = json.loads(regular.text(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist: give the directory that save() wrote") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {str(error)[:200]}") from error
    found = found if isinstance(found, dict) else {}
    if found.get("schema") != SCHEMA:
        raise CheckpointError(f"{path}: schema must be {SCHEMA}, got {quoted(found.get('schema'))}")
    folder, layers, optimizer = (found.get(key) for key in ("folder", "layers", "optimizer"))
    if not isinstance(folder, str) or not FOLDER.fullmatch(folder):
        raise CheckpointError(f"{path} is damaged: folder must be saved-1, saved-2, ..., got {quoted(folder)}")
    if not isinstance(layers, list) or not all(isinstance(each, str) for each in layers):
        raise CheckpointError(f"{path} is damaged: layers must be a list of texts, got {quoted(layers)}")
    parts = [type(each) for each in optimizer] if isinstance(optimizer, list) else None
    if optimizer is not None and parts != [str, int]:
        raise CheckpointError(f"{path} is damaged: optimizer must be null or [name, steps], got {quoted(optimizer)}")
    return {"folder": folder, "layers": layers, "optimizer": optimizer}


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write and sync a file of arrays. Raises CheckpointError; then there is no file."""
    try:
        with open(path, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        advice = "save elsewhere"
        if error.errno in atomic.FULL:
            needed = sum(array.nbytes for array in arrays.values())
            advice = f"{atomic.space(path.parent, needed)}: free some space, or save elsewhere"
        raise CheckpointError(f"{path} cannot be written: {os.strerror(error.errno or 0)}: {advice}") from error


def read_arrays(path: Path, wanted: dict[str, tuple[int, ...]], rest: bool) -> Arrays:
    """The arrays of a file, float32 of these names and shapes. rest: ignore others. Raises CheckpointError."""
    if not path.exists():
        raise CheckpointError(f"{path} is missing")
    try:
        arrays = npz.load(str(path), "the saved arrays")
    except InputError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    found = {name: array for name, array in arrays.items() if name in wanted or not rest}
    got = {name: array.shape for name, array in found.items()}
    if got != wanted or any(array.dtype != np.float32 for array in found.values()):
        raise CheckpointError(f"{path} must hold float32 arrays {wanted}, got {got}")
    return found


def described(cfgs: Sequence[MoEConfig]) -> list[str]:
    """Layers as a manifest names them. Without max_tokens: fewer ranks may restore them, with more tokens each."""
    return [repr(replace(cfg, max_tokens=1)) for cfg in cfgs]


def begin(directory: Path) -> str:
    """Make the folder of a new save, on rank 0; returns its name."""
    directory.mkdir(parents=True, exist_ok=True)
    last = int(read_manifest(directory)["folder"].rpartition("-")[2]) if (directory / MANIFEST).exists() else 0
    folder = directory / f"saved-{last + 1}"
    shutil.rmtree(folder, ignore_errors=True)  # left by a save that was interrupted
    folder.mkdir()
    atomic.sync(directory.parent)
    return folder.name


def undo(directory: Path, name: str) -> None:
    """Remove the folder of a save that has failed, on rank 0, unless saved.json names it already."""
    with contextlib.suppress(OSError):
        try:
            named = read_manifest(directory)["folder"]
        except CheckpointError:  # the first save
            named = ""
        if named != name:
            shutil.rmtree(directory / name)


def finish(directory: Path, name: str, about: dict[str, Any]) -> None:
    """Replace saved.json by one that names a complete folder, on rank 0, then remove all other folders."""
    for each in (directory / name, directory):
        atomic.sync(each)
    text = json.dumps({"schema": SCHEMA, "folder": name, **about}, indent=1)
    atomic.rewrite(directory / MANIFEST, lambda _: text.encode())
    for other in directory.glob("saved-*"):
        if other.name != name:
            shutil.rmtree(other, ignore_errors=True)

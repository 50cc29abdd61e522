"""A model directory: config.json, and the tensors of one or more safetensors files by name.

There is either one file `model.safetensors`, or there are shards with `model.safetensors.index.json`. A shard's header
is read when one of its tensors is asked for.
"""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_left
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from kernel_cache import regular

from ..errors import CheckpointError
from .safetensors import COPY, Entry, SafetensorsFile, named_twice, shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError, also if a name comes twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise CheckpointError(f"{path}: {shown(named_twice(pairs))} is named twice: {COPY}")
        return found

    try:
        found = json.loads(regular.text(path), object_pairs_hook=once)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({str(error)[:80]}): {COPY}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(found).__name__}: {COPY}")
    return found


class Directory:
    """The tensors of a model directory. All methods raise CheckpointError, with file, tensor and remedy."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not os.path.isdir(path):  # also False for a name that is too long
            raise CheckpointError(
                f"{path} must be a model directory with config.json and *.safetensors, but is no directory"
            )
        self._files: dict[str, SafetensorsFile] = {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The object in config.json."""
        return read_json(self.path / "config.json")

    @cached_property
    def where(self) -> dict[str, str]:
        """The file of every tensor, by the tensor's name."""
        if (self.path / SINGLE).exists():
            return dict.fromkeys(self._file(SINGLE).entries, SINGLE)
        if (self.path / INDEX).exists():
            return self._indexed()
        shards = sorted(file.name for file in self.path.iterdir() if SHARD.fullmatch(file.name))
        if not shards:
            others = sorted(f.name for f in self.path.iterdir() if f.suffix in (".bin", ".pt", ".pth", ".npz", ".gguf"))
            found = (
                f"; it has {', '.join(others[:3])}, which Aristos does not read: save the model as safetensors"
                if others
                else ""
            )
            raise CheckpointError(f"{self.path} has neither {SINGLE} nor {INDEX}{found}")
        return self._unindexed(shards)

    def _indexed(self) -> dict[str, str]:
        """The file of every tensor, from the index. The files must exist in this directory."""
        path = self.path / INDEX
        listed = read_json(path).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
            raise CheckpointError(
                f"{path}: weight_map must be a JSON object that names the file of each tensor: {COPY}"
            )
        for file in sorted(set(listed.values())):
            if Path(file).name != file or "\0" in file or not file.endswith(".safetensors"):
                raise CheckpointError(f"{path} names {shown(file)}, which is no safetensors file of this directory")
            if not os.path.isfile(self.path / file):  # also False for a name that is too long
                tensor = next(name for name, its in listed.items() if its == file)
                raise CheckpointError(
                    f"{path} says that tensor {shown(tensor)} lies in {shown(file)}, which is missing: download it too"
                )
        return listed

    def _unindexed(self, shards: list[str]) -> dict[str, str]:
        """The file of every tensor, from the shards' headers. No shard may be missing, and no tensor may come twice."""
        total = int(SHARD.fullmatch(shards[0])[2])  # type: ignore[index]
        wanted = [f"model-{i:05d}-of-{total:05d}.safetensors" for i in range(1, min(total, 99999) + 1)]
        missing = sorted(set(wanted) - set(shards))
        if missing or len(shards) != total:
            what = f"{missing[0]} is missing" if missing else f"there are {len(shards)} shards of {total}"
            raise CheckpointError(f"{self.path} has no {INDEX}, and {what}: download what is missing")
        found: dict[str, str] = {}
        for shard in shards:
            for name in self._file(shard).entries:
                if name in found:
                    raise CheckpointError(
                        f"{self.path / shard}: tensor {shown(name)} is in {found[name]} too, and only"
                        f" {INDEX} says which of them counts: download it"
                    )
                found[name] = shard
        return found

    def _file(self, name: str) -> SafetensorsFile:
        if name not in self._files:
            self._files[name] = SafetensorsFile(self.path / name)
        return self._files[name]

    def __contains__(self, name: str) -> bool:
        return name in self.where

    def names(self, prefix: str) -> list[str]:
        """Names of the tensors that begin with `prefix`."""
        names = self._sorted
        return names[bisect_left(names, prefix) : bisect_left(names, prefix + "\U0010ffff")]

    def numbers(self, layer: str, below: Iterable[str], outside: tuple[str, ...]) -> set[int]:
        """All numbers n for which a tensor is named PREFIX + layer.format(n=n) + one of `below`.

        PREFIX must not begin with one of `outside`.
        """
        number = re.escape(layer).replace(re.escape("{n}"), "([0-9]{1,9})")
        name = re.compile(rf"(?:^|.*?\.){number}(?:{'|'.join(map(re.escape, sorted(below)))})$")
        found = (name.match(each) for each in self.where if not each.startswith(outside))
        return {int(match[1]) for match in found if match}

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self.where)

    def entry(self, name: str) -> Entry:
        """A tensor's dtype and shape, from its file's header."""
        return self.file(name).entries[name]

    def file(self, name: str) -> SafetensorsFile:
        """The file that holds a tensor."""
        if name not in self.where:
            raise CheckpointError(f"{self.path} has no tensor {shown(name)}: is the download complete?")
        file = self._file(self.where[name])
        if name not in file.entries:
            raise CheckpointError(f"{file.path} must hold tensor {shown(name)}, as {INDEX} says, but does not: {COPY}")
        return file

    def refuse(self, name: str, why: str) -> NoReturn:
        """Raise CheckpointError for a tensor. why: what follows the tensor's name in the message."""
        raise CheckpointError(f"{self.file(name).path}: tensor {shown(name)}{why}")

    def array(self, name: str) -> np.ndarray:
        """A read-only view of a tensor's values. Nothing is read until they are used."""
        return self.file(name).array(name)

    def release(self, name: str, array: np.ndarray) -> None:
        """Drop the pages of a contiguous view of tensor `name` from this process."""
        self.file(name).release(array)

"""Saves a trained layer object and restores it. All ranks first agree on what is saved."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from kernel_cache.errors import quoted

from ..config import whole
from ..errors import AristosError, CheckpointError, InputError
from ..train import Optimizer
from . import saved_files, saving
from .backend import Backend
from .collective import agreed_alike
from .differences import Fields, differences
from .given import Arrays
from .pending import OpenCalls
from .saved_files import COMMON, DENSE, Recorded
from .training import Training

Extra = dict[str, Any]
MOST_EXTRA, DEEPEST = 1 << 20, 20  # most bytes of `extra` as JSON; how deep its lists and dicts may be nested


class _Found(NamedTuple):
    """What `restore` has read. parts: for each layer a dict from an expert's id, or COMMON, to its arrays."""

    parts: list[dict[int, Arrays]]
    dense: Arrays


class SavedWeights:
    """The weights of a layer object that is trained, on disk.

    saves: ids of the saves that this object has made or restored, and which it may therefore replace.
    """

    def __init__(self, training: Training, backend: Backend, calls: OpenCalls) -> None:
        self._training, self._backend, self._calls = training, backend, calls
        self._layers = range(training.layers)
        self.saves: set[str] = set()

    def save(
        self, directory: str | os.PathLike[str], optimizer: Optimizer | None = None, extra: Extra | None = None
    ) -> None:
        """Write the masters of all layers, and an optimizer's states, into a directory. Collective.

        After a crash at any moment, the directory has the earlier save or the new one, whole: see `layer/saving.py`.
        After an error the earlier save is still there. All ranks need the same file system. A save that this object has
        neither made nor restored is not replaced.

        Parameters
        ----------
        directory : path
            The directory, made if it does not exist.
        optimizer : Optimizer or None, default None
            An optimizer of this object, whose states and dense arrays are saved too.
        extra : JSON value or None, default None
            Whatever else the program needs to continue, such as {"step": 12}; `restore` returns it. It may consist of
            None, booleans, finite numbers, texts, lists, and dicts with texts as keys, all of Python's own types. As
            JSON it must have at most 1 MiB. It must be equal on all ranks.

        Raises
        ------
        InputError
            An argument does not fit, a step or a restore was interrupted while it wrote weights or states, or the layer
            was made without train=True.
        NotLoaded
            A layer has no weights.
        CheckpointError
            The directory cannot be written, or has a save that this object has neither made nor restored.
        PeerInputError
            Another rank raised one of these.
        MismatchError
            Ranks give different values of `extra`, or optimizers of different kinds.
        OpenCallError
            A call on the communicator is open.
        ClosedError
            The layer is closed.
        """
        self._calls.settled().refuse_open()
        training, everyone = self._training, self._training.everyone
        first = everyone.rank == 0

        def look() -> tuple[Path, Fields]:
            training.refuse_half_changed()
            for layer in self._layers:
                training.weights(layer)
            alike = {"extra": _json(extra)}
            if optimizer is not None:
                optimizer.refuse_half_changed()
            return _named(directory), alike | self._described(optimizer)

        folder = self._agree("save", look)
        seconds = saving.lock_seconds(everyone.limits.absent)
        begun = self._together("make a folder", lambda: saving.begin(folder, self.saves, seconds) if first else None)
        begun = everyone.allgather(begun, "the folder of save")[0]
        self.saves.add(begun.id)

        def write() -> dict[str, Recorded]:
            saving.check_place(folder, begun)
            files = {}
            for layer in self._layers:
                for expert, arrays in self.parts(layer, optimizer).items():
                    if training.saves(expert) if expert != COMMON else first:
                        name = saved_files.name_of(layer, expert)
                        files[name] = saved_files.write_arrays(folder / begun.folder / name, arrays)
            if first and optimizer is not None:
                files[DENSE] = saved_files.write_arrays(folder / begun.folder / DENSE, optimizer.dense_arrays())
            return files

        try:
            mine = self._together("save", write)
            files = {name: each for part in everyone.allgather(mine, "files of save") for name, each in part.items()}
            about = {
                "layers": saving.described(self._backend.cfgs),
                "optimizer": None if optimizer is None else [type(optimizer).__name__, optimizer.steps],
                "extra": extra or {},
                "files": files,
            }
            self._together("save", lambda: saving.finish(folder, begun, about, seconds) if first else None)
        except AristosError:
            if first:
                saving.undo(folder, begun, seconds)
            raise
        finally:
            saving.RUNNING.discard(begun.id)

    def restore(self, directory: str | os.PathLike[str], optimizer: Optimizer | None = None) -> Extra:
        """Restore the masters and an optimizer's states that `save` wrote, whatever the number of ranks. Collective.

        All layers must have been loaded before, with arrays of the same names. If an error is raised, nothing has
        changed on any rank.

        Parameters
        ----------
        directory : path
            The directory that `save` wrote.
        optimizer : Optimizer or None, default None
            An optimizer of this object, which takes its states and dense arrays.

        Returns
        -------
        JSON value
            The `extra` that `save` was given, {} if there was none.

        Raises
        ------
        CheckpointError
            There is no save, or it is damaged or of another model.
        InputError
            An argument does not fit, or the layer was made without train=True.
        NotLoaded
            A layer has no weights.
        PeerInputError
            Another rank raised one of these.
        MismatchError
            Ranks read different saves.
        OpenCallError
            A tape or a call on the communicator is open.
        ClosedError
            The layer is closed.
        """
        self._calls.settled().refuse_open()

        def look() -> tuple[saving.Manifest, Fields]:
            for layer in self._layers:
                self._calls.refuse_tapes(layer, "restore")
            about = saving.read_manifest(_named(directory))
            check_layers(directory, about.layers, saving.described(self._backend.cfgs))
            kind, saved = type(optimizer).__name__, None if about.optimizer is None else about.optimizer[0]
            if optimizer is not None and saved != kind:
                raise CheckpointError(
                    f"{directory} must hold states of the given optimizer's kind, {kind}, but was saved with"
                    f" {saved or 'no optimizer'}: give restore() an optimizer of the kind that was saved, or none"
                )
            return about, {"save": about.id} | self._described(optimizer, steps=False)

        about = self._agree("restore", look)
        found = self._together("restore", lambda: self._read(Path(directory) / about.folder, about, optimizer))
        with self._training.changing():
            if optimizer is not None:
                optimizer.half_changed = True
            for layer, parts in enumerate(found.parts):
                for expert, arrays in self.parts(layer, optimizer).items():
                    for name, array in arrays.items():
                        array[...] = parts[expert][name]
                self._training.update(layer)
            if optimizer is not None:
                optimizer.steps = about.optimizer[1]
                for name, array in optimizer.dense_arrays().items():
                    array[...] = found.dense[name]
                optimizer.half_changed = False
        self.saves.add(about.id)
        return about.extra

    def _read(self, folder: Path, about: saving.Manifest, optimizer: Optimizer | None) -> _Found:
        """Read and check all files that this rank needs. This changes nothing in the layers."""

        def arrays_of(name: str, arrays: Arrays, rest: bool) -> Arrays:
            if about.files is not None and name not in about.files:
                raise CheckpointError(
                    f"{folder.parent / saving.MANIFEST} does not name the file {name}: the save is incomplete"
                )
            recorded = None if about.files is None else about.files[name]
            wanted = {key: array.shape for key, array in arrays.items()}
            return saved_files.read_arrays(folder / name, wanted, rest, recorded)

        parts = [
            {
                expert: arrays_of(saved_files.name_of(layer, expert), arrays, rest=optimizer is None)
                for expert, arrays in self.parts(layer, optimizer).items()
            }
            for layer in self._layers
        ]
        return _Found(parts, {} if optimizer is None else arrays_of(DENSE, optimizer.dense_arrays(), rest=False))

    def _agree(self, what: str, look: Callable[[], tuple[Any, Fields]]) -> Any:
        """Call `look` and return its first result. Collective.

        Raises on every rank if `look` fails on one, or if its second result differs between ranks.
        """
        problem: AristosError | None = None
        found, alike = None, cast(Fields, {})
        try:
            found, alike = look()
        except Exception as error:
            problem = _refusal(what, error)
        agreed_alike(self._training.everyone, problem, f"to {what}", alike, f"ranks differ in what they {what}")
        return found

    def _together(self, what: str, work: Callable[[], Any]) -> Any:
        """Call `work` and return its result. If it fails on one rank, raise on every rank. Collective."""
        return self._agree(what, lambda: (work(), {}))

    def _described(self, optimizer: Optimizer | None, steps: bool = True) -> dict[str, str]:
        """The facts about an optimizer that must be equal on all ranks, as texts by name.

        Raises InputError for an optimizer that cannot be saved or restored.
        """
        if optimizer is None:
            return {"optimizer": "None"}
        if getattr(optimizer, "training", None) is not self._training:
            raise InputError(f"optimizer must belong to this layer object, got {quoted(optimizer)}")
        optimizer.check_dense()
        whole("the number of the optimizer's next step", optimizer.steps + 1)
        for layer, states in enumerate(optimizer.states):
            masters = self._training.weights(layer).masters
            for name, state in states.items():
                for key, array in state.items():
                    right = isinstance(key, str) and isinstance(array, np.ndarray) and array.dtype == np.float32
                    if not right or array.shape[:1] != masters[name].shape[:1]:
                        raise InputError(
                            f"the optimizer's state {name}.{key} must be a float32 array with as many rows as {name}"
                        )
        found = {
            "optimizer": type(optimizer).__name__,
            "states": str([{name: sorted(state) for name, state in each.items()} for each in optimizer.states]),
            "dense": str({name: list(array.shape) for name, array in optimizer.dense_arrays().items()}),
        }
        return found | {"steps": str(optimizer.steps)} if steps else found

    def parts(self, layer: int, optimizer: Optimizer | None) -> dict[int, Arrays]:
        """Views of all arrays of a layer that are saved: id of an expert, or COMMON -> arrays by name."""
        weights = self._training.weights(layer)
        found: dict[int, Arrays] = {expert: {} for expert in (*weights.mine, COMMON)}
        arrays = dict(weights.masters)
        for name, states in ({} if optimizer is None else optimizer.states[layer]).items():
            arrays |= {f"{name}.{key}": array for key, array in states.items()}
        for name, array in arrays.items():
            if name.partition(".")[0] in weights.sums:
                for expert, part in zip(weights.mine, array):
                    found[expert][name] = part
            else:
                found[COMMON][name] = array
        return found


def _named(directory: str | os.PathLike[str]) -> Path:
    """The directory. Raises InputError for the empty name, which would be the current directory."""
    if not os.fspath(directory):
        raise InputError(f"directory must have a name, got {quoted(directory)}: pass '.' for the current directory")
    return Path(directory)


def _refusal(what: str, error: Exception) -> AristosError:
    """`error` as one of this package's errors."""
    if isinstance(error, AristosError):
        return error
    found = CheckpointError(f"cannot {what}: {type(error).__name__}: {error}")
    found.__cause__ = error
    return found


def check_layers(directory: Any, saved: Sequence[Fields], here: Sequence[Fields]) -> None:
    """Raise CheckpointError unless the saved layers have the configurations of this object's layers."""
    if len(saved) != len(here):
        raise CheckpointError(f"{directory} must hold as many layers as this object, {len(here)}, got {len(saved)}")
    odd = [layer for layer, each in enumerate(here) if saved[layer] != each]
    if odd:
        unlike = differences(saved[odd[0]], here[odd[0]], "the save", "this object")
        more = f"; {len(odd)} layers differ in all" if len(odd) > 1 else ""
        raise CheckpointError(
            f"{directory} must hold layers like this object's, but layer {odd[0]} differs: {unlike}{more}"
        )


def _json(extra: Any) -> str:
    """`extra` as JSON. Raises InputError for a value that JSON would not return unchanged."""
    if extra is None:
        extra = {}
    if type(extra) is not dict:
        raise InputError(f"extra must be a dict, got {quoted(extra)}")
    _check_extra(extra, "extra", 0)
    try:
        text = json.dumps(extra, sort_keys=True)
    except ValueError as error:  # an integer of more than 4,300 digits
        raise InputError(f"extra cannot be saved: {error}") from error
    if len(text) > MOST_EXTRA:
        raise InputError(f"extra must have at most {MOST_EXTRA} bytes as JSON, got {len(text)}")
    return text


def _check_extra(value: Any, where: str, depth: int) -> None:
    if depth > DEEPEST:
        raise InputError(f"{where[:100]}... is nested too deep: lists and dicts may be nested {DEEPEST} deep")
    if type(value) is dict:
        for key, each in value.items():
            if type(key) is not str:
                raise InputError(f"keys of {where} must be strings, got {quoted(key)}")
            _check_extra(each, f"{where}[{key!r}]", depth + 1)
    elif type(value) is list:
        for i, each in enumerate(value):
            _check_extra(each, f"{where}[{i}]", depth + 1)
    elif not (value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))):
        raise InputError(
            f"{where} must be None, a boolean, a finite number, a string, a list or a dict, of Python's own types, got"
            f" {quoted(value)}: save an array as its tolist(), a NumPy number as its item()"
        )

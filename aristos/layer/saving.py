"""The directory of saved layers. At any moment it holds one whole save; saving removes only files of saves.

`dir/saved.json`, the manifest, names the folder of the last save. It has a digest of each file in the folder, and of
itself. For each layer the folder has a file for each expert, which the first rank that holds the expert writes, and a
file for router and shared expert, which rank 0 writes. A file is NumPy's npz: it has arrays by `load`'s names, and the
optimizer's states as `name.state`. Rank 0 also writes a file of the optimizer's dense arrays and their states. A save
removes the folders that ended saves have left unfinished, makes a new folder, syncs it and replaces saved.json. Only
then does it remove the folder that saved.json named before, and the folders of saves that can no longer be completed.
All ranks need the same file system. The format is not meant for other programs.

Each save has an id. An object may replace a save only if it has made or restored that save. The first file in a folder
is `folder.json`, which names the folder and its writer; the folder gets its name only after this file is written. So a
save can recognise a folder that another save left unfinished, and a copy of a folder, which has another name. Copies
are not removed, nor are files that no save writes.

Savers take turns by the lock of saved.json. If two saves would replace the same earlier save, the second is refused. On
a file system whose locks do not reach other hosts, both may succeed. Then saved.json names the later of the two. That
one is whole, because no save removes the folder of another save that would replace the same earlier save.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from kernel_cache import regular
from kernel_cache.errors import quoted

from ..config import MoEConfig, whole
from ..errors import CheckpointError, InputError, ResultsError
from ..host.processes import ENDED, Process
from ..primitives import atomic_file
from .differences import Fields, fields_of
from .saved_files import Recorded, cannot, digest_of

MANIFEST, MARK, SCHEMA, FIRST = "saved.json", "folder.json", "aristos-training/2", "aristos-training/1"
FOLDER = re.compile(r"saved-[0-9]{1,18}")
WRITTEN = re.compile(r"(layer-[0-9]+-(common|expert-[0-9]+)|dense)\.npz")
MOST_BYTES = 64 << 20  # most bytes of a manifest: enough for half a million files
LARGEST = 10**18 - 1  # largest number of a folder
# the name of a folder that waits for its final name or for its removal; only the holder of the lock has such folders
ASIDE = re.compile(r"\.saved-aside-[0-9a-f]{32}")
RUNNING: set[str] = set()  # ids of saves that this process has begun and not ended
LOCK_SECONDS = 60.0  # the most seconds to wait for the lock, while another save removes older folders


@dataclass(frozen=True)
class Manifest:
    """What saved.json says. id: the save's id. optimizer: (name, steps). files: None in saves of schema 1."""

    folder: str
    id: str
    layers: Sequence[Fields]
    optimizer: tuple[str, int] | None
    extra: dict[str, Any]
    files: dict[str, Recorded] | None


class Begun(NamedTuple):
    """A save that has a folder. id: this save's id. after: the id of the save that it will replace; empty if none."""

    folder: str
    id: str
    after: str


def described(cfgs: Sequence[MoEConfig]) -> list[dict[str, str]]:
    """Layers as a manifest describes them, without the fields in which an object that restores them may differ.

    So fewer ranks, each with more tokens, may restore them, and ranks on other nodes.
    """
    found = [fields_of(cfg) for cfg in cfgs]
    for each in found:
        _leave_out(each)
    return found


def _leave_out(fields: dict[str, str]) -> None:
    """Remove the fields in which the object that restores may differ."""
    for name in ("max_tokens", "levels", "combine"):
        fields.pop(name, None)


# ------------------------------------------------------------ the manifest


def read_manifest(directory: Path) -> Manifest:
    """What saved.json says. Raises CheckpointError."""
    path = directory / MANIFEST
    try:
        text = regular.text(path, MOST_BYTES)
        found = json.loads(text)
    except FileNotFoundError:
        if path.is_symlink():
            raise CheckpointError(
                f"{path} is a link to {os.readlink(path)}, which does not exist: put that file back, or remove the link"
                " to give that save up"
            ) from None
        raise CheckpointError(f"{path} does not exist: give the directory that save() wrote") from None
    except OSError as error:
        raise cannot(path, "read", error) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {str(error)[:200]}") from error
    found = found if isinstance(found, dict) else {}
    if found.get("schema") not in (SCHEMA, FIRST):
        raise _damaged(path, f"schema must be {SCHEMA} or {FIRST}, got {quoted(found.get('schema'))}")
    try:
        return _first_schema(found, text) if found["schema"] == FIRST else _checked(found)
    except InputError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged, or was not written by save(): {why}: put back a copy of the file, or remove the file to"
        " give that save up"
    )


def _checked(found: dict[str, Any]) -> Manifest:
    """The manifest that saved.json has. Raises InputError if its digest or a value is wrong."""
    digest = found.pop("digest", None)
    if digest != digest_of(canonical(found)):
        raise InputError("the content was changed: it does not fit the digest that the file states")
    layers, extra, files, number = (found.get(key) for key in ("layers", "extra", "files", "id"))
    if not isinstance(layers, list) or not all(isinstance(each, dict) for each in layers):
        raise InputError(f"layers must be a list of JSON objects, got {quoted(layers)}")
    if not all(isinstance(text, str) for each in layers for text in each.values()):
        raise InputError(f"layers must have strings as values, got {quoted(layers)}")
    if not isinstance(extra, dict) or not isinstance(number, str):
        raise InputError(f"extra must be a JSON object and id a string, got {quoted(extra)} and {quoted(number)}")
    if not isinstance(files, dict):
        raise InputError(f"files must be a JSON object, got {quoted(files)}")
    recorded = {}
    for name, each in files.items():
        if not isinstance(each, list) or [type(part) for part in each] != [int, str] or not WRITTEN.fullmatch(name):
            raise InputError(
                f"files must give [size, digest] for each file of a save, got {quoted(name)}: {quoted(each)}"
            )
        recorded[name] = Recorded(*each)
    return Manifest(_folder(found), number, layers, _optimizer(found), extra, recorded)


def _first_schema(found: dict[str, Any], text: str) -> Manifest:
    """A manifest of schema 1, which has configurations as Python writes them, and no digests. Raises InputError."""
    layers = found.get("layers")
    if not isinstance(layers, list) or not all(isinstance(each, str) for each in layers):
        raise InputError(f"layers must be a list of strings, got {quoted(layers)}")
    fields = [_fields_of_text(each) for each in layers]
    return Manifest(_folder(found), digest_of(text.encode()), fields, _optimizer(found), {}, None)


def _fields_of_text(text: str) -> dict[str, str]:
    """The fields of a configuration that Python has written: MoEConfig(hidden=8, router=Router(score='softmax'))."""
    router = re.search(r"router=Router\(([^()]*)\)", text)
    outer = text.replace(router[0], "") if router else text
    found: dict[str, str] = {}
    for prefix, part in (("", outer), ("router.", router[1] if router else "")):
        found |= {prefix + name: value for name, value in re.findall(r"(\w+)=([^,()]+)", part)}
    _leave_out(found)
    return found


def _folder(found: dict[str, Any]) -> str:
    folder = found.get("folder")
    if not isinstance(folder, str) or not FOLDER.fullmatch(folder):
        raise InputError(f"folder must be saved-NUMBER, got {quoted(folder)}")
    return folder


def _optimizer(found: dict[str, Any]) -> tuple[str, int] | None:
    given = found.get("optimizer")
    if given is None:
        return None
    if not isinstance(given, list) or [type(part) for part in given] != [str, int]:
        raise InputError(f"optimizer must be null or [name, steps], got {quoted(given)}")
    return given[0], whole("the number of the optimizer's next step", given[1] + 1) - 1


def canonical(about: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest over which its digest is computed."""
    return json.dumps(about, sort_keys=True).encode()


# ------------------------------------------------------------ folders


def lock_seconds(absent: float) -> float:
    """Seconds to wait for the lock. The wait must fail before other ranks give up, which is after `absent` seconds."""
    return min(LOCK_SECONDS, absent / 2)


@contextlib.contextmanager
def _alone(directory: Path, seconds: float) -> Iterator[None]:
    """A block that holds the lock of saved.json. Raises CheckpointError."""
    try:
        with atomic_file.locked(directory / MANIFEST, seconds):
            yield
    except ResultsError as error:
        raise CheckpointError(str(error)) from error


def begin(directory: Path, known: Collection[str], seconds: float = LOCK_SECONDS) -> Begun:
    """Make the folder of a new save, on rank 0. known: ids of saves that may be replaced. Raises CheckpointError.

    seconds: the most seconds to wait for the lock, here and in the functions below.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory, seconds):
        before = _manifest(directory)
        if before is not None and before.id not in known:
            raise CheckpointError(
                f"{directory} holds a save that this object has neither made nor restored, and would replace:"
                " restore()"
                f" that save first to continue from it, save elsewhere, or remove {directory / MANIFEST} to give that"
                " save up"
            )
        after, last = "", 0
        _remove_asides(directory)
        if before is not None:
            after, last = before.id, int(before.folder.rpartition("-")[2])
            for folder in _marked(directory):
                if folder.name != before.folder and _ended(folder):
                    _discard(folder)
        return _made(directory, last, after)


def _made(directory: Path, last: int, after: str) -> Begun:
    """Make a folder, write its mark, then name it by the first free number after `last`. LARGEST is followed by 1."""
    numbers = chain(range(last + 1, LARGEST + 1), range(1, last + 1))
    folder = next(name for name in map("saved-{}".format, numbers) if not os.path.lexists(directory / name))
    begun = Begun(folder, uuid.uuid4().hex, after)
    mark = begun._asdict() | {"schema": SCHEMA, "writer": asdict(Process.here())}
    aside = _aside(directory, begun.id)
    aside.mkdir()
    try:
        (aside / MARK).write_text(json.dumps(mark))
        aside.rename(directory / begun.folder)
        atomic_file.sync(directory)
        atomic_file.sync(directory.parent)
    except BaseException:
        _remove(aside)
        _discard_of(directory, begun)
        raise
    RUNNING.add(begun.id)
    return begun


def check_place(directory: Path, begun: Begun) -> None:
    """Raise CheckpointError if this rank does not see the folder that rank 0 has made."""
    if _read_mark(directory / begun.folder).get("id") != begun.id:
        raise CheckpointError(
            f"{directory / begun.folder} is not the folder that rank 0 has made for this save: all ranks need the same"
            " directory on the same file system"
        )


def undo(directory: Path, begun: Begun, seconds: float = LOCK_SECONDS) -> None:
    """Remove the folder of a failed save, on rank 0. The folder stays if saved.json names it or cannot be read."""
    with contextlib.suppress(CheckpointError, OSError), _alone(directory, seconds):
        named = _manifest(directory)
        if named is None or named.folder != begun.folder:
            _discard_of(directory, begun)


def finish(directory: Path, begun: Begun, about: Mapping[str, Any], seconds: float = LOCK_SECONDS) -> None:
    """On rank 0, replace saved.json by one that names a complete folder, then remove older folders of saves.

    about: layers, optimizer, extra and files of the save. Raises CheckpointError if saved.json changed since `begin`.
    """
    _replaced(directory, begun)
    for each in (directory / begun.folder, directory):
        atomic_file.sync(each)
    content: dict[str, Any] = {"schema": SCHEMA, "folder": begun.folder, "id": begun.id, **about}
    text = json.dumps(content | {"digest": digest_of(canonical(content))}, indent=1).encode()
    if len(text) > MOST_BYTES:
        raise CheckpointError(
            f"{directory / MANIFEST} must have at most {MOST_BYTES} bytes, got {len(text)}: the save has too many files"
        )
    old: list[Path] = []

    def change(_: bytes | None) -> bytes:
        old[:] = _replaced(directory, begun)
        return text

    with _alone(directory, seconds):
        atomic_file.rewrite(directory / MANIFEST, change)
        for folder in old:
            _discard(folder)
        for folder in _marked(directory):
            if folder.name != begun.folder and _read_mark(folder).get("after") not in (begun.id, begun.after):
                _discard(folder)  # left by a save that can no longer be completed


def _replaced(directory: Path, begun: Begun) -> list[Path]:
    """The folder that saved.json names, if any. Raises CheckpointError if another save was made meanwhile."""
    before = _manifest(directory)
    if (before.id if before is not None else "") != begun.after:
        raise CheckpointError(f"another object has saved into {directory} meanwhile: that save stays; save elsewhere")
    if _read_mark(directory / begun.folder).get("id") != begun.id:
        raise CheckpointError(f"{directory / begun.folder / MARK} was removed or changed meanwhile: save again")
    return [] if before is None else [directory / before.folder]


def _manifest(directory: Path) -> Manifest | None:
    """What saved.json says, None if there is no such file. Raises CheckpointError."""
    return read_manifest(directory) if os.path.lexists(directory / MANIFEST) else None


def _marked(directory: Path) -> list[Path]:
    """The folders that saves have made here."""
    return [folder for folder in directory.glob("saved-*") if _read_mark(folder)]


def _read_mark(folder: Path) -> dict[str, Any]:
    """The mark that a save wrote first into its folder; empty for copies, and for folders that no save made."""
    if not FOLDER.fullmatch(folder.name) or folder.is_symlink():
        return {}
    try:
        found = json.loads(regular.text(folder / MARK, MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    ours = isinstance(found, dict) and found.get("schema") == SCHEMA and found.get("folder") == folder.name
    return found if ours else {}


def _ended(folder: Path) -> bool:
    """Whether the save that made a folder has surely ended: it left RUNNING here, or its process has ended."""
    try:
        mark = _read_mark(folder)
        writer = Process(**mark["writer"])
        if writer == Process.here():
            return mark["id"] not in RUNNING
        # /proc may hide other users' processes. In a copy of a virtual machine, a writer that runs in another copy may
        # seem to have ended; its save is then refused.
        shown = (folder / MARK).stat().st_uid == os.geteuid()
        return type(writer.pid) is int and shown and writer.trouble() == ENDED
    except (OSError, KeyError, TypeError, ValueError):
        return False


def _discard_of(directory: Path, begun: Begun) -> None:
    """Remove the folder of a save, unless another save has a folder of this name by now."""
    if _read_mark(directory / begun.folder).get("id") == begun.id:
        _discard(directory / begun.folder)


def _discard(folder: Path) -> None:
    """Remove the files of a save, and its folder if nothing else is in it."""
    with contextlib.suppress(OSError):
        if folder.is_symlink():
            return
        names = os.listdir(folder)
        for name in names:
            if WRITTEN.fullmatch(name):
                (folder / name).unlink()
        if all(WRITTEN.fullmatch(name) or name == MARK for name in names):
            aside = _aside(folder.parent, uuid.uuid4().hex)
            folder.rename(aside)
            _remove(aside)


def _aside(directory: Path, number: str) -> Path:
    """A name for a folder that has no final name yet, or that will be removed. It does not block later saves."""
    return directory / f".saved-aside-{number}"


def _remove_asides(directory: Path) -> None:
    """Remove folders that earlier saves renamed and could not remove."""
    for folder in directory.glob(".saved-aside-*"):
        if ASIDE.fullmatch(folder.name) and not folder.is_symlink():
            _remove(folder)


def _remove(aside: Path) -> None:
    """Remove a folder if it has only files of a save, or nothing."""
    with contextlib.suppress(OSError):
        names = os.listdir(aside)
        if all(WRITTEN.fullmatch(name) or name == MARK for name in names):
            for name in names:
                (aside / name).unlink()
            aside.rmdir()

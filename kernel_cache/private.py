"""Checks folders and files from which code is loaded: they must belong to this user, and nobody else may change them.

The kernel cache holds pickles and machine code, so a user who can write to it can run code as its owner. A folder is
private if it belongs to this user, is no link, is closed to others, and lies where nobody else can replace it. For this
every folder above it must belong to this user or to root; if others can write to one, it must be sticky, like /tmp.
Folders are checked every time that a file in them is read or written. A file begins with a hash of the rest. So a file
that a full disk left incomplete, or that was damaged later, is never loaded.

ARISTOS_CACHE_SHARED=1 switches the checks of owners and modes off, for a cache that a group shares. Every member of the
group can then run code as every other member. Nothing here protects against root, or against other processes of this
user.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import warnings
from functools import cache
from pathlib import Path

from .errors import environment_problem

SETTING = "ARISTOS_CACHE_SHARED"
REMEDY = (
    f"remove that file or folder, or export ARISTOS_CACHE=/a/folder/that/you/alone/can/write; {SETTING}=1 accepts the"
    " folder, and so also the"
    " code of everybody who can write there"
)
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def shared() -> bool:
    """Whether the user accepts code that others may have written."""
    return os.environ.get(SETTING, "") not in ("", "0")


def problem(folder: Path) -> str:
    """Why a folder is not private, as text that names the folder; empty if it is private."""
    try:
        return _of_folder(folder) or ("" if shared() else next(filter(None, map(_of_parent, folder.parents)), ""))
    except OSError as error:
        return f"{folder}: {error.strerror}"


def check(folder: Path) -> None:
    """Raise EnvironmentProblem, with the remedy, if a folder is not private."""
    if wrong := problem(folder):
        raise environment_problem(f"kernels are not loaded from {wrong}: {REMEDY}")


def make(folder: Path) -> None:
    """Make a private folder, and missing folders above it. If others can read an existing folder, it is closed to them.

    Raises EnvironmentProblem if the folder is not private, and OSError if it cannot be made.
    """
    if not folder.parent.exists():
        make(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)  # a umask can only remove permissions
        if shared():
            folder.chmod(stat.S_IMODE(folder.parent.stat().st_mode) & 0o777)
    found = folder.lstat()
    readable = found.st_mode & 0o077 and not found.st_mode & OTHERS_WRITE
    if readable and stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not shared():
        folder.chmod(found.st_mode & 0o700)
    check(folder)


def read(path: Path) -> bytes | None:
    """Read the data that `write` wrote. Returns None, with a warning, if the file is damaged.

    Raises FileNotFoundError if there is no file, and EnvironmentProblem if others may have written it.
    """
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(number, "rb") as file:
        check(path.parent)
        if wrong := _of_file(path, os.fstat(number)):
            raise environment_problem(f"kernels are not loaded from {wrong}: {REMEDY}")
        return whole(path, file.read())


def whole(path: Path, content: bytes) -> bytes | None:
    """The data behind the hash in a file's content. Returns None, with a warning, if the hash does not fit."""
    digest, _, rest = content.partition(b"\n")
    if hashlib.sha256(rest).hexdigest().encode() != digest:
        warnings.warn(f"{path} is damaged: the kernel is compiled again", stacklevel=4)
        return None
    return rest


def hashed(data: bytes) -> bytes:
    """The content of a file with this data: a hash, then the data. `whole` reads it."""
    return hashlib.sha256(data).hexdigest().encode() + b"\n" + data


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, in a private folder. The folder is made if it is missing."""
    make(path.parent)
    number, name = tempfile.mkstemp(dir=path.parent)
    try:
        with open(number, "wb") as file:
            os.fchmod(number, file_mode(path.parent))
            file.write(hashed(data))
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def file_mode(folder: Path) -> int:
    """The mode that files in a folder get: 0600 in a private folder; in a shared folder its mode decides."""
    return stat.S_IMODE(folder.stat().st_mode) & 0o666


def _of_folder(folder: Path) -> str:
    found = folder.lstat()
    if stat.S_ISLNK(found.st_mode):
        return f"{folder}, which is a link"
    if not stat.S_ISDIR(found.st_mode):
        return f"{folder}, which is not a folder"
    if shared():
        return ""
    if found.st_uid != os.getuid():
        return f"{folder}, which belongs to user {found.st_uid}"
    if found.st_mode & 0o077:
        return f"{folder}, which others can {'write to' if found.st_mode & OTHERS_WRITE else 'read'}"
    return ""


def _of_parent(folder: Path) -> str:
    found = folder.lstat()
    if stat.S_ISLNK(found.st_mode):
        return f"a folder inside {folder}: {folder} is a link"
    if found.st_uid not in (os.getuid(), *_roots()):
        return f"a folder inside {folder}: {folder} belongs to user {found.st_uid}"
    if found.st_mode & OTHERS_WRITE and not found.st_mode & stat.S_ISVTX:
        return f"a folder inside {folder}: others can write to {folder}"
    return ""


def _of_file(path: Path, found: os.stat_result) -> str:
    if not stat.S_ISREG(found.st_mode):
        return f"{path}, which is not a file"
    if shared():
        return ""
    if found.st_uid != os.getuid():
        return f"{path}, which belongs to user {found.st_uid}"
    return f"{path}, which others can write to" if found.st_mode & OTHERS_WRITE else ""


@cache
def _roots() -> frozenset[int]:
    """The user ids that count as root.

    In a user namespace, such as a container's, all files of users outside it have one other id, which counts too.
    """
    ids = {0}
    with contextlib.suppress(OSError, ValueError, IndexError):
        if int(Path("/proc/self/uid_map").read_text().split()[2]) < 2**32 - 1:
            ids.add(int(Path("/proc/sys/kernel/overflowuid").read_text()))
    return frozenset(ids)

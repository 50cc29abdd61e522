"""Changes a file so that neither a crash nor a second writer loses its content.

The changed content is written to a new file, which is synced and renamed over the original. Writers take turns by a
lock file beside it. Readers need no lock, because they see either the old or the new content. The caller decides the
format.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from kernel_cache import regular
from kernel_cache.texts import whole

from ..errors import ResultsError
from .aside import beside

FULL = {errno.ENOSPC, errno.EDQUOT}  # errors of a disk or a quota that is full
_NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


@contextlib.contextmanager
def locked(target: Path, seconds: float) -> Iterator[None]:
    """A block that holds the file's lock.

    The lock is a flock, which ends with the process that holds it. On file systems without flock, the lock is held as
    long as a lock file exists. Raises ResultsError, which names the lock file, if another writer holds the lock for
    longer than `seconds`.
    """
    import filelock

    lock: filelock.BaseFileLock = filelock.FileLock(f"{target}.lock")
    try:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # some versions of filelock fall back by themselves, and warn
                lock.acquire(timeout=seconds)
        except (NotImplementedError, OSError) as error:
            if isinstance(error, filelock.Timeout) or getattr(error, "errno", errno.ENOSYS) not in _NO_FLOCK:
                raise
            # a new name, because the lock that was refused may leave its own lock file
            lock = filelock.SoftFileLock(f"{target}.softlock")
            lock.acquire(timeout=seconds)
    except filelock.Timeout:
        raise ResultsError(
            f"{target}: another writer held {lock.lock_file} for {seconds:g} s; if no writer runs, remove that file"
        ) from None
    try:
        yield
    finally:
        lock.release()


def try_writing(target: Path, folder: Path) -> None:
    """Make and remove a file in `folder`; raises ResultsError naming `target` if that fails.

    Permission bits do not decide this: root passes them all, and a file system may be read-only or full.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{target.name[:100]}."):
            pass
    except OSError as error:
        raise ResultsError(f"{target}: {folder} cannot be written to: {error}") from error


def rewrite(target: Path, change: Callable[[bytes | None], bytes]) -> None:
    """Replace the file's content by `change(content)`; content is None if there is no file. The caller holds the lock.

    An exception of `change` leaves the original untouched. If the original changed meanwhile (flock does not always
    reach writers on other hosts), the change is repeated on its new content. Raises ResultsError if the disk is full.
    """
    _remove_leftovers(target)
    while not _once(target, change):
        pass


def _once(target: Path, change: Callable[[bytes | None], bytes]) -> bool:
    """Try `rewrite` once; False if the original changed meanwhile."""
    before = _identity(target)
    content = change(None if before is None else _content(target))
    with _full_disk_named(target, len(content)), beside(target, f"{_prefix(target)}{os.getpid()}.") as aside:
        if before is not None:
            shutil.copymode(target, aside)
        aside.write_bytes(content)
        sync(aside)
        if _identity(target) != before:
            return False
        os.replace(aside, target)
        sync(target.parent)
        return True


def _content(target: Path) -> bytes:
    with regular.opened(target) as file:
        return file.read()


@contextlib.contextmanager
def _full_disk_named(target: Path, needed: int) -> Iterator[None]:
    """A block that raises ResultsError, with the bytes needed and free, if the disk or a quota is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise ResultsError(
            f"{target} cannot be written: {os.strerror(error.errno)}: {space(target.parent, needed)}; the file's old"
            " content is still there"
        ) from None


def space(folder: Path, needed: int) -> str:
    """A clause that says how many bytes are needed in a folder, and how many are free there."""
    disk = os.statvfs(folder)
    return f"{needed} bytes are needed in {folder}, {disk.f_bavail * disk.f_frsize} are free"


def _prefix(target: Path) -> str:
    return f".{target.name}.{socket.gethostname()}."


def _remove_leftovers(target: Path) -> None:
    """Remove copies left by writers on this host that have ended."""
    prefix = _prefix(target)
    for file in target.parent.iterdir():
        if file.name.startswith(prefix) and file.name.endswith(".aside"):
            pid = whole(file.name[len(prefix) :].partition(".")[0])
            if pid is not None and not os.path.exists(f"/proc/{pid}"):
                file.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int, int] | None:
    """A value that changes whenever the file does; None if there is no file."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def sync(path: Path) -> None:
    """Write a file or folder through to the disk before the next step."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync a folder
            raise
    finally:
        os.close(number)

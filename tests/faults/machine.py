"""The machine as a job sees it: it has its own /dev/shm, disk and network, so that only the job meets full disks and
leftover files.

Needs root (CAP_SYS_ADMIN), for namespaces of this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

NEW_MOUNTS, NEW_NETWORK, NEW_TIME = 0x20000, 0x40000000, 0x80
LINK = "link"  # the name of the link's end in each network
NETWORKS = ("node-0", "node-1")  # names of files that hold the networks of two nodes
READ_ONLY, REMOUNT, RECURSIVE, PRIVATE, DETACH = 1, 32, 0x4000, 0x40000, 2
GET_FLAGS, SET_FLAGS, UP = 0x8913, 0x8914, 1  # ioctl requests for a network interface, and its flag
MARK = "ARISTOS_FAULT_JOB"  # a variable in the environment of every process of a job
_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: str, *arguments: object) -> None:
    if getattr(_libc, function)(*arguments):
        code = ctypes.get_errno()
        raise OSError(code, f"{function}: {os.strerror(code)}")


def own_machine() -> bool:
    """Give this process mounts and a network of its own; False without the rights for it."""
    try:
        _call("unshare", NEW_MOUNTS | NEW_NETWORK)
        network(True)
        _call("mount", None, b"/", None, RECURSIVE | PRIVATE, None)
    except OSError:
        return False
    return True


def network(up: bool, name: bytes = b"lo") -> None:
    """Switch a network interface on or off, by default loopback.

    While it is off, connections stay and packets are lost.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh22x", name, 0)
        flags = struct.unpack("16sh22x", fcntl.ioctl(any_socket, GET_FLAGS, request))[1]
        flags = flags | UP if up else flags & ~UP
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sh22x", name, flags))


@contextlib.contextmanager
def linked(*networks: Path) -> Iterator[None]:
    """Two networks, each held by a file, with a link between them."""
    for each in networks:
        each.touch()
        subprocess.run(["unshare", f"--net={each}", "true"], check=True)
    ends = [["name", LINK, "netns", str(each)] for each in networks]
    try:
        subprocess.run(["ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1]], check=True)
        for number, each in enumerate(networks, 1):
            for words in (
                ("link", "set", "dev", LINK, "addrgenmode", "none"),  # the only address is then ready at once
                ("addr", "add", f"10.9.0.{number}/24", "dev", LINK),
                ("link", "set", "dev", "lo", "up"),
            ):
                subprocess.run(["nsenter", f"--net={each}", "ip", *words], check=True)
            link(each, True)
        show, until = ["nsenter", f"--net={networks[-1]}", "ip", "-brief", "link", "show", LINK], time.monotonic() + 10
        while b" UP " not in subprocess.run(show, check=True, stdout=subprocess.PIPE).stdout:
            time.sleep(0.05)
            if time.monotonic() > until:
                raise OSError(f"the link between {' and '.join(map(str, networks))} does not come up")
        yield
    finally:
        for each in networks:
            _call("umount2", str(each).encode(), DETACH)


def enter(network_: Path) -> None:
    """Move this thread into a network that `linked` has made."""
    with open(network_) as there:
        _call("setns", there.fileno(), NEW_NETWORK)


def link(network_: Path, up: bool) -> None:
    """Switch a network's end of the link on or off."""
    with open("/proc/thread-self/ns/net") as here:
        enter(network_)
        try:
            network(up, LINK.encode())
        finally:
            _call("setns", here.fileno(), NEW_NETWORK)


def started_earlier(seconds: int) -> None:
    """Set this process's monotonic clock ahead from its next execve on, if the kernel supports it."""
    with contextlib.suppress(OSError):
        _call("unshare", NEW_TIME)
        Path("/proc/self/timens_offsets").write_text(f"monotonic {seconds} 0\nboottime {seconds} 0\n")


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """A file system in memory of a size such as 16m."""
    _call("mount", b"aristos-faults", str(folder).encode(), b"tmpfs", 0, f"size={size}".encode())
    try:
        yield
    finally:
        _call("umount2", str(folder).encode(), DETACH)


def read_only(folder: Path, yes: bool) -> None:
    """Make a mounted file system read-only, or writable again."""
    flags = REMOUNT | (READ_ONLY if yes else 0)
    for tries in range(200):
        try:
            _call("mount", None, str(folder).encode(), None, flags, None)
            return
        except OSError:  # a file is open for writing
            if tries == 199:
                raise
            time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs. A zombie does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def marked(token: str) -> list[int]:
    """Processes of a job."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={token}".encode() in (folder / "environ").read_bytes().split(b"\0") and alive(int(folder.name)):
                found.append(int(folder.name))
    return found


def kill_all(token: str) -> None:
    """Kill what is left of a job."""
    for pid in marked(token):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

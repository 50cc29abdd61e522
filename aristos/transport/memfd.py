"""Anonymous shared memory of the ranks of a node (memfd): each rank writes its own part, and its local peers read it.

Linux takes a page from the NUMA domain of the rank that first reads or writes it. So until the rank that owns a part
has written it, peers read only the part's token.

The memory has no name in a file system, and the limit of /dev/shm does not apply. The kernel frees it with the last
process that maps it, also after a kill. Peers open it through /proc. They check a token, because in another namespace
the process number may mean another process.

A rank asks for huge pages for the part that it writes (MADV_COLLAPSE, Linux 6.1): weights are read faster from them,
but most machines give no huge pages to shared memory unasked (/sys/kernel/mm/transparent_hugepage/shmem_enabled).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import secrets
from functools import cache
from typing import Any

import numpy as np

from ..primitives.huge_pages import HUGE
from .group import Group

HEAD = mmap.PAGESIZE  # bytes at the start of a part, which hold the token
TOKEN = 16
MAP_FIXED, MAP_NORESERVE, MADV_COLLAPSE = 0x10, 0x4000, 25
NO_HUGE_PAGES = "no huge pages for shared memory (MADV_COLLAPSE needs Linux 6.1)"


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mmap.restype = ctypes.c_void_p
    return libc


class SharedMap:
    """A whole memfd, mapped at a multiple of HUGE, so that huge pages fit. address: where it is mapped.

    The memory stays mapped until neither this object nor an array in it is in use.
    """

    def __init__(self, fd: int, writable: bool) -> None:
        self.nbytes = os.fstat(fd).st_size
        access = mmap.PROT_READ | mmap.PROT_WRITE * writable
        reserved = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        place = mmap.mmap(-1, self.nbytes + HUGE, flags=reserved, prot=access)
        whole = np.frombuffer(place, np.uint8)
        self.address = -(-whole.ctypes.data // HUGE) * HUGE
        got = _libc().mmap(self.address, self.nbytes, access, mmap.MAP_SHARED | MAP_FIXED, fd, 0)
        if got != self.address:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self.array = whole[self.address - whole.ctypes.data :][: self.nbytes]

    def collapse(self, start: int, nbytes: int) -> bool:
        """Back these bytes, and their neighbours in the same pages, by huge pages; False if the machine has none.

        Linux makes huge pages only from existing pages, so one byte of each page is overwritten with the value that it
        has.
        """
        first, end = start // HUGE * HUGE, min(self.nbytes, -(-(start + nbytes) // HUGE) * HUGE)
        self.array[first:end:HUGE] |= 0
        return bool(_libc().madvise(self.address + first, end - first, MADV_COLLAPSE) == 0)


def lacking() -> str:
    """What this machine lacks for shared memory with huge pages; empty if it lacks nothing."""
    try:
        fd = os.memfd_create("aristos", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, HUGE)
            return "" if SharedMap(fd, True).collapse(0, HUGE) else NO_HUGE_PAGES
        finally:
            os.close(fd)
    except OSError as error:
        return f"no anonymous shared memory: {error}"


class NodeMemory:
    """`nbytes` of memory on each rank, which its local peers can read. Collective over all ranks of the group.

    own: this rank's part, zeros. base: for each rank of this node, the address of its part in this process. problem:
    why a rank could not get its memory, or empty. If one rank could not, no rank has any.
    """

    def __init__(
        self, group: Group, nbytes: int, alike: str, small_pages: bool = False, writable: bool = False
    ) -> None:
        """alike: a text that must be equal on the ranks of a node. small_pages: whether small pages are accepted.

        writable: whether local peers may write too.
        """
        self._writable = writable
        self.base: dict[int, int] = {}
        self.own = np.zeros(0, np.uint8)
        self._maps: list[SharedMap] = []
        token, fd, problem = secrets.token_bytes(TOKEN), -1, ""
        try:
            fd = os.memfd_create("aristos", os.MFD_CLOEXEC)
            os.ftruncate(fd, -(-(HEAD + nbytes) // HUGE) * HUGE)
            self._map(fd, group.rank, True)
            self._maps[0].array[:TOKEN] = np.frombuffer(token, np.uint8)
            if not (self._maps[0].collapse(0, HUGE) or small_pages):
                problem = NO_HUGE_PAGES
        except (OSError, OverflowError) as error:
            problem = f"no anonymous shared memory: {error}"
        offers = group.allgather((problem, alike, os.getpid(), fd, token), "shared memory")
        lacking, problem = first_problem([offer[0] for offer in offers]), ""
        for rank in () if lacking else group.nodes.local(group.rank):
            if not problem and offers[rank][1] != alike:
                problem = f"it has {alike}, and rank {rank} has {offers[rank][1]}"
            problem = problem or self._open(rank, *offers[rank][2:])
        self.problem = lacking or first_problem(group.allgather(problem, "the mapping of shared memory"))
        if fd >= 0:
            os.close(fd)
        if self.problem:
            self.close()
        else:
            self.own = self._maps[0].array[HEAD:]

    def _open(self, rank: int, pid: int, fd: int, token: bytes) -> str:
        """Map a peer's part; returns why that failed, or an empty text."""
        # O_NONBLOCK: in another namespace the path may name a pipe, and an open would wait for the pipe's writer
        try:
            mode = os.O_RDWR if self._writable else os.O_RDONLY
            theirs = os.open(f"/proc/{pid}/fd/{fd}", mode | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            return f"the shared memory of rank {rank} cannot be opened: {error}"
        try:
            if not os.fstat(theirs).st_size:
                return f"/proc/{pid} is not rank {rank}: the ranks have different process namespaces"
            self._map(theirs, rank, self._writable)
        except OSError as error:
            return f"the shared memory of rank {rank} cannot be mapped: {error}"
        finally:
            os.close(theirs)
        return "" if self._maps[-1].array[:TOKEN].tobytes() == token else f"/proc/{pid} is not rank {rank}"

    def _map(self, fd: int, rank: int, writable: bool) -> None:
        self._maps.append(SharedMap(fd, writable))
        self.base[rank] = self._maps[-1].address + HEAD

    def part(self, rank: int) -> np.ndarray:
        """The part of a rank of this node."""
        return self._maps[list(self.base).index(rank)].array[HEAD:]

    def prepare(self, start: int, nbytes: int) -> None:
        """Give these bytes of this rank's part huge pages, if the machine has any. This rank will write them."""
        self._maps[0].collapse(HEAD + start, nbytes)

    def close(self) -> None:
        """Release the memory. It is unmapped when no array uses it any more."""
        self._maps, self.base, self.own = [], {}, np.zeros(0, np.uint8)


def first_problem(problems: list[str]) -> str:
    """The first problem that is not empty, with its rank."""
    return next((f"rank {rank}: {problem}" for rank, problem in enumerate(problems) if problem), "")

"""User objects: things of the program that graphs keep alive. A function of the program destroys each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .calls import HANDLE, POINTER, UINT, call, put
from .host_functions import FUNCTION
from .results import Refused
from .state import State
from .work import Graph

MOVE = 1  # flag: a graph takes over references of the caller


@dataclass(eq=False)
class UserObject:
    """Something of the program that a function destroys once nothing refers to it. count: the references to it."""

    function: int
    data: int
    count: int
    handle: int = 0


def release(now: State, found: UserObject, count: int) -> None:
    """Release references to a user object, and destroy it after the last one."""
    if not 0 < count <= found.count:
        raise Refused("ERROR_INVALID_VALUE")
    found.count -= count
    if not found.count:
        now.objects.pop(found.handle, None)
        with now.unlocked():
            FUNCTION(found.function)(found.data)


def release_all(now: State, users: dict[Any, int]) -> None:
    """Release a graph's references."""
    for found, count in users.items():
        release(now, found, count)
    users.clear()


def retained(users: dict[Any, int]) -> dict[Any, int]:
    """Further references to user objects, for a copy of a graph: one to each."""
    for found in users:
        found.count += 1
    return dict.fromkeys(users, 1)


@call(POINTER, POINTER, POINTER, UINT, UINT)
def cuUserObjectCreate(now: State, made: int, data: int, destroy: int, count: int, flags: int) -> None:
    if not destroy or not count:
        raise Refused("ERROR_INVALID_VALUE")
    put(made, HANDLE, now.keep(UserObject(destroy, data, count)))


@call(HANDLE, UINT)
def cuUserObjectRetain(now: State, user: int, count: int) -> None:
    now.get(user, UserObject).count += count


@call(HANDLE, UINT)
def cuUserObjectRelease(now: State, user: int, count: int) -> None:
    release(now, now.get(user, UserObject), count)


@call(HANDLE, HANDLE, UINT, UINT)
def cuGraphRetainUserObject(now: State, graph: int, user: int, count: int, flags: int) -> None:
    found, kept = now.get(user, UserObject), now.get(graph, Graph)
    if not flags & MOVE:
        found.count += count
    kept.users[found] = kept.users.get(found, 0) + count


@call(HANDLE, HANDLE, UINT)
def cuGraphReleaseUserObject(now: State, graph: int, user: int, count: int) -> None:
    found, kept = now.get(user, UserObject), now.get(graph, Graph)
    if kept.users.get(found, 0) < count:
        raise Refused("ERROR_INVALID_VALUE")
    kept.users[found] -= count
    if not kept.users[found]:
        del kept.users[found]
    release(now, found, count)

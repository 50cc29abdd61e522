"""Methods of an object that call the same method of a part that it holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from ..errors import InputError
from .collective import Collective

P = ParamSpec("P")
R = TypeVar("R")


def delegated(part: str, method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """A method that calls `method` of one of its object's parts, with the signature and docstring of `method`.

    part: the attribute that holds the part. It holds None if the layer was made without train=True.
    """

    @wraps(method)
    def call(holder: Collective, /, *args: P.args, **options: P.kwargs) -> R:
        holder._member.alive()
        held = getattr(holder, part)
        if held is None:
            raise InputError(f"{method.__name__} requires a layer made with train=True")
        return method(held, *args, **options)

    return call

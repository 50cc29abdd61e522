"""Experts that Aristos does not compute: they are refused, or left to transformers by `options(fallback=...)`."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from ..errors import InputError
from . import experts_module
from .fp8 import packed_experts
from .options import current
from .training import SOURCE

try:
    from transformers.integrations.finegrained_fp8 import ALL_FP8_EXPERTS_FUNCTIONS as ALL_FP8_EXPERTS_FUNCTIONS
except ImportError:  # an older transformers
    ALL_FP8_EXPERTS_FUNCTIONS = {}

OWN = "eager"  # the name of a class's own code as an implementation
_said: set[str] = set()  # classes for which a warning was given


def left_to(module: Any) -> Callable[..., Any] | None:
    """The implementation for a module whose class Aristos refuses; None if Aristos computes it. Warns once for a class.

    Raises InputError with the class and the reason if no fallback is set.
    """
    if "_aristos_left_to" not in vars(module):
        found, fallback = None, current().fallback
        try:
            experts_module.gate_of(module)
            packed_experts(module)
        except InputError as why:
            if SOURCE in vars(module):
                raise InputError(
                    f"{why}; for a fallback, open the model with transformers' own from_pretrained"
                ) from why
            if fallback is None:
                raise InputError(f'{why}; options(fallback="grouped_mm") leaves these experts to transformers') from why
            found = _theirs(module, fallback)
            _say(type(module).__name__, f"{why}: transformers' {fallback} computes these experts")
        vars(module)["_aristos_left_to"] = found
    left: Callable[..., Any] | None = vars(module)["_aristos_left_to"]
    return left


def _theirs(module: Any, name: str) -> Callable[..., Any]:
    if name == OWN:
        own: Callable[..., Any] = inspect.unwrap(type(module).forward)
        return own
    packed = getattr(module, "down_proj_scale_inv", None) is not None
    known = ALL_FP8_EXPERTS_FUNCTIONS if packed else ALL_EXPERTS_FUNCTIONS
    if name not in known:
        raise InputError(f"fallback must be one of {', '.join([OWN, *known])}, got {name!r}")
    theirs: Callable[..., Any] = known[name]
    return theirs


def check(model: Any) -> None:
    """Raise InputError for classes of experts that only transformers can compute, unless a fallback is set.

    For such classes transformers accepts "aristos", but never calls it.
    """
    for name in closed(model):
        why = f"{name}: only transformers itself can compute these experts, and it would never call Aristos"
        if current().fallback is None:
            raise InputError(f'{why}: leave experts_implementation out, or set options(fallback="grouped_mm")')
        _say(name, f"{why}: transformers computes them")


def closed(model: Any) -> list[str]:
    """Names of the classes of experts in a model that no other implementation can compute."""
    found: dict[str, None] = {}
    inside = None
    for path, module in model.named_modules():
        if inside is not None and path.startswith(inside):
            continue
        kind, last = type(module).__name__, path.rpartition(".")[2]
        is_open = hasattr(module, "is_concatenated")
        named = (last == "experts" or "Expert" in kind) and "shared" not in f"{kind} {last}".lower()
        if is_open or named:
            inside = f"{path}."
        if named and not is_open and next(module.parameters(), None) is not None:
            found[kind] = None
    return list(found)


def _say(kind: str, text: str) -> None:
    """Warn once for each class."""
    if kind not in _said:
        _said.add(kind)
        warnings.warn(text, stacklevel=4)

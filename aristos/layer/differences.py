"""What differs between two configurations: their fields by name, and a clause that names those that are not equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from ..config import MoEConfig

Fields = Mapping[str, str]
SHOWN = 5  # differences in a message


def fields_of(cfg: Any, prefix: str = "") -> dict[str, str]:
    """The fields of a dataclass as text, by name. Fields of a nested dataclass have names such as router.score."""
    found: dict[str, str] = {}
    for field in fields(cfg):
        value = getattr(cfg, field.name)
        name = prefix + field.name
        found |= fields_of(value, f"{name}.") if is_dataclass(value) else {name: repr(value)}
    return found


def fields_of_layers(cfgs: Sequence[MoEConfig]) -> dict[str, str]:
    """The fields of the first layer of an object; if the layers differ, also those of every later layer.

    A field of a later layer has a name such as "ffn of layer 2".
    """
    found = fields_of(cfgs[0]) | {"layers": str(len(cfgs))}
    if any(cfg != cfgs[0] for cfg in cfgs):
        for number, cfg in enumerate(cfgs[1:], 1):
            found |= {f"{name} of layer {number}": text for name, text in fields_of(cfg).items()}
    return found


def differences(first: Fields, second: Fields, one: str, other: str) -> str:
    """The fields that differ, as a clause; empty if none does. one, other: names of the two sides, such as "rank 0".

    Fields that only one side has are named only if the fields that both have are equal.
    """
    names = [name for name in first if name in second and first[name] != second[name]]
    names = names or sorted(first.keys() ^ second.keys())
    said = [
        f"{name}: {one} has {_shown(first.get(name))}, {other} has {_shown(second.get(name))}" for name in names[:SHOWN]
    ]
    return "; ".join(said) + (f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _shown(text: str | None) -> str:
    """A field's text, shortened. A surrogate, which a damaged file may have, is shown by its code."""
    if text is None:
        return "none"
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= 200 else f"{text[:200]}..."

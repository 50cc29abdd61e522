"""Findings, which have a state, a sentence, and what to do. The module also merges the findings of many ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from kernel_cache.texts import ranges

T = TypeVar("T")
State = Literal["ok", "warn", "fail"]
WORSE: tuple[State, ...] = ("ok", "warn", "fail")


@dataclass(frozen=True)
class Finding:
    """The result of a check. remedy: what to do, '' if nothing is wrong. values: the same facts, for programs."""

    name: str
    state: State
    text: str
    remedy: str = ""
    values: dict[str, Any] = field(default_factory=dict)


def ok(name: str, text: str, **values: Any) -> Finding:
    """The finding of a check that found nothing wrong."""
    return Finding(name, "ok", text, values=values)


def warn(name: str, text: str, remedy: str, **values: Any) -> Finding:
    """The finding of a check for something that works badly."""
    return Finding(name, "warn", text, remedy, values)


def fail(name: str, text: str, remedy: str, **values: Any) -> Finding:
    """The finding of a check for something that does not work."""
    return Finding(name, "fail", text, remedy, values)


def guarded(name: str, check: Callable[[], T]) -> T | Finding:
    """Run a check, or read facts. An exception becomes a failed finding, so that other checks still run."""
    try:
        return check()
    except ImportError as error:
        return fail(name, f"could not be checked: {error}", "see the other lines about that module")
    except Exception as error:
        what = f"could not be checked: {type(error).__name__}: {error}"
        return fail(name, what, "please report this with the output of `aristos doctor --json`")


def merged(of_ranks: Iterable[tuple[int, list[Finding]]], whole: int) -> list[Finding]:
    """Merge pairs (rank, its findings) into the findings of a job of `whole` ranks.

    Equal findings of several ranks become one finding. All `ok` findings of a name become one, with the text of the
    lowest rank.
    """
    groups: dict[str, dict[tuple[str, str, str], tuple[Finding, list[int]]]] = {}
    for rank, findings in of_ranks:
        for each in findings:
            key = (each.state, each.remedy, "" if each.state == "ok" else each.text)
            groups.setdefault(each.name, {}).setdefault(key, (each, []))[1].append(rank)
    found = []
    for same in groups.values():
        for each, ranks in sorted(same.values(), key=lambda pair: -WORSE.index(pair[0].state)):
            partial = len(same) > 1 and whole > 1
            found.append(replace(each, text=f"{named(ranks)}: {each.text}") if partial else each)
    return found


def named(ranks: Iterable[int]) -> str:
    """Ranks as a text: `rank 1`, `ranks 0-3, 8`."""
    numbers = sorted(set(ranks))
    return ("rank " if len(numbers) == 1 else "ranks ") + ranges(numbers, ", ")

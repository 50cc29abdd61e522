"""Slurm's expressions for node names, such as n[1-3,05]-ib[0-1],login, expanded in Slurm's order."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator

from kernel_cache.texts import plain, runs, shown

from ..errors import TopologyError

MOST = 1 << 17  # the most names of one expression; Slurm itself takes 65536 for one range
MOST_BRACKETS = 8
LONGEST = 255  # the most characters of a name outside brackets
_RANGE = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")


def expand(text: str) -> list[str]:
    """'n[1-2],x' -> ['n1', 'n2', 'x']. Leading zeros and repeated names are kept. Raises TopologyError."""
    names: list[str] = []
    for item in split(text, ","):
        names += _names(item.strip(), text)
        if len(names) > MOST:
            raise _too_many(text)
    return names


def split(text: str, mark: str) -> list[str]:
    """Split at each mark outside brackets."""
    parts, depth, begun = [], 0, 0
    for at, sign in enumerate(text):
        depth += (sign == "[") - (sign == "]")
        if sign == mark and depth <= 0:
            parts.append(text[begun:at])
            begun = at + 1
    return [*parts, text[begun:]]


def _names(item: str, text: str) -> Iterable[str]:
    if not item:
        return []
    parts = re.split(r"\[([^][]*)\]", item)
    if len(parts) > 2 * MOST_BRACKETS:
        raise TopologyError(f"a name must have fewer than {MOST_BRACKETS} brackets, got {_quoted(text)}")
    outside = "".join(parts[::2])
    if any(sign in outside for sign in "[] \t=()") or not plain(outside) or len(outside) > LONGEST:
        raise TopologyError(
            "expected node names like n[1-3,7], with a ] for each [ and no blank, = or parenthesis,"
            f" got {_quoted(text)}"
        )
    choices = [_numbers(inside, text) for inside in parts[1::2]]
    if math.prod(map(len, choices)) > MOST:
        raise _too_many(text)
    if len(choices) < 2:
        before, after = parts[0], parts[-1] if choices else ""
        return [before + number + after for number in choices[0]] if choices else [before]
    return _crossed(parts[::2], choices)


def _crossed(parts: list[str], choices: list[list[str]]) -> Iterator[str]:
    """Names in Slurm's order: the last brackets vary fastest, then the first, the second and so on."""
    for *slow, fast in itertools.product(*reversed(choices[:-1]), choices[-1]):
        numbers = [*reversed(slow), fast]
        yield "".join(itertools.chain.from_iterable(itertools.zip_longest(parts, numbers, fillvalue="")))


def _numbers(inside: str, text: str) -> list[str]:
    found: list[str] = []
    for part in inside.split(","):
        match = _RANGE.fullmatch(part)
        if not match:
            raise TopologyError(f"expected numbers like [1-3,7], got [{shown(inside[:80])}] in {_quoted(text)}")
        first, last = match[1], match[2] or match[1]
        if not int(first) <= int(last) <= int(first) + MOST:
            raise TopologyError(
                f"a range must go upwards and have at most {MOST} names, got {part!r} in {_quoted(text)}"
            )
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        if len(found) > MOST:
            raise _too_many(text)
    return found


def _too_many(text: str) -> TopologyError:
    return TopologyError(f"expected at most {MOST} nodes, got more in {_quoted(text)}")


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}...")


def fold(names: Iterable[str]) -> str:
    """['n1', 'n2', 'n3', 'x'] -> 'n[1-3],x'. Each name once; numbers ascend, names without one are last."""
    groups: dict[tuple[str, str, int], list[int]] = {}
    unnumbered = []
    for name in dict.fromkeys(names):
        found = re.fullmatch(r"(.*?)([0-9]{1,18})([^0-9]*)", name, re.DOTALL)
        if found:  # numbers with leading zeros are grouped by width
            width = len(found[2]) if found[2].startswith("0") else 0
            groups.setdefault((found[1], found[3], width), []).append(int(found[2]))
        else:
            unnumbered.append(name)
    parts = []
    for (before, after, width), numbers in groups.items():
        ends = [(str(low).zfill(width), str(high).zfill(width)) for low, high in runs(numbers)]
        inside = ",".join(low if low == high else f"{low}-{high}" for low, high in ends)
        parts.append(f"{before}{inside}{after}" if len(numbers) == 1 else f"{before}[{inside}]{after}")
    return ",".join([*parts, *unnumbered])

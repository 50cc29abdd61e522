"""Launches as text, such as `add<<<8, 128>>>(a:float32[1000]=seed:1, float32[1000], 1000)`.

The form is that of CUDA C++, except for arrays.

The grid and the block are each a number or (x, y, z). A third number gives the bytes of dynamic shared memory, a fourth
one or (x, y, z) the blocks of a cluster. launch_arguments.py has the forms of arguments.

A launch runs on device 0, or with @N before it on device N, or with @* on every device; in the device's default stream,
or with `stream NAME:` in one of that name. `programmatic` before the kernel lets it begin before the previous kernel of
its stream has ended. In place of a launch, `record EVENT` and `wait EVENT` order streams.

    @1 stream side: add<<<8, 128>>>(x, y, 1000)
    @1 stream side: record added
    wait added

In a file of CUDA C++ or PTX a launch is a comment of one line: `// simt: add<<<8, 128>>>(...)`. A comment
`// simt: NAME = ARRAY` gives a `__constant__` or `__device__` variable its value, on all devices, or with @N before it
on one. A comment `// simt: each NAME:ARRAY` makes an array on every device before the first launch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import InputError

COMMENT, MARK = "//", "simt:"
EVERY = -1  # in place of a device's number: all devices
LAUNCH = re.compile(
    r"(?P<early>programmatic\s+)?(?P<kernel>[A-Za-z_][\w:]*(?:<.*>)?)\s*"
    r"<<<(?P<sizes>[^<>]*)>>>\s*\((?P<arguments>.*)\)\s*;?",
    re.S,
)
SYMBOL = re.compile(r"(?:@(?P<device>\d{1,3})\s+)?(?P<name>[A-Za-z_][\w:]*)\s*=(?!=)\s*(?P<value>.+)", re.S)
PLACE = re.compile(r"(?:@(?P<device>\d{1,3}|\*)\s+)?(?:stream\s+(?P<stream>[A-Za-z_]\w*)\s*:\s*)?(?P<what>.*)", re.S)
EVENT = re.compile(r"(?P<action>record|wait)\s+(?P<event>[A-Za-z_]\w*)\s*;?")
EACH = re.compile(r"each\s+(?P<array>.+)", re.S)
FORM = (
    "a launch is NAME<<<GRID, BLOCK>>>(ARGUMENTS), such as 'add<<<8, 128>>>(float32[1000]=seed:1, float32[1000], 1000)'"
)


@dataclass(frozen=True)
class LaunchText:
    """A launch as read from text. The kernel may not exist.

    arguments: the text of each argument. shared: bytes of dynamic shared memory. device: its number, or EVERY for all
    devices. stream: its name, '' for the default stream. programmatic: whether it may begin before the previous launch
    of its stream has ended. action: '', or for a text that is no launch `record` or `wait`, with the event's name as
    `kernel`. cluster: the sizes of clusters in blocks.
    """

    text: str
    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    arguments: tuple[str, ...]
    device: int = 0
    cluster: tuple[int, ...] | None = None
    stream: str = ""
    programmatic: bool = False
    action: str = ""


@dataclass(frozen=True)
class SymbolText:
    """The value of a variable as read from text. device: its number, or None for all devices."""

    text: str
    name: str
    value: str
    device: int | None


def read_symbol(text: str) -> SymbolText | None:
    """The variable that a text gives a value, or None if the text has another form."""
    found = SYMBOL.fullmatch(text.strip())
    if found is None:
        return None
    return SymbolText(text, found["name"], found["value"], int(found["device"]) if found["device"] else None)


def read_each(text: str) -> str | None:
    """The array that a text makes on every device, or None if the text has another form."""
    found = EACH.fullmatch(text.strip())
    return found["array"] if found else None


def in_comments(source: str) -> list[str]:
    """The launches in the comments of a source."""
    found = []
    for line in map(str.strip, source.split("\n")):
        comment = line.removeprefix(COMMENT).strip()
        if line.startswith(COMMENT) and comment.startswith(MARK):
            found.append(comment.removeprefix(MARK).strip())
    return [text for text in found if text]


def read(text: str) -> LaunchText:
    """The launch, record or wait that a text describes. Raises InputError for a text of another form."""
    where = PLACE.fullmatch(text.strip())
    device, stream = (where["device"] or "0", where["stream"] or "") if where else ("0", "")
    place = EVERY if device == "*" else int(device)
    what = where["what"] if where else text
    if event := EVENT.fullmatch(what):
        if place == EVERY:
            raise InputError(f"record and wait name one device, got {text!r}")
        return LaunchText(text, event["event"], (), (), 0, (), place, None, stream, action=event["action"])
    found = LAUNCH.fullmatch(what)
    if found is None:
        raise InputError(f"{FORM}, got {text!r}")
    sizes = [size(part, text) for part in pieces(found["sizes"])]
    if not 2 <= len(sizes) <= 4 or (len(sizes) > 2 and len(sizes[2]) != 1):
        raise InputError(
            f"{FORM}; between the brackets the third number is the bytes of shared memory, and the fourth, or "
            f"(x, y, z), the blocks of a cluster, got {text!r}"
        )
    shared, cluster = sizes[2][0] if len(sizes) > 2 else 0, sizes[3] if len(sizes) > 3 else None
    parts, early = tuple(pieces(found["arguments"])), bool(found["early"])
    return LaunchText(text, found["kernel"], sizes[0], sizes[1], shared, parts, place, cluster, stream, early)


def size(part: str, text: str) -> tuple[int, ...]:
    """The size that a text describes: a number, (x, y, z) or dim3(x, y, z)."""
    inside = part.removeprefix("dim3").strip()
    if inside[:1] == "(" and inside[-1:] == ")":
        inside = inside[1:-1].strip().removesuffix(",")
    try:
        return tuple(int(one.strip(), 0) for one in inside.split(","))
    except ValueError:
        raise InputError(f"a grid or a block is a number or (x, y, z), got {part!r} in {text!r}") from None


def pieces(text: str) -> list[str]:
    """The parts of a text between commas, except for commas in brackets."""
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    last = text[start:].strip()
    return [*parts, last] if parts or last else []

"""Launches as text, such as `add<<<8, 128>>>(a:float32[1000]=seed:1, float32[1000], 1000)`.

The form is that of CUDA C++, except for arrays.

The grid and the block are each a number or (x, y, z). A third number gives the bytes of dynamic shared memory, a fourth
one or (x, y, z) the blocks of a cluster. An argument is

    5, 0x10, 2.5, true     a number
    float32[32, 64]        an uninitialised array, like one of cudaMalloc; types are NumPy's
    float32[1000]=0        an array filled with a number
    float32[1000]=range    0, 1, 2, ...
    float32[1000]=seed:7   random numbers: in [0, 1) for floats, any bits for integers
    int32[99]=seed:7<10    random integers in [0, 10)
    data.npy               the array in a file, beside the file with the kernel
    NAME:ARRAY             any of these arrays with a name, for reports and later launches
    NAME                   the array that an earlier launch gave this name
    {int32 5, float32 2.5, NAME}   a structure by value, of numbers and of arrays' addresses, with C's alignment

A launch runs on device 0, or with @N before it on device N; in the device's default stream, or with `stream NAME:` in
one of that name. `programmatic` before the kernel lets it begin before the one before it in its stream ends. In place
of a launch, `record EVENT` and `wait EVENT` order streams.

    @1 stream side: add<<<8, 128>>>(x, y, 1000)
    @1 stream side: record added
    wait added

In a file of CUDA C++ or PTX a launch is a comment of one line: `// simt: add<<<8, 128>>>(...)`. A comment
`// simt: NAME = ARRAY` gives a `__constant__` or `__device__` variable its value, on all devices, or with @N before it
on one.
"""

from __future__ import annotations

import math
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernel_cache import regular

from .errors import InputError

COMMENT, MARK = "//", "simt:"
MOST_BYTES = 1 << 32  # the most bytes of an array
# Errors that NumPy raises for files that are damaged or of another kind.
BROKEN = (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
    SyntaxError,
    tokenize.TokenError,
)
LAUNCH = re.compile(
    r"(?P<early>programmatic\s+)?(?P<kernel>[A-Za-z_][\w:]*(?:<.*>)?)\s*"
    r"<<<(?P<sizes>[^<>]*)>>>\s*\((?P<arguments>.*)\)\s*;?",
    re.S,
)
SYMBOL = re.compile(r"(?:@(?P<device>\d{1,3})\s+)?(?P<name>[A-Za-z_][\w:]*)\s*=(?!=)\s*(?P<value>.+)", re.S)
PLACE = re.compile(r"(?:@(?P<device>\d{1,3})\s+)?(?:stream\s+(?P<stream>[A-Za-z_]\w*)\s*:\s*)?(?P<what>.*)", re.S)
EVENT = re.compile(r"(?P<action>record|wait)\s+(?P<event>[A-Za-z_]\w*)\s*;?")
ARRAY = re.compile(r"(?P<type>[a-z]\w*)\s*\[(?P<shape>[\d\s,]+)\](?:\s*=\s*(?P<fill>.+))?")
MEMBER = re.compile(r"([a-z]\w*) +([-+]?[\w.][-+\w.]*)")
NAMED = re.compile(r"([A-Za-z_]\w*)\s*:\s*(.+)", re.S)
FORM = (
    "a launch is NAME<<<GRID, BLOCK>>>(ARGUMENTS), such as 'add<<<8, 128>>>(float32[1000]=seed:1, float32[1000], 1000)'"
)


@dataclass(frozen=True)
class LaunchText:
    """A launch as read from text. The kernel may not exist.

    arguments: the text of each argument. shared: bytes of dynamic shared memory. device: its number. stream: its name,
    '' for the default stream. programmatic: whether it may begin before the one before it ends. action: '', or for a
    text that is no launch `record` or `wait`, with the event's name as `kernel`. cluster: the sizes of
    clusters in blocks.
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
    device, stream = (int(where["device"] or 0), where["stream"] or "") if where else (0, "")
    what = where["what"] if where else text
    if event := EVENT.fullmatch(what):
        return LaunchText(text, event["event"], (), (), 0, (), device, None, stream, action=event["action"])
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
    return LaunchText(text, found["kernel"], sizes[0], sizes[1], shared, parts, device, cluster, stream, early)


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


class Arguments:
    """Makes the arguments of launches.

    named: the arrays that have got a name so far. folder: the folder of the files that arguments name. device: that of
    the present launch.
    """

    def __init__(self, device: Any, folder: Path):
        self.device, self.folder = device, folder
        self.named: dict[str, Any] = {}

    def on(self, device: Any) -> Arguments:
        """These arguments, of which the next ones are made on a device."""
        self.device = device
        return self

    def make(self, text: str, name: str) -> Any:
        """Make the argument that a text describes: a number, or an array of the device.

        name: the name of an array to which the text gives none. Raises InputError if the text is wrong.
        """
        found = NAMED.fullmatch(text)
        if found:
            made = 0 if NAMED.fullmatch(found[2]) else self.make(found[2], found[1])
            if found[1] in self.named or isinstance(made, (int, float)) or found[2] in self.named:
                raise InputError(f"NAME:ARRAY gives a new array a name, got {text[:200]!r}")
            self.named[found[1]] = made
            return made
        if text in self.named:
            return self.named[text]
        if text[:1] == "{" and text[-1:] == "}":
            return self.structure(text, name)
        if text.endswith(".npy"):
            return self.device.array(self.of_file(text), name)
        found = ARRAY.fullmatch(text)
        if found:
            return self.array(text, found["type"], found["shape"], found["fill"], name)
        return number(text)

    def structure(self, text: str, name: str) -> bytes:
        """The bytes of a structure: each member lies at a multiple of its size, and the whole ends at one."""
        data, most = b"", 1
        for number, part in enumerate(pieces(text[1:-1])):
            found = MEMBER.fullmatch(part)
            if found:
                raw = number_of(text, *found.groups()).tobytes()
            else:
                made = self.make(part, f"{name}.{number}")
                if isinstance(made, (int, float, bytes)):
                    raise InputError(f"a member of a structure is 'TYPE NUMBER' or an array, got {part!r} in {text!r}")
                raw = int(made.ptr).to_bytes(8, "little")
            data += bytes(-len(data) % len(raw)) + raw
            most = max(most, len(raw))
        return data + bytes(-len(data) % most)

    def of_file(self, text: str) -> np.ndarray:
        """The array of a .npy file."""
        try:
            with regular.opened(self.folder / text):
                pass
            # open_memmap compares the header with the file's size
            return np.lib.format.open_memmap(self.folder / text, mode="r")
        except BROKEN as error:
            raise InputError(f"cannot read the argument {text}: {error}") from error

    def array(self, text: str, type_: str, shape: str, fill: str | None, name: str) -> Any:
        """An array of the device, filled as `fill` says."""
        try:
            dtype = np.dtype(type_)
            sizes = tuple(int(n) for n in shape.split(",") if n.strip())
        except (TypeError, ValueError):
            sizes = ()
        if not sizes or dtype.kind not in "biufc":
            raise InputError(f"an array is TYPE[SHAPE], TYPE one of NumPy's for numbers, got {text!r}")
        if math.prod(sizes) * dtype.itemsize > MOST_BYTES:
            raise InputError(f"an array has at most {MOST_BYTES >> 20} MiB, got {text!r}")
        if fill is None:
            return self.device.empty(sizes, dtype, name)
        return self.device.array(filled(text, sizes, dtype, fill), name)


def filled(text: str, sizes: tuple[int, ...], dtype: np.dtype, fill: str) -> np.ndarray:
    """An array with the numbers that `fill` says."""
    try:
        if fill == "range":
            return np.arange(np.prod(sizes, dtype=np.int64)).astype(dtype).reshape(sizes)
        seed = re.fullmatch(r"seed:([0-9]{1,18})(?:<([0-9]{1,18}))?", fill)
        return drawn(sizes, dtype, int(seed[1]), int(seed[2] or 0)) if seed else np.full(sizes, number(fill), dtype)
    except InputError:
        raise
    except (ValueError, OverflowError) as error:
        raise InputError(f"{text!r} cannot be made: {error}") from error


def drawn(sizes: tuple[int, ...], dtype: np.dtype, seed: int, below: int) -> np.ndarray:
    """Random numbers: in [0, below) if `below` is not 0, else any integers, or floats in [0, 1)."""
    random = np.random.default_rng(seed)
    if below:
        return random.integers(below, size=sizes).astype(dtype)
    if dtype.kind in "fc":
        return random.random(sizes).astype(dtype)
    if dtype.kind == "b":
        return random.integers(2, size=sizes).astype(dtype)
    return np.frombuffer(random.bytes(int(np.prod(sizes)) * dtype.itemsize), dtype).reshape(sizes)


def number_of(text: str, type_: str, value: str) -> np.generic:
    """A number of one of NumPy's types, for a structure."""
    try:
        dtype = np.dtype(type_)
        made = np.array([number(value)]).astype(dtype)[0]
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{text!r} cannot be made: {error}") from error
    if dtype.kind not in "biuf":
        raise InputError(f"a member of a structure has one of NumPy's types of numbers, got {type_!r} in {text!r}")
    return made


def number(text: str) -> int | float:
    """The number that a text in the form of C or Python describes."""
    try:
        if text in ("true", "false"):
            return int(text == "true")
        try:
            return int(text, 0)
        except ValueError:
            return float(text.removesuffix("f"))
    except ValueError:
        raise InputError(
            f"an argument is a number, TYPE[SHAPE], TYPE[SHAPE]=FILL, FILE.npy, NAME:ARRAY or the name of an array of "
            f"an earlier launch, got {text!r}"
        ) from None

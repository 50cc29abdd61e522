"""The arguments of launches as text, such as `a:float32[1000]=seed:1`. An argument is

5, 0x10, 2.5, true     a number; `device` is the number of the launch's device
float32[32, 64]        an uninitialised array, like one of cudaMalloc; types are NumPy's
float32[1000]=0        an array filled with a number
float32[1000]=range    0, 1, 2, ...
float32[1000]=seed:7   random numbers: in [0, 1) for floats, any bits for integers
int32[99]=seed:7<10    random integers in [0, 10)
data.npy               the array in a file, beside the file with the kernel
NAME:ARRAY             any of these arrays with a name, for reports and later launches
texture{ARRAY, OPTION, ...}  the handle of a texture; an option is `4 channels`, `layered`, `clamp`, `border`, `wrap`,
                       `mirror`, `normalized` (coordinates), `as floats` or `linear` (interpolated)
surface{ARRAY, OPTION, ...}  the handle of a surface; an option is `4 channels` or `layered`
NAME                   the array that an earlier launch has named so; of arrays that `each` made, the present device's
NAME@1                 the array of device 1, if `each` made an array NAME on every device
{int32 5, float32 2.5, NAME}   a structure by value, of numbers and of arrays' addresses, with C's alignment;
                       `...` at its end fills the rest of the parameter with zeros
&{NAME, NAME}          the address of such a structure in the device's memory, or of a table of addresses
"""

from __future__ import annotations

import math
import re
import tokenize
from pathlib import Path
from typing import Any

import numpy as np

from kernel_cache import regular

from .errors import InputError
from .launch_text import pieces
from .textures import surface, texture

UNLIKE_C = ("float", "int", "uint")  # types with 4 bytes in C and 8 in NumPy
MOST_BYTES = 1 << 32  # the most bytes of an array
REST = "..."  # the end of a structure whose further bytes are 0
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
ARRAY = re.compile(r"(?P<type>[a-z]\w*)\s*\[(?P<shape>[\d\s,]+)\](?:\s*=\s*(?P<fill>.+))?")
MEMBER = re.compile(r"([a-z]\w*) +([-+]?[\w.][-+\w.]*)")
OBJECT = re.compile(r"(texture|surface)\{")
CHANNELS = re.compile(r"([124]) channels?")
OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {"address": name} for name in ("clamp", "border", "wrap", "mirror")},
    "layered": {"layered": True},
    "normalized": {"normalized": True},
    "as floats": {"read": "normalized"},
    "linear": {"filter": "linear"},
}
NAMED = re.compile(r"([A-Za-z_]\w*)\s*:\s*(.+)", re.S)


class Open(bytes):
    """The first bytes of a structure. Zeros fill the rest of the kernel's parameter."""


class Arguments:
    """Makes the arguments of launches.

    named: the arrays that have got a name so far. folder: the folder of the files that arguments name. device: the
    device of the present launch.
    """

    def __init__(self, device: Any, folder: Path):
        self.device, self.folder = device, folder
        self.named: dict[str, Any] = {}

    def on(self, device: Any) -> Arguments:
        """Make the next arguments on this device. Returns self."""
        self.device = device
        return self

    def make(self, text: str, name: str) -> Any:
        """Make the argument that a text describes: a number, an array of the device, or a structure's bytes.

        name: the name for an array if the text names none. Raises InputError if the text is wrong.
        """
        found = NAMED.fullmatch(text)
        if found:
            made: Any = 0 if NAMED.fullmatch(found[2]) else self.make(found[2], found[1])
            if found[1] in self.named or isinstance(made, (int, float, bytes)) or found[2] in self.named:
                raise InputError(f"expected NAME:ARRAY, with a new name and a new array, got {text[:200]!r}")
            self.named[found[1]] = made
            return made
        for key in (text, f"{text}@{self.device.number}"):
            if key in self.named:
                return self.named[key]
        if text == "device":
            return int(self.device.number)
        if OBJECT.match(text) and text[-1:] == "}":
            return self.handle(text, name)
        if text[:1] == "{" and text[-1:] == "}":
            return self.structure(text, name)
        if text[:2] == "&{" and text[-1:] == "}":
            return self.table(text, name)
        described = self.described(text)
        if described is None:
            return number(text)
        shape, dtype, values = described
        return self.device.empty(shape, dtype, name) if values is None else self.device.array(values, name)

    def each(self, text: str, machine: Any) -> None:
        """Make an array on every device, at equal distances. The array of device N gets the name NAME@N."""
        found = NAMED.fullmatch(text)
        described = self.described(found[2]) if found else None
        if not found or not described or f"{found[1]}@0" in self.named or found[1] == "device":
            raise InputError(f"expected 'each NAME:ARRAY', with a new name, got {text[:200]!r}")
        shape, dtype, _ = described
        for number, made in enumerate(machine.symmetric(shape, dtype, found[1])):
            values = (self.described(found[2], number) or described)[2]
            if values is not None:
                made.copy_to_device(values)
            self.named[f"{found[1]}@{number}"] = made

    def described(self, text: str, device: int = 0) -> tuple[tuple[int, ...], np.dtype, np.ndarray | None] | None:
        """The shape, the type and the values (None: uninitialised) of an array that a text describes.

        Returns None for a text of another form. device: the device's number; random numbers differ between devices.
        """
        if text.endswith(".npy"):
            values = self.of_file(text)
            return values.shape, values.dtype, values
        found = ARRAY.fullmatch(text)
        if found is None:
            return None
        sizes, dtype = sizes_of(text, found["type"], found["shape"])
        return sizes, dtype, None if found["fill"] is None else filled(text, sizes, dtype, found["fill"], device)

    def table(self, text: str, name: str) -> Any:
        """Copy a structure to the device's memory. Returns the array that holds it."""
        data = self.structure(text[1:], name)
        if isinstance(data, Open) or not data:
            raise InputError(f"a structure in memory must have members and cannot end with '{REST}', got {text!r}")
        words = len(data) % 8 == 0
        return self.device.array(np.frombuffer(data, np.uint64 if words else np.uint8), name)

    def structure(self, text: str, name: str) -> bytes:
        """The bytes of a structure: each member lies at a multiple of its own size.

        Zeros fill the structure's end to a multiple of its largest member's size, unless `...` leaves the end open.
        """
        data, most = b"", 1
        parts = pieces(text[1:-1])
        rest = parts[-1:] == [REST]
        for number, part in enumerate(parts[:-1] if rest else parts):
            found = MEMBER.fullmatch(part)
            if found:
                value = str(self.device.number) if found[2] == "device" else found[2]
                raw = number_of(text, found[1], value).tobytes()
            elif OBJECT.match(part):
                raw = int(self.make(part, f"{name}.{number}")).to_bytes(8, "little")
            else:
                made = self.make(part, f"{name}.{number}")
                if isinstance(made, (int, float, bytes)):
                    raise InputError(f"a member of a structure is 'TYPE NUMBER' or an array, got {part!r} in {text!r}")
                raw = int(made.ptr).to_bytes(8, "little")
            data += bytes(-len(data) % len(raw)) + raw
            most = max(most, len(raw))
        return Open(data) if rest else data + bytes(-len(data) % most)

    def handle(self, text: str, name: str) -> int:
        """The handle of a texture or a surface."""
        kind, _, inside = text.partition("{")
        first, *words = pieces(inside[:-1]) or [""]
        array = self.make(first, name)
        if isinstance(array, (int, float, bytes)):
            raise InputError(f"{kind}{{ARRAY, OPTIONS}} begins with an array, got {text!r}")
        options: dict[str, Any] = {}
        for word in words:
            channels = CHANNELS.fullmatch(word)
            found = {"channels": int(channels[1])} if channels else OPTIONS.get(word)
            if found is None or (kind == "surface" and word != "layered" and not channels):
                raise InputError(
                    f"an option of a {kind} must be N channels (1, 2 or 4) or one of {', '.join(OPTIONS)};"
                    f" a surface takes only N channels and layered; got {word!r}"
                )
            options.update(found)
        return texture(array, **options) if kind == "texture" else surface(array, **options)

    def of_file(self, text: str) -> np.ndarray:
        """The array of a .npy file."""
        try:
            with regular.opened(self.folder / text):
                pass
            # open_memmap compares the header with the file's size
            return np.lib.format.open_memmap(self.folder / text, mode="r")
        except BROKEN as error:
            raise InputError(f"cannot read the argument {text}: {error}") from error


def sizes_of(text: str, type_: str, shape: str) -> tuple[tuple[int, ...], np.dtype]:
    """The sizes and the type of an array. Raises InputError."""
    unlike_c(type_, text)
    try:
        dtype = np.dtype(type_)
        sizes = tuple(int(n) for n in shape.split(",") if n.strip())
    except (TypeError, ValueError):
        sizes = ()
    if not sizes or dtype.kind not in "biufc":
        raise InputError(
            "expected TYPE[SHAPE], where TYPE is one of NumPy's types of numbers, such as float32; what NumPy lacks, "
            f"as bfloat16, is an integer of its size, got {text!r}"
        )
    if math.prod(sizes) * dtype.itemsize > MOST_BYTES:
        raise InputError(f"an array has at most {MOST_BYTES >> 20} MiB, got {text!r}")
    return sizes, dtype


def unlike_c(type_: str, text: str) -> None:
    """Raise InputError for a type that has another size in C than in NumPy."""
    if type_ in UNLIKE_C:
        raise InputError(f"{type_} has 4 bytes in C and 8 in NumPy: write {type_}32 or {type_}64, got {text!r}")


def filled(text: str, sizes: tuple[int, ...], dtype: np.dtype, fill: str, device: int = 0) -> np.ndarray:
    """An array with the numbers that `fill` asks for. device: its number; random numbers differ between devices."""
    try:
        if fill == "range":
            return np.arange(np.prod(sizes, dtype=np.int64)).astype(dtype).reshape(sizes)
        seed = re.fullmatch(r"seed:([0-9]{1,18})(?:<([0-9]{1,18}))?", fill)
        if seed is None:
            return np.full(sizes, number(fill), dtype)
        return drawn(sizes, dtype, [int(seed[1]), *([device] if device else [])], int(seed[2] or 0))
    except InputError:
        raise
    except (ValueError, OverflowError) as error:
        raise InputError(f"cannot make the array {text!r}: {error}") from error


def drawn(sizes: tuple[int, ...], dtype: np.dtype, seed: list[int], below: int) -> np.ndarray:
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
    unlike_c(type_, text)
    try:
        dtype = np.dtype(type_)
        made = np.array([number(value)]).astype(dtype)[0]
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"cannot make the structure {text!r}: {error}") from error
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
            f"an argument is a number, TYPE[SHAPE], TYPE[SHAPE]=FILL, FILE.npy, NAME:ARRAY, the name of an array of an "
            f"earlier launch, {{MEMBERS}} or &{{MEMBERS}}, got {text!r}"
        ) from None

"""The contents of PTX text: modules, functions, scopes, variables, instructions and operands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kernel_cache.texts import whole

from .errors import InputError


class PTXError(InputError):
    """The error for PTX text that cannot be read or that the machine does not support. The message names the line."""


@dataclass(frozen=True)
class Number:
    """An immediate: an integer, or the bits of a float (0f..., 0d...)."""

    value: int
    kind: str  # i, f (32 bits), d (64 bits)


@dataclass(frozen=True)
class Name:
    """The name of a register, label, variable or function. negated: whether it has a `!` before it."""

    text: str
    negated: bool = False


@dataclass(frozen=True)
class Vector:
    """`{a, b}`: operands in braces."""

    items: tuple[Any, ...]


@dataclass(frozen=True)
class Address:
    """`[base+offset]`. If base is None, the address is absolute."""

    base: Name | None
    offset: int


@dataclass(frozen=True)
class Indexed:
    """`[base+offset, {x, y}]`: an address with more operands in its brackets, such as the coordinates of a tensor."""

    address: Address
    more: tuple[Any, ...]


@dataclass(frozen=True)
class Pair:
    """`d|p`: two destinations."""

    first: Any
    second: Any


@dataclass(frozen=True)
class Arguments:
    """`(a, b)`: the arguments or results of a call."""

    items: tuple[Any, ...]


@dataclass
class Instruction:
    """One instruction. mods: the modifiers after the opcode, without dots."""

    opcode: str
    mods: list[str]
    operands: list[Any]
    guard: Name | None
    line: int  # the instruction's line of the PTX text
    source: tuple[int, int] = (0, 0)  # (number of the file, line) from `.loc`; for inlined code, where that was written

    @property
    def text(self) -> str:
        """The opcode with its modifiers."""
        return ".".join([self.opcode, *self.mods])


@dataclass
class Variable:
    """A variable or parameter."""

    name: str
    space: str
    type: str
    align: int
    size: int  # bytes, 0 for an unsized array (dynamic shared memory)
    values: list[Any] = field(default_factory=list)  # ints, or (symbol, offset) for addresses
    element: int = 1
    vector: int = 1


@dataclass
class Label:
    """A label and its line."""

    name: str
    line: int


@dataclass
class Scope:
    """`{ ... }`, a block with its own names."""

    items: list[Any] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)  # name -> type
    families: dict[str, tuple[str, int]] = field(default_factory=dict)  # prefix -> (type, count)
    variables: dict[str, Variable] = field(default_factory=dict)
    targets: dict[str, list[str]] = field(default_factory=dict)  # .branchtargets

    def of_family(self, name: str) -> str | None:
        """The type of a register that a family, such as r<9>, declares; None for other names, such as r itself."""
        for prefix, (kind, count) in self.families.items():
            number = whole(name[len(prefix) :]) if name.startswith(prefix) else None
            if number is not None and number < count:
                return kind
        return None


@dataclass
class Function:
    """A function or kernel. body: None if it is only declared."""

    name: str
    entry: bool
    params: list[Variable]
    returns: list[Variable]
    body: Scope | None
    line: int
    limits: dict[str, list[int]] = field(default_factory=dict)  # .maxntid, .reqntid, ...


@dataclass
class Module:
    """The contents of a PTX text. files: the source files by the numbers that .loc uses."""

    functions: dict[str, Function] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    files: dict[int, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    target: str = ""

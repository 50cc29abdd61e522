"""Where one expert's matrix lies among a model's tensors, and how codes are unpacked from words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from .directory import Directory
from .methods import Options
from .quantised import OTHER_FILES


@dataclass(frozen=True)
class Matrix:
    """Where one expert's matrix lies. name: the name of its tensor, or of the tensor that a form's tensors replace.

    shape: (out, in) of the tensor, without the expert's axis. in_out: whether the tensor is stored [in, out]. expert:
    the expert's number in a stacked tensor. outputs: which of the tensor's outputs belong to the matrix.
    """

    directory: Directory
    name: str
    shape: tuple[int, int]
    options: Options
    form: str = ""
    expert: int | None = None
    in_out: bool = False
    outputs: slice = field(default_factory=lambda: slice(None))

    def part(self, suffix: str) -> str:
        """The name of one of a form's tensors; with suffix "" the name of the tensor that the form replaces."""
        return named(self.name, suffix)

    def has(self, suffix: str) -> bool:
        """Whether the directory has the tensor `part(suffix)`."""
        return self.part(suffix) in self.directory

    def array(self, suffix: str) -> np.ndarray:
        """This expert's values in the tensor `part(suffix)`."""
        found = self.directory.array(self.part(suffix))
        return found if self.expert is None else found[self.expert]

    def refuse(self, suffix: str, why: str, remedy: str = OTHER_FILES) -> NoReturn:
        """Raise CheckpointError for the tensor `part(suffix)`."""
        self.directory.refuse(self.part(suffix), f" {why}: {remedy}")

    def expect(self, suffix: str, shape: tuple[int, ...], *dtypes: str) -> str:
        """The dtype of the tensor `part(suffix)`. Raises unless it has this shape, and one of these dtypes."""
        entry = self.directory.entry(self.part(suffix))
        if entry.shape != shape:
            self.refuse(suffix, f"must have shape {list(shape)}, as config.json says, got {list(entry.shape)}")
        if entry.dtype not in dtypes:
            self.refuse(suffix, f"must have dtype {' or '.join(dtypes)}, got {entry.dtype}")
        return entry.dtype

    @property
    def rows(self) -> int:
        """Rows of the tensor as it is stored."""
        return self.shape[1 if self.in_out else 0]

    def groups(self, suffix: str, size: int) -> int:
        """How many groups of `size` inputs there are; size 0: all inputs are one group."""
        depth = self.shape[1]
        if size and depth % size:
            self.refuse(suffix, f"must have a multiple of {size} inputs, the size of a group, got {depth}")
        return depth // size if size else 1

    def words(self, suffix: str, codes: int, bits: int) -> int:
        """How many words of 32 bits hold `codes` codes. The codes must fill the last word."""
        if codes * bits % 32:
            self.refuse(suffix, f"cannot hold {codes} codes of {bits} bits in whole words of 32 bits")
        return codes * bits // 32


def named(name: str, suffix: str) -> str:
    """The name of the tensor with this suffix that replaces tensor `name`, or lies beside it."""
    return (name.removesuffix("weight") if suffix and suffix[0] != "_" else name) + suffix


def nibbles(stored: np.ndarray) -> np.ndarray:
    """[..., 2 n] codes of four bits from [..., n] uint8, the low one first."""
    found = np.empty((*stored.shape, 2), np.uint8)
    np.bitwise_and(stored, 15, out=found[..., 0])
    np.right_shift(stored, 4, out=found[..., 1])
    return found.reshape(*stored.shape[:-1], -1)


def unpacked(words: np.ndarray, bits: int) -> np.ndarray:
    """[..., 32 n / bits] uint8 codes from [..., n] int32, the code in the lowest bits first."""
    stored = np.ascontiguousarray(words).view(np.uint8)
    return stored if bits == 8 else nibbles(stored)


def unpacked_down(words: np.ndarray, bits: int) -> np.ndarray:
    """[32 n / bits, columns] uint8 codes of each column from [n, columns] int32, the lowest bits first."""
    return unpacked(words.T, bits).T

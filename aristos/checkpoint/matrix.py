"""Where one expert's matrix lies among a model's tensors, and codes from the words that hold several of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from ..errors import CheckpointError
from .directory import Directory
from .methods import Options
from .quantised import OTHER_FILES
from .safetensors import shown


@dataclass(frozen=True)
class Matrix:
    """Where one expert's matrix lies. name: its tensor's, or the one that a form's tensors stand for.

    shape: (out, in) of the tensor, without the expert's axis. in_out: it is stored [in, out]. expert: its number
    in a stacked tensor. outputs: those that are the matrix.
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
        """The name of one of a form's tensors; "": of the one that it replaces."""
        return named(self.name, suffix)

    def has(self, suffix: str) -> bool:
        """Whether the directory has this tensor."""
        return self.part(suffix) in self.directory

    def array(self, suffix: str) -> np.ndarray:
        """A tensor's values, of this expert."""
        found = self.directory.array(self.part(suffix))
        return found if self.expert is None else found[self.expert]

    def refuse(self, suffix: str, why: str, remedy: str = OTHER_FILES) -> NoReturn:
        """Raise the error for one of the tensors."""
        name = self.part(suffix)
        raise CheckpointError(f"{self.directory.file(name).path}: tensor {shown(name)} {why}: {remedy}")

    def expect(self, suffix: str, shape: tuple[int, ...], *dtypes: str) -> str:
        """The dtype of a tensor, which must have this shape and one of these dtypes."""
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
        """Groups of `size` k, 0 for all."""
        depth = self.shape[1]
        if size and depth % size:
            self.refuse(suffix, f"has groups of {size} k, which do not divide its {depth}")
        return depth // size if size else 1

    def words(self, suffix: str, codes: int, bits: int) -> int:
        """How many words of 32 bits hold so many codes. The codes must fill the last one."""
        if codes * bits % 32:
            self.refuse(suffix, f"cannot hold {codes} codes of {bits} bits in whole words of 32 bits")
        return codes * bits // 32


def named(name: str, suffix: str) -> str:
    """The name of a tensor that replaces `name`, or lies beside it."""
    return (name.removesuffix("weight") if suffix and suffix[0] != "_" else name) + suffix


def nibbles(stored: np.ndarray) -> np.ndarray:
    """[..., n] uint8 -> [..., 2 n]: codes of four bits, the low one first."""
    found = np.empty((*stored.shape, 2), np.uint8)
    np.bitwise_and(stored, 15, out=found[..., 0])
    np.right_shift(stored, 4, out=found[..., 1])
    return found.reshape(*stored.shape[:-1], -1)


def unpacked(words: np.ndarray, bits: int) -> np.ndarray:
    """[..., n] int32 -> [..., 32 n / bits] uint8: codes, the one in the lowest bits first."""
    stored = np.ascontiguousarray(words).view(np.uint8)
    return stored if bits == 8 else nibbles(stored)


def unpacked_down(words: np.ndarray, bits: int) -> np.ndarray:
    """[n, columns] int32 -> [32 n / bits, columns] uint8: codes of each column, the lowest bits' first."""
    return unpacked(words.T, bits).T

"""The reserve of a rank, which is its memory for rows that tapes keep, and how many bytes a row takes there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..config import LARGEST, MoEConfig, whole
from ..engine import schema, words
from ..engine.layout import lines
from ..errors import InputError
from ..kernels.cpu.elements import element_type
from ..kernels.cpu.expert import hidden_bytes
from ..primitives import taped
from ..primitives.buffers import LINE, aligned

FIELDS = {field.name: field.offset for field in schema.record("taped").fields}
SAVES = {"nothing": 0, "rows": taped.X, "hidden": taped.X | taped.HIDDEN}


def row_bytes(cfg: MoEConfig) -> int:
    """Bytes of a row on a tape, in whole cache lines."""
    return lines(element_type(cfg.dtype).nbytes * cfg.hidden)


def place_bytes(cfg: MoEConfig, save: str) -> int:
    """Bytes that a tape needs for another rank's row. save: what the tape keeps, a name in SAVES."""
    kept = SAVES[save]
    return (row_bytes(cfg) if kept & taped.X else 0) + (hidden_bytes(cfg.ffn, cfg.gated) if kept & taped.HIDDEN else 0)


def default_bytes(cfgs: Sequence[MoEConfig], world: int) -> int:
    """Bytes of the default reserve: enough for one tape of each layer with save="rows", at a rank's mean load."""
    return 0 if world == 1 else sum(each.max_tokens * each.top_k * place_bytes(each, "rows") for each in cfgs)


@dataclass(frozen=True)
class Taping:
    """What `Reserve.offer` gives to a forward call that keeps a tape.

    table: [W, TAPED_WORDS] int64, a record `taped` for each rank. save: what to keep, see `primitives.taped`. first,
    end: addresses of the part of the reserve that the call may use.
    """

    table: np.ndarray
    save: int
    first: int
    end: int


class Reserve:
    """Memory of fixed size for this rank's tapes. A call may use the largest free part, and keeps what it has used."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes // LINE * LINE
        try:
            self._memory = aligned((self.nbytes,), np.uint8)
        except MemoryError:
            raise InputError(f"tape_bytes={nbytes} cannot be allocated: give a smaller number, or 0") from None
        self._taken: list[tuple[int, int]] = []  # first byte and end of each tape's part, in order

    @property
    def taken(self) -> int:
        """Bytes that tapes hold."""
        return sum(end - first for first, end in self._taken)

    def offer(self, world: int, save: int) -> Taping:
        """Offer the next call the largest part that no tape holds."""
        ends = [0, *(end for _, end in self._taken)]
        firsts = [*(first for first, _ in self._taken), self.nbytes]
        _, first, end = max((end - first, -first, end) for first, end in zip(ends, firsts))
        base = int(self._memory.ctypes.data)
        return Taping(np.zeros((world, words.TAPED_WORDS), np.int64), save, base - first, base + end)

    def take_part(self, taping: Taping, used: int) -> tuple[int, int]:
        """Keep the offered part up to address `used`. Returns the kept part, for `free`."""
        base = int(self._memory.ctypes.data)
        part = taping.first - base, used - base
        if part[0] < part[1]:
            self._taken = sorted([*self._taken, part])
        return part

    def free(self, part: tuple[int, int]) -> None:
        """Give a tape's part back."""
        if part in self._taken:
            self._taken.remove(part)


def kept_names(table: np.ndarray, rank: int) -> list[str]:
    """What each rank keeps of this rank's rows, from a call's `Taping.table`.

    For a rank that got no rows this is "nothing". For this rank itself it is at least "rows", because the tape has a
    copy of x.
    """
    names = {kept: name for name, kept in SAVES.items()}
    there = table[:, FIELDS["there"]].copy()
    there[rank] = table[rank, FIELDS["kept"]] | taped.X
    return [names[int(kept)] for kept in there]


def asked(save: object) -> int:
    """The bits that stand for `save`, see `primitives.taped`. Raises InputError for an unknown value."""
    if not isinstance(save, str) or save not in SAVES:
        raise InputError(f"save must be one of {', '.join(SAVES)}, got {save!r}")
    return SAVES[save]


def checked_bytes(tape_bytes: object, cfgs: Sequence[MoEConfig], world: int, schedule: str = "fused") -> int:
    """The size of the reserve in bytes. Raises InputError for a size that this option cannot have."""
    if schedule == "bulk":
        if tape_bytes is not None:
            raise InputError(f"tape_bytes applies only to schedule='fused', got {tape_bytes!r} with schedule='bulk'")
        return 0
    if tape_bytes is None:
        return default_bytes(cfgs, world)
    if isinstance(tape_bytes, int | np.integer) and not isinstance(tape_bytes, bool) and tape_bytes == 0:
        return 0
    return whole("tape_bytes", tape_bytes, LARGEST, "None, or an int from 0 to 2**40 - 1")

"""Experts and the combination of their outputs as integer hashes, and the reference that a run must equal exactly.

An expert's output depends only on the row, the expert and the weights' version. A combined token depends on the
outputs, their weights and their order. Like a real expert, each hash has two phases, so that workers can share it by
columns.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engine import column_runs

SHARES = 3  # shares of F in a column-split run
PRIME = (1 << 61) - 1
VERSION = 20  # how many low bits of a stand-in for an address of weights hold the slot's number


def row_of(rank: int, epoch: int, token: int, words: int) -> list[int]:
    """The row x of a token, unlike any other row of the run."""
    return [((epoch * 64 + rank) * 4096 + token) * 16 + i + 1 for i in range(words)]


def wide_row(row: Sequence[int], x: Sequence[int]) -> list[int]:
    """The row [dy | x] that travels in a backward call. x: the row of the forward call, if the tape keeps rows."""
    return [*row, *(x or [word ^ 5 for word in row])]


def weights_address(slot: int, version: int) -> int:
    """A stand-in for the address of an expert's weights."""
    return (version << VERSION) + slot + 1


def weights_version(rank: int, epoch: int) -> int:
    """The version of its weights that a rank announces in a call."""
    return epoch * 64 + rank


def scalar(rank: int, epoch: int, token: int, choice: int) -> int:
    """The scalar that travels with a pair; it may be any 32 bits."""
    return (((epoch * 64 + rank) * 4096 + token) * 16 + choice) * 2654435761 % (1 << 32)


def scalar_back(weights: int, row: Sequence[int], scalar: int) -> int:
    """The scalar that comes back for a row and for the scalar that came with it."""
    return (activation(weights, row, 0) + 31 * scalar) % (1 << 32)


def activation(weights: int, row: Sequence[int], share: int) -> int:
    """One share of an expert's hidden activations of a row."""
    return (sum((i + 3) * word for i, word in enumerate(row)) * (share + 2) + weights * 7919) % PRIME


def output(activations: Sequence[int], word: int) -> int:
    """One word of the expert's output for these hidden activations."""
    return (sum((i + 2) * a for i, a in enumerate(activations)) + word) % PRIME


def computed(weights: int, row: Sequence[int]) -> list[int]:
    """An expert's output row for a row."""
    activations = [activation(weights, row, share) for share in range(SHARES)]
    return [output(activations, word) for word in range(len(row))]


def combined(parts: Sequence[tuple[int, Sequence[int]]], words: int) -> list[int]:
    """Combine pairs (weight, output row), in the order of choices."""
    made = [0] * words
    for weight, row in parts:
        made = [(m * 1_000_003 + weight * word) % PRIME for m, word in zip(made, row)]
    return made


def weight(token: int, choice: int, top_k: int) -> int:
    """The combine weight of a choice."""
    return token * top_k + choice + 1


def columns_of(words: int) -> tuple[int, int]:
    """(hidden, ffn) of a layer whose shares are one word each."""
    return column_runs.COLUMNS * words, column_runs.COLUMNS * SHARES

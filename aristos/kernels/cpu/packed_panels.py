"""Packed weights in memory: panels of 32 columns, each with its scales, zero points and codes in one array.

A panel begins with a line of words, which `HEAD` names. Then come the scales in their own type: for each group 32
scales, or one for all columns. Then come the zero points, which have as many bits as a code, and last the codes,
arranged as `packed_kernels` says. Each part is padded to whole lines. Columns and k are padded to multiples of 32 with
codes of the value zero. Products do not depend on the numbers that pad zero points and scales.
"""

from __future__ import annotations

import numpy as np

from ...primitives.buffers import LINE, aligned
from ...quantised import Quantised
from ...weight_types import SCALES, WeightType

WIDTH = 32  # columns of a panel; k is padded to a multiple of this number too
HEAD = ("step", "group", "scale", "shared", "zeros", "codes")
STEP, GROUP, SCALE, SHARED, ZEROS, CODES = (8 * i for i in range(len(HEAD)))
UNIT = {8: 1, 4: 4}  # bits -> bytes of a column side by side, and pairs of k that kernels unpack at once
SCALE_CODES = {name: code for code, name in enumerate(SCALES)}


def up(n: int, to: int = WIDTH) -> int:
    """n rounded up to a multiple of `to`."""
    return -(-n // to) * to


def head(kind: WeightType, depth: int) -> dict[str, int]:
    """The words of `HEAD` for panels of `depth` k.

    step: the bytes of a panel. group: how many k a group has. scale: one of `SCALE_CODES`. shared: 1 if a group has one
    scale for all columns of a panel, else 0. zeros: how many bytes lie before the zero points; 0 if there are none.
    codes: how many bytes lie before the codes.
    """
    groups = kind.groups(depth)
    nbytes = np.dtype(SCALES[str(kind.scale)]).itemsize
    zeros = LINE + up(groups * nbytes * (1 if kind.columns > 1 else WIDTH), LINE)
    codes = zeros + (up(groups * WIDTH * kind.bits // 8, LINE) if kind.zeros else 0)
    return {
        "step": codes + up(depth) * WIDTH * kind.bits // 8,
        "group": kind.group or up(depth),
        "scale": SCALE_CODES[str(kind.scale)],
        "shared": int(kind.columns > 1),
        "zeros": zeros if kind.zeros else 0,
        "codes": codes,
    }


def nbytes(kind: WeightType, depth: int, columns: int) -> int:
    """Bytes of the panels of a matrix [depth, columns]."""
    return up(columns) // WIDTH * head(kind, depth)["step"]


def pack(matrix: Quantised) -> np.ndarray:
    """Pack a matrix into panels, which lie one after the other and take `nbytes` bytes."""
    kind, (depth, columns) = matrix.type, matrix.shape
    words = head(kind, depth)
    count, groups = up(columns) // WIDTH, kind.groups(depth)
    panels = aligned((count, words["step"]), np.uint8)
    panels[:, : words["codes"]] = 0
    panels[:, : 8 * len(HEAD)].view(np.int64)[:] = list(words.values())
    _put_scales(panels, matrix, groups)
    if matrix.zeros is not None:
        zeros = np.full((groups, up(columns)), 1 << (kind.bits - 1), np.uint8)
        zeros[:, :columns] = matrix.zeros
        _put(panels, words["zeros"], _nibbles(zeros, kind.bits).reshape(groups, count, -1))
    middle = 1 << (kind.bits - 1) if kind.form.floats is None else 0
    codes = np.full((up(depth), up(columns)), middle, np.uint8)
    codes[:depth, :columns] = matrix.codes
    codes ^= np.uint8(middle)  # integer codes become two's complement
    _put(panels, words["codes"], _units(codes, kind.bits, count))
    return panels.reshape(-1)


def _put_scales(panels: np.ndarray, matrix: Quantised, groups: int) -> None:
    scales, count = matrix.scales, len(panels)
    if matrix.type.columns > 1:
        each = scales[:, np.arange(count) * WIDTH // matrix.type.columns][:, :, None]
    else:
        each = np.ones((groups, count * WIDTH), scales.dtype)
        each[:, : scales.shape[1]] = scales
        each = each.reshape(groups, count, WIDTH)
    _put(panels, LINE, each)


def _put(panels: np.ndarray, offset: int, parts: np.ndarray) -> None:
    """Write parts [n, panels, m] of any type as consecutive bytes of each panel, from byte `offset` on."""
    flat = np.ascontiguousarray(parts.transpose(1, 0, 2)).view(np.uint8).reshape(len(panels), -1)
    panels[:, offset : offset + flat.shape[1]] = flat


def _units(codes: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Arrange codes [k, columns] as [units, panels, bytes], as `packed_kernels` says.

    A unit here has 8 k if codes have 4 bits, and one k if they have 8 bits; then kernels take two units as one.
    """
    if bits == 8:
        return codes.reshape(len(codes), count, WIDTH)
    of_pairs = codes.reshape(
        len(codes) // 8, 2, 2, 2, count, WIDTH
    )  # unit, two pairs, pair, parity of k, panel, column
    stored = of_pairs[:, :, 0] | of_pairs[:, :, 1] << np.uint8(4)
    return stored.transpose(0, 3, 4, 2, 1).reshape(len(stored), count, 4 * WIDTH)


def _nibbles(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Join neighbouring 4-bit numbers of a row into bytes, the first in the low half. Numbers of 8 bits stay bytes."""
    return numbers if bits == 8 else numbers[:, ::2] | numbers[:, 1::2] << np.uint8(4)

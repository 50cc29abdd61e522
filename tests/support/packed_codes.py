"""Every type of packed weights, and matrices of random codes."""

from __future__ import annotations

import numpy as np

from aristos import packed
from aristos.quantised import Quantised
from aristos.weight_types import FORMATS, SCALES, WeightType

KINDS = [
    packed(name, group=group, scale=scale, zeros=zeros)
    for name, form in FORMATS.items()
    for group in form.groups
    for scale in form.scales
    for zeros in (False, True)[: 1 + form.zeros]
]


def _in_turn(kind: WeightType) -> bool:
    """Whether PAIRS has this type. PAIRS has one type for each group and scale; every second one has zero points."""
    form = kind.form
    return kind.zeros == bool(form.zeros and (form.groups.index(kind.group) + form.scales.index(str(kind.scale))) % 2)


PAIRS = list(filter(_in_turn, KINDS))  # fewer types, which still have every pair of properties


def named(kind: WeightType) -> str:
    return f"{kind.name}-{kind.group}-{kind.scale}{'-zeros' * kind.zeros}"


def random_codes(rng: np.random.Generator, kind: WeightType, depth: int, columns: int) -> Quantised:
    """A matrix of random codes. Its products with rows of about 1 are about 1."""
    codes = rng.integers(0, 1 << kind.bits, (depth, columns), np.uint8)
    if kind.name == "fp8":
        codes[codes & 0x7F == 0x7F] = 0
        size = 200.0
    else:
        size = {"int8": 100.0, "int4": 6.0, "mxfp4": 3.0}[kind.name]
    shape = kind.groups(depth), -(-columns // kind.columns)
    exponents = rng.integers(-3, 1, shape).astype(np.float32)
    factors = np.float32(1) if kind.scale == "e8m0" else 1 + rng.random(shape, np.float32)
    scales = (np.exp2(exponents) * factors / np.float32(2.0 ** round(np.log2(size * depth**0.5)))).astype(
        SCALES[str(kind.scale)]
    )
    zeros = rng.integers(0, 1 << kind.bits, shape, np.uint8) if kind.zeros else None
    return Quantised(kind, codes, scales, zeros)

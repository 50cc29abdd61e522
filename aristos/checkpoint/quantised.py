"""Expands quantised weights to float32: fp8 and int8 with scales, mxfp4. Scales must be finite and not zero.

fp8 by blocks (DeepSeek-V3): value = q * NAME_scale_inv of its block of 128x128; blocks at the edge are partial. Scales
may also be named NAME.scale instead of NAME.weight_scale_inv (DeepSeek-V4).
fp8 or int8 by rows or whole (compressed-tensors): value = q * NAME_scale. int8 by rows (bitsandbytes): q * SCB / 127.
mxfp4 (gpt-oss): NAME_blocks has two codes in each byte, the low nibble first; NAME_scales has an exponent for each 32
values.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..quantised import FP4
from .directory import Directory
from .methods import Options
from .safetensors import shown

ELEMENTS = ("F32", "BF16", "F16")  # dtypes whose values are the weights
MX_BLOCK = 32
MX_PAIRS = np.stack([np.tile(FP4, 16), np.repeat(FP4, 16)], axis=1)  # for each byte the values of low and high nibble
MX_BIAS = 127  # the bias of a scale's exponent
MX_ROWS = 16  # rows that are looked up at once
MX_UNSAFE = 253  # with a scale of this byte or more, a product with the largest value, 6, exceeds float32
LARGEST = float(np.finfo(np.float32).max)
NARROW = {"F8_E4M3": 448, "F8_E5M2": 57344, "I8": 128}  # the largest finite magnitude of each dtype
FLAT = ": experts stored as one matrix cannot have scales"
OTHER_FILES = "download this file again, or take the model's unquantised files"
# by the dtype of scales in files, the type of scales of packed weights
SCALES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F8_E8M0": "float32"}


def scale_name(directory: Directory, name: str, method: str) -> str:
    """The tensor that has the scales of a quantised tensor. Raises CheckpointError if there is none."""
    if method == "bitsandbytes":
        candidates = [name.removesuffix("weight") + "SCB"]
    else:
        candidates = [name + "_scale_inv", name + "_scale", name.removesuffix("weight") + "scale"]
    found = next((candidate for candidate in candidates if candidate in directory), None)
    if found is None:
        dtype, absent = directory.entry(name).dtype, " or ".join(map(shown, candidates))
        directory.refuse(name, f" has dtype {dtype} and no scales ({absent}): is the download complete?")
    return found


def check_scales(directory: Directory, name: str, asked: Options) -> set[str]:
    """The further tensors that a quantised tensor needs. Raises CheckpointError unless they fit it."""
    entry = directory.entry(name)
    if entry.dtype not in NARROW:
        known = "F32, BF16, F16, or F8_E4M3, F8_E5M2, I8 with scales"
        directory.refuse(name, f" has dtype {entry.dtype}; weights must be {known}")
    scales = scale_name(directory, name, asked.method)
    got, kind = directory.entry(scales).shape, directory.entry(scales).dtype
    if kind not in SCALES:
        known = ", ".join(SCALES)
        directory.refuse(scales, f" has dtype {kind}; scales must be {known}: take the model's unquantised files")
    *lead, rows, columns = entry.shape if len(entry.shape) > 1 else (1, *entry.shape)
    fits = [(*lead, -(-rows // asked.block[0]), -(-columns // asked.block[1]))]
    if not scales.endswith("_inv"):
        fits += [(*lead, rows, 1), (*lead, rows), (*lead, 1), (1,), ()]
        if entry.dtype == "I8":
            fits += [(*lead, rows, columns // n) for n in asked.groups if n and columns % n == 0]
    if got not in fits:
        wanted = " or ".join(str(list(f)) for f in dict.fromkeys(fits))
        directory.refuse(scales, f" must have shape {wanted}, got {list(got)}")
    zeros = name + "_zero_point"
    if entry.dtype == "I8" and zeros in directory:
        its = directory.entry(zeros)
        if its.shape != got or its.dtype != "I8":
            found = f"{its.dtype} {list(its.shape)}"
            directory.refuse(zeros, f" must have dtype I8 and shape {list(got)}, as the scales, got {found}")
    extras = {name.removesuffix("weight") + "weight_format", name.removesuffix("weight") + "input_scale"}
    extras |= {zeros} if entry.dtype == "I8" else set()
    return {scales} | {extra for extra in extras if extra in directory}


def values(directory: Directory, name: str, whole: np.ndarray, rows: Any, asked: Options) -> np.ndarray:
    """`whole[rows]` of tensor `name`: float32 if it is quantised, else as stored."""
    stored = directory.entry(name).dtype
    if stored not in NARROW:
        return whole[rows]
    scales = scale_name(directory, name, asked.method)
    scale = directory.array(scales)
    if isinstance(rows, int) and whole.ndim > 2 and scale.ndim > 1:
        scale = scale[rows]
    elif isinstance(rows, slice) and rows != slice(None) and scale.size > 1:
        directory.refuse(name, FLAT)
    largest = scales.endswith("SCB")  # bitsandbytes stores an output's largest weight, which is 0 if all are 0
    scale = usable(directory, scales, np.asarray(scale, np.float32), zero=largest)
    if largest:
        scale = scale / np.float32(127)
    one = whole[rows].astype(np.float32)
    with np.errstate(over="ignore"):  # an overflow is refused below
        if scale.size == 1:
            one *= scale.reshape(())
        elif scale.shape in ((len(one),), (len(one), 1)):
            one *= scale.reshape(-1, 1)
        else:
            high, wide = asked.block
            for i, row in enumerate(scale):
                one[i * high : (i + 1) * high] *= np.repeat(row, wide)[: one.shape[1]]
    if np.abs(scale).max(initial=0.0) > LARGEST / NARROW[stored]:
        _refuse_infinite(directory, name, one, np.isfinite(whole[rows].astype(np.float32)))
    return one


def usable(directory: Directory, name: str, scale: np.ndarray, zero: bool = False) -> np.ndarray:
    """Return `scale`. Raises CheckpointError if a value is NaN or infinite, or is 0 and `zero` is False."""
    wrong = ~np.isfinite(scale) | ((scale == 0) & (not zero))
    if wrong.any():
        at = np.unravel_index(int(np.argmax(wrong)), scale.shape)
        what = f"has a scale of {scale[at]} at {[int(i) for i in at]}"
        directory.refuse(name, f" {what}, but scales must be finite and not zero: {OTHER_FILES}")
    return scale


def _refuse_infinite(directory: Directory, name: str, product: np.ndarray, counted: Any = True) -> None:
    """Raise CheckpointError if a value of tensor `name`, times its scale, exceeds float32.

    counted: which values to check."""
    beyond = ~np.isfinite(product) & counted
    if beyond.any():
        at = [int(i) for i in np.unravel_index(int(np.argmax(beyond)), product.shape)]
        what = f"has a value at {at} of its expert that is too large for float32 after scaling"
        directory.refuse(name, f" {what}: {OTHER_FILES}")


def mxfp4(directory: Directory, blocks: str, scales: str, expert: int) -> np.ndarray:
    """[out, in] float32 of one expert.

    A scale is E8M0: 2^(byte - 127), and 255 is NaN (OCP Microscaling Formats 1.0, section 5.4.1). Values of E2M1 go up
    to 6, so with bytes from 253 up a product may exceed float32. A file with such a product is refused.
    """
    codes = directory.array(blocks)[expert].view(np.uint8)  # [out, in / 32, 16]
    exponent = directory.array(scales)[expert].view(np.uint8).astype(np.int32)  # [out, in / 32]
    if (exponent == 255).any():
        usable(directory, scales, np.where(exponent == 255, np.float32(np.nan), np.float32(1)))
    found = np.empty((*codes.shape, 2), np.float32)
    for i in range(0, len(codes), MX_ROWS):  # few rows at a time, because `take` widens the codes
        np.take(MX_PAIRS, codes[i : i + MX_ROWS], axis=0, out=found[i : i + MX_ROWS], mode="clip")
    grouped = found.reshape(*exponent.shape, MX_BLOCK)
    with np.errstate(over="ignore"):  # an overflow is refused below
        np.ldexp(grouped, exponent[..., None] - MX_BIAS, out=grouped)
    values = grouped.reshape(len(codes), -1)
    if exponent.max(initial=0) >= MX_UNSAFE:
        _refuse_infinite(directory, blocks, values)
    return values

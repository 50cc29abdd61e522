"""One expert's matrix as codes and scales (`Quantised`), directly from a model's tensors. Nothing is expanded.

`FORMS` lists the tensors of each form. They replace NAME.weight, a tensor [out, in]:
gptq: qweight [in / c, out] int32, whose words hold c codes along `in`, the lowest bits first; qzeros [groups, out / c],
whose words hold c zero points along `out`, each less one in the format's first version; scales [groups, out]; g_idx
[in], the group of each k.
awq: qweight [in, out / 8] int32 and qzeros [groups, out / 8], whose nibbles are columns 0 2 4 6 1 3 5 7; scales.
packed (compressed-tensors): weight_packed, which is either [out, in / c] int32, whose words hold c values along `in`,
each plus half the range, or uint8 with two codes of fp4 in a byte; weight_scale [out, groups]; weight_zero_point, which
is either [out / c, groups] int32, whose words hold c values along `out`, each plus half the range, or plain int8.
mxfp4 (gpt-oss): NAME_blocks [E, out, in / 32, 16] and NAME_scales [E, out, in / 32].
fp4 (DeepSeek-V4): weight [out, in / 2] int8, two codes a byte, the low one first, and scale [out, in / 32].
A tensor of fp8 or int8 keeps the name NAME.weight, and has scales beside it: see `quantised`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ..errors import InputError
from ..quantised import Quantised
from ..weight_types import SCALES, WeightType
from ..weight_types import packed as packed_type
from . import quantised
from .directory import Directory
from .matrix import Matrix, nibbles, unpacked, unpacked_down
from .methods import BLOCK

EXPONENTS = ("U8", "F8_E8M0")
NARROW = {"F8_E4M3": "fp8", "I8": "int8"}
MX_GROUP = 32
AWQ_COLUMNS = [0, 2, 4, 6, 1, 3, 5, 7]  # the column of each of a word's nibbles, the lowest first
EXPAND = "load the layer without weight_dtype, so that its weights are expanded"

Parts = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # codes [K, N], scales, zeros


class Form(NamedTuple):
    """A form in which tensors hold a packed matrix.

    tensors: ends of names of the tensors that replace NAME.weight. beside: ends of names of optional tensors. kind: a
    function that finds the weight type from headers. parts: a function that reads codes, scales and zero points of the
    matrix's outputs.
    """

    tensors: tuple[str, ...]
    beside: tuple[str, ...]
    kind: Callable[[Matrix], WeightType]
    parts: Callable[[Matrix, WeightType], Parts]


# ---------------------------------------------------------------- GPTQ


def _gptq_kind(m: Matrix) -> WeightType:
    (out, depth), bits, size = m.shape, m.options.bits, m.options.groups[0]
    groups = m.groups("scales", size)
    m.expect("qweight", (m.words("qweight", depth, bits), out), "I32")
    m.expect("qzeros", (groups, m.words("qzeros", out, bits)), "I32")
    scale = quantised.SCALES[m.expect("scales", (groups, out), "F16", "BF16", "F32")]
    if m.has("g_idx"):
        m.expect("g_idx", (depth,), "I32", "I64")
    elif m.options.act_order:
        m.refuse("qweight", "has no g_idx, but quantization_config says desc_act: is the download complete?")
    return packed_type(f"int{bits}", group=size, scale=scale, zeros=m.options.zeros)


def _gptq_parts(m: Matrix, kind: WeightType) -> Parts:
    _check_order(m, "g_idx", kind)
    zeros: Any = unpacked(m.array("qzeros"), kind.bits)[:, m.outputs]
    most = (1 << kind.bits) - 1
    if m.options.offset and (zeros == most).any():
        m.refuse(
            "qzeros",
            f"stores {most} as a zero point, which some readers of this format take as 0 and others as {most + 1}",
        )
    zeros = zeros + np.uint8(m.options.offset)
    if not kind.zeros:
        middle = 1 << (kind.bits - 1)
        if (zeros != middle).any():
            other = int(zeros[zeros != middle][0])
            m.refuse(
                "qzeros", f"has zero point {other}, but quantization_config says sym, for which it must be {middle}"
            )
        zeros = None
    return unpacked_down(m.array("qweight")[:, m.outputs], kind.bits), m.array("scales")[:, m.outputs], zeros


def _check_order(m: Matrix, suffix: str, kind: WeightType) -> None:
    """Raise CheckpointError unless groups are in the order of k."""
    if not m.has(suffix):
        return
    depth, found = m.shape[1], m.array(suffix)
    wanted = np.arange(depth) // (kind.group or depth)
    unset = m.form == "packed" and (found == -1).all()
    if not unset and not np.array_equal(found, wanted):
        m.refuse(suffix, "says that groups do not follow each other (act-order, desc_act), which Aristos does not read")


# ---------------------------------------------------------------- AWQ


def _awq_kind(m: Matrix) -> WeightType:
    (out, depth), size = m.shape, m.options.groups[0]
    groups, words = m.groups("scales", size), m.words("qweight", out, 4)
    m.expect("qweight", (depth, words), "I32")
    m.expect("qzeros", (groups, words), "I32")
    scale = quantised.SCALES[m.expect("scales", (groups, out), "F16", "BF16", "F32")]
    return packed_type("int4", group=size, scale=scale, zeros=True)


def _awq_parts(m: Matrix, kind: WeightType) -> Parts:
    codes, zeros = (_awq_columns(m.array(part))[:, m.outputs] for part in ("qweight", "qzeros"))
    return codes, m.array("scales")[:, m.outputs], zeros


def _awq_columns(words: np.ndarray) -> np.ndarray:
    """[n, N] uint8 codes from [n, N / 8] int32 words."""
    stored = unpacked(words, 4).reshape(*words.shape, 8)
    found = np.empty_like(stored)
    found[..., AWQ_COLUMNS] = stored
    return found.reshape(len(words), -1)


# ---------------------------------------------------------------- compressed-tensors


def _packed_kind(m: Matrix) -> WeightType:
    out, depth = m.shape
    entry = m.directory.entry(m.part("weight_packed"))
    if entry.dtype == "U8":
        groups = m.groups("weight_scale", MX_GROUP)
        m.expect("weight_packed", (out, depth // 2), "U8")
        m.expect("weight_scale", (out, groups), *EXPONENTS)
        return packed_type("mxfp4")
    for bits in (4, 8):
        if entry.shape == (out, -(-depth * bits // 32)):
            break
    else:
        fits = " or ".join(str([out, -(-depth * bits // 32)]) for bits in (4, 8))
        m.refuse("weight_packed", f"must have shape {fits} for 4 or 8 bits, got {list(entry.shape)}")
    m.expect("weight_packed", entry.shape, "I32")
    size = _group(m, "weight_scale")
    scale = quantised.SCALES[m.expect("weight_scale", (out, m.groups("weight_scale", size)), "F16", "BF16", "F32")]
    zeros = m.has("weight_zero_point")
    if zeros:
        stored = m.directory.entry(m.part("weight_zero_point"))
        groups = m.groups("weight_scale", size)
        rows = -(-out * bits // 32) if stored.dtype == "I32" else out
        m.expect("weight_zero_point", (rows, groups), "I32", "I8")
    return packed_type(f"int{bits}", group=size, scale=scale, zeros=zeros)


def _group(m: Matrix, suffix: str) -> int:
    """The size of groups, from the number of columns of a tensor of scales; 0: a column is one group."""
    shape, depth = m.directory.entry(m.part(suffix)).shape, m.shape[1]
    groups = shape[-1] if len(shape) == 2 else 1
    fits = [size for size in m.options.groups or (0,) if groups == (depth // size if size else 1)]
    if not fits:
        sizes = ", ".join(str(size) if size else "a column" for size in m.options.groups or (0,))
        many = f"{groups} group{'s' * (groups != 1)}"
        m.refuse(suffix, f"has {many} for {depth} inputs, but quantization_config has groups of {sizes}")
    return fits[0]


def _packed_parts(m: Matrix, kind: WeightType) -> Parts:
    out, depth = m.shape
    if m.has("weight_shape") and m.array("weight_shape").tolist() != [out, depth]:
        m.refuse("weight_shape", f"says {m.array('weight_shape').tolist()}, but config.json says {[out, depth]}")
    if kind.name == "mxfp4":
        return nibbles(m.array("weight_packed")[m.outputs]).T, _exponents(m.array("weight_scale")[m.outputs]).T, None
    _check_order(m, "weight_g_idx", kind)
    codes = unpacked(m.array("weight_packed")[m.outputs], kind.bits)[:, :depth].T
    zeros = None
    if kind.zeros:
        stored = m.array("weight_zero_point")
        if stored.dtype == np.int8:
            found = stored[m.outputs].T.astype(np.int16) + (1 << (kind.bits - 1))
            if found.min() < 0 or found.max() >> kind.bits:
                m.refuse("weight_zero_point", f"has zero points of more than {kind.bits} bits")
            zeros = found.astype(np.uint8)
        else:
            zeros = unpacked_down(stored, kind.bits)[:out][m.outputs].T
    return codes, m.array("weight_scale")[m.outputs].T, zeros


# ---------------------------------------------------------------- gpt-oss


def _mxfp4_kind(m: Matrix) -> WeightType:
    return packed_type("mxfp4")


def _mxfp4_parts(m: Matrix, kind: WeightType) -> Parts:
    codes = m.array("_blocks")[m.outputs].view(np.uint8)
    return nibbles(codes.reshape(len(codes), -1)).T, _exponents(m.array("_scales")[m.outputs]).T, None


def _exponents(stored: np.ndarray) -> np.ndarray:
    return stored.view(ml_dtypes.float8_e8m0fnu)


# ---------------------------------------------------------------- DeepSeek-V4


def _fp4_kind(m: Matrix) -> WeightType:
    out, depth = m.shape
    m.expect("weight", (out, depth // 2), "I8", "U8")
    m.expect("scale", (out, m.groups("scale", MX_GROUP)), *EXPONENTS)
    return packed_type("mxfp4")


def _fp4_parts(m: Matrix, kind: WeightType) -> Parts:
    codes = nibbles(m.array("weight")[m.outputs].view(np.uint8))
    return codes.T, _exponents(m.array("scale")[m.outputs]).T, None


# ---------------------------------------------------------------- fp8 and int8 with scales beside them


def _scaled_kind(m: Matrix) -> WeightType:
    entry, scales = m.directory.entry(m.name), scales_of(m)
    stored = m.directory.entry(scales)
    shape = stored.shape[1:] if m.expert is not None and len(stored.shape) > 1 else stored.shape
    whole = math.prod(shape) == 1
    by_row = shape in ((m.rows,), (m.rows, 1)) and not scales.endswith("_inv")
    name = NARROW[entry.dtype]
    scale = "float32" if scales.endswith("SCB") else quantised.SCALES[stored.dtype]  # SCB is divided by 127
    if scales.endswith("_inv") or (name == "fp8" and not by_row and not whole):
        half = m.outputs.start or m.outputs.stop or 0
        if name != "fp8" or m.options.block != BLOCK or half % BLOCK[1] or (m.outputs.step or 1) != 1:
            what = f"has dtype {entry.dtype} and scales for blocks of {list(m.options.block)}"
            needs = f"dtype F8_E4M3 and blocks of {list(BLOCK)}, none of which has outputs of both gate and up"
            m.refuse("", f"{what}, but packed weights need {needs}", EXPAND)
        return packed_type("fp8", scale=scale)
    if by_row and m.in_out and not whole:
        m.refuse("", "has a scale for each input, which packed weights cannot have", EXPAND)
    size = 0 if by_row or whole else _group(m, "_scale")
    return packed_type(name, group=size, scale=scale, zeros=name == "int8" and m.has("_zero_point"))


def _scaled_parts(m: Matrix, kind: WeightType) -> Parts:
    stored = m.array("").view(np.uint8)
    codes = stored[:, m.outputs] if m.in_out else stored[m.outputs].T
    name = scales_of(m)
    scale = m.directory.array(name)
    if m.expert is not None and scale.ndim > 1:
        scale = scale[m.expert]
    if name.endswith("SCB"):
        scale = scale.astype(np.float32) / np.float32(127)
    scale = scale.astype(SCALES[str(kind.scale)], copy=False)
    if kind.columns > 1:
        first, last, _ = m.outputs.indices(m.shape[0])
        scale = (scale if m.in_out else scale.T)[:, first // kind.columns : -(-last // kind.columns)]
    elif scale.size == 1:
        scale = np.full((1, codes.shape[1]), scale.reshape(()))
    else:
        scale = scale.reshape(m.rows, -1)[m.outputs].T
    if kind.name != "int8":
        return codes, scale, None
    zeros = m.array("_zero_point") if kind.zeros else None
    if zeros is not None:
        zeros = zeros.view(np.uint8).reshape(m.rows, -1)[m.outputs].T ^ np.uint8(128)
    return codes ^ np.uint8(128), scale, zeros


FORMS: dict[str, Form] = {
    "": Form(("",), ("_zero_point",), _scaled_kind, _scaled_parts),
    "gptq": Form(("qweight", "qzeros", "scales"), ("g_idx",), _gptq_kind, _gptq_parts),
    "awq": Form(("qweight", "qzeros", "scales"), (), _awq_kind, _awq_parts),
    "packed": Form(
        ("weight_packed", "weight_scale"),
        ("weight_zero_point", "weight_shape", "weight_g_idx"),
        _packed_kind,
        _packed_parts,
    ),
    "mxfp4": Form(("_blocks", "_scales"), (), _mxfp4_kind, _mxfp4_parts),
    "fp4": Form(("weight", "scale"), (), _fp4_kind, _fp4_parts),
}


def scales_of(m: Matrix) -> str:
    """The name of the tensor that has the scales of a matrix."""
    if not m.form:
        return quantised.scale_name(m.directory, m.name, m.options.method)
    return m.part(FORMS[m.form].tensors[-1])


def _first(m: Matrix) -> str:
    return FORMS[m.form].tensors[0]


def in_groups(directory: Directory, name: str) -> bool:
    """Whether a tensor of int8 has zero points, or several scales for each row."""
    if directory.entry(name).dtype != "I8" or name + "_scale" not in directory:
        return False
    scales = directory.entry(name + "_scale").shape
    return name + "_zero_point" in directory or (len(scales) > 1 and scales[-1] > 1)


def check(m: Matrix) -> set[str]:
    """The tensors of a matrix. Raises CheckpointError unless their headers fit it."""
    form = FORMS[m.form]
    form.kind(m)
    return {m.part(each) for each in (*form.tensors, *form.beside) if m.has(each)}


def kind_of(m: Matrix) -> WeightType | None:
    """The weight type of a matrix; None if it is not packed. Raises CheckpointError for headers that do not fit."""
    if not m.form and m.directory.entry(m.name).dtype in quantised.ELEMENTS:
        return None
    if not m.form and m.directory.entry(m.name).dtype not in NARROW:
        m.refuse(
            "",
            f"has dtype {m.directory.entry(m.name).dtype}, but Aristos keeps only {', '.join(NARROW)} packed",
            EXPAND,
        )
    return FORMS[m.form].kind(m)


def read(m: Matrix, kind: WeightType) -> Quantised:
    """The matrix [in, out]. Raises CheckpointError if its type is not `kind`, or for values that do not fit."""
    if (found := kind_of(m)) != kind:
        m.refuse(_first(m), f"has type {found or 'plain'}, but other weights of the layer have type {kind}", EXPAND)
    codes, scales, zeros = FORMS[m.form].parts(m, kind)
    name = scales_of(m)
    values = scales.astype(np.float32)
    wrong = ~np.isfinite(values) | (values == 0)
    if wrong.any():
        at = [int(i) for i in np.argwhere(wrong)[0]]
        what = f"has a scale of {values[tuple(at)]} for group {at[0]} of output {at[1]}"
        m.directory.refuse(name, f" {what}, but scales must be finite and not zero: {quantised.OTHER_FILES}")
    try:
        return Quantised(kind, codes, scales, zeros)
    except InputError as error:
        m.refuse(_first(m), f"cannot be used: {error}")


def expanded(m: Matrix) -> np.ndarray:
    """[in, out] float32: the expanded weights of a packed matrix."""
    return read(m, FORMS[m.form].kind(m)).dequantised(np.float32)

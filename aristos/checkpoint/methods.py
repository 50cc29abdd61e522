"""Reads quantization_config: the methods of quantisation that Aristos reads, and what each declares about its tensors.

The sources are the modules that pack and unpack in AutoGPTQ (nn_modules/qlinear), GPTQModel, AutoAWQ
(modules/linear/gemm.py) and compressed-tensors (compressors), and quantization_config of the published DeepSeek-V3,
gpt-oss, Qwen3 and Kimi K2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from ..errors import CheckpointError
from ..weight_types import FORMATS
from .safetensors import shown

BLOCK = (128, 128)
OTHER_FILES = "take the model's unquantised files"
COMPRESSED = ("pack-quantized", "float-quantized", "int-quantized", "naive-quantized", "mxfp4-pack-quantized")
STRATEGIES = ("channel", "tensor", "block", "group")
GPTQ_OFFSETS = {"gptq": 1, "gptq_v2": 0}  # by checkpoint_format, what must be added to stored zero points


@dataclass(frozen=True)
class Options:
    """The content of a quantization_config.

    method: quant_method, or "". form: the form of the tensors that replace NAME.weight, see `packed.FORMS`; "" if
    NAME.weight stays. block: how many rows and columns share a scale of fp8. bits, groups: for integers; groups are the
    declared sizes of groups, 0 means a whole column. zeros: whether zero points may differ from the middle of the
    range. offset: what must be added to stored zero points. act_order: whether groups may have another order than k.
    activations: whether inputs of the layers are declared as quantised too.
    """

    method: str = ""
    form: str = ""
    block: tuple[int, int] = BLOCK
    bits: int = 0
    groups: tuple[int, ...] = ()
    zeros: bool = False
    offset: int = 0
    act_order: bool = False
    activations: bool = False


@dataclass(frozen=True)
class Declared:
    """A quantization_config, or an object inside it. where: the file. what: the object."""

    found: dict[str, Any]
    where: str
    what: str = "quantization_config"

    def refuse(self, why: str) -> NoReturn:
        """Raise the error for this object."""
        raise CheckpointError(f"{self.where}: {self.what} {why}: {OTHER_FILES}")

    def one_of(self, key: str, allowed: Any, default: Any) -> Any:
        """The value of a key, which must be one of `allowed`; `default` if the key is absent or null."""
        value = self.found.get(key, default)
        if value is None:
            value = default
        if isinstance(value, list | dict) or not any(type(value) is type(a) and value == a for a in allowed):
            words = ", ".join(shown(a) if isinstance(a, str) else str(a) for a in allowed)
            self.refuse(f"has {key} {shown(value)}, but Aristos reads only {words}")
        return value

    def group(self, bits: int) -> int:
        """How many codes of a column share a scale; 0: all codes of a column."""
        size = self.one_of("group_size", (-1, *sorted(FORMATS[f"int{bits}"].groups)), -1)
        return max(size, 0)


def _fp8(d: Declared) -> Options:
    block = d.found.get("weight_block_size") or BLOCK
    if not isinstance(block, list | tuple) or len(block) != 2 or not all(type(n) is int and n > 0 for n in block):
        raise CheckpointError(f"{d.where}: weight_block_size must be two positive ints, got {shown(block)}")
    return Options(block=(block[0], block[1]), activations=d.found.get("activation_scheme") is not None)


def _mxfp4(d: Declared) -> Options:
    return Options()


def _bitsandbytes(d: Declared) -> Options:
    if d.found.get("load_in_8bit") is not True:
        raise CheckpointError(
            f"{d.where}: for bitsandbytes, Aristos reads only load_in_8bit: take the model's unquantised files"
        )
    return Options()


def _gptq(d: Declared) -> Options:
    bits = d.one_of("bits", (4, 8), None)
    kind = d.one_of("checkpoint_format", tuple(GPTQ_OFFSETS), "gptq")
    if d.found.get("is_marlin_format"):
        d.refuse("has is_marlin_format, but Aristos reads only gptq and gptq_v2")
    return Options(
        form="gptq",
        bits=bits,
        groups=(d.group(bits),),
        zeros=not d.one_of("sym", (True, False), True),
        offset=GPTQ_OFFSETS[kind],
        act_order=bool(d.one_of("desc_act", (True, False), False)),
    )


def _awq(d: Declared) -> Options:
    bits = d.one_of("bits", (4,), d.found.get("w_bit"))
    d.one_of("version", ("gemm", "GEMM"), "gemm")
    d.one_of("zero_point", (True,), True)
    size = d.found.get("group_size", d.found.get("q_group_size"))
    group = Declared({"group_size": size}, d.where).group(bits)
    return Options(form="awq", bits=bits, groups=(group,), zeros=True)


def _compressed(d: Declared) -> Options:
    """The options of compressed-tensors.

    Bits and zero points are read from tensors, because they differ between groups of layers.
    """
    if d.found.get("format") != "mixed-precision":
        d.one_of("format", (*COMPRESSED, "dense"), "naive-quantized")
    declared = d.found.get("config_groups")
    sizes: set[int] = set()
    activations = False
    for name, group in declared.items() if isinstance(declared, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            what = f"{d.what} {shown(name)}"
            if group.get("format") is not None:
                Declared(group, d.where, what).one_of("format", (*COMPRESSED, "dense"), None)
            sizes.add(_weights(Declared(weights, d.where, what)))
            activations |= group.get("input_activations") is not None
    return Options(form="packed", groups=tuple(sorted(sizes)), activations=activations)


def _weights(d: Declared) -> int:
    """The size of groups in one object of config_groups; 0 for other strategies."""
    bits, of = d.one_of("num_bits", (4, 8), 8), d.one_of("type", ("int", "float"), "int")
    symmetric = d.one_of("symmetric", (True, False), True)
    strategy = d.one_of("strategy", STRATEGIES, "channel")
    if of == "float" and (not symmetric or (bits == 4) != (strategy == "group")):
        d.refuse(
            f"has floats of {bits} bits with symmetric {symmetric} and strategy {strategy}, but Aristos reads only"
            " symmetric floats: of 8 bits by channel, tensor or block, and of 4 bits by group"
        )
    if strategy == "block" and d.found.get("block_structure") not in (None, list(BLOCK)):
        d.refuse(f"has block_structure {shown(d.found['block_structure'])}, but Aristos reads only {list(BLOCK)}")
    if strategy != "group":
        return 0
    return 32 if of == "float" else d.group(bits)


METHODS: dict[str, Callable[[Declared], Options]] = {
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed,
    "bitsandbytes": _bitsandbytes,
}


def options(config: dict[str, Any], where: str) -> Options:
    """The options of a config.json. Raises CheckpointError for a quantisation that Aristos does not read."""
    found = config.get("quantization_config")
    if found is None:
        found = config.get("compression_config")
    if found is None:
        return Options()
    method = found.get("quant_method") if isinstance(found, dict) else None
    if not isinstance(method, str) or method not in METHODS:
        raise CheckpointError(
            f"{where}: quantization_config has quant_method {shown(method)}, but Aristos reads only"
            f" {', '.join(METHODS)}: {OTHER_FILES}"
        )
    read = METHODS[method](Declared(found, where))
    return Options(**{**vars(read), "method": method})

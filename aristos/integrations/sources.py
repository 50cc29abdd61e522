"""Models of transformers without experts in torch. Layers read each rank's experts from the model's directory."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import Checkpoint
from ..errors import CheckpointError, InputError
from ..layer.moe import MoE
from ..weight_types import WeightType
from .experts_module import refuse_others, refuse_saving
from .options import NAME
from .training import SOURCE

QUANTISED = (".weight_scale", ".weight_scale_inv", ".qweight", ".weight_packed", "_blocks")  # ends of tensors' names
NUMBER = re.compile(r"\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Source:
    """The experts of layer `number` of a model directory."""

    checkpoint: Checkpoint
    number: int

    def __reduce_ex__(self, _: Any) -> Any:
        raise InputError("a model whose experts are not in torch cannot be copied: open its directory again")

    @property
    def weight_type(self) -> WeightType | None:
        """The weight type of the experts; None if their weights are not packed."""
        return self.checkpoint.weight_type(self.number)

    def load(self, moe: MoE) -> None:
        """Read this rank's experts into a layer."""
        self.checkpoint.load_experts(moe, layer=0, number=self.number)


def model_without_experts(
    path: str | os.PathLike[str], comm: Any, dtype: torch.dtype | str | None, more: dict[str, Any]
) -> Any:
    """A causal language model. Its experts modules have a `Source`, and parameters without memory. Collective.

    more: further arguments of transformers' from_pretrained. Raises InputError, and what `Checkpoint` raises.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    if more.pop("experts_implementation", NAME) != NAME:
        raise InputError(
            f"experts_implementation must be {NAME!r} here: for another one, use transformers' from_pretrained"
        )
    asked = _type_of(more.pop("torch_dtype", None) if dtype is None else dtype)
    checkpoint = Checkpoint(path, comm)
    config = copy.deepcopy(more.pop("config", None)) or AutoConfig.from_pretrained(path)
    for each in (config, config.get_text_config()):
        if hasattr(each, "quantization_config"):
            del each.quantization_config  # Aristos reads the experts; the rest must not be quantised
    dtype = asked or getattr(config, "dtype", None) or torch.float32
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config)
    modules = {name: each for name, each in shell.named_modules() if hasattr(each, "is_concatenated")}
    numbers = {name: _number(name) for name in modules}
    state = _dense(checkpoint, set().union(*(checkpoint.expert_tensors(number) for number in numbers.values())))
    for name, module in modules.items():
        for parameter, value in module.named_parameters(recurse=False):
            state[f"{name}.{parameter}"] = torch.zeros(1, dtype=dtype).expand(value.shape)
    if "generation_config" not in more and (Path(path) / "generation_config.json").exists():
        more["generation_config"] = GenerationConfig.from_pretrained(path)
    model = type(shell).from_pretrained(
        None, config=config, state_dict=state, experts_implementation=NAME, dtype=dtype, **more
    )
    for name, module in model.named_modules():
        if name in numbers:
            vars(module)[SOURCE] = Source(checkpoint, numbers[name])
            refuse_saving(module)
            refuse_others(module)
    return model


def _type_of(asked: torch.dtype | str | None) -> torch.dtype | None:
    """The type of a `dtype` argument, as transformers' own from_pretrained reads it; None: the type in config.json."""
    if asked is None or asked == "auto":
        return None
    found = getattr(torch, asked, None) if isinstance(asked, str) else asked
    if not isinstance(found, torch.dtype):
        raise InputError(f"dtype must be a torch.dtype, the name of one, or 'auto', got {asked!r}")
    return found


def _number(name: str) -> int:
    found = NUMBER.search(f".{name}")
    if found is None:
        raise CheckpointError(f"the name of an experts module must contain the number of its layer, got {name}")
    return int(found[1])


def _dense(checkpoint: Checkpoint, experts: Iterable[str]) -> dict[str, torch.Tensor]:
    """The tensors of a directory, except the experts', mapped from its files."""
    from safetensors import safe_open

    left_out = set(experts)
    files: dict[str, list[str]] = {}
    for name, file in checkpoint.files.items():
        if name not in left_out:
            files.setdefault(file, []).append(name)
    state = {}
    for file, names in files.items():
        with safe_open(Path(checkpoint.path) / file, "pt") as opened:
            for name in names:
                if name.endswith(QUANTISED):
                    raise CheckpointError(
                        f"{checkpoint.path}: tensor {name} belongs to a quantised layer outside the experts: use"
                        " transformers' own from_pretrained, which expands it"
                    )
                state[name] = opened.get_tensor(name)
    return state

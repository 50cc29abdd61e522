"""The options of a config.json, as a recipe reads them. An option that no recipe reads must not change arithmetic.

Every key that a recipe reads is noted. `refuse_unknown` then refuses a remaining key if its name says that it concerns
experts, routing or activations, because the meaning of an option is never guessed.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from ..errors import CheckpointError
from .safetensors import shown

CONCERNS = re.compile(
    r"moe|expert|rout|gate|gating|top_?k|scor|swiglu|(?:^|_)act(?:_|$|ivation)|capacity|jitter|shared|clamp|limit|latent|zero|mlp"
    r"|dense|sparse|ffn|feed_forward|intermediate|bias|renorm|norm_topk|correction|identity|group|quant"
)
# options of training, of predicting further tokens, and of how the model's code runs: they do not concern the layer
NO_EFFECT = r"aux_loss|z_loss|loss|output_router_logits|mtp|nextn|initializer|init_|dropout|parallel|use_grouped_mm"
# options of attention, embeddings, vision, other layers and generation
ELSEWHERE = re.compile(
    r"attn|attention|qkv|_lora|rope|rotary|vision|audio|image|video|mamba|ssm|conv|linear_(?!beta)|delta|lightning"
    r"|index_|indexer|sliding|layer_types|_token|output_hidden|tie_|vocab|max_position|torch|transformers|architectures"
    r"|auto_map|pad_|use_cache|gradient|problem|label|chunk_size|pretraining|head_|lm_head|norm_eps|ep_size"
    r"|time_step|rescale_prenorm|quantization_config|compression_config|embed|" + NO_EFFECT
)
OF_EXPERTS = re.compile("moe|expert|rout")  # a name with one of these always concerns the layer
HARMLESS = re.compile(NO_EFFECT)

MOST = 1 << 20  # the largest size, so that a file cannot cause large allocations
MOST_LAYERS = 1 << 12


def concerns(key: str) -> bool:
    """Whether an option of this name may change what an MoE layer computes."""
    elsewhere = HARMLESS if OF_EXPERTS.search(key) else ELSEWHERE
    return bool(CONCERNS.search(key)) and not elsewhere.search(key)


class Options:
    """An object of config.json, for one recipe. where: the file, for messages. defaults: the family's defaults."""

    def __init__(self, config: Mapping[str, Any], where: Path, defaults: Mapping[str, Any]) -> None:
        self.config, self.where, self.defaults = config, where, defaults
        self.read: set[str] = set()

    def refuse(self, why: str) -> NoReturn:
        """Raise CheckpointError with the file's name and the reason."""
        raise CheckpointError(f"{self.where}: {why}")

    def get(self, *keys: str) -> Any:
        """The value of an option that may have several names, or the family's default; None if there is neither.

        A null counts as absent. Raises CheckpointError if two of the names have different values.
        """
        self.read.update(keys)
        given = [key for key in keys if self.config.get(key) is not None]
        for key in given[1:]:
            one, other = self.config[given[0]], self.config[key]
            if one != other:
                self.refuse(
                    f"{given[0]} is {shown(one)} and {key} is {shown(other)}, but both name the same"
                    " option: make them equal"
                )
        for source in (self.config, self.defaults):
            for key in keys:
                if source.get(key) is not None:
                    return source[key]
        return None

    def first(self, *keys: str) -> str:
        """The first of these keys that exists and is not null; if there is none, the first key.

        Their values may differ.
        """
        self.read.update(keys)
        return next((key for key in keys if self.config.get(key) is not None), keys[0])

    def _number(self, keys: tuple[str, ...], kinds: tuple[type, ...], least: float, most: float = math.inf) -> Any:
        value: Any = self.get(*keys)
        if value is None:
            self.refuse(f"{' or '.join(keys)} is missing, but this model needs it")
        good = isinstance(value, kinds) and not isinstance(value, bool)
        if not good or not least <= value <= most or value > sys.float_info.max:
            kind = "an int" if float not in kinds else "a number"
            bound = f" and at most {most}" if most < math.inf else ""
            self.refuse(f"{keys[0]} must be {kind} of at least {least:g}{bound}, got {shown(value)}")
        return value

    def size(self, *keys: str) -> int:
        """The positive int under one of these keys."""
        return self._number(keys, (int,), 1, MOST)

    def depth(self, key: str) -> int:
        """A number of layers."""
        return self._number((key,), (int,), 1, MOST_LAYERS)

    def count(self, *keys: str) -> int:
        """An int from 0 up; 0 if no key exists."""
        return 0 if self.get(*keys) is None else self._number(keys, (int,), 0, MOST)

    def optional_count(self, *keys: str) -> int:
        """An int from 0 up; 0 if the option is null in the file, whatever the family's default is."""
        self.read.update(keys)
        named = [key for key in keys if key in self.config]
        return 0 if named and all(self.config[key] is None for key in named) else self.count(*keys)

    def number(self, *keys: str) -> float:
        """A finite number from 0 up."""
        return float(self._number(keys, (int, float), 0.0))

    def flag(self, key: str) -> bool:
        """A boolean; False if the key does not exist."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            self.refuse(f"{key} must be true or false, got {shown(value)}")
        return bool(value)

    def word(self, key: str, allowed: Mapping[str, Any]) -> Any:
        """The entry of `allowed` for the word under this key."""
        value = self.get(key)
        if not isinstance(value, str) or value not in allowed:
            self.refuse(f"{key} must be one of {', '.join(allowed)} for this model, got {shown(value)}")
        return allowed[value]

    def only(self, **wanted: Any) -> None:
        """Refuse options that differ from these values. An absent option is accepted."""
        for key, value in wanted.items():
            got = self.get(key)
            if got is not None and got != value:
                self.refuse(f"{key} must be {value!r} for this model, got {shown(got)}")

    def numbers(self, key: str) -> list[int] | None:
        """A list of ints; None if the key does not exist."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in value):
            self.refuse(f"{key} must be a list of ints, got {shown(value)}")
        return value

    def flags(self, key: str) -> list[bool] | None:
        """A list of booleans, or of 0 and 1; None if the key does not exist."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(n in (0, 1) for n in value):
            self.refuse(f"{key} must be a list of 0 and 1, got {shown(value)}")
        return [bool(n) for n in value]

    def ignore(self, *keys: str) -> None:
        """Note that these options have no effect on the layer."""
        self.read.update(keys)

    def refuse_unknown(self, model: str) -> None:
        """Raise CheckpointError for a key that may change the layer, but that the recipe has not read."""
        for key, value in self.config.items():
            if key in self.read or value is None or not concerns(key):
                continue
            self.refuse(
                f"option {shown(key)} (here {shown(value)}) is not known for {model}, so its effect is not known: read"
                " the weights yourself and pass them to MoE.load_expert, load_router"
            )

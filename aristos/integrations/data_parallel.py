"""Refuses torch's DistributedDataParallel if ranks share the experts, because it would average different experts."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from ..errors import InputError
from .options import NAME, communicator


def parts_experts(module: Any, layers: type[Any]) -> bool:
    """Whether ranks share, or will share, the experts of a module or of a module within it.

    layers: the class `Experts`.
    """
    for each in module.modules():
        if isinstance(each, layers):
            if each.moe.world > 1:
                return True
        elif hasattr(each, "is_concatenated") and getattr(each.config, "_experts_implementation", None) == NAME:
            return communicator() is not None
    return False


def _refusing(init: Callable[..., None], layers: type[Any]) -> Callable[..., None]:
    """Wrap DistributedDataParallel.__init__: it refuses models whose experts lie on several ranks."""

    @wraps(init)
    def whole(self: Any, module: Any, *args: Any, **given: Any) -> None:
        if parts_experts(module, layers):
            raise InputError(
                "DistributedDataParallel, which Trainer uses too if there are several ranks, would average gradients of"
                " different experts: leave it out, and call average_dense_grads(model) after each loss.backward()"
            )
        init(self, module, *args, **given)

    return whole


def register(layers: type[Any]) -> None:
    """Refuse DistributedDataParallel from now on. layers: the class `Experts`."""
    kind: Any = DistributedDataParallel
    kind.__init__ = _refusing(kind.__init__, layers)

"""torch's DistributedDataParallel, which is refused on ranks: it would average experts that only one rank has."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from ..errors import InputError
from .options import NAME, communicator


def parts_experts(module: Any, layers: type[Any]) -> bool:
    """Whether ranks have, or will have, parts of the experts of a module or of one within it. layers: `Experts`."""
    for each in module.modules():
        if isinstance(each, layers):
            if each.moe.world > 1:
                return True
        elif hasattr(each, "is_concatenated") and getattr(each.config, "_experts_implementation", None) == NAME:
            return communicator() is not None
    return False


def _refusing(init: Callable[..., None], layers: type[Any]) -> Callable[..., None]:
    """DistributedDataParallel's making; it refuses models whose experts lie on several ranks."""

    @wraps(init)
    def whole(self: Any, module: Any, *args: Any, **given: Any) -> None:
        if parts_experts(module, layers):
            raise InputError(
                "DistributedDataParallel, which Trainer uses on ranks too, would average the gradients of different"
                " ranks' experts: leave it out, and call average_dense_grads(model) after each loss.backward()"
            )
        init(self, module, *args, **given)

    return whole


def register(layers: type[Any]) -> None:
    """Refuse it from now on. layers: `Experts`."""
    kind: Any = DistributedDataParallel
    kind.__init__ = _refusing(kind.__init__, layers)

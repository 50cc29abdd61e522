"""Ranks that use one model at their own pace: who has finished takes part without tokens until all have.

Before each layer's calls the ranks agree on the layer and on the number of calls. A rank at the end of its block agrees
to what the others need, and makes that layer too if it has not done so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from ..errors import AristosError, MismatchError
from ..row_types import ON_CPUS
from ..substrate.attach import attach
from ..substrate.runtime import Runtime
from ..transport.limits import Limits

NONE = -1  # instead of a layer, from a rank at the end of its block
DTYPES = tuple(ON_CPUS)
WHAT = "the other ranks' next layer"


class Offer(NamedTuple):
    """layer: number of an experts module in the model. calls: that this rank needs. top_k, dtype: of its layer. grad:
    whether it has gradients.
    """

    layer: int
    calls: int
    top_k: int
    dtype: str
    grad: bool


class Guard:
    """The agreements of the ranks of a runtime. modules: the experts modules of the model, alike on all ranks."""

    def __init__(self, runtime: Runtime, modules: list[Any]) -> None:
        self._runtime = runtime
        self._numbers = {id(module): number for number, module in enumerate(modules)}
        self._modules = modules

    def covers(self, module: Any) -> bool:
        """Whether the module is one of this model."""
        return id(module) in self._numbers

    def agree(self, module: Any, calls: int, top_k: int, dtype: str, grad: bool) -> int:
        """The calls that all ranks make of a layer now. Raises MismatchError if one is at another layer."""
        mine = Offer(self._numbers[id(module)], calls, top_k, dtype, grad)
        offers = self._offers(mine)
        for rank, offer in offers.items():
            if offer.layer != mine.layer:
                raise MismatchError(
                    f"rank {self._runtime.group.rank} is at layer {mine.layer} of the model, and rank {rank} at layer"
                    f" {offer.layer}: ranks use a model alike, with prompts of their own"
                )
        return max(offer.calls for offer in offers.values())

    def _offers(self, mine: Offer | None) -> dict[int, Offer]:
        """The offers of the ranks that go on. mine: None at the end of this rank's block."""
        words = np.full(len(Offer._fields), NONE)
        if mine is not None:
            words[:] = mine.layer, mine.calls, mine.top_k, DTYPES.index(mine.dtype), mine.grad
        every = self._runtime.group.exchange(words, WHAT).tolist()
        found = {
            rank: Offer(layer, calls, top_k, DTYPES[dtype], bool(grad))
            for rank, (layer, calls, top_k, dtype, grad) in enumerate(every)
            if layer != NONE
        }
        trains = [rank for rank, offer in found.items() if offer.grad]
        if trains and len(trains) < len(every):
            rest = [rank for rank in range(len(every)) if rank not in trains]
            raise MismatchError(
                f"rank {trains[0]} calls a layer with gradients and rank {rest[0]} does not: ranks take training steps"
                " alike, and others under torch.no_grad()"
            )
        return found

    def finish(self, take_part: Callable[[Any, Offer], None]) -> None:
        """Take part in what other ranks do until all are here: take_part(module, what is needed of it)."""
        while offers := list(self._offers(None).values()):
            first = offers[0]
            most = max(offer.calls for offer in offers)
            take_part(self._modules[first.layer], first._replace(calls=most))


@contextmanager
def guarded(comm: Any, limits: Limits, modules: list[Any], take_part: Callable[[Any, Offer], None]) -> Iterator[Guard]:
    """A block of a rank with its guard; at its end it waits for the others. Collective.

    An exception on one rank ends the others' blocks with PoisonedError, which names it.
    """
    runtime = attach(comm, limits)
    try:
        guard = Guard(runtime, modules)
        try:
            yield guard
            guard.finish(take_part)
        except BaseException as error:
            if runtime.layout is not None and not isinstance(error, AristosError):
                runtime.give_up(error)
                runtime.group.fail(error)
            runtime.cannot_make(error, part=True)
            raise
    finally:
        runtime.release()

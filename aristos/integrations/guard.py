"""Lets ranks use models at their own pace. A rank that has finished takes part without tokens until all have finished.

Before each layer's calls the ranks agree on the layer and on the number of calls. They call the first of the layers at
which ranks are now. A rank at a later layer, or at the end of its `with` block, takes part. If it has not made the
layer yet, it makes the layer first.
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

NONE = -1  # in place of a layer's number: the rank is at the end of its `with` block
DTYPES = tuple(ON_CPUS)
WHAT = "the other ranks' next layer"


class Offer(NamedTuple):
    """What a rank wants to call. layer: number of an experts module in the models. calls: how many the rank needs.

    top_k, dtype: those of the layer. grad: whether the calls have gradients.
    """

    layer: int
    calls: int
    top_k: int
    dtype: str
    grad: bool


class Guard:
    """The agreements of the ranks of a runtime. modules: the experts modules of the models, equal on all ranks.

    take_part: a function that makes, without tokens, the calls of a module that other ranks are making.
    """

    def __init__(self, runtime: Runtime, modules: list[Any], take_part: Callable[[Any, Offer], None]) -> None:
        self._runtime, self._take_part = runtime, take_part
        self._numbers = {id(module): number for number, module in enumerate(modules)}
        self._modules = modules

    def covers(self, module: Any) -> bool:
        """Whether the module belongs to one of these models."""
        return id(module) in self._numbers

    def agree(self, module: Any, calls: int, top_k: int, dtype: str, grad: bool) -> int:
        """How many calls of a layer all ranks make now. First, this rank takes part in the calls of earlier layers."""
        mine = Offer(self._numbers[id(module)], calls, top_k, dtype, grad)
        while (found := self._next(mine)) is not None and found.layer != mine.layer:
            self._take_part(self._modules[found.layer], found)
        assert found is not None
        return found.calls

    def _next(self, mine: Offer | None) -> Offer | None:
        """What the ranks do now; None if all are at the end of their `with` blocks.

        mine: this rank's offer; None if this rank is at the end of its block.

        Raises MismatchError for calls with gradients if a rank is at another layer.
        """
        words = np.full(len(Offer._fields), NONE)
        if mine is not None:
            words[:] = mine.layer, mine.calls, mine.top_k, DTYPES.index(mine.dtype), mine.grad
        every = self._runtime.group.exchange(words, WHAT).tolist()
        found = {
            rank: Offer(layer, calls, top_k, DTYPES[dtype], bool(grad))
            for rank, (layer, calls, top_k, dtype, grad) in enumerate(every)
            if layer != NONE
        }
        if not found:
            return None
        first = min(found.values())
        trains = [rank for rank, offer in found.items() if offer.grad]
        if trains and len(trains) < len(every):
            rest = [rank for rank in range(len(every)) if rank not in trains]
            raise MismatchError(
                f"rank {trains[0]} calls a layer with gradients and rank {rest[0]} does not: all ranks must take the"
                " same training steps, and make other calls under torch.no_grad()"
            )
        if trains and (ahead := [rank for rank, offer in found.items() if offer.layer != first.layer]):
            raise MismatchError(
                f"rank {ahead[0]} calls layer {found[ahead[0]].layer} of the models with gradients, and other ranks"
                f" call layer {first.layer}: all ranks must take the same training steps, and make other calls under"
                " torch.no_grad()"
            )
        return first._replace(calls=max(offer.calls for offer in found.values() if offer.layer == first.layer))

    def finish(self) -> None:
        """Take part in what other ranks do, until all are at the end of their `with` blocks."""
        while (found := self._next(None)) is not None:
            self._take_part(self._modules[found.layer], found)


@contextmanager
def guarded(comm: Any, limits: Limits, modules: list[Any], take_part: Callable[[Any, Offer], None]) -> Iterator[Guard]:
    """A `with` block of this rank, with its guard. At its end the rank waits for the others. Collective.

    An exception on one rank ends the others' blocks with PoisonedError, which names the exception.
    """
    runtime = attach(comm, limits)
    try:
        guard = Guard(runtime, modules, take_part)
        try:
            yield guard
            guard.finish()
        except BaseException as error:
            if runtime.layout is not None and not isinstance(error, AristosError):
                runtime.give_up(error)
                runtime.group.fail(error)
            runtime.cannot_make(error, part=True)
            raise
    finally:
        runtime.release()

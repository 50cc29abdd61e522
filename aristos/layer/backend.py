"""What a backend does for `MoE`: pack weights, take arguments into a call, run it, return its result.

`MoE` owns what backends have in common: membership, checks of options, pending calls, summaries, the EP group. A
backend exists only once the layer has joined its runtime.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from ..config import MoEConfig
from ..errors import InputError
from ..substrate.runtime import Runtime
from ..transport.limits import Limits
from .arguments import CallArguments
from .backward import BackwardCalls
from .collective import Membership, Needs
from .given import GivenLayer
from .stats import Totals
from .tapes import Taping
from .updates import Updates

Event = tuple[int, str, float, float, int, int]  # (worker, kind, start, end, which, rows), see `Timeline.events`
# fields of the configuration that must be equal in all layers of an object
COMMON = ("experts", "hidden", "top_k", "dtype", "max_tokens", "precision", "weight_dtype", "levels", "combine")


@dataclass(frozen=True)
class Settings:
    """The checked options of an object. cfgs: a configuration for each layer. limits: the time limits of waits.

    sms: the most SMs of a GPU that are used, None for all. moves: what crosses between ranks of a node, see `MoE`.
    train: whether the layers can be trained. copied: for layers that can be trained, the ids of the experts that
    several ranks hold, in one group or in several.
    """

    cfgs: tuple[MoEConfig, ...]
    schedule: str
    limits: Limits
    sms: int | None = None
    moves: str = "tokens"
    train: bool = False
    copied: Collection[int] = ()

    @property
    def layers(self) -> int:
        return len(self.cfgs)


class Trainer(Protocol):
    """What training needs of a backend whose layers it trains.

    keeps_rows: whether owners can keep rows of forward calls. taping: where owners keep the rows of the next call, or
    the error with which that call is refused; None for a call of which no rows are kept.
    """

    taping: Taping | InputError | None

    @property
    def keeps_rows(self) -> bool: ...

    def kept_up_to(self) -> int:
        """The address up to which the last call filled its tape."""
        ...

    def shared_weights(self, layer: int, count: int) -> np.ndarray:
        """[count] weights of the shared expert's outputs in the last call, which was a call of `layer`.

        Without shared_sigmoid all are 1.
        """
        ...

    def received(self, layer: int) -> int:
        """How many rows this rank's own experts computed in the last call, which was a call of `layer`."""
        ...

    def backward_calls(self, number: int) -> BackwardCalls:
        """The object that makes backward calls. number: this rank's number among the ranks of all groups of a plan."""
        ...

    def updates(self) -> Updates:
        """Compiled steps of optimizers."""
        ...


class Backend(ABC):
    """Executes the calls of one layer object, on CPUs or on a GPU.

    weights: the packed weights of each layer, None before `load`. cfgs: a configuration for each layer. cfg: the first
    of them; only those of its fields are read that are equal in all layers, see `COMMON`. name: as in
    `MoE(backend=...)`. reads_peers: whether a rank can compute with the experts of local peers, see `moves` of `MoE`.
    trains: whether a layer can be made with train=True.
    """

    name: ClassVar[str]
    reads_peers: ClassVar[bool] = False
    trains: ClassVar[bool] = False

    def __init__(self, settings: Settings, member: Membership) -> None:
        self.settings, self.cfgs, self.cfg, self.member = settings, settings.cfgs, settings.cfgs[0], member
        self.weights: list[Any] = [None] * settings.layers
        self._versions = [0] * settings.layers
        self.clear_totals()

    def clear_totals(self) -> None:
        """Set the totals of this rank's calls to zero."""
        self.totals = Totals(self.settings.layers, self.cfg.experts)

    # ------------------------------------------------------------ before the layer joins its runtime

    @staticmethod
    @abstractmethod
    def check(cfg: MoEConfig, schedule: str, threads: int | None, sms: int | None = None) -> None:
        """Raise InputError for a configuration or an option that this backend does not have."""

    @staticmethod
    @abstractmethod
    def needs(cfg: MoEConfig, runtime: Runtime | None, sms: int | None = None, train: bool = False) -> Needs:
        """Private memory and workers for calls of this layer."""

    @staticmethod
    @abstractmethod
    def packed_bytes(cfg: MoEConfig, count: int, copied: int | None) -> int:
        """Bytes of a layer's packed weights with `count` experts, all biases and a router.

        copied: None if the layer is not trained. Else masters and gradients are included, and `copied` is the
        number of experts that other ranks hold too.
        """

    # ------------------------------------------------------------ weights

    @abstractmethod
    def new_weights(self, layer: int) -> Any:
        """An empty `PackedLayer` for this layer."""

    @abstractmethod
    def idle(self) -> None:
        """Wait until no call reads weights."""

    def load(self, layer: int, given: GivenLayer) -> None:
        """Pack the given weights of a layer. They replace its earlier weights."""
        self.idle()
        before, packed = self.weights[layer], self.new_weights(layer)
        try:
            packed.take_layer(given)
        except BaseException:
            packed.free()
            raise
        self.weights[layer] = packed
        self._changed(layer)
        if before is not None:
            before.free()

    def load_part(self, layer: int, take: Callable[[Any], None]) -> None:
        """Pack a part of a layer in place: call `take` with the layer's packed weights."""
        self.idle()
        if self.weights[layer] is None:
            self.weights[layer] = self.new_weights(layer)
        take(self.weights[layer])
        self._changed(layer)

    def unload(self, layer: int) -> None:
        """Count every part of a layer as missing."""
        self.idle()
        if self.weights[layer] is not None:
            self.weights[layer].forget()
            self._changed(layer)

    def _changed(self, layer: int) -> None:
        """Count a change of the layer's weights: later calls announce a new version."""
        self._versions[layer] += 1
        self.weights[layer].version = self._versions[layer]
        self.loaded(layer)

    @abstractmethod
    def loaded(self, layer: int) -> None:
        """Fill a layer's jobs again, because its weights have changed."""

    # ------------------------------------------------------------ calls: new_call, take or refuse, run, result

    @abstractmethod
    def new_call(self) -> Any:
        """An empty call; `layer: int` and `error: Exception | None` are for `MoE` to set."""

    @abstractmethod
    def take_arguments(self, call: Any, given: CallArguments, copy: bool) -> None:
        """Check the arguments of a call of a loaded layer and keep what `run_call` reads; raises InputError.

        copy: copy ids and weights, because the caller may change them before the call ends.
        """

    @abstractmethod
    def refuse(self, call: Any) -> None:
        """Make the call announce a refusal instead of rows, because the other ranks have already entered the call."""

    @abstractmethod
    def run_call(self, call: Any) -> float:
        """Run a call that the runtime has entered; returns its seconds."""

    @abstractmethod
    def result(self, call: Any, seconds: float, return_stats: bool) -> Any:
        """Close the call and return its output, or a tuple of the output and what else the caller wants.

        If this rank or a peer refused its input, raise the error.
        """

    # ------------------------------------------------------------ what only one backend has

    def synchronize(self) -> None:  # noqa: B027 - a backend whose calls return their result has nothing to wait for
        """Wait for calls that go on after `run_call` has returned, and raise the error of a call that was refused."""

    @property
    def device(self) -> int | None:
        """CUDA's number of this rank's GPU; None on CPUs."""
        return None

    @property
    def isa(self) -> str | None:
        """The instruction set of the kernels on CPUs; None on a GPU."""
        return None

    @property
    def moves(self) -> str:
        """What crosses between the ranks of a node in this object's calls: "tokens" where rows always travel."""
        return "tokens"

    def trainer(self) -> Trainer:
        """The object that training calls. Raises InputError if this backend cannot train layers, see `trains`."""
        raise InputError(f"train=True requires backend='cpu', got {self.name!r}")

    @abstractmethod
    def timeline(self, on: bool, events: int) -> None:
        """Record the events of later calls, or stop recording. events: the most that a worker records in a call."""

    def events(self) -> list[Event]:
        """Recorded events of the last call."""
        return []

    # ------------------------------------------------------------ end

    def close(self) -> None:
        """Release what this object allocated, while the runtime still exists."""
        self.weights = []


def check_layer(layer: Any, layers: int) -> None:
    """Raise InputError unless `layer` is one of 0..layers-1."""
    if isinstance(layer, bool) or not isinstance(layer, int | np.integer) or not 0 <= layer < layers:
        raise InputError(f"layer must be an int in 0..{layers - 1}, got {layer!r}")

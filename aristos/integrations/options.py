"""The options with which layers of transformers' models are made, and the communicator that they share."""

from __future__ import annotations

import inspect
import json
import os
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from ..host import launch_environment, mpi_world
from ..layer.arguments import DEFAULT_TIMEOUT, usable_limits
from ..layer.moe import MoE
from ..transport.limits import Limits

NAME = "aristos"  # the implementation of experts
VARIABLE = "ARISTOS_OPTIONS"  # a JSON object: arguments of `options`, for programs that do not call `options`
OURS = ("self", "cfg", "comm", "layers", "backend", "train")  # arguments of MoE that `**layer` must not have


@dataclass
class Options:
    """The values that `options` sets.

    max_tokens: the most rows of a call; more rows are computed in several calls. comm: an mpi4py communicator; None:
    all ranks that a launcher has started. train: whether layers have gradients; None: layers of modules in training
    mode have them. layer: further arguments of `Experts`, such as threads and moves. config: arguments of `MoEConfig`.
    fallback: the implementation of transformers for experts that Aristos refuses; None: such experts raise an error.
    timeline: the folder for each layer's last call; None: nothing is recorded.
    """

    max_tokens: int = 1024
    comm: Any = None
    train: bool | None = None
    layer: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    fallback: str | None = None
    timeline: str | os.PathLike[str] | None = None


_options = Options()


def options(
    *,
    max_tokens: int = 1024,
    comm: Any = None,
    train: bool | None = None,
    weight_dtype: Any = None,
    precision: str = "highest",
    fallback: str | None = None,
    timeline: str | os.PathLike[str] | None = None,
    **layer: Any,
) -> None:
    """Set the options with which layers of models are made from now on. An option that is left out gets its default.

    Parameters
    ----------
    max_tokens : int, default 1024
        The most rows of a call; more rows are computed in several calls.
    comm : communicator or None, default None
        An mpi4py communicator, whose ranks share the experts. None: all ranks that a launcher has started.
    train : bool or None, default None
        Whether layers have gradients. None: layers that are made after `model.train()` have them.
    weight_dtype : str, WeightType or None, default None
        As in `aristos.MoEConfig`.
    precision : str, default "highest"
        As in `aristos.MoEConfig`.
    fallback : str or None, default None
        The implementation of transformers, such as "grouped_mm", for classes that Aristos refuses. A warning names each
        class once. None: such classes raise an error.
    timeline : path or None, default None
        A folder. Layers record what their workers do, and `close(model)` writes each layer's last call to MODULE.json
        there: see `aristos.MoE.write_timeline`. None: nothing is recorded.
    **layer : object
        Further arguments of `aristos.MoE`, such as threads, moves, schedule and timeout.

    Raises
    ------
    InputError
        A max_tokens that is no positive int, or an argument that `aristos.MoE` does not have.
    """
    global _options
    known = [name for name in inspect.signature(MoE.__init__).parameters if name not in OURS]
    for name in layer:
        if name not in known:
            raise InputError(f"options() takes only the arguments {', '.join(known)}, got {name}")
    if type(max_tokens) is not int or max_tokens < 1:
        raise InputError(f"max_tokens must be an int of at least 1, got {max_tokens!r}")
    config = {"weight_dtype": weight_dtype, "precision": precision}
    _options = Options(max_tokens, comm, train, layer, config, fallback, timeline)


def from_environment() -> None:
    """Call `options` with the arguments in VARIABLE, if it is set. Raises InputError if it holds no such arguments."""
    text = os.environ.get(VARIABLE)
    if not text:
        return
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict) or "comm" in given:
        raise InputError(
            f'{VARIABLE} must be a JSON object with arguments of options(), but not comm, such as {{"threads": 2}};'
            f" got {text!r}"
        )
    options(**given)


def current() -> Options:
    """The present options."""
    return _options


def limits() -> Limits:
    """The limits of waits that the options set."""
    return usable_limits(_options.layer.get("timeout", DEFAULT_TIMEOUT), _options.layer.get("absent_timeout"))


def communicator() -> Any:
    """The communicator whose ranks share the experts; None: this process has all experts."""
    comm = world() if _options.comm is None else _options.comm
    return None if comm is None or comm.Get_size() == 1 else comm


def world() -> Any:
    """MPI's world if a launcher has started several tasks, else None.

    Raises EnvironmentProblem if MPI does not see the launcher's tasks as one job.
    """
    started = launch_environment.started_as()
    return None if started is None or started[1] == 1 else mpi_world.connect()

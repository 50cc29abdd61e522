"""Comparisons of checkpoints and layers: one directory on all ranks, configurations, and shapes of arrays."""

from __future__ import annotations

from typing import Any

from .._first_refusal import raise_first
from ..config import MoEConfig
from ..errors import MismatchError
from ..layer.arguments import usable_limits
from ..layer.given import shapes
from .recipe import StoredLayer
from .stored_arrays import LATE, WEIGHTS


def agree(comm: Any, timeout: float, path: Any, problem: Exception | None, options: str) -> None:
    """Raise `problem` on a rank that has one, and PeerInputError on the other ranks. Collective.

    options: a hash of config.json. Raises MismatchError if ranks have different options.
    """
    from ..substrate.attach import attach

    runtime = attach(comm, usable_limits(timeout))
    try:
        runtime.refuse_open()
        reported = runtime.group.allgather((None if problem is None else str(problem), options), "a checkpoint")
    finally:
        runtime.release()
    raise_first(problem, [text for text, _ in reported], "cannot open its model directory")
    for rank, (_, theirs) in enumerate(reported):
        if theirs != reported[0][1]:
            raise MismatchError(
                f"{path}: ranks 0 and {rank} have different config.json files: open the same model on all ranks"
            )


def shapes_of(cfg: MoEConfig, stored: StoredLayer) -> dict[str, tuple[int, ...]]:
    """Shapes of one expert's arrays and of the layer's, in nn.Linear's order."""
    found = shapes(cfg, "out_in") | {
        "select_bias": (cfg.columns - stored.late,),
        "router_scale": (cfg.hidden,),
        "router_norm": (cfg.hidden,),
        "expert_scale": (1 if stored.late else cfg.columns,),
    }
    return found | {LATE + name: found[name] for name in WEIGHTS}


def difference(one: MoEConfig, other: MoEConfig) -> str:
    """A clause that names the first options in which two configurations differ."""
    names = [name for name, value in vars(one).items() if value != getattr(other, name)]
    return ", ".join(f"{name} {getattr(one, name)} and {getattr(other, name)}" for name in names[:3])

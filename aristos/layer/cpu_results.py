"""After a call on CPU cores: its routing, or the reason why the engine refused this rank's input."""

from __future__ import annotations

from ..config import MoEConfig
from ..primitives import finite
from ..routing import Routing, routing_of
from .arguments import routing_problem
from .cpu_arguments import CpuArguments, CpuCall


def routing_of_call(call: CpuCall, cfg: MoEConfig, arguments: CpuArguments) -> Routing:
    """The routing of a call that has ended, for a caller who wants it."""
    assert call.x is not None
    own_ids, own_weights = arguments.own_routing(cfg, len(call.x))
    ids = own_ids if call.ids is None else call.ids
    weights = own_weights if call.weights is None else call.weights
    if call.kept is not None:
        weights = call.kept[:, : cfg.top_k]
    shape = (*call.lead, cfg.top_k)
    logits = None if call.logits is None else call.logits.reshape(*call.lead, cfg.columns)
    return routing_of(ids.reshape(shape), weights.reshape(shape), logits, cfg.columns)


def own_problem(call: CpuCall, status: int, cfg: MoEConfig) -> str:
    """Why the engine has refused this rank's routing."""
    if call.ids is not None and call.weights is not None:
        return routing_problem(call.ids, call.weights, cfg, status)
    assert call.x is not None
    name, rows = ("x", call.x) if call.router_x is None else ("router_x", call.router_x)
    at = finite.first(rows)
    if at is not None:
        return f"{name} must be finite, got {float(rows[at])} in token {at[0]}, column {at[1]}"
    return (
        f"router scores must be finite, got NaN or infinity: {name} is finite, but the products of {name} and the"
        " router's weights are too large, so scale one of them down"
    )

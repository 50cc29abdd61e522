"""Tables of a results file with what a simulation found. Dimensions and names are those that the suite `idle` uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..results import Table
from .outcome import Outcome


def whole(found: Outcome, way: Mapping[str, str], attributes: Mapping[str, Any]) -> list[Table]:
    """The tables `simulate`, of calls and ranks, and `links`, of the network.

    way: the routing as `pattern`, `schedule` and `moves`.
    """
    world, calls = found.times.shape
    table = Table("simulate", attributes=dict(attributes))
    for name in ("pattern", "schedule", "moves"):
        table.dim(name, [way[name]])
    table.dim("rank", np.arange(world)).dim("peer", np.arange(world)).dim("iteration", np.arange(calls))
    table.dim("activity", list(found.shares))
    at = ("pattern", "schedule", "moves")
    only = None, None, None  # the one pattern, schedule and moves
    table.add("call_time", (*at, "rank", "iteration"), found.times[only], "s", "a simulated call of a rank")
    table.add("wait_time", (*at, "rank", "peer"), found.waits[only], "s", "time of the last call, waiting for a peer")
    share = np.array(list(found.shares.values())).T
    table.add("share", ("rank", "activity"), share, "1", "share of the last call's time, over the workers")
    table.add("rows", ("rank", "peer"), found.rows, "1", "rows of a rank's tokens for the experts of a peer")
    return [table, *([_links(found, attributes)] if len(found.puts) and found.node_of.max() else [])]


def _links(found: Outcome, attributes: Mapping[str, Any]) -> Table:
    """The table of what crossed between nodes: by link, and by node of the source and of the target."""
    nodes = int(found.node_of.max()) + 1
    by_node = np.zeros((2, nodes, nodes))
    for i, each in enumerate((found.put_bytes, found.puts)):
        np.add.at(by_node[i], (found.node_of[:, None], found.node_of[None, :]), each)
    by_node /= len(found.calls)
    table = Table("simulate", "links", attributes=dict(attributes))
    table.dim("source_node", np.arange(nodes)).dim("target_node", np.arange(nodes)).dim("link", list(found.links))
    table.add("sent", ("source_node", "target_node"), by_node[0], "B", "bytes put in a call")
    table.add("puts", ("source_node", "target_node"), by_node[1], "1", "puts in a call")
    crossed, share = np.array(list(found.links.values())).T
    table.add("crossed", "link", crossed, "B", "bytes that crossed a link in all calls")
    return table.add("in_use", "link", share, "1", "share of the link's capacity that was used, over all calls")


def stopped(call_ms: Sequence[float], attributes: Mapping[str, Any]) -> Table:
    """The calls that had ended when a simulation was stopped, as the table `calls`."""
    table = Table("simulate", "calls", attributes=dict(attributes)).dim("iteration", np.arange(len(call_ms)))
    return table.add("call_time", "iteration", np.array(call_ms) * 1e-3, "s", "a simulated call, until its last end")

"""The words of a simulation that network.py reads, for the routes of a network."""

from __future__ import annotations

import numpy as np

from ..primitives.buffers import zeros
from . import control as c
from .routes import Routes


def words(routes: Routes, class_of_pair: np.ndarray, most: int) -> tuple[dict[int, np.ndarray], dict[int, int]]:
    """(arrays, numbers), each a dict by words of control.py. An array's word holds the array's address.

    class_of_pair: the class of each ordered pair of ranks, -1 within a node. most: how many flows there may be at once.
    """
    classes, links = len(routes.routes), len(routes.names)
    starts, members = routes.by_link()
    flows = zeros((most, c.FLOW_WORDS))
    flows[:, c.NEXT_FLOW] = np.arange(1, most + 1)
    flows[-1, c.NEXT_FLOW] = -1
    arrays = {
        c.CLASS_OF_PAIR: np.ascontiguousarray(class_of_pair, np.int64),
        c.ROUTES: routes.routes, c.CAPACITY: routes.capacity, c.LATENCY: routes.latency,
        c.LINK_STARTS: starts, c.LINK_CLASSES: members,
        c.CLASS_FLOWS: zeros((classes,)), c.CLASS_NUMBERS: np.zeros(2 * classes),
        c.CLASS_FIRST: np.full(classes, -1, np.int64), c.FIXED: zeros((classes,)), c.ACTIVE: zeros((classes,)),
        c.PLACES: zeros((classes,)), c.SHARES: np.zeros(links), c.COUNTS: zeros((links,)),
        c.LINK_BYTES: np.zeros(links), c.FLOWS: flows,
    }  # fmt: skip
    numbers = {
        c.CLASSES: classes, c.LINKS: links, c.ROUTE_MOST: routes.routes.shape[1], c.FLOWS_MOST: most, c.FREE_FLOW: 0,
        c.NETWORK_DUE: c.NEVER,
    }  # fmt: skip
    return arrays, numbers

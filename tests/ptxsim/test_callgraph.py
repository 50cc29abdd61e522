"""Functions of a call graph that may be active twice are those whose calls, direct or not, lead back to them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ptxsim.callgraph import cyclic


@given(st.lists(st.sets(st.integers(0, 8), max_size=3), min_size=9, max_size=9))
def test_nodes_on_a_cycle_are_those_that_reach_themselves(edges):
    graph = {str(node): {str(other) for other in others} for node, others in enumerate(edges)}
    assert cyclic(graph) == {name for name in graph if name in reached(graph, name)}


def reached(graph: dict[str, set[str]], name: str) -> set[str]:
    seen: set[str] = set()
    todo = [name]
    while todo:
        new = graph[todo.pop()] - seen
        seen |= new
        todo += new
    return seen

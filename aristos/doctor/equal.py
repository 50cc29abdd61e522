"""Checks that ranks are alike. For each property that should be equal, a finding names the ranks that differ."""

from __future__ import annotations

from collections import Counter

from ..host.nodes import Nodes
from .finding import Finding, fail, named, ok, warn

ENVIRONMENT = "start all ranks from one environment: activate it in the job script, not in the shell of one node"
RULES = (  # property, whether a difference is a failure, what to do
    ("aristos", True, ENVIRONMENT),
    ("python", True, ENVIRONMENT),
    ("numpy", True, ENVIRONMENT),
    ("numba", True, ENVIRONMENT),
    ("MPI library", True, "one MPI library on all nodes: the same environment or module, and the same LD_LIBRARY_PATH"),
    (
        "instructions",
        False,
        "16-bit layers use the best instruction set that all ranks have: ask for equal CPUs (sbatch --constraint)",
    ),
    (
        "kernel cache",
        False,
        "set ARISTOS_CACHE to one folder on all ranks: otherwise kernels are compiled once for each folder",
    ),
    ("core count", False, "give all ranks the same number of cores: the slowest rank sets the pace"),
)


def equal(facts: list[dict[str, str]]) -> list[Finding]:
    """Compare the ranks. facts: for each rank a dict with a text for each property of RULES; '' if unknown."""
    return [compared(name, [each.get(name, "") for each in facts], bad, remedy) for name, bad, remedy in RULES]


def compared(name: str, values: list[str], bad: bool, remedy: str) -> Finding:
    """Report the ranks whose value differs from the most frequent value (the first of equally frequent ones)."""
    rule, _ = Counter(values).most_common(1)[0]
    others = [rank for rank, value in enumerate(values) if value != rule]
    title = f"same {name}"
    if not others:
        return ok(title, f"equal on all {len(values)} ranks: {rule or 'unknown'}", value=rule)
    differing = "; ".join(
        f"{value or 'unknown'} on {named(r for r, v in enumerate(values) if v == value)}"
        for value in dict.fromkeys(values[rank] for rank in others)
    )
    rest = named(rank for rank, value in enumerate(values) if value == rule)
    make = fail if bad else warn
    return make(title, f"{differing}, but {rule or 'unknown'} on {rest}", remedy, values=values)


def hosts(names: list[str], nodes: Nodes) -> Finding:
    """List the ranks of each node. nodes: as MPI sees them. names: [ranks] host names."""
    groups = {node: [r for r, n in enumerate(nodes.node_of) if n == node] for node in dict.fromkeys(nodes.node_of)}
    text = f"{len(names)} ranks on {len(groups)} nodes: " if len(groups) > 1 else f"{len(names)} ranks on one node: "
    shown = [f"{names[ranks[0]]} ({named(ranks)})" for ranks in list(groups.values())[:8]]
    more = f", and {len(groups) - 8} more" if len(groups) > 8 else ""
    uneven = len({len(ranks) for ranks in groups.values()}) > 1
    values = {"hosts": names, "node_of_rank": list(nodes.node_of)}
    text += ", ".join(shown) + more
    if uneven:
        remedy = "if this is not intended: srun --ntasks-per-node=N, or mpirun -ppn N (Open MPI: --map-by ppr:N:node)"
        return warn("hosts", f"{text}: the nodes have different numbers of ranks", remedy, **values)
    return ok("hosts", text, **values)

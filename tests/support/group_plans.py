"""Plans for layers on ranks: groups within nodes, and copies of hot experts."""

from __future__ import annotations

from aristos import planner


def plan_of(memory: list[int], loads: list[float] | None = None, fast: int = 2) -> planner.Plan:
    """A plan of four experts on nodes of `fast` devices.

    Links between nodes are slow, so a node is a group if it can hold all experts.
    """
    n = len(memory)
    alpha = [[0.0 if i == j else 1.0 if i // fast == j // fast else 500.0 for j in range(n)] for i in range(n)]
    data = {
        "experts": 4,
        "layer_cost": 10.0,
        "payload_mib": 0.0,
        "crossings": 4,
        "stages": 100 * n,
        "gradient_mib": 0.0,
        "devices": [{"rate": 1.0 + (i == 0), "memory": m} for i, m in enumerate(memory)],
        "alpha_us": alpha,
        "beta_us_per_mib": [[0.0] * n for _ in range(n)],
        "loads": loads,
    }
    return planner.solve(planner.parse(data))

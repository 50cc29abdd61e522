"""A picture of the cluster: one row of squares for each node, coloured by group, with the bottleneck marked."""

from __future__ import annotations

import numpy as np

from kernel_cache import regular

from ..topology.drawing import pyplot
from .baselines import groups_of, node_of
from .plan import Plan

MOST_DEVICES = 4096  # the squares of more devices would be too small to see


def draw(plan: Plan, path: str) -> None:
    """Write a picture to `path`, whose ending decides the format.

    Raises EnvironmentProblem without Matplotlib, ValueError for too many devices or an unknown ending, and OSError.
    """
    regular.refuse_others(path)
    plt = pyplot()
    from matplotlib.patches import Rectangle

    problem = plan.problem
    if problem.n > MOST_DEVICES:
        raise ValueError(f"a picture shows at most {MOST_DEVICES} devices, got {problem.n}")
    nodes = groups_of(node_of(problem))
    where = {i: g for g, members in enumerate(plan.groups) for i in members}
    wide = max(len(node) for node in nodes)
    columns = max(1, round(np.sqrt(len(nodes) / wide * 1.4)))
    rows = -(-len(nodes) // columns)
    fig, ax = plt.subplots(figsize=(min(16, 1.5 + columns * (wide + 1.5) * 0.55), min(12, 1.6 + rows * 0.62)))
    colours = plt.get_cmap("tab20")
    found = plan.bottleneck
    numbered = problem.n <= 256
    for at, node in enumerate(nodes):
        x0, y = (at // rows) * (wide + 1.5), -(at % rows) * 1.25
        if numbered:
            ax.text(x0 - 0.15, y + 0.45, f"node {at}", ha="right", va="center", fontsize=7)
        for x, i in enumerate(node):
            group = where[i]
            worst = i == found["device"]
            ax.add_patch(
                Rectangle(
                    (x0 + x, y),
                    0.9,
                    0.9,
                    facecolor=colours(group % 20),
                    edgecolor="black",
                    linewidth=2.5 if worst else 0.3,
                )
            )
            if numbered:
                ax.text(x0 + x + 0.45, y + 0.45, str(group), ha="center", va="center", fontsize=7)
            if worst:
                ax.plot(x0 + x + 0.45, y + 0.98, marker="v", color="black", markersize=7, clip_on=False)
    ax.set_xlim(-1.8, columns * (wide + 1.5))
    ax.set_ylim(-rows * 1.25 + 0.1, 1.4)
    ax.set_aspect("equal")
    ax.axis("off")
    ax.set_title(
        f"groups: {len(plan.groups)}, step: {plan.objective_us / 1e6:.4g} s, gap: {100 * plan.gap:.2f} %\n"
        f"colours and numbers are groups; the mark is the bottleneck: device {found['device']}, {found['term']}",
        fontsize=9,
    )
    fig.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(fig)

"""Picture of the suite `plan`: each partition's step, predicted and measured, term by term."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...results import Table
from .style import subplots

TERMS = (("pi", "#4c72b0"), ("comm", "#dd8452"), ("all-reduce", "#55a868"))


def plan(table: Table) -> Any:
    """Two bars per partition, each with the time of kappa stages and of the all-reduce.

    Left: the prediction of Equation 1. Right: the measurement.
    """
    from ..suites.plan import terms

    v = {name: variable.values for name, variable in table.variables.items()}
    names, kappa = table.dims["plan"].values, table.attributes["kappa"]
    figure, axis = subplots(figsize=(max(7.0, 1.6 + 2.2 * len(names)), 3.8))
    for i in range(len(names)):
        times = [v[f"{what}_time"][i] for what in ("stage", "compute", "link", "allreduce", "mpi_allreduce")]
        measured = terms(kappa, *times)
        slowest = int(np.argmax(v["predicted_pi"][i] + v["predicted_comm"][i]))
        predicted = {
            "pi": v["predicted_pi"][i, slowest],
            "comm": v["predicted_comm"][i, slowest],
            "all-reduce": v["predicted_allreduce"][i],
        }
        for at, found in ((i - 0.2, predicted), (i + 0.2, measured)):
            under = 0.0
            for term, colour in TERMS:
                height = found[term] * (1 if term == "all-reduce" else kappa) * 1e3
                label = term if (i, at) == (0, -0.2) else None
                axis.bar(at, height, 0.36, under, color=colour, label=label, alpha=0.55 if found is predicted else 1.0)
                under += height
    axis.set_xticks(range(len(names)), [f"{str(n).replace(', ', chr(10))}\n{g}" for n, g in zip(names, v["groups"])])
    axis.set(ylabel="step (ms)", title="left predicted, right measured")
    axis.grid(axis="x", visible=False)
    figure.legend(loc="outside upper right", ncols=3)
    figure.suptitle(str(table.attributes["shape"]), fontsize=9, x=0.01, ha="left")
    return figure


PICTURES = {"plan": [("plan", plan)]}

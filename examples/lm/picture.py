"""Pictures of training runs: losses by step and by time, and the rows of experts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SMOOTHED = 25  # steps over which curves are averaged


def draw(runs: list[Path], target: Path) -> None:
    """One picture of the `curves.npz` of all runs: losses on the left, the load of the busiest expert on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    for i, run in enumerate(runs):
        with np.load(run / "curves.npz") as file:
            loss, validation, loads = file["loss"], file["validation"], file["loads"]
        steps = np.arange(1, len(loss) + 1)
        kernel = np.ones(min(SMOOTHED, len(loss))) / min(SMOOTHED, len(loss))
        smooth = np.convolve(loss, kernel, mode="valid")
        left.plot(steps[len(steps) - len(smooth) :], smooth, color=f"C{i}", linewidth=0.8, alpha=0.6)
        known = np.isfinite(validation)
        last = f": {validation[known][-1]:.3f}" if known.any() else ""
        left.plot(
            steps[known], validation[known], "o-", color=f"C{i}", markersize=3, label=f"{run.name}, validation{last}"
        )
        if loads.shape[2] > 1:
            share = loads.max(axis=2) / np.maximum(1e-9, loads.mean(axis=2))
            for layer in range(loads.shape[1]):
                right.plot(steps, share[:, layer], linewidth=0.8, label=f"{run.name}, layer {layer}")
    left.set(xlabel="step", ylabel="nats per byte (thin: training)", title="loss")
    right.set(xlabel="step", ylabel="rows of the busiest expert / mean", title="expert load")
    for axis in (left, right):
        axis.grid(color="#dddddd", linewidth=0.6)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(frameon=False, fontsize=8)
            axis.set_ylim(bottom=float(axis is right))
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=140)
    pyplot.close(figure)

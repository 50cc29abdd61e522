"""Live progress of a training run: losses, speed, and how evenly experts are loaded.

If the output is no terminal, plain lines are printed.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from aristos.host import launch_environment

from .decoder import Shape
from .export import Curves

BARS = " ▁▂▃▄▅▆▇█"
EVERY = 20  # steps between plain lines
SMOOTHED = 20  # the loss shown is the mean over this many steps


class Progress:
    """The progress of a run, shown only on the leading rank."""

    def __init__(self, lead: bool, shape: Shape, first: int, steps: int) -> None:
        self.shape, self.first, self.steps = shape, first, steps
        self.start = time.perf_counter()
        self.live: Any = None
        self.lead = lead
        if lead:
            from rich.console import Console
            from rich.live import Live

            person = launch_environment.on_terminal(sys.stdout)
            self.live = Live(console=Console(), refresh_per_second=4) if person else None

    def __enter__(self) -> Progress:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.live is not None:
            self.live.stop()

    def show(self, curves: Curves, step: int) -> None:
        """Show the state after a step."""
        if not self.lead:
            return
        left = (time.perf_counter() - self.start) / (step + 1 - self.first) * (self.steps - step - 1)
        loss = np.nanmean(curves.loss[max(0, step + 1 - SMOOTHED) : step + 1])
        line = (
            f"step {step + 1} of {self.steps}  loss {loss:.3f}  validation {curves.last_validated():.3f}  "
            f"{curves.speed[step]:,.0f} tokens/s  {left / 60:.1f} min left"
        )
        if self.live is not None:
            from rich.text import Text

            rows = [
                f"layer {i}  {bars(load)}  busiest {busiest(load):.2f} x mean"
                for i, load in enumerate(curves.loads[step])
            ]
            self.live.update(Text("\n".join([line, *(rows if self.shape.experts > 1 else [])])))
        elif (step + 1) % EVERY == 0 or step + 1 == self.steps:
            print(line, flush=True)


def bars(load: np.ndarray) -> str:
    """A bar for each expert. A bar of half the height stands for the mean load."""
    heights = load / max(1e-9, load.mean()) * (len(BARS) - 1) / 2
    return "".join(BARS[int(min(len(BARS) - 1, round(float(h))))] for h in heights)


def busiest(load: np.ndarray) -> float:
    return float(load.max() / max(1e-9, load.mean()))

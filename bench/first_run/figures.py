"""The figures that have goals, with predictions made by reading the code, and with lower bounds from data sheets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .parts import GEMMS, LAYER, PUTS, ROUTER, Ran

Rows = list[dict[str, Any]]
GRAPH = "aristos graph"
HOPPER = "sm_90"  # the only architecture with warpgroup products


@dataclass(frozen=True)
class Figure:
    """A figure with a goal. value: a function of the suite's right rows that returns the figure reached, or None.

    predicted: what was expected from reading the machine code for Hopper, before any GPU had run it; "" if nothing was.
    """

    what: str
    part: str
    goal: float
    unit: str
    suite: str
    value: Callable[[Rows], float | None]
    at_most: bool = False
    predicted: str = ""

    def reached(self, ran: list[Ran]) -> float | None:
        """The figure reached; None if it was not measured."""
        return self.value(right_rows(ran, self.part, self.suite))

    def line(self, ran: list[Ran], rehearsal: bool = False) -> list[str]:
        """The figure's row of the table, with the columns of HEAD.

        rehearsal: times mean nothing, so no goal is met or missed.
        """
        value, head = self.reached(ran), [self.what, self.predicted or "-", f"{self.goal:g} {self.unit}"]
        if value is None:
            return [*head, "not measured", "-"]
        met = value <= self.goal if self.at_most else value >= self.goal
        return [*head, f"{value:.3g} {self.unit}", "a rehearsal" if rehearsal else "yes" if met else "no"]


HEAD = ["figure", "predicted by reading", "goal", "reached", "met"]


def right_rows(ran: list[Ran], part: str, suite: str) -> Rows:
    """The rows of a part's suite whose outputs were right."""
    for each in ran:
        found = each.document.get("suites", {}).get(suite)
        if each.part.name == part and found:
            return [row for sheet in found["tables"] for row in sheet["rows"] if row.get("check") == "ok"]
    return []


def _only(key: str, **where: Any) -> Callable[[Rows], float | None]:
    """A function that returns the value of `key` in the first row that matches `where`."""

    def value(rows: Rows) -> float | None:
        found = [row for row in rows if all(row.get(name) == wanted for name, wanted in where.items())]
        return found[0].get(key) if found else None

    return value


def _least_share(rows: Rows) -> float | None:
    return min((row["share"] for row in rows if row.get("way") == "both ways"), default=None)


def figures(arch: str) -> tuple[Figure, ...]:
    """The figures for a GPU. The goal of 16-bit products is higher on architectures with warpgroup products."""
    wide = arch.startswith(HOPPER)

    def on_hopper(text: str) -> str:
        return text if wide else ""

    return (
        Figure("bf16 product, 8 experts x 1024 rows, 4096 x 14336, over cuBLAS", GEMMS, 0.85 if wide else 0.60,
               "of cuBLAS", "gemm", _only("share", rows=1024), predicted=on_hopper("0.75 to 0.85")),
        Figure("put between two halves of a grid, rows of 4 KB and more, over the copy", PUTS, 0.85,
               "of the copy", "put", _least_share),
        Figure("put + signal there and back, 16 bytes", PUTS, 6, "us", "signal",
               _only("median_us", row_bytes=16), at_most=True, predicted=on_hopper("4 to 5")),
        *(
            Figure(f"layer over the unfused chain, {tokens} tokens", LAYER, goal, "x", "layer",
                   _only("speedup", tokens=tokens, what=GRAPH), predicted=on_hopper(predicted))
            for tokens, goal, predicted in ((4096, 1.2, "0.7 to 0.9"), (512, 1.2, "0.7 to 0.85"),
                                            (64, 1.5, "0.4 to 0.6"))
        ),
    )  # fmt: skip


FLOOR_HEAD = ["time of", "tokens", "floor, us", "bound by", "reached, us", "over the floor"]


def floors(name: str, ran: list[Ran]) -> list[list[str]]:
    """Rows of the table of floors: the least time that FLOPs and bytes permit, beside the time reached.

    name: of the GPU. Returns [] if aristos/bench/floors.py does not have its data sheet.
    """
    from aristos.bench import floors as bounds

    sheet = next((each for each in bounds.GPUS if each.name in name), None)
    if sheet is None:
        return []
    lines = []
    for part, suite, key, what, kernels in (
        (LAYER, "layer", "what", GRAPH, None),
        (ROUTER, "router", "steps", "scores, top-k", "route"),
    ):
        for row in right_rows(ran, part, suite):
            if row.get(key) == what:
                call = _call(row["tokens"])
                work = bounds.KERNELS[kernels](call) if kernels else bounds.layer(call)
                us, binds = bounds.floor(sheet, "bf16", work)
                reached = row["median_us"]
                lines.append(
                    [
                        f"{suite}, {what}",
                        str(row["tokens"]),
                        bounds.digits(us),
                        binds,
                        f"{reached:.4g}",
                        f"{reached / us:.1f} x",
                    ]
                )
    return lines


def _call(tokens: int) -> Any:
    """A call of the report's shape on one GPU."""
    from aristos.bench.command_line import parse
    from aristos.bench.context import Context
    from aristos.bench.floors import GpuCall
    from aristos.bench.world import World

    from .parts import SHAPE

    cfg = Context(World(), parse(["layer", *SHAPE, "--backend", "cuda", "--out", "none"]), 1.0).shape().cfg
    return GpuCall(tokens, cfg.hidden, cfg.ffn, cfg.experts, cfg.top_k, cfg.gated)

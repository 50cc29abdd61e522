"""What Aristos does for a model on this rank: `report(model)`, a line for each module of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .training import HELD


@dataclass(frozen=True)
class LayerReport:
    """One module of experts on one rank.

    Attributes
    ----------
    name : str
        The module's name in the model.
    kind : str
        The module's class.
    experts : int
        How many experts this rank holds.
    nbytes : int
        Bytes of these experts' packed weights.
    ranks : int
        How many ranks share the layer's experts.
    isa : str
        The instruction set of this rank's kernels.
    threads : int
        Workers of this rank.
    calls : int
        How many calls this rank has made.
    tokens : int
        How many tokens this rank had.
    idle : float
        The share of time in which this rank's workers had no work.
    """

    name: str
    kind: str
    experts: int
    nbytes: int
    ranks: int
    isa: str
    threads: int
    calls: int
    tokens: int
    idle: float


@dataclass(frozen=True)
class Report:
    """The modules of experts of a model on this rank: what each holds, and the calls that it has made.

    `print` shows a table of them.

    Attributes
    ----------
    layers : tuple of LayerReport
        The modules that have layers.
    without : tuple of (str, str)
        The name of each module that has no layer, and the reason.
    """

    layers: tuple[LayerReport, ...]
    without: tuple[tuple[str, str], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all packed weights on this rank."""
        return sum(each.nbytes for each in self.layers)

    def __str__(self) -> str:
        wide = max([len("experts of"), *(len(each.name) for each in self.layers)])
        head = f"{'experts of':<{wide}} {'class':<24}{'held':>5}{'MB':>10}{'ranks':>6} {'ISA':<12}{'threads':>7}"
        lines = [f"{head}{'calls':>8}{'tokens':>10}{'idle':>6}"] if self.layers else []
        for each in self.layers:
            lines.append(
                f"{each.name:<{wide}} {each.kind:<24}{each.experts:>5}{each.nbytes / 1e6:>10.1f}{each.ranks:>6}"
                f" {each.isa:<12}{each.threads:>7}{each.calls:>8}{each.tokens:>10}{each.idle:>6.0%}"
            )
        lines += [f"{name}: {why}" for name, why in self.without]
        return "\n".join(
            [*lines, f"{len(self.layers)} layer{'s'[: len(self.layers) != 1]}, {self.nbytes / 1e6:.1f} MB on this rank"]
        )


def report(model: Any) -> Report:
    """What each module of experts of a model holds on this rank, and the calls that it has made. Not collective.

    Parameters
    ----------
    model : torch.nn.Module
        The model.

    Returns
    -------
    Report
        A line for each module.
    """
    layers, without = [], []
    for name, module in model.named_modules():
        if not hasattr(module, "is_concatenated"):
            continue
        experts, kind = vars(module).get(HELD), type(module).__name__
        if experts is not None:
            layers.append(_line(name, kind, experts.moe))
        elif vars(module).get("_aristos_left_to") is not None:
            without.append((name, f"{kind}, left to transformers"))
        else:
            without.append((name, f"{kind}, no layer yet: it is made at the first call"))
    return Report(tuple(layers), tuple(without))


def _line(name: str, kind: str, moe: Any) -> LayerReport:
    done = moe.local_summary()
    spent = done.call_seconds * moe.threads
    return LayerReport(
        name=name,
        kind=kind,
        experts=len(moe.placement.mine(moe.rank)),
        nbytes=moe.packed_weights().nbytes,
        ranks=moe.world,
        isa=str(moe.isa),
        threads=moe.threads,
        calls=done.calls,
        tokens=done.rows // moe.cfg.top_k,
        idle=done.idle_seconds / spent if spent else 0.0,
    )

"""What the report does on one GPU, the most useful parts first, and how long each part may take."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from .unfinished import OUT_OF_TIME

MINUTES = 8.0
REHEARSAL_MINUTES = 60.0  # the PTX machine must be compiled first, and it is slow
ROOT = Path(__file__).resolve().parents[2]
WRONG = 1  # exit code of a part whose outputs were wrong, as in `python -m aristos.bench`
NOTHING = 5  # pytest's exit code where no test ran
INCOMPLETE = 7  # exit code of a part that ran out of time and was right so far
SHAPE = ("--preset", "mixtral-8x7b", "--scale", "2", "--dtype", "bfloat16")
CALLS = ("--tokens", "64,512,4096")
GEMM = ("gemm", "--preset", "switch-base-128", "--hidden", "4096", "--ffn", "14336", "--experts", "8")


@dataclass(frozen=True)
class Part:
    """One part of the report, a process of its own.

    task: a function of tasks.py. words: its arguments. seconds: its time if the report has MINUTES. needs: parts that
    must not have failed, since a figure built on wrong results would mislead.
    """

    name: str
    task: str
    words: tuple[str, ...] = ()
    seconds: float = 10.0
    needs: tuple[str, ...] = ()


@dataclass
class Ran:
    """The outcome of a part. said: its last lines of output. document: the JSON document that it printed."""

    part: Part
    code: int | None  # None: the limit was exceeded, and the part was ended
    seconds: float
    said: list[str] = field(default_factory=list)
    document: dict[str, Any] = field(default_factory=dict)
    skipped: str = ""  # why the part was not started

    @property
    def ok(self) -> bool:
        return self.code == 0 and not self.skipped

    @property
    def wrong(self) -> bool:
        """Whether its outputs were wrong."""
        return not self.skipped and self.code == WRONG

    @property
    def late(self) -> bool:
        """Whether it ran out of time, and nothing hung."""
        return self.code == INCOMPLETE or (self.code is None and OUT_OF_TIME in self.said)

    @property
    def failed(self) -> bool:
        """Whether it ended with an error that says nothing about its outputs."""
        return not (self.skipped or self.ok or self.wrong or self.late or self.hung)

    @property
    def hung(self) -> bool:
        return self.code is None and not self.skipped and not self.late

    @property
    def outcome(self) -> str:
        """The outcome as text."""
        if self.skipped:
            return f"not run: {self.skipped}"
        if self.code == INCOMPLETE:
            return "not complete"
        if self.late:
            return f"ran out of time after {self.seconds:.0f} s"
        if self.code is None:
            return f"HUNG: ended after {self.seconds:.0f} s"
        if self.code == NOTHING:
            return "nothing ran"
        return "ok" if self.ok else "WRONG" if self.wrong else f"FAILED ({self.code})"


DRIVER, KERNELS, PRODUCTS, TESTS, PUTS = "driver", "kernels", "products against float64", "tests/gpu", "put and signal"
GEMMS, LAYER, ROUTER, PHASES = "gemm", "layer", "router", "phases"
PARTS = (
    Part(DRIVER, "driver", (), 35),
    Part(KERNELS, "kernels", (), 50),
    Part(PRODUCTS, "products", (), 50),
    Part(TESTS, "tests", (), 60, (PRODUCTS,)),
    Part(PUTS, "bench", ("put", "signal", "--seconds", "15"), 30),
    Part(LAYER, "bench", ("layer", *SHAPE, *CALLS, "--seconds", "30"), 85, (PRODUCTS,)),
    Part(GEMMS, "bench", (*GEMM, "--dtype", "bfloat16", "--seconds", "15"), 35, (PRODUCTS,)),
    Part(ROUTER, "bench", ("router", *SHAPE, *CALLS, "--seconds", "8"), 25),
    Part(PHASES, "phases", CALLS, 25, (PRODUCTS, LAYER)),
    Part("idle and progress", "bench", ("idle", "progress", *SHAPE, *CALLS, "--seconds", "15"), 30, (PRODUCTS, LAYER)),
    Part("ncu", "ncu", (), 25, (PRODUCTS,)),
    Part("exchange", "bench", ("exchange", *SHAPE, *CALLS, "--seconds", "6"), 15, (PRODUCTS, LAYER)),
)
SAVING = 15.0  # seconds for the files and pictures, if the report has MINUTES


def replayed(trace: Path) -> Part:
    """The part that replays a recorded routing, with the shape of its model or of one with as many experts."""
    words = ("replay", "--routing", str(trace.absolute()), "--scale", "4", "--dtype", "bfloat16", "--seconds", "25")
    return Part("replay", "bench", words, 60, (PRODUCTS, LAYER))


def limits(parts: tuple[Part, ...], seconds: float, rehearsing: bool = False) -> list[float]:
    """When each part must have ended, in seconds from the start of a report of `seconds`.

    Parts share the time in proportion to their own seconds. The next part may use time that a part leaves. In a short
    report the driver's part keeps its own seconds, but at most half of the report: a driver does not answer sooner. In
    a rehearsal the driver's part gets at least half, since it compiles the PTX machine.
    """
    whole = sum(part.seconds for part in parts) + SAVING
    shares = [seconds * part.seconds / whole for part in parts]
    if parts[0].name == DRIVER and len(parts) > 1:
        others = sum(shares[1:])
        least = seconds / 2 if rehearsing else min(parts[0].seconds, seconds / 2)
        more = max(0.0, least - shares[0])
        shares = [shares[0] + more, *(share * (1 - more / others) for share in shares[1:])]
    return list(accumulate(shares))


def forbidden(part: Part, ran: list[Ran]) -> str:
    """Why a part must not run: a part that it needs gave wrong results, hung or failed. '' if it may run."""
    for each in ran:
        if each.part.name in part.needs and not (each.ok or each.skipped or each.late):
            how = "gave wrong results" if each.wrong else "hung" if each.hung else "failed"
            return f"{each.part.name} {how}"
    return ""

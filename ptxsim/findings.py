"""Reports of the checker: kind, kernel, source line, block, thread, and the address as array[index]."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .errors import PtxsimError

LINES_OF_SOURCE = "nvcc -lineinfo, or --generate-line-info of NVRTC, writes the source's"  # what to do without them


@dataclass(frozen=True)
class Report:
    """One finding.

    kind: race, out_of_bounds, misaligned, uninitialised, use_after_free, barrier_divergence, missing_wait, deadlock,
    trap, missing_fence, misuse or not_coherent. line: the line in the source file, or in the PTX text if the text does
    not name source lines; 0 if none is known. block, thread: (x, y, z); empty for a copy or a fill. address:
    array[index], or ''. other_line: the line of a race's other access, or of the store that not_coherent is about, else
    0. verdict: wrong (results can be wrong), formal (a fault by PTX's rules that hardware seldom shows) or "same value"
    (the same value is written twice). missing: the order that is missing, such as barrier, fence, acquire, scope.
    repair: the smallest change that gives it.
    """

    kind: str
    kernel: str
    file: str
    line: int
    block: tuple[int, ...]
    thread: tuple[int, ...]
    message: str
    address: str = ""
    other_line: int = 0
    device: int = 0
    verdict: str = "wrong"
    missing: str = ""
    repair: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.file else f"line {self.line}: " if self.block else ""
        return f"{self.kind}: {place}{self.who}: {self.message}{self.advice}"

    @property
    def who(self) -> str:
        """Who makes the access: a kernel with block and thread, or a copy or fill."""
        return f"{self.kernel}, block {self.block}, thread {self.thread}" if self.block else self.kernel

    @property
    def advice(self) -> str:
        """The end of the report's text: the verdict if results are right nevertheless, what is missing, the repair."""
        text = "" if self.verdict == "wrong" else f" [{self.verdict}]"
        return text + (f" [missing {self.missing}: {self.repair}]" if self.missing else "")


def lines(reports: Iterable[Report], form: Callable[[Report], str] = str) -> list[str]:
    """Reports as lines of text.

    Reports of the same kind about the same array and the same pair of source lines share a line. What can make results
    wrong comes first.
    """
    groups: dict[tuple[Any, ...], list[Report]] = {}
    for report in sorted(reports, key=lambda one: one.verdict != "wrong"):
        about = report.address.rpartition("[")[0] or report.message
        pair = frozenset((report.line, report.other_line or report.line))
        groups.setdefault((report.kind, report.file, pair, about), []).append(report)
    return [
        form(min(found, key=lambda one: one.line))
        + (f" (and {len(found) - 1} more of these lines and this array)" if len(found) > 1 else "")
        for found in groups.values()
    ]


def total(count: int) -> str:
    """A number of reports as text: `1 report`, `2 reports`."""
    return f"{count} report{'s'[: count != 1]}"


class KernelFault(PtxsimError):
    """The error that a strict machine raises for its first report. report: this report."""

    def __init__(self, report: Report):
        super().__init__(str(report))
        self.report = report

"""The command line of bench/gpu_report.py, and the report on one GPU from the first part to the last file."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aristos.errors import AristosError, EnvironmentProblem
from aristos.host import launch_environment

from . import machine, page, parts, processes, rehearsal, saved
from .parts import DRIVER, PARTS, Part, Ran
from .samples import Samples

FINE, FAILED, USAGE, NO_GPU = 0, 1, 2, 3
LEAST_MINUTES, MOST_MINUTES = 1.0, 120.0


def minutes(text: str) -> float:
    value = float(text)
    if not LEAST_MINUTES <= value <= MOST_MINUTES:
        raise argparse.ArgumentTypeError(f"must be in {LEAST_MINUTES:g}..{MOST_MINUTES:g}, got {text}")
    return value


def parsed(argv: list[str], doc: str) -> argparse.Namespace:
    """The arguments; usage errors end the process."""
    parser = launch_environment.OneRankParser(prog="python bench/gpu_report.py", description=doc.split("\n")[0])
    parser.add_argument("--out", default="gpu-report", help="name of the files without .h5 and .md (%(default)s)")
    parser.add_argument(
        "--minutes",
        type=minutes,
        metavar="M",
        help=f"minutes within which the report ends, even if something hangs ({parts.MINUTES:g}; for a rehearsal"
        f" {parts.REHEARSAL_MINUTES:g})",
    )
    parser.add_argument("--routing", type=Path, metavar="FILE.npz", help="a recorded routing to replay")
    parser.add_argument(
        "--parts", metavar="NAME,..", help="run only these parts, out of " + ", ".join(each.name for each in PARTS)
    )
    parser.add_argument(
        "--rehearse",
        nargs="?",
        const="nothing",
        metavar="FAULT",
        help="run without a GPU, on the PTX machine with small shapes, with one of these faults: " + ", ".join(FAULTS),
    )
    given = parser.parse_args(argv)
    if given.routing is not None and not given.routing.is_file():
        parser.error(f"no such file: --routing {given.routing}")
    if given.rehearse not in (None, "nothing", *FAULTS):
        parser.error(f"--rehearse takes one of {', '.join(FAULTS)}, got {given.rehearse!r}")
    given.minutes = given.minutes or (parts.MINUTES if given.rehearse is None else parts.REHEARSAL_MINUTES)
    known = [each.name for each in PARTS]
    given.parts = [name.strip() for name in given.parts.split(",")] if given.parts else known
    if unknown := [name for name in given.parts if name not in known]:
        parser.error(f"--parts takes some of {', '.join(known)}, got {unknown[0]!r}")
    return given


FAULTS = ("product", "hang", "library", "disk", "ncu-missing", "ncu-forbidden")
OF_REPORT = ("library", "disk")  # faults planted in the report's own process too, not only in those of its parts


class Report:
    """One report: what has run so far, and its files. stem: the start of their names. ends: when each part must end."""

    def __init__(self, stem: Path, chosen: tuple[Part, ...], seconds: float, options: tuple[str, ...]) -> None:
        self.start, self.seconds = time.monotonic(), seconds
        self.page, self.out = stem.with_name(f"{stem.name}.md"), stem.with_name(f"{stem.name}.h5").absolute()
        self.stem, self.chosen, self.options = stem, chosen, options
        self.ends = dict(zip([each.name for each in chosen], parts.limits(chosen, seconds, bool(options))))
        self.facts: dict[str, Any] = {}
        self.ran: list[Ran] = []
        self.left = chosen  # parts that have not ended
        self.notes: tuple[str, ...] = ()
        self.samples: Samples | None = None

    def show(self, text: str) -> None:
        print(f"[{time.monotonic() - self.start:4.0f} s] {text}", file=sys.stderr, flush=True)

    def run(self, part: Part) -> Ran:
        """Run a part, or record why it is not run."""
        if why := parts.forbidden(part, self.ran):
            self.ran.append(Ran(part, None, 0.0, skipped=why))
        else:
            limit = self.ends[part.name] - (time.monotonic() - self.start)
            self.show(f"{part.name}, until {self.ends[part.name]:.0f} s at the latest")
            if self.samples is not None:
                self.samples.part = part.name
            self.ran.append(
                processes.run_part(part, max(1.0, limit), self.show, ("--out", str(self.out), *self.options))
            )
        self.left = self.left[1:]
        self.show(f"{part.name}: {self.ran[-1].outcome}")
        return self.ran[-1]

    def write(self) -> str:
        """Write the page so far. Returns why it could not be written, or ''."""
        return processes.kept(self.page, self.text())

    def text(self) -> str:
        return page.markdown(self.facts, self.ran, self.left, self.samples, self.notes, len(PARTS))

    def finish(self) -> int:
        """Write the files at the end. Returns the exit code. A page that cannot be written is printed."""
        problems: list[str] = []
        try:
            saved.save(self.out, self.facts, self.ran, self.samples)
        except (AristosError, OSError) as why:
            problems.append(f"{self.out} lacks the figures: {why}")
        if why := saved.draw(self.out, self.stem):
            self.notes = (*self.notes, why)
        self.notes = (*self.notes, *problems)
        if why := self.write():
            problems.append(why)
            self.show(f"the page cannot be written ({why}): it follows on stdout")
            print(self.text(), flush=True)
        else:
            verdict = page.verdict(self.ran, self.left, len(PARTS))
            self.show(f"send back {self.page}, {self.out} and the pictures beside them: {verdict}")
        return FINE if all(each.ok for each in self.ran) and not self.left and not problems else FAILED


def main(argv: list[str], doc: str, together: Callable[..., int]) -> int:
    """Run the command; returns the exit code. together: the function that makes the report under mpirun."""
    given = parsed(argv, doc)
    stem = Path(given.out)
    options: tuple[str, ...] = ()
    if given.rehearse is not None:
        options = ("--rehearse", "--fault", given.rehearse)
        if given.rehearse in OF_REPORT:
            rehearsal.plant(given.rehearse)
    chosen = tuple(each for each in PARTS if each.name in given.parts or each.name == DRIVER)
    chosen += (parts.replayed(given.routing),) if given.routing is not None else ()
    report = Report(stem, chosen, 60 * given.minutes, options)
    if not stem.absolute().parent.is_dir():
        print(f"no such folder: --out {stem}", file=sys.stderr)
        return USAGE
    started = launch_environment.started_as()
    if started is not None and started[1] > 1:
        try:
            return together(stem, report.seconds)
        except (EnvironmentProblem, ImportError) as why:
            return launch_environment.complain(f"no GPU to report on: {why}", NO_GPU)
    with bounded(report.seconds), ended_as_by_ctrl_c():
        return alone(report, given.rehearse is not None)


@contextlib.contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """End this process if the `with` block hangs, for example in a picture. The page that was written last remains."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """In the `with` block, SIGTERM (of a scheduler) and SIGHUP (of a lost terminal) end the report as Ctrl-C does.

    Otherwise the part that runs would go on and hold the GPU. A signal that the caller ignores, as nohup does, stays
    ignored.
    """

    def end(number: int, frame: Any) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    chosen = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_DFL]
    for each in chosen:
        signal.signal(each, end)
    try:
        yield
    finally:
        for each in chosen:
            signal.signal(each, signal.SIG_DFL)


def alone(report: Report, rehearsing: bool) -> int:
    """Make the report on one GPU; returns the exit code."""
    try:
        if why := first(report, rehearsing):
            print(f"no GPU to report on: {why}", file=sys.stderr)
            return NO_GPU
        while report.left:
            report.run(report.left[0])
            report.write()  # after each part, in case a later one ends the run
    except KeyboardInterrupt as signalled:
        ended = f"{str(signalled) or 'Ctrl-C'} ended the report"
        if not report.facts:
            report.show(f"{ended} before the driver had answered: no files are written")
            return FAILED
        report.notes = (*report.notes, ended)
    finally:
        if report.samples is not None:
            report.samples.stop()
    return report.finish()


def first(report: Report, rehearsing: bool) -> str:
    """Run the driver's part, which fills the facts. Returns why there is no GPU to report on, or ''."""
    from aristos.topology import nvml

    try:
        if not rehearsing:
            machine.check_before()
        ran = report.run(report.left[0])
        report.facts = ran.document.get("facts", {})
        if not report.facts:
            late = f"the driver did not answer within {ran.seconds:.0f} s"
            if rehearsing:
                late = f"the PTX machine was not ready within {ran.seconds:.0f} s: --minutes 120 gives it more"
            return late if ran.code is None or not ran.said else ran.said[-1]
        if not rehearsing:
            machine.check(report.facts)
    except EnvironmentProblem as why:
        return str(why)
    report.samples = Samples(report.facts["gpu_uuid"], None if rehearsing else nvml.load()).start()
    return ""

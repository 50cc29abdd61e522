"""`python -m aristos.bench`, the same program on every rank, from the command line to the exit code.

Exit codes: 0 every output was right, 1 a wrong result, 2 a usage error, 3 an unsuitable environment or a rank that
stopped, 130 Ctrl-C, 141 nobody reads stdout. Any other exception prints its traceback with the rank and ends the job.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .. import results as file
from ..errors import AristosError, EnvironmentProblem, InputError, PoisonedError, ResultsError, WaitTimeout
from ..host import launch_environment, workarounds
from ..host.launch_environment import complain
from . import command_line, disturbance, environment, floors, routing, suites, workload, world
from .context import Context, Result
from .options import Options, UsageError, is_file
from .registry import Suite
from .tables import Reporter

OK, WRONG, USAGE, ENVIRONMENT, INTERRUPTED = 0, 1, 2, 3, 130
INTERRUPTED_SECONDS = 5.0

if TYPE_CHECKING:
    from .gpu.clock import BenchGpu


def main(argv: list[str] | None = None, prog: str = "python -m aristos.bench") -> int:
    """Run the suites that `argv` names. Returns the exit code, the same on every rank."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["floors"]:  # arithmetic only: no ranks, no file
        return floors.main(words[1:], f"{prog} floors")
    try:
        asked = command_line.parse(words, prog)
    except UsageError as why:
        return complain(f"{prog}: {why} (--help lists suites, presets and options)", USAGE)
    except SystemExit:  # --help
        return OK
    workarounds.apply()
    try:
        ranks = world.connect(asked.ranks_per_node, asked.limit, asked.timeout)
    except EnvironmentProblem as why:
        return complain(f"{prog}: {why}", ENVIRONMENT)
    try:
        # Schedulers and launchers send SIGTERM, which ends the run as Ctrl-C does.
        with _handling((signal.SIGTERM, signal.default_int_handler)):
            return run_bench(asked, ranks, words)
    except (UsageError, InputError) as why:
        return leave(ranks, f"{prog}: {why}", USAGE)
    except (EnvironmentProblem, ResultsError) as why:
        return leave(ranks, f"{prog}: {why}", ENVIRONMENT)
    except (WaitTimeout, PoisonedError) as why:
        state = getattr(why, "__notes__", [])  # how far this rank's call came
        leave(ranks, "\n".join([f"{prog}: {why}", *state]), ENVIRONMENT)
        return ranks.abort(ENVIRONMENT)  # otherwise the layer would end the job with another exit code
    except KeyboardInterrupt:
        return interrupted(ranks, prog)
    except BrokenPipeError:  # | head
        return ranks.abort(launch_environment.unread())
    except BaseException as why:
        if isinstance(why, OSError | MemoryError) and not isinstance(why, AristosError):
            return leave(ranks, f"{prog}: {type(why).__name__}: {why}", ENVIRONMENT)
        return crashed(ranks)


@contextlib.contextmanager
def _handling(*handlers: tuple[int, Any]) -> Iterator[None]:
    """A block in which handlers, pairs (signal, handler), are set. Only the main thread can set them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = [(number, signal.signal(number, handler)) for number, handler in handlers]
    try:
        yield
    finally:
        for number, handler in old:
            signal.signal(number, handler)


def leave(ranks: world.World, message: str, code: int) -> int:
    """End the run after an error on one rank or on all ranks. Returns `code`.

    If all ranks failed, rank 0 prints each message once. Else the job is aborted."""
    messages = ranks.agree_on_exit(message)
    if messages is None:
        print(f"[rank {ranks.rank}] {message}", file=sys.stderr, flush=True)
        ranks.abort(code)
    elif ranks.lead:
        for each in dict.fromkeys(messages):
            print(each, file=sys.stderr, flush=True)
    return code


def crashed(ranks: world.World) -> int:
    """End the job after an error that nobody expected, and print its traceback. Returns the exit code."""
    lines = traceback.format_exc().rstrip().splitlines()
    print("\n".join(f"[rank {ranks.rank}] {line}" for line in lines), file=sys.stderr, flush=True)
    return ranks.abort(WRONG)


def interrupted(ranks: world.World, prog: str) -> int:
    """End the run after Ctrl-C or SIGTERM on some rank.

    Waits for all ranks, at most INTERRUPTED_SECONDS, so that rank 0 can print that it was interrupted."""
    # Ctrl-C may arrive twice, from the terminal and passed on by the launcher. So signals are ignored from here on.
    with _handling((signal.SIGINT, signal.SIG_IGN), (signal.SIGTERM, signal.SIG_IGN)):
        if ranks.lead:
            print(f"{prog}: interrupted", file=sys.stderr, flush=True)
        ranks.agree_on_exit("", INTERRUPTED_SECONDS)
        return ranks.abort(INTERRUPTED)


def chosen(asked: Options, ranks: int) -> list[Suite]:
    """The suites to run. Raises UsageError if a suite that was named needs more ranks."""
    known = suites.known(asked.backend)
    if not asked.suites:
        traced = is_file(asked.routing)
        return [s for s in known.values() if s.ranks <= ranks and (s.default or (traced and s.name == "replay"))]
    for name in asked.suites:
        if known[name].ranks > ranks:
            raise UsageError(f"suite {name} needs at least {known[name].ranks} ranks, got {ranks}: use mpirun -n 2")
    return [known[name] for name in asked.suites]


def run_bench(asked: Options, ranks: world.World, argv: list[str]) -> int:
    """Run the suites, show and write their results. Returns the exit code."""
    todo = chosen(asked, ranks.size)
    if ranks.lead and sys.stdout is None:
        raise EnvironmentProblem("stdout is closed: if no tables are wanted, redirect it to /dev/null")
    if ranks.lead and asked.out != "none":
        file.check(asked.out)
    if ranks.lead and asked.timeline:
        from . import timeline

        timeline.check(asked.timeline)
    trace = routing.load(str(asked.routing)) if is_file(asked.routing) else None
    facts = environment.facts(ranks, argv, asked.seed)
    facts["blas"] = environment.hold_blas(asked.threads or 1)
    facts["options"] = {key: value for key, value in dataclasses.asdict(asked).items() if key != "suites"}
    if asked.watch:
        ranks.watch_calls()
    reporter = Reporter(asked.json, ranks.watch) if ranks.lead else None
    shape = Context(ranks, asked, 0.0, trace=trace).shape()
    facts |= {"shape": str(shape), "shape_source": shape.source, "shape_note": shape.note}
    gpu = _gpu(ranks) if asked.backend == "cuda" else None
    facts |= gpu.facts() if gpu is not None else {}
    facts["crowded"] = disturbance.crowded(ranks.hosts, ranks.masks)
    if reporter is not None:
        reporter.head(facts, f"{shape} ({'; '.join(filter(None, [shape.source, shape.note]))})")
    if gpu is None and any(suite.kernels for suite in todo):
        workload.compile_all(ranks)  # before the clock starts, because compilation would use up the budget
    for suite in todo:
        if suite.prepare is not None:
            suite.prepare(ranks)
    started = time.monotonic()
    facts["finished"] = False
    kept = file.Run(attributes=facts) if ranks.lead and asked.out != "none" else None
    results: dict[str, Result] = {}
    spent: dict[str, float] = {}
    facts["suite_seconds"] = spent
    try:
        for i, suite in enumerate(todo):
            left = asked.budget - (time.monotonic() - started)
            share = suite.share / sum(s.share for s in todo[i:])
            budget = float(ranks.bcast(max(1.0, left * share)))
            began = time.monotonic()
            context = Context(ranks, asked, budget, trace=trace)
            result = _measure(suite, context, reporter, gpu, facts.get("gpu_arch", facts["isa"]))
            results[suite.name] = result
            spent[suite.name] = time.monotonic() - began
            try:
                _append(asked, kept, result)  # first, because stdout may have no reader or lie on a full disk
            finally:
                if reporter is not None:
                    reporter.show(*result.sheets)
        if asked.timeline:
            from . import timeline

            timeline.record(Context(ranks, asked, 10.0, trace=trace), asked.timeline)
    except KeyboardInterrupt:
        if results:
            facts["interrupted"] = True
            _append(asked, kept)
        raise
    ranks.end_watch()
    facts["finished"] = True
    return _finish(asked, reporter, facts, results, _append(asked, kept))


def _gpu(ranks: world.World) -> BenchGpu:
    """This rank's GPU. Raises EnvironmentProblem if there is none."""
    from .gpu.clock import BenchGpu

    return BenchGpu(ranks)


def _measure(suite: Suite, context: Context, reporter: Reporter | None, gpu: BenchGpu | None, isa: str) -> Result:
    if reporter is not None:
        context.report = lambda text, share: reporter.progress(f"{suite.name}: {text}", share)
        reporter.begin(suite.name)
    try:
        result: Result = suite.run(context) if gpu is None else suite.run(context, gpu)
        result.name_kernels(isa)
    finally:
        if reporter is not None:
            reporter.end()
    _mark(result)
    result.ok = context.world.every(result.ok)
    return result


def _mark(result: Result) -> None:
    """Note below a sheet, and in the tables of its suite, that calls were disturbed."""
    for sheet in result.sheets:
        if any("disturbed" in record for record in sheet.records):
            sheet.notes.append(disturbance.SENTENCE)
    found = [record for sheet in result.sheets for record in sheet.records]
    marked = [record["disturbed"] for record in found if "disturbed" in record]
    for table in result.tables if marked else ():
        table.attributes["disturbed"] = f"{len(marked)} of {len(found)} rows, among them {marked[0]}"


def _append(asked: Options, kept: file.Run | None, result: Result | None = None) -> str | None:
    """Write the run's attributes, and the tables of a suite that has ended, to the results file. Returns its path.

    kept: None if this rank writes no file.
    """
    if kept is None:
        return None
    tables = result.tables if result is not None else []
    return str(file.append(asked.out, file.Run(kept.name, kept.attributes, tables), more=True))


def _finish(
    asked: Options, reporter: Reporter | None, facts: dict[str, Any], results: dict[str, Result], out: str | None
) -> int:
    """Print the outcome and the path of the file, on rank 0. Returns the exit code."""
    failed = [name for name, result in results.items() if not result.ok]
    code = WRONG if failed else OK
    if reporter is None:
        return code
    if asked.json:
        reporter.document(facts, results, not failed, out)
        return code
    if failed:
        reporter.line(f"FAILED: wrong results in {', '.join(failed)}")
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in facts["suite_seconds"].items())
    reporter.line(f"\n# {spent}")
    if out is not None:
        reporter.line(f"# results: {out} (pictures: aristos plot {out}; a page: aristos report {out})")
    if asked.timeline:
        reporter.line(f"# timeline: {asked.timeline} (open in ui.perfetto.dev)")
    return code

"""The part of a page about one call's timeline: what each rank did, who waited for whom, and every worker's steps."""

from __future__ import annotations

from ..bench.context import counted
from .figures import Plot
from .gantt import Rank, Timeline
from .markup import Markup, table, tag

BY_RANK = ["rank", "began at ms", "ended at ms", "working ms", "waiting ms", "waited longest for"]


def part(found: Timeline, plot: Plot, place: str) -> Markup:
    """The section of a timeline. place: the `id` of the section."""
    facts = ", ".join(f"{key} {value}" for key, value in found.facts.items())
    count, longest = found.hidden
    whole = found.end * len(found.workers)
    shares = [
        [kind, f"{each * 1e3:.4g}", f"{each / whole:.1%}" if whole else "-"] for kind, each in found.seconds.items()
    ]
    return tag(
        "section",
        tag("h2", f"Timeline {found.title}", id=place),
        tag("p", f"One call, {found.end * 1e3:.4g} ms, {counted(len(found.workers), 'worker')}. {facts}"),
        tag("p", _last(found.ranks)) if len(found.ranks) > 1 else "",
        tag("p", f"Not drawn: the shortest bars ({count}), each of at most {longest:.3g} us.") if count else "",
        tag("p", f"{counted(found.left_out, 'more worker')} in the file: neither drawn nor counted here.")
        if found.left_out
        else "",
        plot(found.figure, f"Steps of every worker: {found.title}"),
        table("What each rank did, its workers' times added up", BY_RANK, _by_rank(found.ranks), range(1, 5)),
        table("Time of all workers by kind of step", ["step", "ms", "of the workers' time"], shares, (1, 2)),
        aria_labelledby=place,
    )


def _by_rank(ranks: list[Rank]) -> list[list[str]]:
    """Rows of a table with the columns BY_RANK."""
    return [
        [f"rank {each.number}"]
        + [f"{seconds * 1e3:.4g}" for seconds in (each.began, each.ended, each.working, each.waiting)]
        + [each.waited_for or "-"]
        for each in ranks
    ]


def _last(ranks: list[Rank]) -> str:
    """Sentences that say which rank began last, which rank waited most, and for which rank it waited longest."""
    late, idle = max(ranks, key=lambda each: each.began), max(ranks, key=lambda each: each.waiting)
    said = f"Rank {late.number} began last, at {late.began * 1e3:.4g} ms."
    longest = f", longest for {idle.waited_for}" if idle.waited_for else ""
    return f"{said} Rank {idle.number} waited most: {idle.waiting * 1e3:.4g} ms{longest}."

"""`aristos topo --measure`: measure the job's links, or take them from cache or table, then show and write them.

Exit codes: 0 success, 3 an unsuitable environment or a file that cannot be written, 130 Ctrl-C. A faulty link is
reported but is no failure, because the planner avoids it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from kernel_cache import private
from kernel_cache.texts import aligned

from ..errors import AristosError, EnvironmentProblem, InputError
from ..host import workarounds
from ..host.launch_environment import complain
from ..host.mpi_world import library_version
from ..topology import Topology, table
from ..topology import links as file
from ..topology.links import MIB, Links
from . import pairs, world
from .main import ENVIRONMENT, OK, crashed, interrupted, leave

PROG = "aristos topo"
SECONDS = 6.0  # seconds of puts, without synchronisation and start-up


def run_links(asked: Namespace, smi: str | None) -> int:
    """Run the command. Returns its exit code.

    smi: another machine's output of `nvidia-smi topo -m`, whose links are looked up in the table; None: measure."""
    if smi is not None:
        from ..topology import from_text

        topology = from_text(smi, None)
        return _finish(_of_machine(topology), asked)
    workarounds.apply()
    try:
        ranks = world.connect()
    except EnvironmentProblem as why:
        return complain(f"{PROG}: {why}", ENVIRONMENT)
    try:
        found = _links(ranks, asked.again)
        return _finish(found, asked) if ranks.lead else OK
    except (AristosError, OSError) as why:
        return leave(ranks, f"{PROG}: {why}", ENVIRONMENT)
    except KeyboardInterrupt:
        return interrupted(ranks, PROG)
    except BaseException:
        return crashed(ranks)


def _of_machine(topology: Topology) -> Links:
    from ..launcher import this_node

    here = this_node.this_node_of(topology, os.environ)
    if not here.devices:
        raise InputError(
            "one process has no links to measure, and this node has no GPU whose links are known: start several ranks"
            " by `aristos run -n 8 -- python -m aristos topo --measure`"
        )
    return _stamped(table.of_machine(topology, here.devices))


def _stamped(links: Links) -> Links:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return replace(links, measured_utc=now, command=" ".join([PROG, *sys.argv[2:]]))


def _links(ranks: world.World, again: bool) -> Links:
    """Links of this job: for one process from the table, else from the cache or measured. Collective."""
    if ranks.size == 1:
        from ..topology import discover

        return _of_machine(discover())
    from . import links

    topology, seats = links.survey(ranks)
    library = library_version()
    hosts = [topology.nodes[seat.node].name for seat in seats]
    path = file.cache_path(hosts, links.seats(topology, seats), library, os.environ)
    known = ranks.bcast(None if again or not ranks.lead else _cached(path))
    if known is not None:
        note = f"these links were measured at {known.measured_utc} and read from the cache; --again measures them again"
        return replace(known, notes=[*known.notes, note])
    if ranks.lead:
        print(f"{PROG}: measuring {ranks.size} ranks", file=sys.stderr, flush=True)
    for turn in (ranks.lead, not ranks.lead):  # one rank compiles, then the others load
        if turn:
            pairs.compile_loops(not ranks.nodes.single, "put_origin", "put_target")
            links.compile_expert()
        ranks.sleepy_barrier()
    found = _stamped(links.measure(ranks, topology, seats, SECONDS))
    if ranks.lead:
        try:
            private.make(path.parent.parent)  # the folder that also keeps compiled code
            private.make(path.parent)
            file.save(found, path)
        except (OSError, EnvironmentProblem) as why:
            print(f"{PROG}: the measured links cannot be written to the cache: {why}", file=sys.stderr)
    return found


def _cached(path: Path) -> Links | None:
    try:
        return file.load(path)
    except (InputError, OSError):
        return None


def _finish(links: Links, asked: Namespace) -> int:
    """Write and show the links, on rank 0."""
    file.save(links, asked.out)
    if asked.json:
        print(json.dumps(links.to_json(), indent=1))
    else:
        print("\n".join([*_by_class(links), *_by_device(links)]))
        for note in links.notes:
            print(f"note: {note}")
        for fault in links.faults:
            print(f"fault: {fault}")
        print(f"# {links.source} in {links.seconds:.1f} s: {asked.out}")
    return OK


def _by_class(links: Links) -> list[str]:
    """A line for each class with medians over its ordered pairs, and with the slowest pair."""
    pairs: dict[str, list[tuple[int, int]]] = {}
    for a, row in enumerate(links.classes):
        for b, name in enumerate(row):
            if a != b:
                pairs.setdefault(name, []).append((a, b))
    rows = [["class", "pairs", "small us", "large us", "GB/s", "slowest", "contended", "residual"]]
    for name, members in sorted(pairs.items()):
        beta = links.large.beta_us_per_mib
        together = links.contended.beta_us_per_mib if links.contended else None
        rows.append(
            [
                name,
                str(len(members)),
                _text(_median(links.small.alpha_us[a][b] for a, b in members), ".2f"),
                _text(_median(links.large.alpha_us[a][b] for a, b in members), ".2f"),
                _text(_rate(_median(beta[a][b] for a, b in members)), ".2f"),
                _text(_rate(max((x for a, b in members if (x := beta[a][b]) is not None), default=None)), ".2f"),
                _text(_rate(_median(together[a][b] for a, b in members)) if together else None, ".2f"),
                _text(_median(links.residual[a][b] for a, b in members), ".0%"),
            ]
        )
    return aligned(rows)


def _by_device(links: Links) -> list[str]:
    rows = [["rank", "host", "device", "GFLOP/s", "memory GB"]]
    for rank, each in enumerate(links.devices):
        what = f"{each.label} {each.name}".strip() + (f" {each.cpus}" if each.cpus and not each.label else "")
        memory = None if each.memory_bytes is None else each.memory_bytes / 1e9
        rows.append([str(rank), links.hosts[rank], what, _text(each.rate_gflops, ".1f"), _text(memory, ".1f")])
    return ["", *aligned(rows)]


def _rate(beta: float | None) -> float | None:
    """GB/s from microseconds per MiB."""
    return MIB / 1e3 / beta if beta else None


def _median(values: Iterable[float | None]) -> float | None:
    known = sorted(value for value in values if value is not None)
    return known[len(known) // 2] if known else None


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)

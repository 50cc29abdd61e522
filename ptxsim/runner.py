"""Runs the queued launches: interpreter and actors take turns. The interpreter's records become reports and output.

A run ends when all launches that the host waits for have ended. Others may stay queued. Ended launches are the
machine's past as long as others are queued, or as the host has not waited for all of them. While there is a past, the
next run continues with the checker's clocks, so that races between launches of different runs are found.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

from . import state as s
from .core import Core
from .counters import Profile
from .errors import InputError
from .explain import explain, stuck, waiting
from .findings import KernelFault, Report
from .launches import Launch
from .missing import SAME_VALUE
from .prepare import prepare
from .printf import formatted
from .units import python_function

BUDGET = 400_000  # warp instructions between two checks for Ctrl-C
MOST_ACTORS = 31
ACTOR_STEPS = 400  # warp instructions between two turns of the actors
MOST_PAST = 1000  # with more launches in the past, the host counts as having waited for all that ended
ACTOR_PATIENCE = 5000  # after so many turns without any change, waiting actors count as stuck


class Runner(Core):
    """The machine's part that runs queued launches.

    strict: whether to raise KernelFault at the first report. limit: the most warp instructions of one run.
    """

    def __init__(self, *args: Any, strict: bool, limit: int):
        super().__init__(*args)
        self.strict, self.limit = strict, limit
        self.actors: dict[int, Iterator[Any]] = {}
        self.capturing = False  # whether launches become a graph (graphs.py)
        self.past: list[Launch] = []  # launches that ended, while the host has not waited for all, or others are queued
        self.same_value: dict[int, list[Report]] = {}  # by instruction, the run's races whose store changes nothing

    def actor(self, function: Callable[..., Iterator[Any]], *args: Any) -> None:
        """Let a Python generator take part in the next run as a thread of the host.

        The generator accesses elements of arrays by `load` and `store`. It yields to let the devices go on.
        """
        if len(self.actors) >= MOST_ACTORS:
            raise InputError(f"at most {MOST_ACTORS} actors can take part in a run")
        self.actors[len(self.actors)] = iter(function(*args))

    def finish(self, device: int | None = None) -> None:
        """Run the launches that have not run yet. In an actor's turn, do nothing.

        device: run only this device's launches, and others that they need. None: run all.
        """
        with self.lock:
            self.wait([one for one in (*self.past, *self.queue) if device in (None, one.device)])

    def wait(self, launches: list[Launch], known: bool = True) -> None:
        """Run launches and those that they need. In an actor's turn, do nothing.

        Other launches run only if the wanted ones are stuck without them. known: whether the host has waited, so that
        all that the host does from now on comes after these launches.
        """
        with self.lock:
            if self.acting >= 0:
                return
            wanted = {id(one) for one in launches}
            for one in reversed([*self.past, *self.queue]):
                if id(one) in wanted:
                    wanted |= {id(need) for need in one.needs}
            if any(id(one) in wanted for one in self.queue):
                self._run(self.strict, wanted)
            if known:
                for one in self.past:
                    one.known = one.known or id(one) in wanted
            if len(self.past) > MOST_PAST or (not self.queue and all(one.known for one in self.past)):
                self.forget()

    def known(self) -> list[Launch]:
        """Of the past launches for which the host has waited, the last one of each stream."""
        return list({id(one.stream): one for one in self.past if one.known}.values())

    def forget(self) -> None:
        """Let all ended launches count as having happened before everything that follows."""
        for one in self.past:
            one.needs = []
        self.past = []

    def run(self, strict: bool | None = None) -> list[Report]:
        """Run all queued launches, concurrently, to their end or to a deadlock. Returns the reports of this run.

        strict: whether to raise KernelFault at the first report; by default the machine's setting.
        """
        with self.lock:
            return self._run(self.strict if strict is None else strict)

    def _run(self, strict: bool, wanted: set[int] | None = None) -> list[Report]:
        """Run queued launches. wanted: the ids of those that the host waits for; None: the host waits for all."""
        if self.capturing:
            raise InputError("nothing can run while a graph is captured")
        launches, self.queue = self.queue, []
        if self.actors:  # actors are threads of the host, which knows all ended launches
            self.forget()
        if not launches and not self.actors:
            self.forget()
            return []
        self.x[s.STRICT] = int(strict)
        first = self.first_report = len(self.reports)
        self.same_value = {}
        if wanted is not None:  # wanted ones come first, so that a past launch keeps its numbers in the next run
            launches.sort(key=lambda launch: id(launch) not in wanted)
        count = len(self.past)
        prepare(self, [*self.past, *launches], count)
        table = self.tables["launches"][count : count + len(launches)]
        if wanted is not None:  # the others are held back until the wanted ones are stuck without them
            table[:, s.L_HELD] = [id(launch) not in wanted for launch in launches]
            self.x[s.HELD] = table[:, s.L_HELD].sum()
        try:
            self._loop([*self.past, *launches])
        finally:
            self.actors = {}
            held = table[:, s.L_HELD] != 0
            self.queue = [launch for launch, later in zip(launches, held) if later]
            ended = [launch for launch, later in zip(launches, held) if not later]
            self.done += ended
            self.past += ended
            self.flush()
            for launch in ended:
                for action in launch.after:
                    action()
                launch.after = []  # because callbacks hold the arguments
            if wanted is None or not (table[~held, s.L_STATE] == s.FINISHED).all():
                self.forget()
        found = self.reports[first:]
        if self.x[s.STRICT] and found:
            raise KernelFault(found[0])
        return found

    def let_go(self, launches: list[Launch]) -> bool:
        """Let launches that were held back begin, all that come after no function of the host.

        If there is none, call the first such function whose needs have ended. Returns whether something can go on.
        """
        table, before = self.tables["launches"], int(self.x[s.HELD])
        after = set[int]()
        for launch, row in zip(launches, table):
            if launch.call is not None or any(id(need) in after for need in launch.needs):
                after.add(id(launch))
            elif row[s.L_HELD]:
                row[s.L_HELD] = 0
        self.x[s.HELD] = table[:, s.L_HELD].sum()
        if self.x[s.HELD] < before:
            return True
        open_ = {id(launch) for launch, row in zip(launches, table) if row[s.L_STATE] != s.FINISHED}
        for launch, row in zip(launches, table):
            if launch.call is not None and not any(id(need) in open_ for need in launch.needs):
                launch.call()
                launch.call = None
                row[s.L_HELD] = 0
                self.x[s.HELD] -= 1
                return True
        return False

    def _loop(self, launches: list[Launch]) -> None:
        idle, progress = 0, -1
        run_compiled = python_function("run")
        until = int(self.x[s.STEP]) + self.limit
        while True:
            reason = run_compiled(int(self.x.ctypes.data), ACTOR_STEPS if self.actors else BUDGET)
            self.flush()
            if self.x[s.STEP] > until and reason in (s.BUDGET, s.PRINTS_FULL, s.CLOCKS_FULL, s.SYNC_FULL):
                self.reports += stuck(self, launches, True, f"still run after {self.limit} instructions of warps")
                return
            if reason == s.CLOCKS_FULL:
                self.compact()
            elif reason == s.SYNC_FULL:
                self.grow_sync()
            if self.actors and reason not in (s.CLOCKS_FULL, s.SYNC_FULL, s.PRINTS_FULL, s.STOPPED):
                changed = self._turn()
                idle = idle + 1 if self.x[s.PROGRESS] == progress and not changed else 0
                progress = int(self.x[s.PROGRESS])
                if idle < ACTOR_PATIENCE and self.actors:
                    continue
            if reason in (s.STUCK, s.LIVELOCK):
                if self.x[s.READY_COUNT] and reason == s.STUCK:
                    continue
                if self.x[s.OPEN] == self.x[s.HELD] and not self.actors:
                    return
                if self.x[s.HELD] and self.let_go(launches):
                    continue
                self.reports += stuck(self, launches, reason == s.LIVELOCK)
            if reason in (s.STUCK, s.LIVELOCK, s.ALL_DONE):
                self.reports += [waiting(number, actor) for number, actor in self.actors.items()]
            if reason in (s.STUCK, s.LIVELOCK, s.ALL_DONE, s.STOPPED):
                return

    def _turn(self) -> bool:
        """Let every actor go on once. Returns True if one of them changed memory or ended."""
        self.changed = False
        for number, actor in list(self.actors.items()):
            self.acting = number
            try:
                next(actor)
            except StopIteration:
                del self.actors[number]
                self.x[s.PROGRESS] = self.x[s.STEP]
                self.changed = True
            finally:
                self.acting = -1
        return self.changed

    def flush(self) -> None:
        """Turn the interpreter's records into reports and printed lines."""
        for row in self.tables["reports"][: self.x[s.REPORTS_COUNT]]:
            made = explain(self, row)
            if row[s.R_KIND] == s.RACE:
                old = self.same_value.pop(int(row[s.R_PC]), [])
                self.reports[:] = [one for one in self.reports if not any(one is gone for gone in old)]
                if row[s.R_DETAIL] & SAME_VALUE:
                    self.same_value[int(row[s.R_PC])] = made
            self.reports += made
        self.x[s.REPORTS_COUNT] = 0
        if self.x[s.PRINTS_COUNT]:
            for row in range(int(self.x[s.PRINTS_COUNT])):
                text = formatted(self.memory, self.tables["prints"][row])
                self.output.append(text)
                sys.stdout.write(text)
            self.x[s.PRINTS_COUNT] = 0

    def profile(self) -> Profile:
        """Counters of all kernels that ran so far, by source line."""
        return Profile(self.loader)

    def host_race(self, where: str, write: bool) -> None:
        """Report, once in a run, that an actor's access to `where` races with a device's access."""
        verb = "writes" if write else "reads"
        message = f"the host {verb} {where}, with nothing that orders it after a device's access"
        report = Report("race", "host", "", 0, (0, 0, 0), (self.acting, 0, 0), message, where, device=-1)
        if not any(r.kernel == "host" and r.address == where for r in self.reports[self.first_report :]):
            self.reports.append(report)

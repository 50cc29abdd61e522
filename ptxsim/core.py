"""The parts of a machine: the tables that the compiled interpreter reads, memory, programs, launches and reports.

runner.py runs launches. machine.py has the interface for users.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from kernel_cache import sm_limits as limits

from . import host, interpreter, matrix_halves  # noqa: F401  (host and interpreter import every unit)
from . import state as s
from .address_space import Memory
from .findings import Report
from .launches import Launch
from .loader import Loader
from .units import addresses, python_function

FIRST_CLOCKS = 1 << 18  # entries of the first pool of vector clocks, which grows
FIRST_SYNC = 1 << 14  # rows of the first table of published clocks (state.S_MAP), which grows
MOST_TURNS = 1 << 16  # the most turns of warps that a run records
MOST_PRINTS = 4096  # the most lines that kernels may print before the host takes them
PATIENCE = 50_000_000  # after so many warp instructions without any change, a run counts as a livelock


class Core:
    """The state of a machine. cc: the compute capability of its devices."""

    def __init__(self, device_count: int, sm_count: int, cc: tuple[Any, ...], seed: int, check: bool):
        self.device_count, self.sm_count, self.cc, self.check = device_count, sm_count, cc, check
        self.lock = threading.RLock()  # keeps memory and code from growing while another thread runs kernels
        self.limits = limits.limits_of(cc)
        units = addresses()
        self.x = np.zeros(s.X_FIELDS + s.UNITS, np.int64)
        self.x[s.X_FIELDS : s.X_FIELDS + len(units)] = units
        self.memory = self.memory_of(check)
        self.loader = Loader(self.x, self.memory)
        self.queue: list[Launch] = []  # launches that have not run yet
        self.running: list[Launch] = []
        self.done: list[Launch] = []
        self.reports: list[Report] = []
        self.first_report = 0  # index of the present run's first report
        self.output: list[str] = []  # lines that kernels printed
        self.acting = -1  # the number of the actor (actors.py) whose turn it is; -1 outside turns
        self.changed = False  # whether the actors changed memory in their last turn
        self.next_gid = 1  # the number of the next block
        self.kept: list[np.ndarray] = []  # tables that the running launches point to
        self.tables: dict[str, np.ndarray] = {}
        self.patience = PATIENCE
        self.cleared = 0  # the number of the last write when the history of writes was cleared
        self.x[s.RNG] = (seed * 2654435761 + 88172645463325252) & ((1 << 62) - 1)
        self.x[s.CHECK] = self.x[s.WEAK_MEMORY] = int(check)
        self.x[s.CLOCKS_TOP] = 1
        self.x[s.BURST] = 12 if check else 48
        if check:
            self.table("clocks", (FIRST_CLOCKS, 2), s.CLOCKS)
            self.table("sync", (FIRST_SYNC, s.S_FIELDS), s.SYNC)
            self.table("history", (s.HISTORY_SLOTS, s.H_FIELDS), s.HISTORY)
            self.x[s.CLOCKS_CAP], self.x[s.SYNC_CAP] = FIRST_CLOCKS, FIRST_SYNC
        self.table("scratch", (matrix_halves.WORDS,), s.SCRATCH)
        self.table("reports", (s.MAX_REPORTS, s.R_FIELDS), s.REPORTS)
        self.x[s.PRINTS_CAP] = MOST_PRINTS
        self.table("prints", (MOST_PRINTS, 80), s.PRINTS)
        self.table("agent", (s.T_FIELDS,), s.AGENT)
        self.table("pending", (s.P_MOST + 1, s.P_FIELDS), s.PENDING)

    def memory_of(self, checked: bool) -> Memory:
        """The machine's memory. checked: whether it has the checker's tables."""
        return Memory(self.x, checked)

    def table(self, name: str, shape: tuple[Any, ...], field: int, dtype: Any = np.int64) -> np.ndarray:
        """Make a table of zeros, keep it under a name, and write its address into a field of x."""
        made = np.zeros(shape, dtype)
        self.tables[name] = made
        self.x[field] = made.ctypes.data
        return made

    def record(self, plan: np.ndarray | None = None) -> None:
        """Record the turns of warps from now on.

        plan: [turns, state.U_FIELDS] recorded turns of another run, which this run follows at its beginning.
        """
        self.table("turns", (MOST_TURNS, s.U_FIELDS), s.TURNS)
        self.x[s.TURNS_COUNT], self.x[s.TURNS_CAP] = 0, MOST_TURNS
        if plan is not None:
            self.table("plan", (max(len(plan), 1), s.U_FIELDS), s.PLAN)[: len(plan)] = plan
            self.x[s.PLAN_COUNT], self.x[s.PLAN_AT] = len(plan), 0

    def turns(self) -> np.ndarray:
        """[turns, state.U_FIELDS] int64: the turns recorded so far, at most MOST_TURNS."""
        return self.tables["turns"][: self.x[s.TURNS_COUNT]].copy()

    # ---- the tables of the checker grow ----
    def clocks_needed(self) -> int:
        """How many entries of vector clocks one instruction of a warp may add."""
        return 65536 + int(self.x[s.CLOCK_SPACE]) * int(self.x[s.MAX_CLOCKS])

    def reserve(self) -> None:
        """Make space in the checker's tables for the entries that one access of an actor may add."""
        if not self.check:
            return
        x = self.x
        if x[s.CLOCKS_CAP] - x[s.CLOCKS_TOP] < self.clocks_needed():
            self.compact()
        if 2 * x[s.SYNC_USED] + 4096 > x[s.SYNC_CAP]:
            self.grow_sync()

    def compact(self) -> None:
        """Copy the vector clocks in use into a new pool, twice as large if they fill more than half of the old one."""
        old = self.tables["clocks"]
        used = len(old)
        new = np.zeros_like(old)
        self.tables["clocks"] = new
        self.x[s.CLOCKS] = new.ctypes.data
        python_function("compact")(int(self.x.ctypes.data), int(old.ctypes.data))
        if self.x[s.CLOCKS_TOP] * 2 > used or used < 2 * (self.clocks_needed()):
            bigger = np.zeros((2 * max(used, self.clocks_needed()), 2), np.int64)
            bigger[: self.x[s.CLOCKS_TOP]] = new[: self.x[s.CLOCKS_TOP]]
            self.tables["clocks"] = bigger
            self.x[s.CLOCKS], self.x[s.CLOCKS_CAP] = bigger.ctypes.data, len(bigger)

    def grow_sync(self) -> None:
        """Double the table that has a row for each location whose last write publishes clocks."""
        old = self.tables["sync"]
        self.table("sync", (2 * len(old), s.S_FIELDS), s.SYNC)
        self.x[s.SYNC_CAP], self.x[s.SYNC_USED] = 2 * len(old), 0
        for row in old[old[:, s.S_KEY] != 0]:
            entry = python_function("host_entry")(int(self.x.ctypes.data), int(row[s.S_KEY]) - 1)
            self.tables["sync"][(entry - self.x[s.SYNC]) // (8 * s.S_FIELDS)] = row

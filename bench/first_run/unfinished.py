"""What a part prints when it fails or its time is over: rows of suites that have not ended, and whether it hangs."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

OUT_OF_TIME = "ran out of time: no call hangs"
CALL = re.compile(r"epoch \d+: (?!done).*")  # the first line of an engine's state while a call is open
DRIVER = "aristos/substrate/cuda/driver.py"
APART = 1.5  # seconds between the two readings
_sheets: dict[str, list[Any]] = {}


def follow() -> None:
    """From now on, record every sheet of a suite when it is made."""
    from aristos.bench import context, tables

    begin, make, names = tables.Reporter.begin, context.Sheet.__init__, [""]

    def begun(self: Any, suite: str) -> None:
        names[0] = suite
        begin(self, suite)

    def made(self: Any, *words: Any, **options: Any) -> None:
        make(self, *words, **options)
        _sheets.setdefault(names[0], []).append(self)

    tables.Reporter.begin, context.Sheet.__init__ = begun, made  # type: ignore[method-assign]


def forget() -> None:
    """Forget the rows so far: they belong to an earlier part."""
    _sheets.clear()


def document() -> str:
    """The rows so far, as the JSON document that the part would have printed; '' if there are none."""
    from aristos.bench.tables import plain

    note = "not finished: these rows were complete when the part ended"
    suites = {}
    for name, sheets in list(_sheets.items()):
        tables = [
            {"title": each.title, "rows": [plain(row) for row in list(each.records)], "notes": [*each.notes, note]}
            for each in list(sheets)
            if each.records
        ]
        suites |= {name: {"ok": False, "tables": tables}} if tables else {}
    return json.dumps({"suites": suites}) if suites else ""


def verdict(first: str, state: str, driver: object | None) -> str:
    """A line that says whether the process hangs. first, state: two readings of the engines. driver: the call in which
    the process stayed, or None."""
    stuck = [call for call in CALL.findall(state) if call in first]
    if stuck:
        return f"HUNG: a call makes no progress at {stuck[0]}"
    if driver is not None or "the driver has not answered" in state:
        return "HUNG: the driver does not answer"
    return OUT_OF_TIME


def driver_call() -> object | None:
    """The frame of the driver's call in which the main thread is now; None elsewhere."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return frame if frame is not None and frame.f_code.co_filename.endswith(DRIVER) else None


def judge(first: str, read: Callable[[], str]) -> str:
    """The verdict, from `first` and from what `read` returns APART seconds later: the state of every engine."""
    before = driver_call()
    time.sleep(APART)
    state = read()
    return verdict(first, state, before if before is driver_call() else None)

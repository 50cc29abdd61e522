"""The stand-in in the program's process: its start at the first call, its functions' wrappers, and what it writes.

`ptxsim run` names in PTXSIM_RUN a folder and the options of the machine, as JSON. Reports are written to a file of the
folder as soon as they are found, so that they are kept if the program crashes. What was covered is written at the end.
One empty file says that the process did not come to its end, another one that kernels failed at the end.
"""

from __future__ import annotations

import atexit
import ctypes
import dataclasses
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..coverage import Coverage
from ..errors import PtxsimError
from ..findings import Report
from . import (  # noqa: F401  (declarations)
    capture,
    devices,
    executable_graphs,
    fills,
    graph_nodes,
    host_functions,
    launching,
    lookup,
    memory,
    modules,
    pools,
    queues,
    tensor_maps,
    user_objects,
)
from .build import per_thread, symbols
from .calls import ARGUMENTS, FUNCTIONS, INT, LONG
from .results import CODES, Refused
from .state import SharedMachine, State

SETTING = "PTXSIM_RUN"
ENDED = 4  # the library's state after the end (stand_in.c)
BEFORE_INIT = (
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGetProcAddress",
    "cuGetProcAddress_v2",
)


class Session:
    """The stand-in of this process. place: the beginning of the names of the files that it writes."""

    def __init__(self, options: dict[str, Any], place: Path, state: int, number: int):
        self.state = State(SharedMachine(self.record, **options), ctypes.PYFUNCTYPE(LONG)(number))
        self.place, self.library = place, INT.from_address(state)
        self.written: list[Report] = []
        self.kept: list[Any] = []  # ctypes' functions, which the library's table points to
        self.failed, self.unended = Path(f"{place}.failed"), Path(f"{place}.unended")
        self.unended.touch()

    def record(self, reports: list[Report]) -> None:
        """Write the reports, if they differ from those written last."""
        if reports != self.written:
            self.written = list(reports)
            text = "".join(json.dumps(dataclasses.asdict(report)) + "\n" for report in reports)
            Path(f"{self.place}.new").write_text(text, encoding="utf-8")
            os.replace(f"{self.place}.new", f"{self.place}.reports")

    def wrapped(self, name: str, function: Callable[..., None], of_thread: bool) -> Callable[..., int]:
        """A function of the driver API that returns a result code. of_thread: whether stream 0 is the thread's own."""

        def called(*args: int) -> int:
            try:
                if not self.state.initialised and name not in BEFORE_INIT:
                    return CODES["ERROR_NOT_INITIALIZED"]
                if self.state.calling and self.state.thread_number() in self.state.calling:
                    raise Refused("ERROR_NOT_PERMITTED", f"{name} is not permitted in a host function of a stream")
                self.state.last_call = time.monotonic()
                with self.state.lock:
                    self.state.per_thread = of_thread
                    capture.check(self.state, name)
                    function(self.state, *args)
                    self.state.last_call = time.monotonic()
                return 0
            except Refused as refused:
                if refused.why:
                    self.state.say(refused.why)
                return refused.code
            except PtxsimError as error:
                self.state.say(f"{name}: {error}")
                return CODES["ERROR_INVALID_VALUE"]
            except KeyboardInterrupt:
                self.end(finish=False)
                os._exit(130)
            except BaseException:  # else ctypes would return 0, which is success
                traceback.print_exc()
                return CODES["ERROR_UNKNOWN"]

        return called

    def fill(self, made: int) -> None:
        """Write the functions' addresses into the library's table."""
        for number, name in enumerate(symbols()):
            ordinary = per_thread().get(name, name)
            if ordinary in FUNCTIONS:
                function, types = FUNCTIONS[ordinary]
                assert len(types) <= ARGUMENTS, name
                kept = ctypes.CFUNCTYPE(INT, *types)(self.wrapped(ordinary, function, ordinary != name))
                self.kept.append(kept)
                place = ctypes.c_uint64.from_address(made + 8 * number)
                place.value = ctypes.cast(kept, ctypes.c_void_p).value or 0

    def end(self, finish: bool = True) -> None:
        """Write what was covered, and let the library answer nothing more. finish: whether to run what is queued."""
        if self.library.value == ENDED:
            return
        try:
            if finish:
                with self.state.lock:
                    self.state.finish()
        except BaseException as error:
            why = getattr(error, "why", "") or str(error) or type(error).__name__
            print(f"ptxsim: at the program's end: {why}", file=sys.stderr)
            self.failed.touch()
        self.library.value = ENDED
        covered = Coverage()
        covered.add(self.state.machine)
        written = {"launches": covered.launches, "kernels": sorted(covered.kernels)}
        written |= {"ran": sorted(covered.ran), "all": sorted(covered.all)}
        Path(f"{self.place}.covered").write_text(json.dumps(written), encoding="utf-8")
        self.unended.unlink()
        sys.stdout.flush()


_sessions: list[Session] = []


def start(state: int, made: int, own: int, number: int) -> None:
    """Start the stand-in. The arguments are addresses in the library: of its state, of its table of functions to call,
    of the table of those that it exports, and of the function that numbers threads."""
    asked = json.loads(os.environ[SETTING])
    session = Session(asked["machine"], Path(asked["folder"]) / str(os.getpid()), state, number)
    lookup.fill(own)
    session.fill(made)
    _sessions.append(session)
    atexit.register(end)
    if not session.state.machine.unified:
        session.state.say("host memory has other addresses on devices in this run: cuMemHostGetDevicePointer has them")


def end() -> None:
    """End the stand-in of this process. After Ctrl-C what is queued does not run."""
    for session in _sessions:
        if int(session.place.name) == os.getpid():
            session.end(finish=getattr(sys, "last_type", None) is not KeyboardInterrupt)

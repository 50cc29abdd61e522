"""Compiles the machine, which happens once, and says on stderr why nothing else happens meanwhile."""

from __future__ import annotations

import sys
import threading

from . import core  # noqa: F401  (it imports every unit)
from .units import addresses

NOTE_S = 10.0  # seconds after which the note is printed
NOTE = "ptxsim: the machine is being compiled, which takes a minute or two; later runs load it in seconds"


def compile_machine() -> None:
    """Compile the machine or load it. Prints a note on stderr if this takes long."""
    note = threading.Timer(NOTE_S, lambda: print(NOTE, file=sys.stderr, flush=True))
    note.daemon = True
    note.start()
    try:
        addresses()
    finally:
        note.cancel()

"""`aristos COMMAND ...`: imports the command's module and calls it with the rest of the line.

A command parses its own options, and imports only what it needs.
"""

from __future__ import annotations

import importlib
import io
import os
import pkgutil
import sys
from typing import Any

from ..host import launch_environment
from ._ending import exit_code

USAGE = 2


def commands() -> list[str]:
    """Names of the commands: the modules of this package."""
    from . import __path__

    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def main(argv: list[str] | None = None) -> int:
    """Run the command in `argv`; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may have characters that the terminal lacks
    words = sys.argv[1:] if argv is None else argv
    known = commands()
    if {"_ARGCOMPLETE", "COMP_LINE", "COMP_POINT"} <= set(os.environ):
        from ._completion import complete

        complete(known, lambda name: _module(name).main)
    name = f"aristos {words[0]}" if words[:1] and words[0] in known else "aristos"
    return exit_code(name, lambda: _run(words, known))


def _run(words: list[str], known: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        if launch_environment.prints():
            _help(known)
        return 0 if words else USAGE
    if words[0] == "--version":
        from .._version import __version__

        if launch_environment.prints():
            print(__version__)
        return 0
    if words[0] not in known:
        if launch_environment.prints():
            from ._listing import unknown

            print(f"aristos: the command {unknown(words[0], known, 'aristos --help')}", file=sys.stderr)
        return USAGE
    return _module(words[0]).main(words[1:])


def _help(known: list[str]) -> None:
    print("usage: aristos COMMAND [options]\n\ncommands:")
    for name in known:
        print(f"  {name:10s}{_module(name).SUMMARY}")
    print("\naristos COMMAND --help has the options; aristos --version prints the version")


def _module(name: str) -> Any:
    return importlib.import_module(f"aristos.cli.{name}")


if __name__ == "__main__":
    sys.exit(main())

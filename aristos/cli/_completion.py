"""Completion of `aristos` on a shell's command line, by argcomplete.

After `eval "$(register-python-argcomplete aristos)"` the shell runs `aristos`, with the line in environment variables.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any, NoReturn


def complete(commands: list[str], main_of: Callable[[str], Callable[[list[str]], int]]) -> NoReturn:
    """Write the completions of the line for the shell, and end the process.

    commands: names of the subcommands. main_of: name -> the subcommand's `main`, which parses its options first.
    """
    import argcomplete

    first, *_ = [*os.environ["COMP_LINE"].split()[1:], ""]
    typed = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    if len(typed.split()) + typed[-1:].isspace() > 2 and first in commands:
        parse_known_args = argparse.ArgumentParser.parse_known_args

        def complete_options(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
            argparse.ArgumentParser.parse_known_args = parse_known_args  # type: ignore[method-assign]
            argcomplete.autocomplete(parser)
            raise SystemExit(0)

        os.environ["_ARGCOMPLETE"] = str(int(os.environ["_ARGCOMPLETE"]) + 1)  # one more word stands before the options
        argparse.ArgumentParser.parse_known_args = complete_options  # type: ignore[assignment]
        main_of(first)(["--", "program"])  # `aristos run` needs a program to parse its options
    parser = argparse.ArgumentParser(prog="aristos")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("command", choices=commands)
    argcomplete.autocomplete(parser)
    raise SystemExit(0)

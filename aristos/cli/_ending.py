"""How a command ends, and its exit code: after Ctrl-C, after an error, or if nobody reads its output."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from kernel_cache.texts import shown

from ..errors import AristosError, InputError
from ..host import launch_environment

USAGE, ENVIRONMENT, INTERRUPTED = 2, 3, 130


def exit_code(name: str, command: Callable[[], int]) -> int:
    """Call a command, and write all of its output. Returns the exit code.

    An error of the package or of the system is printed on one line, after the command's name.
    """
    if sys.stderr is None:  # `2>&-`: without a file, print() would write errors to stdout
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
            return exit_code(name, command)
    try:
        try:
            return command()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:  # | head
        return launch_environment.unread()
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except AristosError as why:
        print(f"{name}: {shown(str(why))}", file=sys.stderr)
        return USAGE if isinstance(why, InputError) else ENVIRONMENT
    except OSError as why:
        stdout = why.filename is None  # the error of any other file has the file's name
        print(f"{name}: {'stdout cannot be written: ' if stdout else ''}{shown(str(why))}", file=sys.stderr)
        if stdout:
            launch_environment.unread()
        return ENVIRONMENT

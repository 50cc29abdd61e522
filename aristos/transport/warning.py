"""A warning from inside the protocol, where an exception would leave other ranks waiting."""

from __future__ import annotations

import contextlib
import sys
import warnings


def warn(text: str) -> None:
    """Warn at the line of the caller's caller. If a filter or a hook raises instead (`-W error`), print the text."""
    try:
        warnings.warn(text, stacklevel=3)
    except Exception:
        with contextlib.suppress(Exception):  # perhaps nobody reads the output any more
            print(f"aristos: {text}", file=sys.stderr, flush=True)

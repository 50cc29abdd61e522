"""Run numba-cuda's own tests, from the installed package, on the machine: give the names of their modules.

Prints one JSON line a module: which tests agree, fail, are skipped, and why; a test that takes over a minute is cut.
"""

from __future__ import annotations

import importlib
import json
import signal
import sys
import unittest
import warnings
from collections.abc import Iterator
from typing import Any

from aristos import simt

SECONDS = 60


def flat(suite: Any) -> Iterator[Any]:
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flat(item)
        else:
            yield item


def too_slow(*_: Any) -> None:
    raise TimeoutError(f"over {SECONDS} s")


def one(test: Any) -> tuple[str, str]:
    """(agrees, fails, skipped or cut; the last line of what it said)."""
    result = unittest.TestResult()
    signal.alarm(SECONDS)
    try:
        with simt.use(simt.Machine()):
            test.run(result)
    except Exception as error:
        return "cut", repr(error)
    finally:
        signal.alarm(0)
    if result.skipped:
        return "skipped", result.skipped[0][1]
    bad = result.errors + result.failures
    return ("fails", bad[0][1].strip().splitlines()[-1][:160]) if bad else ("agrees", "")


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, too_slow)
    simt.enable()
    for name in names:
        module = importlib.import_module(f"numba.cuda.tests.{name}")
        found = {
            test.id().split(".", 3)[3]: one(test)
            for test in flat(unittest.defaultTestLoader.loadTestsFromModule(module))
        }
        print(json.dumps({"module": name, "tests": found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

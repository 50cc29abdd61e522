"""`python -m first_run.child --limit S TASK [WORDS]` is the process of one part of the report.

The report ends this process at the limit. Shortly before, a thread writes the rows so far, where every thread stands,
what the layer waits for, and whether anything hangs. If raw times cannot be written, the part goes on.

Exit codes: those of the task (tasks.py: 0 right, 1 wrong outputs); 4 an error; 3 an unsuitable environment.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import threading
import time
import traceback
from typing import Any

NOTICE = 4.0  # how many seconds before the limit the state is written
ERROR = 4


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m first_run.child", description=__doc__.split("\n")[0])
    parser.add_argument("--limit", type=float, required=True, help="seconds until this process is ended")
    parser.add_argument("--out", default="none", help="results file of raw times")
    parser.add_argument("--rehearse", action="store_true", help="on the PTX machine")
    parser.add_argument("--fault", default="", help="what goes wrong in a rehearsal")
    parser.add_argument("task")
    parser.add_argument("words", nargs=argparse.REMAINDER)
    given = parser.parse_args(argv)
    given.end = time.monotonic() + given.limit
    streams = [os.fdopen(os.dup(number), "w") for number in (1, 2)]  # a task may redirect the first two
    watch = threading.Timer(max(0.5, given.limit - NOTICE), last_words, streams)
    watch.daemon = True
    watch.start()
    try:
        from . import tasks, unfinished

        go_on_without_files()
        unfinished.follow()
        if given.rehearse:
            from . import rehearsal

            return rehearsal.rehearse(given)
        return tasks.run_task(given)
    except Exception as error:
        from aristos.errors import EnvironmentProblem

        if isinstance(error, EnvironmentProblem):
            print(error, file=sys.stderr, flush=True)
            return 3
        traceback.print_exc()
        return ERROR
    finally:
        watch.cancel()


def go_on_without_files() -> None:
    """If results cannot be written, print why and raise no error: the report's page has the tables in any case."""
    from aristos import results
    from aristos.errors import ResultsError

    append, check = results.append, results.check

    def attempt(write: Any, file: Any, *rest: Any, **options: Any) -> Any:
        try:
            return write(file, *rest, **options)
        except (OSError, ResultsError) as why:
            print(f"raw times are not kept: {why}", file=sys.stderr, flush=True)
            return file

    results.append = lambda file, *rest, **options: attempt(append, file, *rest, **options)
    results.check = lambda file, *rest, **options: attempt(check, file, *rest, **options)


def last_words(out: Any, err: Any) -> None:
    """Write what every layer waits for, then the stack of every thread. out, err: the process's own streams."""
    from aristos.substrate import attach

    from . import unfinished

    print(f"the part has not ended: its process will be ended in {NOTICE:.0f} s", file=err, flush=True)
    print(unfinished.document(), file=out, flush=True)
    found: list[str] = []

    def read() -> None:
        found.append(attach.standing())
        found.append(unfinished.judge(found[0], attach.standing))

    reader = threading.Thread(target=read, daemon=True)  # a driver that hangs must not hide the stacks
    reader.start()
    reader.join(NOTICE * 0.7)
    faulthandler.dump_traceback(err, all_threads=True)  # the state comes after it: the report keeps the last lines
    if len(found) < 2:
        found.append("HUNG: the state cannot be read, the driver does not answer")
    print(*found, sep="\n", file=err, flush=True)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code) if threading.active_count() > 1 else sys.exit(code)

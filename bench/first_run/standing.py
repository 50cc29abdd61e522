"""Where the layers of this process stand on their GPUs: the words of their states, read while their kernels run."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import numpy as np

WORKERS = 8  # whose commands are written; the others are counted by kind
KINDS = ("IDLE", "PACK", "DISPATCH", "BLOCK", "LIST", "SHARE", "COMBINE", "SETTLE", "FINISH", "FAIL")


def write() -> None:
    """Write the state of every engine on a GPU to stderr."""
    for number, runtime in enumerate(engines()):
        try:
            lines = state(runtime)
        except Exception as error:
            lines = [f"its state cannot be read: {error}"]
        for line in lines:
            print(f"engine {number}: {line}", file=sys.stderr, flush=True)


def engines() -> list[Any]:
    """The engines on GPUs of this process that have a state."""
    from aristos.substrate import attach

    return [engine for engine in attach._runtimes.values() if getattr(engine, "state_at", 0)]


def state(engine: Any) -> list[str]:
    """The epoch, the lock, the words that are not 0, and what the workers do."""
    from aristos.engine import codes, schema, words
    from aristos.engine.layout import WORD

    engine.read_all()
    st, lock = engine.state, np.zeros(1, np.int64)
    engine.device.copy_out(lock, engine.state_at + WORD * engine.tables.words)
    kinds = {getattr(codes, name): name for name in KINDS}
    lines = [f"epoch {st[words.CALLS]}; lock {'taken' if lock[0] else 'free'} ({lock[0]})"]
    found = [(word.name, int(st[getattr(words, word.name)])) for word in schema.STATE_WORDS]
    lines.append(", ".join(f"{name} {value}" for name, value in found if value))
    first, step = engine.tables.starts[words.T_COMMAND], engine.tables.command_words
    commands = st[first : first + step * engine.threads].reshape(-1, step)[:, :8]
    tally = Counter(kinds.get(int(kind), str(kind)) for kind in commands[:, 0])
    lines.append("workers: " + ", ".join(f"{count} {name}" for name, count in tally.most_common()))
    busy = [worker for worker, command in enumerate(commands) if kinds.get(int(command[0])) != "IDLE"]
    for worker in busy[:WORKERS]:
        kind, subject, share, phase, rows, _, _, run = commands[worker].tolist()
        said = f"{kinds.get(kind, kind)}, subject {subject}, share {share}, phase {phase}, rows {rows}, run {run}"
        lines.append(f"worker {worker}: {said}")
    return lines

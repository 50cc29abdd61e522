"""Runs a part of the report as a process of its own, which is ended at its limit whatever it does.

The part's output goes through pipes, so that none of it is lost on a full disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .parts import ROOT, Part, Ran

BEAT = 10.0  # seconds between two lines of progress
JOIN = 2.0  # seconds that a pipe may stay open after the part has ended
KEPT = 400  # lines of a part's output
CHILD = ("-m", "first_run.child")


def run_part(
    part: Part,
    limit: float,
    show: Callable[[str], None],
    options: tuple[str, ...] = (),
    command: tuple[str, ...] = CHILD,
) -> Ran:
    """Run a part until it ends, or for `limit` seconds. options: of child.py. command: what python runs."""
    start = time.monotonic()
    words = [sys.executable, *command, "--limit", f"{limit:.1f}", *options, part.task, *part.words]
    try:
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as why:
        return Ran(part, -1, 0.0, [f"cannot be started: {why}"])
    printed: tuple[list[bytes], list[bytes]] = ([], [])
    readers = [
        threading.Thread(target=_follow, args=(pipe, chunks), daemon=True)
        for pipe, chunks in zip((process.stdout, process.stderr), printed)
    ]
    for reader in readers:
        reader.start()
    code: int | None = None
    try:
        while code is None and (left := limit - (time.monotonic() - start)) > 0:
            try:
                code = process.wait(min(BEAT, left))
            except subprocess.TimeoutExpired:
                show(f"{part.name}: {time.monotonic() - start:.0f} s")
    finally:
        with contextlib.suppress(ProcessLookupError):  # its child processes may hold the GPU as well
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process in the driver may not die at once
            process.wait(2.0)
    for reader in readers:
        reader.join(JOIN)
    out, err = (b"".join(chunks).decode(errors="replace") for chunks in printed)
    document = _document(out)
    said = [line for text in ("" if document else out, err) for line in text.strip().splitlines() if line.strip()]
    return Ran(part, code, time.monotonic() - start, said[-KEPT:], document)


def _follow(pipe: Any, chunks: list[bytes]) -> None:
    """Append what a pipe yields as it comes. The pipe has no end while a process that cannot be killed holds it."""
    while chunk := pipe.read1(1 << 16):
        chunks.append(chunk)


def environment() -> dict[str, str]:
    """The environment of a part. Python finds the checkout's packages, first_run too, before installed packages."""
    places = [str(ROOT), str(ROOT / "bench"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(places), "PYTHONUNBUFFERED": "1"}


def _document(out: str) -> dict:
    """The last JSON document that a part printed, perhaps among other lines; {} if there is none."""
    found: dict = {}
    for start in re.finditer(r"^\{", out, re.M):
        with contextlib.suppress(ValueError):
            found = json.JSONDecoder().raw_decode(out, start.start())[0]
    return found


def kept(path: Path, text: str) -> str:
    """Write a file, whole or not at all. Returns why it could not be written, or ''."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as why:
        with contextlib.suppress(OSError):
            part.unlink()
        return f"{path}: {why.strerror or why}"
    return ""

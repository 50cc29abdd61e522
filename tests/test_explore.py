"""The schedule explorer: as a command, on the engine as it is, and on engines with a bug put in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from cases import ROOT, clean_environment

pytestmark = pytest.mark.filterwarnings("error")


def explore(*words: str, code: int = 0, timeout: float = 170) -> Any:
    """What `aristos explore WORDS --json` prints, as an object."""
    done = subprocess.run(
        [sys.executable, "-m", "aristos", "explore", *words, "--json"],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_the_command_finds_nothing_and_a_seed_replays():
    first, second = (explore("--schedules", "40", "--seed", "7") for _ in range(2))
    assert first["schedules"] == 40
    assert first["found"] is None
    assert first["steps"] == second["steps"] > 1000


@pytest.mark.parametrize("words", [["--ranks", "0"], ["--rows", "-1"], ["--transport", "rma", "--ranks", "1"]])
def test_options_that_make_no_sense(words):
    done = subprocess.run(
        [sys.executable, "-m", "aristos", "explore", *words], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "must be in" in done.stderr or "needs at least" in done.stderr


@pytest.mark.parametrize("transport", ["shm", "rma", "mixed"])
def test_fresh_schedules(transport):
    """Schedules that no run before has seen; a failure names the seed."""
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    ranks = "3" if transport == "mixed" else "2"
    found = explore("--transport", transport, "--ranks", ranks, "--rows", "0", "--calls", "0", "--seed", str(seed),
                    "--schedules", "120")  # fmt: skip
    assert found["found"] is None, found


@pytest.mark.parametrize("first", [0, 10_000])
def test_every_mutation_is_found(first):
    """Each deliberate bug is found within 300 schedules, whatever the seed."""
    found = explore("--mutation", "all", "--seed", str(first))["mutations"]
    assert len(found) >= 18
    assert all(each["found"] and each["schedules"] <= 300 for each in found)


def test_a_bug_that_is_not_found_is_said_not_to_be():
    found = explore("--mutation", "freed-out-of-order", "--schedules", "1", code=1)
    assert found == {"mutations": [{"name": "freed-out-of-order", "found": False, "schedules": 1}]}


def test_a_story():
    done = subprocess.run(
        [sys.executable, "-m", "aristos", "explore", "--mutation", "zero-not-announced"],
        cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Deadlock" in done.stdout
    assert "waits for a change of ANNOUNCED of rank" in done.stdout
    assert "dispatch.publish" in done.stdout or "packing.announce" in done.stdout

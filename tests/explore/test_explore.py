"""The schedule explorer: as a command, on the engine, and on engines with a deliberate bug."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from cases import ROOT, clean_environment

SECONDS = 17  # of each sweep of fresh schedules: two minutes in all
FRESH = ["shm 4 pct", "rma 2 pct", "rma 3 random", "mixed 3 pct", "mixed 4 random", "proxy 3 pct"]


def run(*words: str, timeout: float = 170) -> subprocess.CompletedProcess[str]:
    """`aristos explore WORDS`."""
    command = [sys.executable, "-m", "aristos", "explore", *words]
    return subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=timeout)


def explore(*words: str, code: int = 0, timeout: float = 170) -> Any:
    """What `aristos explore WORDS --json` prints, as an object."""
    done = run(*words, "--json", timeout=timeout)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_the_command_finds_nothing():
    found = explore("--schedules", "10", "--seed", "7")
    assert (found["schedules"], found["found"]) == (10, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [["--ranks", "0"], ["--rows", "-1"], ["--transport", "rma", "--ranks", "1"], ["--seconds", "nan"],
     ["--strategy", "exhaustive", "--ranks", "3"], ["--seed", "-1"], ["--tokens", "2"],
     ["--mutation", "no-lock", "--ranks", "1"], ["--mutation", "all", "--transport", "proxy", "--ranks", "1"]],
)  # fmt: skip
def test_options_that_make_no_sense(words):
    done = run(*words)
    assert done.returncode == 2
    assert "must be" in done.stderr or "needs at least" in done.stderr or "takes 2 ranks" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--json"], ["--mutation", "release-dropped"]])
def test_a_report_that_cannot_be_written_is_no_bug_found(words):
    """The exit code is 2, not 1, which means that a bug was found."""
    command = [sys.executable, "-m", "aristos", "explore", "--schedules", "2", *words]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, cwd=ROOT, env=clean_environment(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=170
        )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "cannot write to stdout" in done.stderr


@pytest.mark.slow
def test_sizes_given_beside_a_mutation_count():
    """Within a node no rank flushes: with that transport the bug cannot show."""
    words = ("--mutation", "flush-skipped", "--schedules", "5")
    assert explore(*words)["mutations"][0]["found"]
    assert not explore(*words, "--transport", "shm", code=1)["mutations"][0]["found"]


@pytest.mark.slow
@pytest.mark.parametrize("asked", FRESH)
def test_fresh_schedules(asked):
    """Schedules from a fresh seed; a failure prints the seed, which replays it."""
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    transport, ranks, strategy = asked.split()
    drawn = ("--transport", transport, "--ranks", ranks, "--strategy", strategy, "--rows", "0", "--calls", "0")
    found = explore(*drawn, "--seed", str(seed), "--schedules", "1000000", "--seconds", str(SECONDS))
    assert found["found"] is None, json.dumps(found, indent=1)
    assert found["schedules"] > 0


@pytest.mark.slow
def test_a_worker_kept_out_by_the_lock_decides_again():
    """It meets the lock as it decides and again at the wire: it must still decide from the state."""
    drawn = ("--transport", "mixed", "--ranks", "3", "--strategy", "pct", "--rows", "0", "--calls", "0")
    assert explore(*drawn, "--seed", "410437947", "--schedules", "1")["found"] is None


@pytest.mark.slow
def test_a_record_of_an_exchange_that_ended_early_says_nothing_of_a_tape():
    """One rank makes an exchange where the others make a backward call, and reads its return records a call later."""
    drawn = ("--transport", "shm", "--ranks", "4", "--strategy", "pct", "--rows", "0", "--calls", "0")
    assert explore(*drawn, "--seed", "1829689487", "--schedules", "1")["found"] is None


@pytest.mark.slow
def test_a_backward_call_of_another_layer_on_one_rank_is_no_find():
    """Its own rows come from the tape of the forward call, and go through another layer: the call has no result."""
    drawn = ("--transport", "shm", "--ranks", "4", "--strategy", "pct", "--rows", "0", "--calls", "0")
    assert explore(*drawn, "--seed", "2641930319", "--schedules", "1")["found"] is None


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 2414492314, None], ids=["seed 0", "a read where nothing lies", "a fresh seed"])
def test_every_mutation_is_found(first):
    """Each deliberate bug is found within 300 schedules, whatever the seed."""
    seed = int.from_bytes(os.urandom(4), "little") if first is None else first
    print(f"seed {seed}")
    found = explore("--mutation", "all", "--seed", str(seed), timeout=600)["mutations"]
    assert len(found) >= 121
    assert all(each["found"] and each["schedules"] <= 300 for each in found)


@pytest.mark.slow
def test_a_bug_that_is_not_found_is_reported():
    found = explore("--mutation", "first-phase-unput", "--schedules", "1", code=1)
    assert found == {"mutations": [{"name": "first-phase-unput", "found": False, "schedules": 1}]}


@pytest.mark.slow
def test_a_story():
    done = run("--mutation", "zero-not-announced")
    assert done.returncode == 0, done.stderr
    assert "Deadlock" in done.stdout
    assert "waits for a change of ANNOUNCED of rank" in done.stdout
    assert "dispatch.publish" in done.stdout or "packing.write_announcement" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "states"), [(1, 10_000), (2, 30_000)])
def test_all_schedules_within_a_node(rows, states):
    """2 ranks of one worker, 2 experts, 2 tokens, top-1, rings that wrap or just fit, 2 calls: searched to the end.

    `aristos explore --strategy exhaustive` alone has 3 tokens and 250,000 states.
    """
    result = explore("--strategy", "exhaustive", "--rows", str(rows), "--tokens", "2", timeout=300)
    assert result["complete"], result
    assert result["states"] > states
    assert all(each["ends"] > 0 for each in result["routings"])


@pytest.mark.slow
def test_a_search_that_runs_out_of_time_is_reported():
    result = explore("--strategy", "exhaustive", "--rows=3", "--seconds", "0.5", code=3)
    assert not result["complete"]


@pytest.mark.slow
def test_all_schedules_of_fewer_tokens_between_nodes():
    result = explore("--strategy", "exhaustive", "--transport", "rma", "--tokens", "1", "--calls", "1", timeout=600)
    assert result["complete"], result
    assert result["states"] > 20_000


@pytest.mark.slow
def test_schedules_with_proxies_in_order():
    """A few seconds of it: without tokens a search ends in minutes, with one token it does not end."""
    words = ("--strategy", "exhaustive", "--transport", "proxy", "--tokens", "1", "--calls", "1", "--seconds", "5")
    result = explore(*words, code=3)
    assert result["found"] is None, result
    assert result["states"] > 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "transport"),
    [("one-announcement-buffer", "shm"), ("credit-not-checked", "shm"), ("ends-without-owners-part", "shm"),
     ("sync-skipped", "rma"), ("ends-before-its-words-are-put", "rma"), ("words-before-copies", "proxy"),
     ("return-rows-not-copied", "proxy")],
)  # fmt: skip
def test_the_search_to_the_end_finds_bugs_too(name, transport):
    result = explore("--strategy", "exhaustive", "--tokens", "2", "--transport", transport, "--mutation", name)
    assert result["found"]["story"]


@pytest.mark.slow
def test_a_search_with_a_bug_is_where_the_bug_can_show():
    """Without --transport: within a node the proxy's bugs could never be found."""
    words = ("--strategy", "exhaustive", "--tokens", "1", "--calls", "1", "--mutation")
    assert explore(*words, "words-before-copies")["found"]["story"]
    assert explore(*words, "words-before-copies", "--transport", "shm", code=1)["found"] is None

"""The schedule explorer: as a command, on the engine, and on engines with a deliberate bug.

The first tests start the command as a process. All others run in one process that compiles nothing, which is faster.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from cases import ROOT, clean_environment

from aristos.cli.explore import main

SECONDS = 3  # for each case of fresh schedules, 20 seconds in all. `aristos explore --seconds` searches longer
FRESH = ["shm 4 pct", "rma 2 pct", "rma 3 random", "mixed 3 pct", "mixed 4 random", "levels 4 pct", "proxy 3 pct"]


def explore(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    """What `aristos explore WORDS --json` prints, as an object."""
    got = main([*words, "--json"])
    said = capsys.readouterr()
    assert got == code, said.out + said.err
    return json.loads(said.out)


def test_the_command_finds_nothing():
    command = [sys.executable, "-m", "aristos", "explore", "--schedules", "10", "--seed", "7", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["schedules"], found["found"]) == (10, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["--ranks", "0"],
        ["--rows", "-1"],
        ["--transport", "rma", "--ranks", "1"],
        ["--seconds", "nan"],
        ["--strategy", "exhaustive", "--ranks", "3"],
        ["--seed", "-1"],
        ["--tokens", "2"],
        ["--mutation", "no-lock", "--ranks", "1"],
        ["--mutation", "all", "--transport", "proxy", "--ranks", "1"],
    ],
)
def test_invalid_options_are_usage_errors(words, capsys):
    try:
        code = main(words)
    except SystemExit as refused:
        code = refused.code
    assert code == 2
    said = capsys.readouterr().err
    assert any(words in said for words in ("must be", "needs at least", "takes 2 ranks", "needs --strategy"))


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--json"], ["--mutation", "release-dropped"]])
def test_a_report_that_cannot_be_written_is_no_bug_found(words):
    """The exit code is 2, not 1, which means that a bug was found."""
    command = [sys.executable, "-m", "aristos", "explore", "--schedules", "2", *words]
    env = clean_environment() | {"NUMBA_DISABLE_JIT": "1"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, env=env, stdout=full, stderr=subprocess.PIPE, text=True, timeout=170)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "cannot write to stdout" in done.stderr


@pytest.mark.slow
@pytest.mark.uncompiled
def test_sizes_that_are_given_with_a_mutation_are_used(capsys):
    """Within a node no rank flushes, so this bug cannot show with transport shm."""
    words = ("--mutation", "flush-skipped", "--schedules", "5")
    assert explore(capsys, *words)["mutations"][0]["found"]
    assert not explore(capsys, *words, "--transport", "shm", code=1)["mutations"][0]["found"]


@pytest.mark.slow
@pytest.mark.uncompiled
@pytest.mark.parametrize("asked", FRESH)
def test_fresh_schedules(capsys, asked):
    """Schedules from a fresh seed; a failure prints the seed, which replays it."""
    seed = int.from_bytes(os.urandom(4), "little")
    transport, ranks, strategy = asked.split()
    drawn = ("--transport", transport, "--ranks", ranks, "--strategy", strategy, "--rows", "0", "--calls", "0")
    found = explore(capsys, *drawn, "--seed", str(seed), "--schedules", "1000000", "--seconds", str(SECONDS))
    assert found["found"] is None, f"seed {seed}: {json.dumps(found, indent=1)}"
    assert found["schedules"] > 0


@pytest.mark.slow
@pytest.mark.uncompiled
def test_a_worker_kept_out_by_the_lock_decides_again(capsys):
    """The worker finds the lock taken when it decides, and again at the wire. It must still decide from the state."""
    drawn = ("--transport", "mixed", "--ranks", "3", "--strategy", "pct", "--rows", "0", "--calls", "0")
    assert explore(capsys, *drawn, "--seed", "410437947", "--schedules", "1")["found"] is None


@pytest.mark.slow
@pytest.mark.uncompiled
def test_a_record_of_an_exchange_that_ended_early_says_nothing_of_a_tape(capsys):
    """One rank makes an exchange where the others make a backward call. It reads the return records a call later."""
    drawn = ("--transport", "shm", "--ranks", "4", "--strategy", "pct", "--rows", "0", "--calls", "0")
    assert explore(capsys, *drawn, "--seed", "1829689487", "--schedules", "1")["found"] is None


@pytest.mark.slow
@pytest.mark.uncompiled
def test_a_backward_call_of_another_layer_on_one_rank_is_not_reported(capsys):
    """The rank's own rows come from the forward call's tape, but pass through another layer. No result is expected."""
    drawn = ("--transport", "shm", "--ranks", "4", "--strategy", "pct", "--rows", "0", "--calls", "0")
    assert explore(capsys, *drawn, "--seed", "2641930319", "--schedules", "1")["found"] is None


@pytest.mark.slow
@pytest.mark.uncompiled
@pytest.mark.parametrize("first", [2414492314, None], ids=["a read where nothing lies", "a fresh seed"])
def test_every_mutation_is_found(capsys, first):
    """Each deliberate bug is found within 300 schedules, whatever the seed."""
    seed = int.from_bytes(os.urandom(4), "little") if first is None else first
    found = explore(capsys, "--mutation", "all", "--seed", str(seed))["mutations"]
    assert len(found) >= 162
    assert not [each for each in found if not each["found"] or each["schedules"] > 300], f"seed {seed}"


@pytest.mark.slow
@pytest.mark.uncompiled
def test_a_bug_that_is_not_found_is_reported(capsys):
    found = explore(capsys, "--mutation", "first-phase-unput", "--schedules", "1", code=1)
    assert found == {"mutations": [{"name": "first-phase-unput", "found": False, "schedules": 1}]}


@pytest.mark.slow
@pytest.mark.uncompiled
def test_the_story_of_a_deadlock_names_the_awaited_word(capsys):
    assert main(["--mutation", "zero-not-announced"]) == 0
    said = capsys.readouterr().out
    assert "Deadlock" in said
    assert "waits for a change of ANNOUNCED of rank" in said
    assert "dispatch.publish" in said or "packing.write_announcement" in said


@pytest.mark.slow
@pytest.mark.uncompiled
@pytest.mark.parametrize(("rows", "states"), [(1, 10_000), (2, 30_000)])
def test_all_schedules_within_a_node(capsys, rows, states):
    """There are 2 ranks of one worker, 2 experts, 2 tokens, top-1, 2 calls, and rings that wrap or just fit.

    `aristos explore --strategy exhaustive` without other options has 3 tokens and 250,000 states.
    """
    result = explore(capsys, "--strategy", "exhaustive", "--rows", str(rows), "--tokens", "2")
    assert result["complete"], result
    assert result["states"] > states
    assert all(each["ends"] > 0 for each in result["routings"])


@pytest.mark.slow
@pytest.mark.uncompiled
def test_a_search_that_runs_out_of_time_is_reported(capsys):
    result = explore(capsys, "--strategy", "exhaustive", "--rows=3", "--seconds", "0.5", code=3)
    assert not result["complete"]


@pytest.mark.slow
@pytest.mark.uncompiled
def test_all_schedules_of_fewer_tokens_between_nodes(capsys):
    result = explore(capsys, "--strategy", "exhaustive", "--transport", "rma", "--tokens", "1", "--calls", "1")
    assert result["complete"], result
    assert result["states"] > 20_000


@pytest.mark.slow
@pytest.mark.uncompiled
def test_schedules_with_proxies_in_order(capsys):
    """The search is stopped after a few seconds.

    A whole search takes minutes without tokens, and far longer with one token.
    """
    words = ("--strategy", "exhaustive", "--transport", "proxy", "--tokens", "1", "--calls", "1", "--seconds", "5")
    result = explore(capsys, *words, code=3)
    assert result["found"] is None, result
    assert result["states"] > 100


@pytest.mark.slow
@pytest.mark.uncompiled
@pytest.mark.parametrize(
    ("name", "transport"),
    [
        ("one-announcement-buffer", "shm"),
        ("credit-not-checked", "shm"),
        ("ends-without-owners-part", "shm"),
        ("sync-skipped", "rma"),
        ("ends-before-its-words-are-put", "rma"),
        ("words-before-copies", "proxy"),
        ("return-rows-not-copied", "proxy"),
    ],
)
def test_the_search_to_the_end_finds_bugs_too(capsys, name, transport):
    result = explore(capsys, "--strategy", "exhaustive", "--tokens", "2", "--transport", transport, "--mutation", name)
    assert result["found"]["story"]


@pytest.mark.slow
@pytest.mark.uncompiled
def test_a_search_with_a_bug_uses_a_transport_with_which_the_bug_can_show(capsys):
    """The command chooses the transport if none is given. With transport shm a bug of the proxy is never found."""
    words = ("--strategy", "exhaustive", "--tokens", "1", "--calls", "1", "--mutation")
    assert explore(capsys, *words, "words-before-copies")["found"]["story"]
    assert explore(capsys, *words, "words-before-copies", "--transport", "shm", code=1)["found"] is None

"""`aristos explore` in a process that compiles nothing: searches of all schedules, equal seeds, names of bugs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aristos.cli.explore import main
from aristos.explore import catalogue

pytestmark = pytest.mark.uncompiled


def explore(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """What `aristos explore WORDS --json` prints, as an object."""
    code = main([*words, "--json"])
    said = capsys.readouterr()
    assert code == 0, said.out + said.err
    return json.loads(said.out)


def test_a_seed_replays(capsys):
    first, second = (explore(capsys, "--schedules", "20", "--seed", "7") for _ in range(2))
    assert (first["schedules"], first["found"]) == (20, None)
    assert first["steps"] == second["steps"] > 1000


def test_known_mutations_are_listed_and_an_unknown_one_gets_the_names_near_it(capsys):
    assert main(["--mutation", "?"]) == 0
    listed = capsys.readouterr().out
    assert "  release-dropped " in listed
    assert max(map(len, listed.splitlines())) <= 120
    assert main(["--mutation", "release-droped"]) == 2
    said = capsys.readouterr().err
    assert "similar: release-dropped" in said
    assert "`aristos explore --mutation ?` lists all names" in said


def test_without_a_clone_there_are_no_bugs(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(catalogue, "BUGS", tmp_path / "none")
    monkeypatch.setattr(catalogue, "load", catalogue.load.__wrapped__)
    assert main(["--mutation", "?"]) == 2
    assert "run --mutation in a clone of the repository" in capsys.readouterr().err


def test_all_schedules_of_experts_in_place(capsys):
    """Rows may stay, and each rank loads other weights before each of 3 calls."""
    result = explore(capsys, "--strategy", "exhaustive", "--stay", "1", "--calls", "3")
    assert result["complete"], result
    assert all(each["ends"] > 0 and each["states"] > 60 for each in result["routings"])
    words = ("--strategy", "exhaustive", "--stay", "1", "--calls", "3", "--mutation")
    for bug in ("load-without-wait", "stay-before-announcement"):
        assert explore(capsys, *words, bug)["found"], bug


@pytest.mark.slow
def test_all_schedules_of_a_load_while_a_call_is_open(capsys):
    """The third of four calls is an exchange, in which each rank loads weights for the fourth."""
    words = ("--strategy", "exhaustive", "--stay", "1", "--calls", "4", "--tokens", "1")
    result = explore(capsys, *words)
    assert result["complete"], result
    assert result["states"] > 5000
    for bug in ("load-in-a-call-too-early", "load-in-a-call-waits-for-it"):
        assert explore(capsys, *words, "--mutation", bug)["found"], bug


@pytest.mark.slow
def test_all_schedules_of_scalars_beside_rows(capsys):
    """Each rank has one token, in a call with scalars and in a call without."""
    words = ("--strategy", "exhaustive", "--scalars", "--tokens", "1")
    result = explore(capsys, *words)
    assert result["complete"], result
    assert result["states"] > 4000
    for bug in ("scalars-after-the-tail", "scalars-back-after-the-record"):
        assert explore(capsys, *words, "--calls", "1", "--mutation", bug)["found"], bug


@pytest.mark.slow
def test_all_schedules_of_a_backward_call(capsys):
    """Each rank has one token, in a forward call and in a backward call."""
    words = ("--strategy", "exhaustive", "--backward", "--tokens", "1")
    result = explore(capsys, *words)
    assert result["complete"], result
    assert result["states"] > 4000
    for bug in ("row-copied-after-its-credit", "own-rows-have-no-places", "tape-said-as-asked"):
        assert explore(capsys, *words, "--mutation", bug)["found"], bug


@pytest.mark.slow
def test_all_schedules_of_tokens_that_cross_once(capsys):
    """Within a node tokens cross once in every second call of a rank. In other calls each pair has its own row."""
    words = ("--strategy", "exhaustive", "--once", "--tokens", "1")
    result = explore(capsys, *words)
    assert result["complete"], result
    assert result["states"] > 8000
    for bug in ("once-of-the-call-before", "index-after-the-tail"):
        assert explore(capsys, *words, "--mutation", bug)["found"], bug


@pytest.mark.slow
def test_a_search_of_two_levels_finds_bugs(capsys):
    """A token of rank 0 goes to the node of ranks 1 and 2. The bugs are in how that node adds up its outputs.

    The search of one call ends, but not in the time of a test: see docs/reliability.md.
    """
    for bug in ("sums-before-all-are-staged", "sums-not-owed", "sums-by-every-owner"):
        words = ("--strategy", "exhaustive", "--transport", "levels", "--calls", "1", "--mutation", bug)
        assert explore(capsys, *words)["found"], bug
    with pytest.raises(SystemExit):
        main(["--strategy", "exhaustive", "--transport", "levels", "--once"])
    assert "takes no --once" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--sums"])
    assert "--sums needs --transport levels, got shm" in capsys.readouterr().err

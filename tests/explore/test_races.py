"""`aristos races` as a command: a closed pipe, lists of names, wrong options, errors and reports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from aristos import engine
from aristos.bench import world
from aristos.cli import races
from aristos.errors import EnvironmentProblem
from aristos.explore.compiled import copies, planted, run
from aristos.host import launch_environment


class Closed:
    """A stdout whose reader has gone after the first line."""

    def __init__(self) -> None:
        self.lines = 0

    def write(self, text: str) -> int:
        self.lines += text.count("\n")
        if self.lines > 1:
            raise BrokenPipeError
        return len(text)

    def flush(self) -> None:
        """Nothing is kept."""


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_closed_pipe_ends_no_case(monkeypatch, words):
    """The rank makes the calls of all cases, because the other ranks make them with it."""
    made = []

    def make_all(comm, tries, calls, seed):
        for case, _ in tries:
            made.append(case.name)
            yield run.Result(case.name, 0, 10, 0, 0.1, [])

    ranks = SimpleNamespace(comm=object(), hosts=["here"], size=3, lead=True)
    monkeypatch.setattr(world, "connect", lambda: ranks)
    monkeypatch.setattr(run, "make_all", make_all)
    monkeypatch.setattr(launch_environment, "unread", lambda: 141)
    closed = Closed()
    closed.lines = len(words)  # the object of --json has one line
    monkeypatch.setattr("sys.stdout", closed)
    code = races.main(words)
    monkeypatch.undo()
    assert (code, made) == (141, [case.name for case in run.CASES])


@pytest.mark.parametrize(("option", "name"), [("--case", "shm"), ("--planted", "all")])
def test_a_question_mark_lists_the_names(monkeypatch, capsys, option, name):
    monkeypatch.setattr(world, "connect", lambda: SimpleNamespace(lead=True))
    assert races.main([option, "?"]) == 0
    assert re.search(rf"^  {name} +\w", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "world_of", "code", "text"),
    [
        (["--calls", "0"], {}, 2, "--calls: must be at least 1"),
        (["--case", "shm", "--planted", "all"], {}, 2, "leave out --case"),
        (["--case", "nosuch"], {}, 2, "'nosuch' is unknown; known are\n  shm "),
        (["--planted", "nosuch"], {}, 2, "'nosuch' is unknown; known are\n  tail-stored "),
        (["--case", "mixed"], {}, 2, "case mixed needs 3 ranks, got 2: mpirun -n 3"),
        ([], {"hosts": ["here", "there"]}, 3, "on one machine: mpirun -n 2 aristos races"),
    ],
)
def test_wrong_words_are_reported_once_and_end_all_ranks_alike(monkeypatch, capsys, words, world_of, code, text):
    ranks = {"comm": object(), "hosts": ["here"], "size": 2} | world_of
    errors = []
    for rank in range(2):
        monkeypatch.setenv("PMI_SIZE", "2")
        monkeypatch.setenv("PMI_RANK", str(rank))
        monkeypatch.setattr(world, "connect", lambda rank=rank: SimpleNamespace(lead=rank == 0, **ranks))
        try:
            got = races.main(words)
        except SystemExit as end:
            got = end.code
        assert got == code
        errors.append(capsys.readouterr().err)
    assert text in errors[0]
    assert errors[1] == ""


def test_no_world_is_reported_once(monkeypatch, capsys):
    def connect():
        raise EnvironmentProblem("several tasks")

    monkeypatch.setattr(world, "connect", connect)
    for rank in ("1", "0"):
        monkeypatch.setenv("PMI_SIZE", "2")
        monkeypatch.setenv("PMI_RANK", rank)
        assert races.main([]) == races.ENVIRONMENT
    assert capsys.readouterr().err == "aristos races: several tasks\n"


def test_one_object_of_all_cases(monkeypatch, capsys):
    results = [run.Result("shm", 0, 10, 0, 0.1, []), run.Result("rma", 0, 12, 0, 0.1, ["a race"])]
    ranks = SimpleNamespace(comm=object(), hosts=["here"], size=3, lead=True)
    monkeypatch.setattr(world, "connect", lambda: ranks)
    monkeypatch.setattr(run, "make_all", lambda *_: results)
    assert races.main(["--json"]) == races.FOUND
    assert [each["races"] for each in json.loads(capsys.readouterr().out)["cases"]] == [[], ["a race"]]


@pytest.mark.parametrize("size", [2, 3])
def test_all_planted_bugs_are_those_that_the_ranks_can_show(monkeypatch, size):
    """Bugs that show only in a case of more ranks are left out, as such cases are."""
    made = []

    def make_all(comm, tries, calls, seed):
        made.extend((case.ranks, bug) for case, bug in tries)
        return []

    ranks = SimpleNamespace(comm=object(), hosts=["here"], size=size, lead=True)
    monkeypatch.setattr(world, "connect", lambda: ranks)
    monkeypatch.setattr(run, "make_all", make_all)
    assert races.main(["--planted", "all"]) == races.FINE
    assert max(wanted for wanted, _ in made) == size
    assert (len(made) == len(planted.ALL)) == (size == 3)


def test_all_steps_of_the_engine_are_recorded():
    """The modules without recorded steps have bulk's steps, addresses, the job's words, or steps for GPUs alone."""
    compiled = {path.stem for path in Path(engine.__file__).parent.glob("*.py") if "\n@jit" in path.read_text()}
    assert compiled - set(copies.MODULES[copies.ENGINE]) == {"bulk", "call_records", "layout", "proxy", "timeout_check"}

"""`aristos races` on one rank whose report nobody reads to its end."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from aristos.bench import world
from aristos.cli import races
from aristos.explore.compiled import run
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
    """The other ranks make the rest of the calls with this one."""
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


def test_one_object_of_all_cases(monkeypatch, capsys):
    results = [run.Result("shm", 0, 10, 0, 0.1, []), run.Result("rma", 0, 12, 0, 0.1, ["a race"])]
    ranks = SimpleNamespace(comm=object(), hosts=["here"], size=3, lead=True)
    monkeypatch.setattr(world, "connect", lambda: ranks)
    monkeypatch.setattr(run, "make_all", lambda *_: results)
    assert races.main(["--json"]) == races.FOUND
    assert [each["races"] for each in json.loads(capsys.readouterr().out)["cases"]] == [[], ["a race"]]

"""A shell's completion of `aristos`, as argcomplete's scripts call it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from aristos.cli.__main__ import commands, main

pytest.importorskip("argcomplete", reason="argcomplete is not installed: pip install 'aristos[completion]'")


def completions(line: str) -> list[str]:
    """The words that the shell would offer at the end of a line. argcomplete writes them to descriptor 8."""
    script = "import os; os.dup2(1, 8); os.dup2(2, 9); from aristos.cli.__main__ import main; main()"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | asked, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return [word.strip() for word in done.stdout.splitlines()]


def test_the_first_word_is_a_command():
    assert set(completions("aristos ")) >= {*commands(), "--version"}
    assert completions("aristos expl") == ["explore"]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("aristos plot --format ", {"png", "svg", "pdf"}),
        ("aristos\tplot  'a file.h5' --form", {"--format"}),
        ("aristos  plo", {"plot"}),
        ("aristos run --p", {"--per"}),  # the options are parsed although no program is named yet
        ("aristos bench --watc", {"--watch"}),
        ("aristos simt ", {"check", "profile"}),
        ("aristos inspect --js", {"--json"}),
    ],
)
def test_after_a_command_its_options_and_their_values_are_offered(line, wanted):
    assert set(completions(line)) >= wanted


def test_without_a_line_of_the_shell_the_command_runs(monkeypatch, capsys):
    monkeypatch.setenv("_ARGCOMPLETE", "1")  # as exported by mistake
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.count("\n") == 1

"""`python -m aristos.bench --watch`: its bars, and whether they are drawn. test_bench_run.py tests two ranks."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from aristos.bench import watch
from aristos.host import launch_environment


def test_the_longest_bar_is_the_slowest_ranks():
    lines = watch.bars([0.001, 0.002, 0.0])
    assert lines[1] == f"rank 1    {'█' * watch.WIDTH}      2.000 ms"
    assert lines[0].count("█") == watch.WIDTH // 2
    assert "█" not in lines[2]


def test_of_many_ranks_the_slowest_are_shown_in_rank_order():
    lines = watch.bars([0.001 * (rank % 50) for rank in range(100)])
    ranks = [int(line.split()[1]) for line in lines[:-1]]
    assert len(ranks) == watch.MOST
    assert ranks == sorted(ranks)
    assert all(rank % 50 >= 38 for rank in ranks)
    assert lines[-1] == f"the {watch.MOST} slowest of 100 ranks"


def test_calls_of_another_name_or_another_row_do_not_count(capsys):
    """There is one process. Each `note` finds that it is time for another line."""
    seen = watch.Watch(None)
    for headline, name, seconds in (("16 tokens", "a", 1.0), ("16 tokens", "b", 2.0), ("32 tokens", "a", 4.0)):
        if headline != seen._headline:
            seen.headline(headline)
        seen._next = 0.0
        seen.note(name, seconds)
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition("rank 0 ")[2] for line in lines] == ["1000.000 ms", "2000.000 ms", "4000.000 ms"]


@pytest.mark.filterwarnings("error")
def test_calls_without_a_time_print_no_line(capsys):
    seen = watch.Watch(None)
    seen.note("a", 0.0)
    assert capsys.readouterr().err == ""


def test_a_terminal_without_blocks_gets_plain_bars():
    lines = "\n".join(watch.bars([0.001, 0.0013]))
    assert watch.encodable(lines, "utf-8") == lines
    for encoding in ("ascii", "latin-1"):
        plain = watch.encodable(lines, encoding).splitlines()
        assert plain[1] == f"rank 1    {'#' * watch.WIDTH}      1.300 ms"
        assert list(map(len, plain)) == list(map(len, lines.splitlines()))


@pytest.mark.parametrize(("columns", "blocks"), [(200, watch.WIDTH), (40, 40 - watch.BESIDE), (10, 1)])
def test_bars_fit_the_terminal(columns, blocks, monkeypatch, capsys):
    monkeypatch.setattr(launch_environment, "passed_to_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    seen = watch.Watch(None)
    seen.begin("layer")
    try:
        seen.note("fused", 0.001)
    finally:
        seen.end()
    assert set(re.findall(f"{watch.FULL}+", capsys.readouterr().err)) == {watch.FULL * blocks}


ASK = "from aristos.host import launch_environment as here; print(here.passed_to_terminal())"


@pytest.mark.parametrize(
    ("passed_on", "variables", "drawn"),
    [
        ("2>&1 >answer | cat >&2", {}, "True"),
        ("2>&1 >answer | cat >&2", {"NO_COLOR": "1"}, "False"),
        ("2>&1 >answer | cat >&2", {"TERM": "dumb"}, "False"),
        ("2>errors >answer", {}, "False"),
    ],
)
def test_bars_are_drawn_if_the_launcher_passes_stderr_on_to_a_terminal(passed_on, variables, drawn, tmp_path):
    """A shell stands for the launcher. Its own stderr is a terminal. The program's stderr is a pipe or a file."""
    lead, follow = pty.openpty()
    try:
        done = subprocess.run(
            ["sh", "-c", f"{sys.executable} -c '{ASK}' {passed_on}"],
            stderr=follow,
            cwd=tmp_path,
            env={**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path), **variables},
            timeout=60,
        )
    finally:
        os.close(follow)
        os.close(lead)
    assert done.returncode == 0
    assert (tmp_path / "answer").read_text().strip() == drawn

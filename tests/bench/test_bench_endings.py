"""How a run of the benchmark ends: exit codes, Ctrl-C, and what is refused before measuring."""

from __future__ import annotations

import pytest

from aristos import results
from aristos.bench import (
    main,
    registry,
    suites,
    tables,
    timeline,
    world,
)
from aristos.bench.context import Result, Sheet
from aristos.bench.world import World
from aristos.errors import PoisonedError, ResultsError, WaitTimeout
from aristos.host import launch_environment

pytestmark = pytest.mark.parallel


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(28, "No space left"), 3, "OSError: [Errno 28] No space left"),
        (MemoryError(), 3, "MemoryError"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (WaitTimeout("rank 1"), 3, "aristos.bench: rank 1"),
        (PoisonedError("rank 1"), 3, "aristos.bench: rank 1"),
        (ZeroDivisionError(), 1, "[rank 0] ZeroDivisionError"),
    ],
)
def test_every_error_has_its_exit_code(monkeypatch, capsys, error, code, words):
    monkeypatch.setattr(world, "connect", World)
    monkeypatch.setattr(main, "run_bench", lambda *_: (_ for _ in ()).throw(error))
    assert main.main(["gemm"]) == code
    printed = capsys.readouterr().err
    assert words in printed
    assert ("Traceback" in printed) == (code == 1)


def test_a_wait_that_ran_out_says_where_the_call_stands(monkeypatch, capsys):
    error = WaitTimeout("rank 0 waited")
    error.add_note("rank 0 of 2, epoch 3: running, 7 commands published; worker 2 holds the lock")
    monkeypatch.setattr(world, "connect", World)
    monkeypatch.setattr(main, "run_bench", lambda *_: (_ for _ in ()).throw(error))
    assert main.main(["gemm"]) == 3
    printed = capsys.readouterr().err.splitlines()
    assert printed == ["python -m aristos.bench: rank 0 waited", error.__notes__[0]]


def test_ctrl_c_keeps_finished_suites(tmp_path, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    done = results.Table("gemm").add("x", (), 1)
    some = {
        "gemm": registry.Suite("gemm", "", lambda _: Result(True, tables=[done]), order=1, kernels=False),
        "layer": registry.Suite("layer", "", interrupted, order=2, kernels=False),
    }
    monkeypatch.setattr(suites, "known", lambda backend="cpu": some)
    monkeypatch.setattr(world, "connect", World)
    path = tmp_path / "r.h5"
    assert main.main(["gemm", "layer", "--out", str(path)]) == 130
    (run,) = results.load(path).runs
    assert [table.name for table in run.tables] == ["gemm"]
    assert run.attributes["interrupted"]


@pytest.mark.parametrize(
    ("error", "code", "said"), [(BrokenPipeError(), 141, ""), (OSError(28, "No space left"), 3, "No space left")]
)
def test_a_stdout_that_fails_loses_no_measurement(tmp_path, monkeypatch, capsys, error, code, said):
    def fails(*_):
        raise error

    done = Result(True, [Sheet("a sheet", ())], [results.Table("gemm").add("x", (), 1)])
    some = {"gemm": registry.Suite("gemm", "", lambda _: done, order=1, kernels=False)}
    monkeypatch.setattr(suites, "known", lambda backend="cpu": some)
    monkeypatch.setattr(world, "connect", World)
    monkeypatch.setattr(launch_environment, "unread", lambda: 141)
    monkeypatch.setattr(tables.Reporter, "show", fails)
    assert main.main(["gemm", "--out", str(tmp_path / "r.h5")]) == code
    (run,) = results.load(tmp_path / "r.h5").runs
    assert [table.name for table in run.tables] == ["gemm"]
    assert said in capsys.readouterr().err
    # nor does a results file that cannot be written lose the table
    monkeypatch.undo()
    monkeypatch.setattr(suites, "known", lambda backend="cpu": some)
    monkeypatch.setattr(world, "connect", World)
    monkeypatch.setattr(results, "append", fails)
    main.main(["gemm", "--out", str(tmp_path / "s.h5")])
    assert "a sheet" in capsys.readouterr().out


def test_one_rank_aborts_without_mpi():
    alone = World()
    alone.comm = object()  # any use of MPI would raise
    assert alone.abort(3) == 3


def test_a_timeline_that_cannot_be_written_is_an_error_before_measuring(tmp_path):
    timeline.check(str(tmp_path / "t.json"))
    assert not list(tmp_path.iterdir())
    for path in (tmp_path, tmp_path / "none" / "t.json"):
        with pytest.raises(ResultsError, match=r"is a folder|cannot be written"):
            timeline.check(str(path))
    results.append(tmp_path / "before.h5", results.Run("a"))
    (tmp_path / "t.json").write_text("{}")
    timeline.check(str(tmp_path / "t.json"))
    with pytest.raises(ResultsError, match=r"would replace .*before\.h5, which is no timeline"):
        timeline.check(str(tmp_path / "before.h5"))

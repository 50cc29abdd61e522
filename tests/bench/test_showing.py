"""Tables, sentences, JSON and timelines that the benchmark writes, without ranks or a layer."""

from __future__ import annotations

import io
import json
import signal

import numpy as np
import pytest

from aristos import models, results
from aristos.bench import (
    environment,
    main,
    tables,
    world,
)
from aristos.bench.context import CHECK, Column, Sheet
from aristos.bench.suites import exchange as exchange_suite
from aristos.bench.suites import idle as idle_suite
from aristos.bench.suites import layer as layer_suite
from aristos.bench.world import World
from aristos.host import versions
from aristos.layer.timeline import trace_events
from aristos.primitives import isa

pytestmark = pytest.mark.parallel


def test_a_table_on_a_pipe_is_plain_and_complete(capsys):
    notes = ["a note", "word " * 50]
    sheet = Sheet("title", (Column("a", "a", ".2f"), CHECK), [{"a": 1234567.891, "check": "FAILED"}], notes)
    tables.Reporter(quiet=False).show(sheet)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 120
    assert "1234567.89" in out
    assert "FAILED" in out
    assert "a note" in out
    assert "\x1b" not in out


WIDE = {  # for each suite the widest values of some columns. All other columns have 1.0
    "layer": {"tokens": 16384, "busiest_over_mean": 12.34, "schedule": "fused", "median_ms": 1234.567,
              "p95_ms": 2345.678, "tokens_per_s": 1_234_567.0, "iterations": 2000},
    "idle": {"pattern": "one source", "rows": 16384, "busiest_over_mean": 12.34, "schedule": "fused",
             "moves": "tokens", "median_ms": 123.456, "straggler_p95": 9.87, "iterations": 200, "error": 1.2e-6},
    "exchange": {"pattern": "uneven", "size_text": "64 KiB", "one_sided_p95_us": 1234.56},
}  # fmt: skip


@pytest.mark.parametrize("name", WIDE)
def test_tables_fit_120_columns(capsys, name):
    """The tables have wide values, disturbed rows and notes."""
    columns = {"layer": layer_suite, "idle": idle_suite, "exchange": exchange_suite}[name].COLUMNS
    row = dict.fromkeys((key for column in columns for key in column.keys.split()), 1.0)
    row |= {"check": "FAILED", "disturbed": "rank 1: 55%"} | WIDE[name]
    tables.Reporter(quiet=False).show(Sheet("", columns, [row], ["a word " * 60]))
    assert max(len(line.rstrip()) for line in capsys.readouterr().out.splitlines()) <= 120


def test_the_heading_explains_letters(capsys):
    tables.Reporter(quiet=False).head(
        environment.facts(World(), [], seed=0) | {"crowded": ""}, str(models.shape("a", 1))
    )
    out = capsys.readouterr().out
    for letter, word in (
        ("H", "width of a token"),
        ("F", "width inside an expert"),
        ("E", "experts"),
        ("k", "experts of"),
    ):
        assert f" {letter} " in out
        assert f"{letter}: {word}" in out
    assert all(len(line) <= 130 for line in out.splitlines())


def test_a_sentence_names_what_limits_each_call():
    limits = [("bulk", "communication", 1.5), ("fused", "imbalance", 1.5)]
    records = [{"schedule": s, "limit": limit, "busiest_over_mean": over} for s, limit, over in limits]
    assert layer_suite._sentence(8, records) == (
        "8 tokens per rank: bulk is limited by communication; fused is limited by imbalance, 1.50x"
    )


def test_no_color_is_respected(monkeypatch):
    from rich.console import Console

    monkeypatch.setenv("NO_COLOR", "1")
    sheet = Sheet("", (CHECK,), [{"check": "FAILED"}])
    shown = io.StringIO()
    Console(file=shown, force_terminal=True).print(tables.table(sheet))
    assert "31m" not in shown.getvalue()


def test_any_value_becomes_json():
    value = {"a": np.float32(1.5), "b": [np.nan, np.int64(2)], "c": np.arange(2), 3: float("inf")}
    assert json.loads(json.dumps(tables.plain(value), allow_nan=False)) == {
        "a": 1.5,
        "b": [None, 2],
        "c": [0, 1],
        "3": None,
    }


def test_trace_events_are_complete():
    ranks = [
        (2, [(0, "route", 10.0, 10.5, -1, 8), (1, "dispatch", 10.2, 10.3, 1, 4), (1, "expert", 10.3, 10.4, 2, 4)]),
        (1, [(0, "wait", 9.0, 9.5, 0, 0), (0, "wire", 9.1, 9.2, -1, 0)]),
    ]
    events = trace_events(ranks, ["here", "there"])
    names = [e for e in events if e["ph"] == "M"]
    assert {(e["pid"], e["args"].get("name")) for e in names if e["name"] == "process_name"} == {
        (0, "rank 0 on here"),
        (1, "rank 1 on there"),
    }
    assert sum(e["name"] == "thread_name" for e in names) == 3
    spans = {e["name"]: e for e in events if e["ph"] == "X"}
    assert set(spans) == {"route", "dispatch to rank 1", "expert 2", "wait for rank 0", "wire"}
    assert spans["wire"]["cat"] == "wire"
    (back,) = [e for e in events if e["ph"] == "i"]
    assert (back["name"], back["cat"], back["args"]["rows"]) == ("return", "return", 4)
    assert back["ts"] == pytest.approx(spans["expert 2"]["ts"] + spans["expert 2"]["dur"])
    assert spans["wait for rank 0"]["ts"] == 0
    assert spans["route"]["ts"] == pytest.approx(1e6)
    assert spans["route"]["dur"] == pytest.approx(5e5)


def test_facts_of_a_run_are_plain_values():
    facts = environment.facts(World(), ["gemm"], seed=3)
    assert facts["command"].endswith("aristos.bench gemm")
    assert facts["ranks"] == 1
    assert facts["isa"] in isa.NEEDS
    assert facts["isa_of_rank"] == [facts["isa"]]
    assert json.dumps(tables.plain(facts))
    assert set(versions.PACKAGES) <= set(facts["versions"])


def test_an_interrupted_run_leaves_signals_as_they_were(monkeypatch, capsys):
    def interrupted(*_):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(world, "connect", World)
    monkeypatch.setattr(main, "run_bench", interrupted)
    before = [signal.getsignal(how) for how in (signal.SIGINT, signal.SIGTERM)]
    assert main.main(["gemm"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert [signal.getsignal(how) for how in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_footer_names_the_run_and_stays_within_the_picture():
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    from aristos.bench.plots.style import STYLE, footer

    with pyplot.rc_context(STYLE):
        figure, _ = pyplot.subplots(figsize=(4.8, 4.4))
        run = results.Run(attributes={"cpu": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "mpi_library": "x" * 150})
        footer(figure, run, results.Table("layer", attributes={"disturbed": "1 of 2 rows", "isa": "avx2"}))
        figure.canvas.draw()
        label = figure._supxlabel
        assert run.name in label.get_text()
        assert "avx2" in label.get_text()
        assert all(each.get_window_extent().x0 >= 0 for each in (label, figure.texts[-1]))
        pyplot.close(figure)


def test_the_commit_of_an_installed_package_is_that_of_its_wheel(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "aristos"
    (package / "bench").mkdir(parents=True)
    monkeypatch.setattr(environment, "__file__", str(package / "bench" / "environment.py"))
    assert environment.commit() == ""
    (package / "commit.txt").write_text("abc+\n")
    assert environment.commit() == "abc+"

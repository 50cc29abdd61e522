"""`aristos plot` of foreign files: texts that Matplotlib takes for formulas or cannot draw, and far too many items."""

from __future__ import annotations

import json
import os
import resource

import numpy as np
import pytest

from aristos.bench import plots
from aristos.bench.plots import labels
from aristos.cli.__main__ import main
from aristos.results import Run, Table, append

pytestmark = pytest.mark.parallel
pytest.importorskip("matplotlib")

TEXTS = {"a formula": r"$\frac$", "half a formula": "Xeon $9.99", "half a surrogate": "\ud800", "long": "x$" * 500_000}


def timeline_of(names: list[str], **span) -> dict:
    events = [{"ph": "M", "name": "thread_name", "pid": 0, "tid": t, "args": {"name": n}} for t, n in enumerate(names)]
    step = {"ph": "X", "pid": 0, "tid": 0, "cat": "expert", "ts": 0.0, "dur": 1.0}
    return {"traceEvents": [*events, step | span], "otherData": {"layer": names[0], "schedule": "fused", "moves": "$"}}


def plotted(capsys, *words: str) -> tuple[int, str]:
    code = main(["plot", *words])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("name", TEXTS.values(), ids=TEXTS)
def test_any_name_of_a_worker_is_drawn(name, tmp_path, capsys):
    (tmp_path / "t.json").write_text(json.dumps(timeline_of([name])))
    assert plotted(capsys, str(tmp_path / "t.json"))[0] == 0
    assert (tmp_path / "t-plots" / "timeline.png").stat().st_size < 1_000_000


def test_a_picture_replaces_nothing_but_a_regular_file(tmp_path, capsys):
    (tmp_path / "t.json").write_text(json.dumps(timeline_of(["worker 0"])))
    table = Table("own").dim("rows", [1, 2]).add("us", "rows", np.ones(2))
    append(tmp_path / "r.h5", Run("run", {}, [table]))
    assert plotted(capsys, str(tmp_path / "r.h5"))[0] == 0
    (drawn,) = (tmp_path / "r-plots").iterdir()
    drawn.unlink()
    for file, picture in (("t.json", tmp_path / "t-plots" / "timeline.png"), ("r.h5", drawn)):
        picture.parent.mkdir(exist_ok=True)
        os.mkfifo(picture)
        held = os.open(picture, os.O_RDWR)  # otherwise a process that writes to the pipe would wait for a reader
        code, said = plotted(capsys, str(tmp_path / file))
        os.close(held)
        assert (code, "must be a regular file, but it is a pipe" in said, picture.name in said) == (3, True, True), said


def test_a_picture_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, capsys):
    (tmp_path / "t.json").write_text(json.dumps(timeline_of(["worker 0"])))
    (tmp_path / "p").mkdir()
    old = tmp_path / "p" / "timeline.png"
    old.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as on a disk that is full
    try:
        code, said = plotted(capsys, str(tmp_path / "t.json"), "--out", str(old.parent))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, said) == (3, f"aristos plot: [Errno 27] File too large: '{old}'\n")
    assert os.listdir(old.parent) == ["timeline.png"]
    assert old.read_text() == "old"


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (timeline_of(["a thread"] * 30_000), "a picture shows at most 500 workers, got 30000"),
        (timeline_of(["a"], ts=float("inf")), "every time of a timeline must be finite"),
        (timeline_of(["a"], dur=float("nan")), "every time of a timeline must be finite"),
    ],
)
def test_a_timeline_that_no_picture_can_show_is_refused_in_a_sentence(document, said, tmp_path, capsys):
    (tmp_path / "t.json").write_text(json.dumps(document))
    code, error = plotted(capsys, str(tmp_path / "t.json"))
    assert code == 3
    assert said in error
    assert len(error.splitlines()) == 1


def titled(table: Table):
    """A picture with all texts of a table that pictures may show."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots()
    names = table.dims["pattern"].values
    axis.set_xticks(range(len(names)), names)
    figure.suptitle(table.attributes["shape"])
    return figure


def results(folder, texts: list[str], **attributes) -> str:
    table = Table("named", attributes={"shape": texts[0], "disturbed": texts[0]}).dim("pattern", texts)
    return str(append(folder / "r.h5", Run("", {"cpu": texts[0], "mpi_library": texts[0], **attributes}, [table])))


@pytest.mark.parametrize("text", [t for t in TEXTS.values() if t.isascii()])
def test_any_text_of_results_is_drawn(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plots, "pictures", lambda: {"named": [("named", titled)]})
    file = results(tmp_path, [text], ranks=[text[:99]] * 1000)
    assert plotted(capsys, file) == (0, "")
    assert (tmp_path / "r-plots" / "named.png").exists()


def test_results_with_too_many_panels_are_refused_in_a_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plots, "pictures", lambda: {"named": [("named", titled)]})
    code, error = plotted(capsys, results(tmp_path, [f"case {n}" for n in range(5000)]))
    assert code == 3
    assert "pattern has 5000 points, a picture shows at most 64" in error


def test_an_error_while_a_picture_is_written_is_a_sentence(tmp_path, capsys, monkeypatch):
    def picture(table: Table):
        figure = titled(table)
        figure.suptitle(r"$\frac$")  # Matplotlib finds the error only when it writes the picture
        return figure

    monkeypatch.setattr(plots, "pictures", lambda: {"named": [("named", picture)]})
    code, error = plotted(capsys, results(tmp_path, ["a"]))
    assert code == 3
    assert "no picture of the table 'named': ValueError" in error
    assert len(error.splitlines()) == 1


def test_a_label_shows_what_the_text_has():
    assert labels.label("Xeon $9 $\x1b") == r"Xeon \$9 \$\x1b"
    assert len(labels.label("x" * 10**6)) == labels.MOST

"""What `aristos simulate` gives: a results file, a timeline, several simulations, pictures, and what Ctrl-C leaves."""

from __future__ import annotations

import json
import re
import signal

import numpy as np
import pytest

from aristos import results
from aristos.bench import plots
from aristos.bench.plots import timeline as pictured
from aristos.cli import _simulated, simulate
from aristos.cli._ending import exit_code

FILE = "links: {latency: 1.5, rate: 12}\nkernel: {call: 0, rates: {1: 10, 384: 100}}\n"


def run(*words, capsys):
    """(exit code, stdout, stderr) of a command."""
    capsys.readouterr()
    try:
        code = exit_code("aristos simulate", lambda: simulate.main(list(words)))
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


@pytest.fixture
def small(tmp_path):
    """Options of a layer and a machine whose simulation takes a moment."""
    (tmp_path / "machine.yaml").write_text(FILE)
    return ["--machine", str(tmp_path / "machine.yaml"), "--model", "c", "--tokens", "16", "--ranks-per-node", "2"]


def trace(path, experts=8, top_k=2, layers=3):
    """A recorded routing: in layer n all tokens choose experts n and n + 1."""
    ids = np.zeros((80, layers, top_k), np.int64)
    ids[:] = np.arange(layers)[None, :, None] + np.arange(top_k)
    ids[0, 0] = experts - top_k + np.arange(top_k)
    np.savez(path, expert_ids=ids)
    return str(path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "1,2"], "--nodes takes several numbers only with --scaling, got 1,2"),
        (["--nodes", "1,x"], "--nodes"),
        (["--scaling", "weak", "--nodes", "1,2", "--timeline", "t.json"], "--timeline needs one number of nodes"),
        (["--timeline", "t.json", "--schedule", "bulk"], "--timeline shows steps of the fused schedule"),
        (["--what-if", "tile"], "--what-if must be NAME=VALUE,.. with a name of schedule, .*, got 'tile'"),
        (["--what-if", "tile="], "--what-if must be NAME=VALUE,.. with a name of schedule, .*, got 'tile='"),
        (["--what-if", "luck=1"], "--what-if must be NAME=VALUE,.. with a name of schedule, .*, got 'luck=1'"),
        (["--what-if", "schedule=lazy"], "argument --schedule: invalid choice: 'lazy'"),
        (["--what-if", "tile=64,0"], "argument --tile: must be at least 1, got 0"),
        (["--what-if", "tile=385"], "--tile must be at most 384, got 385"),
        (["--what-if", "dtype=int3"], "argument --dtype: invalid choice: 'int3'"),
        (["--what-if", "model=olmo"], "'olmo' is not known"),
        (["--what-if", "ranks-per-node=800"], "at most 1024 ranks can be simulated, got 1600"),
        (["--routing", "nowhere.npz"], "--routing must be a file or one of uniform, zipf, one, got 'nowhere.npz'"),
        (["--routing", "router"], "--routing must be a file or one of uniform, zipf, one, got 'router'"),
        (["--layer", "3"], "--layer needs a recorded routing, --routing FILE.npz, got --routing uniform"),
        (["--tile", "0"], "argument --tile: must be at least 1"),
    ],
)
def test_a_wrong_option_is_refused_by_one_line(words, message, capsys):
    code, out, err = run(*words, capsys=capsys)
    assert code == 2
    assert out == ""
    assert re.search(message, err), err
    assert "error" in err.strip().splitlines()[-1]


def test_a_change_that_equals_the_base_is_the_base():
    asked = simulate.options(["--what-if", "tile=96,64", "routing=uniform,zipf"])
    assert [point.change for point in asked.changed] == ["tile=64", "routing=zipf"]
    assert [point.asked.tile for point in asked.changed] == [64, 96]


@pytest.mark.parametrize(
    ("kind", "experts", "top_k", "message"),
    [
        ("few", 8, 4, "has 8 experts and k 4, but the model has 8 experts and k 2: name the routing's model by"),
        ("many", 16, 2, "has 16 experts and k 2, but the model has 8 experts and k 2"),
    ],
)
def test_a_routing_of_another_model_is_refused(kind, experts, top_k, message, tmp_path, small, capsys):
    file = trace(tmp_path / f"{kind}.npz", experts, top_k)
    code, _, err = run(*small, "--routing", file, capsys=capsys)
    assert code == 2
    assert message in err


def test_facts_say_how_many_levels_are_simulated(small):
    for nodes, schedule, levels in (2, "fused", 2), (1, "fused", 1), (2, "bulk", 2):
        words = [*small, "--levels", "2", "--schedule", schedule]
        point = _simulated.Point(simulate.options(words))
        point.asked.nodes = nodes
        assert point.facts()["levels"] == levels
        assert point.simulation(simulate.machine_of).nodes.levels == levels


@pytest.mark.slow
def test_a_recorded_routing_is_that_of_its_layer(tmp_path, small, capsys):
    file = trace(tmp_path / "trace.npz")
    for more, experts in (["--layer", "0"], (0, 1)), ([], (1, 2)), (["--layer", "2"], (2, 3)):
        point = _simulated.Point(simulate.options([*small, "--routing", file, *more]))
        point.asked.nodes = 2
        assert point.pattern == f"trace, layer {experts[0]}"
        sim = point.simulation(simulate.machine_of)
        assert all((ids[4:] == experts).all() for ids in sim.layer.ids)
    code, _, err = run(*small, "--routing", file, "--layer", "3", capsys=capsys)
    assert code == 2
    assert "--layer must be below 3, the layers of" in err


@pytest.mark.slow
def test_a_results_file_has_what_the_command_prints(tmp_path, small, capsys):
    file, timeline = tmp_path / "runs.h5", tmp_path / "call.json"
    words = [*small, "--out", str(file), "--timeline", str(timeline), "--json"]
    code, out, _ = run(*words, capsys=capsys)
    assert code == 0
    found = json.loads(out)
    kept = results.load(file).runs[-1]
    tables = {table.name: table for table in kept.tables}
    table = tables["simulate"]
    times = table.variables["call_time"].values[0, 0, 0]  # [rank, call]
    assert times.shape == (4, 2)
    assert found["call_ms"] == pytest.approx(1e3 * times.max(axis=0), rel=1e-6)
    shares = dict(zip(table.dims["activity"].values, table.variables["share"].values.mean(axis=0)))
    assert {name: round(float(share), 4) for name, share in shares.items()} == found["shares"]
    assert table.variables["rows"].values.sum() == 4 * 16 * 2
    links = tables["links"].variables
    assert links["sent"].values.sum() * found["calls"] == found["bytes_between_nodes"]
    assert found["row_bytes_a_call"] + found["protocol_bytes_a_call"] == found["bytes_between_nodes"] // 2
    assert kept.attributes["machine_numbers.links.rate"] == 12
    assert kept.attributes["machine_numbers.kernel.rates.384"] == 100
    assert kept.attributes["machine"] == f"rates of the expert kernel: {small[1]}"
    assert kept.attributes["finished"]
    workers, spans, _ = pictured.read(str(timeline))
    assert set(workers) == {(rank, 0) for rank in range(4)}
    end = max(span["ts"] + span["dur"] for span in spans) * 1e-3
    assert 0.9 * found["call_ms"][-1] < end <= found["call_ms"][-1]
    experts = sum(span["dur"] for span in spans if span["cat"] == "expert") * 1e-6
    assert experts == pytest.approx((table.variables["share"].values[:, 3] * times[:, -1]).sum())
    code, out, _ = run(*small, "--json", capsys=capsys)
    assert json.loads(out)["call_ms"] == found["call_ms"]  # a timeline takes no time


@pytest.mark.slow
def test_each_change_is_compared_with_the_base(tmp_path, small, capsys):
    file = tmp_path / "runs.h5"
    words = ["--what-if", "routing=one,zipf", "threads=2", "schedule=bulk", "--out", str(file), "--json"]
    code, out, _ = run(*small, *words, capsys=capsys)
    assert code == 0
    found = json.loads(out)
    rows = {row["change"]: row for row in found["points"]}
    assert list(rows) == ["base", "routing=one", "routing=zipf", "threads=2", "schedule=bulk"]
    alone = json.loads(run(*small, "--routing", "one", "--json", capsys=capsys)[1])
    assert rows["routing=one"]["call_ms"] == alone["call_ms"][-1]
    assert rows["routing=one"]["over_base"] == pytest.approx(alone["call_ms"][-1] / found["call_ms"][-1] - 1)
    assert rows["routing=one"]["over_base"] > 0.5
    assert rows["threads=2"]["over_base"] < 0
    kept = results.load(file).runs[-1].tables[-1]
    assert kept.variables["call_time"].values[:, 0] == pytest.approx([1e-3 * row["call_ms"] for row in rows.values()])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tokens"), [("weak", [16, 16, 16]), ("strong", [16, 8, 4])])
def test_a_scaling_curve(kind, tokens, small, capsys):
    code, out, _ = run(
        *small, "--scaling", kind, "--nodes", "1,2,4", "--what-if", "routing=zipf", "--json", capsys=capsys
    )
    assert code == 0
    rows = json.loads(out)["points"]
    assert [row["nodes"] for row in rows] == [1, 2, 4] * 2
    assert [row["tokens"] for row in rows] == tokens * 2
    for part in (rows[:3], rows[3:]):
        assert part[0]["efficiency"] == 1
        whole = [row["call_ms"] * (1 if kind == "weak" else row["nodes"]) for row in part]
        assert [row["efficiency"] for row in part] == pytest.approx([whole[0] / each for each in whole])
    assert rows[3]["over_base"] == pytest.approx(rows[3]["call_ms"] / rows[0]["call_ms"] - 1)


@pytest.mark.slow
def test_every_table_has_its_pictures(tmp_path, small, capsys):
    pytest.importorskip("matplotlib")
    file, folder = tmp_path / "runs.h5", tmp_path / "plots"
    assert run(*small, "--what-if", "tile=8", "--out", str(file), capsys=capsys)[0] == 0
    drawn = {path.name for path in plots.draw(str(file), folder)}
    names = ("ranks", "wait", "links", "what-if")
    assert drawn == {f"simulate-{name}.png" for name in names}
    assert run(*small, "--scaling", "weak", "--nodes", "1,2", "--out", str(file), capsys=capsys)[0] == 0
    assert {path.name for path in plots.draw(str(file), folder)} == {"simulate-scaling.png"}


@pytest.fixture
def interrupts(monkeypatch):
    """A function after which Ctrl-C comes at the end of each call of this method of `Progress`, from point `at` on."""

    def during(method, at=1):
        called = getattr(_simulated.Progress, method)

        def interrupt(self, *arguments):
            called(self, *arguments)
            if self._done >= at:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(_simulated.Progress, method, interrupt)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    yield during
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_ctrl_c_keeps_the_points_that_have_ended(tmp_path, small, capsys, interrupts):
    interrupts("next", at=2)
    file = tmp_path / "runs.h5"
    words = ["--what-if", "tokens=32", "routing=zipf", "--out", str(file)]
    code, out, err = run(*small, *words, capsys=capsys)
    assert code == 130
    assert "call  " in out
    assert "1 of 3 simulations" in out
    assert "aristos simulate: interrupted" in err
    kept = results.load(file).runs[-1]
    assert not kept.attributes["finished"]
    assert {table.name for table in kept.tables} == {"simulate", "links", "what-if"}
    code, out, _ = run(*small, *words[:3], "--json", capsys=capsys)
    assert code == 130
    assert [row["change"] for row in json.loads(out)["points"]] == ["base"]
    assert json.loads(out)["finished"] is False


@pytest.mark.slow
def test_ctrl_c_keeps_the_calls_that_have_ended(tmp_path, small, capsys, interrupts):
    interrupts("report")
    file = tmp_path / "runs.h5"
    code, out, err = run(*small, "--calls", "100000", "--out", str(file), capsys=capsys)
    assert code == 130
    assert "calls that had ended: " in out
    assert " of 100000" in out
    assert "aristos simulate: interrupted" in err
    times = results.load(file).runs[-1].tables[0].variables["call_time"].values
    assert len(times) > 0
    assert (times > 0).all()

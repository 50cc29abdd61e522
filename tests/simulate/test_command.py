"""`aristos simulate` refuses what it cannot simulate by one line, and prints what it found."""

from __future__ import annotations

import json

import numpy as np
import pytest

from aristos.cli import simulate
from aristos.cli._ending import exit_code
from aristos.config import MoEConfig
from aristos.errors import InputError
from aristos.host.nodes import Nodes
from aristos.placement import Placement
from aristos.simulate import copied, machines
from aristos.simulate.machine import Kernel, Machine
from aristos.simulate.rank import Layer
from aristos.simulate.simulation import Simulation

FILE = "links: {latency: 1.5, rate: 12}\nkernel: {call: 0, rates: {1: 10, 384: 100}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "must be a mapping with links or network, costs and kernel, got list"),
        ("links: {rate: 0}", "rate in links of m.yaml must be a positive number, got 0"),
        ("links: {rate: .nan}", "must be a positive number, got nan"),
        ("links: {latency: -1}", "latency in links of m.yaml must be a not negative number, got -1"),
        ("links: [1]", r"links of m.yaml must be a mapping, got \[1\]"),
        ("cables: {}", "m.yaml may have only links or network, costs and kernel, got cables"),
        ("costs: {teleport: 1}", "costs of m.yaml may have .*, got teleport"),
        ("kernel: {rates: {}}", "rates in kernel of m.yaml must be positive GFLOP/s by rows"),
        ("kernel: {rates: {0: 5}}", "rates in kernel of m.yaml must be positive GFLOP/s by rows"),
        ("links: {", "m.yaml must be YAML"),
        ("links: &a {rate: 1}\ncosts: *a", "m.yaml must have no aliases"),
    ],
)
def test_a_wrong_machine_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        machines.from_text(text, "m.yaml")


def test_a_file_sets_what_it_names():
    machine = machines.from_text(FILE, "m.yaml")
    assert (machine.links.latency, machine.links.rate, machine.costs.put) == (1.5, 12, 300)


def test_a_runs_time_is_linear_between_known_rows():
    table = Kernel(call=0, rates={1: 10, 11: 55}).table(20)
    assert table[1] == pytest.approx(1e6 / 10)
    assert table[20] == pytest.approx(1e6 / 55)
    assert 6 * table[6] == pytest.approx((table[1] + 11 * table[11]) / 2)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "olmo"], "'olmo' is not known"),
        (["--machine", "nowhere"], "--machine must be a file or one of perlmutter-cpu"),
        (["--nodes", "600", "--ranks-per-node", "2"], "at most 1024 ranks can be simulated, got 1200"),
        (["--nodes", "0"], "--nodes"),
    ],
)
def test_a_wrong_option_is_refused(argv, message, capsys):
    try:
        code = exit_code("aristos simulate", lambda: simulate.main(argv))
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([np.zeros((3, 2), int)], "ids must have an array for each of 2 ranks, got 1"),
        ([np.zeros((3, 1), int)] * 2, r"ids of rank 0 must have shape \[at most 4, 2\], got \[3, 1\]"),
        ([np.zeros((5, 2), int)] * 2, r"ids of rank 0 must have shape \[at most 4, 2\], got \[5, 2\]"),
        ([np.full((1, 2), 3), np.full((1, 2), 8)], r"ids of rank 1 must be in -1\.\.7, got 8 to 8"),
    ],
)
def test_ids_that_a_layer_would_refuse_are_refused(ids, message):
    cfg = MoEConfig(8, 8, 8, 2, max_tokens=4)
    with pytest.raises(InputError, match=message):
        Layer(cfg, Placement(None, 8, 2), ids)


def test_more_ranks_than_memory_holds_are_refused():
    cfg = MoEConfig(8192, 8192, 256, 8, max_tokens=1 << 20)
    layer = Layer(cfg, Placement(None, 256, 512), [np.zeros((1, 8), int)] * 512)
    with pytest.raises(InputError, match=r"a simulation of 512 ranks needs .* GiB here, and .* GiB are free"):
        Simulation(layer, Nodes.split(512, 8), Machine())


def test_a_job_that_does_not_fit_the_network_is_refused(tmp_path, capsys):
    machine = tmp_path / "machine.yaml"
    machine.write_text("network: {torus: [2, 2], rate: 10}")
    argv = ["--machine", str(machine), "--nodes", "5", "--model", "c"]
    assert exit_code("aristos simulate", lambda: simulate.main(argv)) == 2
    said = "aristos simulate: the torus has 4 nodes, and 5 are asked for: lower --nodes, or describe a larger one\n"
    assert capsys.readouterr().err == said


@pytest.mark.slow
def test_the_command_prints_what_it_found(tmp_path, capsys):
    machine = tmp_path / "machine.yaml"
    machine.write_text(FILE)
    argv = ["--machine", str(machine), "--nodes", "2", "--ranks-per-node", "2", "--model", "c", "--tokens", "16"]
    assert simulate.main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ranks"] == 4
    assert found["call_ms"][-1] > 0
    assert 0.99 < sum(found["shares"].values()) < 1.01
    assert simulate.main(argv) == 0
    assert f"call           {found['call_ms'][-1]:.3f} ms" in capsys.readouterr().out


def test_compiled_code_is_kept_for_the_files_that_replace_functions():
    """Otherwise a change of these files would change no simulation that has been compiled before."""
    inside = {path.name for path in copied.read() if path.parent.name == "inside"}
    assert inside >= {"actor.py", "costs.py"}
    assert {"lowering.py", "scheduler.py"} <= {path.name for path in copied.read()}

"""Presets, options, suites found by their place, and launchers, without ranks or a layer."""

from __future__ import annotations

import io
import sys
from typing import get_args

import pytest

from aristos import models
from aristos.bench import (
    command_line,
    main,
    options,
    plots,
    registry,
    suites,
    tables,
)
from aristos.bench.context import CHECK, Context, Sheet
from aristos.bench.options import UsageError
from aristos.bench.world import World
from aristos.errors import InputError
from aristos.host import launch_environment, mpi_library
from aristos.host.nodes import Nodes
from aristos.layer.arguments import check_common
from aristos.transport import choice

pytestmark = pytest.mark.parallel

STEP = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "8", "SLURM_PROCID": "5"}


@pytest.mark.parametrize("name", models.PRESETS)
@pytest.mark.parametrize("world", [1, 2, 7, 300])
def test_every_preset_gives_each_rank_an_expert(name, world):
    shape = models.shape(name, world)
    assert shape.cfg.experts >= world
    assert shape.cfg.max_tokens >= max(shape.tokens)
    assert shape.source
    assert (shape.cfg.experts == models.PRESETS[name].experts) or "instead of" in shape.note


def test_options_override_the_preset():
    shape = models.shape("mixtral-8x7b", 2, hidden=96, experts=6, top_k=3, tokens=(5,), activation="gelu")
    cfg = shape.cfg
    assert (cfg.hidden, cfg.ffn, cfg.experts, cfg.top_k, cfg.activation) == (96, 1792, 6, 3, "gelu")
    assert shape.tokens == (5,)
    assert "hidden, experts, top_k" in shape.note
    assert models.shape("mixtral-8x7b", 2, scale=1).cfg.ffn == 14336


def test_levels_are_those_of_the_measured_layer():
    """Within a node a layer has one level, so its title does not name two."""
    for words, per_node, levels, text in (
        ([], 1, 1, "silu gated"),
        (["--levels", "2"], 1, 2, "silu gated two levels"),
        (["--levels", "2"], 2, 1, "silu gated"),
    ):
        world = World()
        world.nodes = Nodes.split(2, per_node)
        shape = Context(world, command_line.parse(words), 1.0).shape()
        assert shape.cfg.levels == levels
        assert str(shape).endswith(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "unknown suite 'nonsense'"),
        (["--preset", "gpt-9"], "unknown preset 'gpt-9'"),
        (["--tokens", "0"], "at least 1, got 0"),
        (["--tokens", "x"], "--tokens"),
        (["--seconds", "-1"], "positive number of seconds"),
        (["--seconds", "1e30"], "less than 1000000, got 1e30"),
        (["--threads", "1000000"], r"--threads: must be in 1\.\.4096, got 1000000"),
        (["--schedule", "eager"], "invalid choice: 'eager'"),
        (["--dtype", "float8"], "invalid choice: 'float8'"),
        (["--routing", "nowhere.npz"], "no such file"),
        (["replay"], "replay needs --routing"),
        (["replay", "--routing", "zipf"], "replay needs --routing"),
        (["--timeline", "/nowhere/t.json"], "no such folder"),
        (["--backend", "cuda", "--moves", "experts"], "between GPUs only tokens are sent"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_usage_errors_name_the_fault(words, message):
    with pytest.raises(UsageError, match=message):
        command_line.parse(words)


def test_the_benchmark_and_the_layer_have_one_limit_of_threads():
    check_common(command_line.parse(["--threads", str(command_line.MOST_THREADS)]).threads, 1.0)
    with pytest.raises(InputError, match=f"1..{command_line.MOST_THREADS}"):
        check_common(command_line.MOST_THREADS + 1, 1.0)


def test_options_are_parsed():
    asked = command_line.parse(["layer", "idle", "layer", "--tokens", "16,64", "--schedule", "bulk", "--iters", "7"])
    assert asked.suites == ("layer", "idle")
    assert asked.tokens == (16, 64)
    assert asked.schedules == ("bulk",)
    assert asked.budget == 2 * options.SUITE_SECONDS
    assert command_line.parse([]).budget < 120
    for words in ([], ["gemm", "--seconds", "1"], ["gemm", "--seconds", "900"], ["gemm", "--iters", "4000"]):
        asked = command_line.parse(words)
        assert asked.limit >= max(120, 10 * asked.budget, 10 * (asked.iters or 0))


def test_suites_are_known_in_the_order_in_which_they_run():
    names = ["put", "signal", "exchange", "progress", "gemm", "layer", "idle", "replay", "plan"]
    for backend in get_args(registry.Backend):
        known = suites.known(backend)
        assert [name for name in known if name in names] == names
        assert not any(known[name].default for name in ("progress", "replay", "plan"))


NEW_SUITE = """
from aristos.bench.registry import {decorator}

@{decorator}("thrice", "three times", order=15)
def run(ctx, *gpu):
    return None
"""


@pytest.mark.parametrize(("backend", "decorator"), [("cpu", "suite"), ("cuda", "gpu_suite")])
def test_a_suite_is_found_by_its_place_alone(tmp_path, monkeypatch, capsys, backend, decorator):
    """The command line and its help know a new suite by its file alone. No list names it."""
    monkeypatch.setitem(registry._declared, backend, dict(suites.known(backend)))
    monkeypatch.setattr(suites, "__path__", [*suites.__path__, str(tmp_path)])
    (tmp_path / f"thrice_{decorator}.py").write_text(NEW_SUITE.format(decorator=decorator))
    try:
        assert list(suites.known(backend))[:3] == ["put", "thrice", "signal"]
        assert command_line.parse(["thrice", "--backend", backend]).suites == ("thrice",)
        assert main.main(["--help"]) == 0
        assert "thrice    three times" in capsys.readouterr().out
    finally:
        sys.modules.pop(f"aristos.bench.suites.thrice_{decorator}", None)


def test_a_picture_is_found_by_its_place_alone(tmp_path, monkeypatch):
    (tmp_path / "thrice.py").write_text("PICTURES = {'thrice': [('thrice', print)]}")
    monkeypatch.setattr(plots, "__path__", [*plots.__path__, str(tmp_path)])
    try:
        assert plots.pictures()["thrice"] == [("thrice", print)]
    finally:
        sys.modules.pop("aristos.bench.plots.thrice", None)


@pytest.mark.parametrize(
    ("node_of", "count", "transports"),
    [((0,), 1, ("self",)), ((0, 0, 0), 1, ("shm",)), ((0, 1), 2, ("rma",)), ((0, 0, 2), 2, ("shm", "rma"))],
)
def test_the_transports_of_nodes(node_of, count, transports):
    assert (Nodes(node_of).count, choice.names(Nodes(node_of))) == (count, transports)


@pytest.mark.parametrize(
    ("env", "want"),
    [
        ({}, None),
        ({"PMI_SIZE": "4", "PMI_RANK": "3"}, ("mpirun", 4, 3)),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "SLURM_NTASKS": "8"}, ("Open MPI's mpirun", 2, 0)),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),  # a batch script, not a step
        (STEP, ("srun", 8, 5)),
        ({**STEP, "PMI_SIZE": "8", "PMI_RANK": "5", "PMI_JOBID": "7.0"}, ("srun", 8, 5)),  # --mpi=pmi2
        ({**STEP, "PMI_SIZE": "4", "PMI_RANK": "1", "MPI_LOCALNRANKS": "2"}, ("mpirun", 4, 1)),  # mpirun in a job
    ],
)
def test_the_launcher_is_read_from_the_environment(env, want):
    assert launch_environment.started_as(env) == want
    if want is not None:
        assert launch_environment.mismatch(want[1], env) is None
        assert launch_environment.mismatch(1, env).startswith(
            f"{want[0]} started {want[1]} tasks, but the size of MPI_COMM_WORLD is 1: "
        )


@pytest.mark.parametrize(("kind", "fits"), [("MPICH", "pmi2"), ("Intel MPI", "pmi2"), ("Open MPI", "pmix")])
def test_a_mismatch_names_the_fitting_launcher(kind, fits):
    message = launch_environment.mismatch(
        1, STEP | {"SLURM_STEP_NUM_TASKS": "4"}, mpi_library.Library(kind, "/opt/libmpi.so")
    )
    assert message.startswith(f"srun started 4 tasks, but the size of MPI_COMM_WORLD is 1: try --mpi={fits}")
    message = launch_environment.mismatch(
        1, {"PMI_SIZE": "4", "PMI_RANK": "0"}, mpi_library.Library(kind, "/opt/libmpi.so")
    )
    assert message == (
        "mpirun started 4 tasks, but the size of MPI_COMM_WORLD is 1: use the mpirun that belongs to the MPI library"
        f" that mpi4py loads, {kind} (/opt/libmpi.so)"
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("env", "codes"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, False)],
)
def test_escape_codes_are_for_terminals_alone(monkeypatch, env, codes):
    """No codes are written if NO_COLOR is set, or by ranks of Open MPI: their terminal belongs to the launcher."""
    for name in ("NO_COLOR", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_ID", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, Terminal())
    reporter = tables.Reporter(False)
    reporter.begin("suite")
    reporter.progress("half", 0.5)
    reporter.end()
    reporter.show(Sheet("title", (CHECK,), [{"check": "FAILED"}]))
    assert "FAILED" in sys.stdout.getvalue()
    assert ("\x1b" in sys.stdout.getvalue()) == ("\x1b" in sys.stderr.getvalue()) == codes
    assert not launch_environment.on_terminal(io.StringIO())
    assert not launch_environment.on_terminal(None)

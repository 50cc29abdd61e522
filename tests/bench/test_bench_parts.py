"""Parts of the benchmark that need neither ranks nor a layer: fits, routings, presets, options, tables, timelines."""

from __future__ import annotations

import io
import json
import signal
import sys
import types
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aristos
from aristos import models, results
from aristos.bench import (
    command_line,
    context,
    environment,
    fit,
    main,
    measure,
    options,
    pairs,
    plots,
    registry,
    routing,
    suites,
    tables,
    timeline,
    workload,
    world,
)
from aristos.bench.context import CHECK, Column, Result, Sheet
from aristos.bench.measure import Statistics, in_turns, iterations
from aristos.bench.options import UsageError
from aristos.bench.suites import exchange as exchange_suite
from aristos.bench.suites import idle as idle_suite
from aristos.bench.suites import layer as layer_suite
from aristos.bench.suites import progress, replay
from aristos.bench.suites.idle import idle_share, over_even
from aristos.bench.world import World
from aristos.errors import InputError, PoisonedError, ResultsError, WaitTimeout
from aristos.host import launch_environment, mpi_library, versions
from aristos.host.nodes import Nodes
from aristos.layer.arguments import check_common
from aristos.layer.timeline import trace_events
from aristos.primitives import isa
from aristos.transport import choice

pytestmark = pytest.mark.parallel

STEP = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "8", "SLURM_PROCID": "5"}
SIZES = [8 << i for i in range(20)]


# ---- fits ---------------------------------------------------------------------------------------------------------


def test_a_fit_finds_two_exact_segments():
    small, large = (2e-8, 1e-11), (3e-6, 5e-11)
    times = [a + b * n for n, (a, b) in ((n, small if n <= 16384 else large) for n in SIZES)]
    got = fit.alpha_beta(SIZES, times)
    assert [s.last for s in got.segments] == [16384, SIZES[-1]]
    for segment, (alpha, beta) in zip(got.segments, (small, large)):
        assert segment.alpha == pytest.approx(alpha, rel=1e-6)
        assert segment.beta == pytest.approx(beta, rel=1e-6)
    assert got.residual < 1e-9
    assert got(SIZES) == pytest.approx(times)


@given(st.lists(st.floats(1e-8, 1e-2), min_size=1, max_size=20))
def test_a_fit_of_any_times_has_no_negative_terms(times):
    got = fit.alpha_beta(SIZES[: len(times)], times)
    assert all(s.alpha >= 0 and s.beta >= 0 and s.bandwidth > 0 for s in got.segments)
    assert np.isfinite(got.residual)
    assert (got(SIZES) >= 0).all()


def test_the_residual_is_relative():
    times = np.array([1e-6] * 20) * np.where(np.arange(20) % 2, 1.1, 0.9)
    assert 0.05 < fit.alpha_beta(SIZES, times).residual < 0.15


def test_an_unresolved_bandwidth_is_not_printed():
    flat, noise = fit.Segment(2e-8, 0.0, 8, 4 << 20), fit.Segment(1e-6, 2.5e-7, 8, 32)  # inf and 0.004 GB/s
    start_up = fit.Segment(7.7e-6, 3.8e-10, 8, 2048)  # at 2048 bytes beta is 0.8 of 8.5 us
    for segment in (flat, noise, start_up):
        assert str(segment) == f"alpha {segment.alpha * 1e6:.3f} us, bandwidth not resolved"
    assert str(fit.Segment(3e-6, 2.5e-11, 256 << 10, 4 << 20)) == "alpha 3.000 us, beta 0.0250 ns/B (40.00 GB/s)"
    assert str(fit.Segment(2e-8, 4e-11, 8, 2048)) == "alpha 0.020 us, beta 0.0400 ns/B (25.00 GB/s)"
    assert fit.Fit((flat,), 0.31).trust == "relative residual 31.0% (poor fit)"
    assert fit.Fit((flat,), 0.29).trust == "relative residual 29.0%"


# ---- pairs --------------------------------------------------------------------------------------------------------


@given(st.integers(2, 12), st.integers(1, 6))
def test_every_ordered_pair_is_measured_once(ranks, lanes):
    rounds = pairs.schedule(ranks, lanes)
    flat = [pair for one in rounds for pair in one]
    assert sorted(flat) == [(a, b) for a in range(ranks) for b in range(ranks) if a != b]
    for one in rounds:
        assert 1 <= len(one) <= lanes
        assert len({rank for pair in one for rank in pair}) == 2 * len(one)


class Silent:
    """A communicator whose other ranks neither send nor receive."""

    def isend(self, value: object, dest: int) -> Silent:
        return self

    def Test(self) -> bool:
        return False

    def improbe(self, source: int) -> None:
        return None


@pytest.mark.parametrize(
    ("first", "wait", "message"),
    [
        (True, lambda side: side.agree(3), "rank 0 waited 0.01 s for rank 1 to receive what to measure next"),
        (False, lambda side: side.agree(3), "rank 0 waited 0.01 s for rank 1 to send what to measure next"),
        (True, lambda side: side.verdict(lambda: True), "for rank 1 to send whether the bytes of a put were right"),
        (False, lambda side: side.verdict(lambda: True), "for rank 1 to receive whether the bytes of a put were right"),
    ],
)
def test_a_peer_that_is_gone_ends_the_wait_for_it(first, wait, message):
    alone = World(limit=0.01)
    alone.comm = Silent()
    with pytest.raises(WaitTimeout, match=message):
        wait(pairs.Side(types.SimpleNamespace(world=alone), 0, 1, first))


def test_a_wire_in_use_ends_the_wait_for_it():
    words = np.zeros(64, np.int64)
    pairs.take_wire(words.ctypes.data, 1.0)
    with pytest.raises(WaitTimeout, match=r"the wire was in use for 0.01 s"):
        pairs.take_wire(words.ctypes.data, 0.01)


@pytest.mark.ranks(2)
def test_both_sides_of_a_pair_have_the_same_values(comm):
    together, peer = World(comm), 1 - comm.rank
    for origin in (0, 1):
        side = pairs.Side(types.SimpleNamespace(world=together), comm.rank, peer, comm.rank == origin)
        assert side.agree([comm.rank, "x"]) == [origin, "x"]
        for right in (True, False):
            assert side.verdict(lambda right=right: right) is right


def test_sizes_as_text():
    assert [pairs.bytes_text(n) for n in (0, 8, 1024, 1536, 4 << 20, 2 << 30)] == [
        "0 B",
        "8 B",
        "1 KiB",
        "1.5 KiB",
        "4 MiB",
        "2 GiB",
    ]


# ---- routing ------------------------------------------------------------------------------------------------------


@given(st.sampled_from(routing.GENERATORS), st.integers(0, 50), st.integers(1, 20), st.data())
def test_generated_routings_are_valid(name, tokens, experts, data):
    top_k = data.draw(st.integers(1, experts))
    local = data.draw(st.integers(1, experts))
    ids = routing.generate(name, np.random.default_rng(0), tokens, experts, top_k, local)
    weights = routing.combine_weights(np.random.default_rng(1), ids)
    assert ids.shape == weights.shape == (tokens, top_k)
    assert ids.size == 0 or (ids.min() >= -1 and ids.max() < experts)
    for row in ids:
        taken = row[row >= 0]
        assert len(set(taken)) == len(taken) >= 1
    if tokens:
        assert weights.sum(axis=1) == pytest.approx(1)
    assert (weights[ids < 0] == 0).all()
    if name == "one":
        assert ids.size == 0 or ids.max() < local


def test_zipf_is_skewed_and_uniform_is_not():
    rng = np.random.default_rng(0)
    for make, low, high in ((routing.uniform, 1.0, 1.2), (routing.zipf, 1.4, 8.0)):
        load = np.bincount(make(rng, 4000, 16, 2).ravel(), minlength=16)
        assert low <= routing.busiest_over_mean(load) <= high


def trace_file(tmp_path, **changed):
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((30, 3, 8)), axis=-1)[..., :2].astype(np.uint8)
    arrays = {"expert_ids": ids, "gate_weight_1e4": np.full(ids.shape, 5000, np.uint16), "seq_lens": [10, 5, 15]}
    arrays |= changed
    path = tmp_path / "trace.npz"
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return str(path), ids


def test_a_trace_is_read_and_spread_over_ranks(tmp_path):
    path, ids = trace_file(tmp_path)
    trace = routing.load(path)
    assert (trace.layers, trace.top_k, trace.experts) == (3, 2, 8)
    got, weights = trace.at(trace.prefill(rank=1, world=2, tokens=4, batch=0), layer=2)
    assert (got == ids[4:8, 2]).all()
    assert weights == pytest.approx(0.5)
    assert list(trace.prefill(0, 1, 20, 1)) == [*range(20, 30), *range(10)]
    assert [list(trace.decode(rank, 2, 0)) for rank in (0, 1)] == [[0, 15], [10]]
    assert [list(trace.decode(rank, 2, 7)) for rank in (0, 1)] == [[7, 22], []]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"expert_ids": None}, "must hold expert_ids"),
        ({"expert_ids": np.zeros((2, 3))}, "must hold expert_ids"),
        ({"seq_lens": [1, 2]}, "sum to 30 tokens, got 3"),
        ({"gate_weight_1e4": np.zeros((1, 2, 3), np.uint16)}, "shape of expert_ids"),
        ({"gate_weight_1e4": np.full((30, 3, 2), "x")}, "must be numbers"),
        ({"gate_weight_1e4": np.full((30, 3, 2), np.nan)}, "must be finite in float32, got nan"),
        ({"seq_lens": [40, -10]}, "at least 0, got -10"),
        ({"seq_lens": [[30]]}, r"integers \[sequences\], got int64 \[1, 1\]"),
        ({"seq_lens": [30.0]}, r"integers \[sequences\], got float64"),
        ({"seq_lens": np.array([2**63, 2**63, 30], np.uint64)}, "sum to 30 tokens"),
        ({"expert_ids": np.full((30, 3, 2), [0, -2])}, r"0\.\.65535, or -1 .*, got -2\.\.0"),
        ({"expert_ids": np.full((30, 3, 2), [0, 65536])}, r"got 0\.\.65536"),
        ({"expert_ids": np.full((30, 3, 2), -1)}, r"got -1\.\.-1"),
        ({"expert_ids": np.full((30, 3, 2), 5)}, r"distinct within a token, got \[5, 5\] for token 0 in layer 0"),
    ],
)
def test_the_error_of_a_wrong_trace_names_the_fault(tmp_path, changed, words):
    path, _ = trace_file(tmp_path, **changed)
    with pytest.raises(InputError, match=words):
        routing.load(path)


def counts_file(tmp_path, **changed):
    rng = np.random.default_rng(1)
    lengths = np.array([7, 1, 12])
    skewed = [[rng.random((length, 6)) + np.arange(6) / 3 for _ in range(2)] for length in lengths]
    chosen = [[np.argsort(layer, axis=-1)[:, :2].ravel() for layer in each] for each in skewed]
    counts = np.array([[np.bincount(layer, minlength=6) for layer in each] for each in chosen], np.uint16)
    arrays = {"counts": counts, "tokens": lengths} | changed
    np.savez(tmp_path / "counts.npz", **arrays)
    return str(tmp_path / "counts.npz"), counts


def test_a_trace_made_of_counts_has_these_counts(tmp_path):
    path, counts = counts_file(tmp_path)
    trace = routing.load(path)
    assert (trace.layers, trace.top_k, list(trace.lengths)) == (2, 2, [7, 1, 12])
    for each, ids in zip(counts, np.split(trace.ids, [7, 8])):
        for layer in range(2):
            assert list(np.bincount(ids[:, layer].ravel(), minlength=6)) == list(each[layer])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tokens": np.array([7, 1, 13])}, "sum to tokens x top-k"),
        ({"tokens": np.array([7, 0, 12])}, "integers above 0"),
        ({"tokens": np.array([7, 1])}, r"tokens int64 \[2\]"),
        ({"counts": np.zeros((3, 2, 6))}, "counts float64"),
        ({"counts": np.zeros((3, 2, 6), int)}, "the same k everywhere"),
        ({"counts": np.full((3, 2, 1), [[[14]], [[2]], [[24]]])}, r"0 to the tokens of its sequence, got 2\.\.24"),
    ],
)
def test_the_error_of_wrong_counts_names_the_fault(tmp_path, changed, words):
    path, _ = counts_file(tmp_path, **changed)
    with pytest.raises(InputError, match=words):
        routing.load(path)


def single_array(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros((2, 3, 4), int))


def damaged(path):
    np.savez_compressed(path, expert_ids=np.arange(3000).reshape(10, 3, 100))
    content = bytearray(path.read_bytes())
    content[200:300] = bytes(100)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: p.write_text("no"),
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(b"PK\3\4"),
        single_array,
        damaged,
    ],
)
def test_a_file_that_is_no_trace_is_an_input_error(tmp_path, make):
    path = tmp_path / "trace.npz"
    make(path)
    with pytest.raises(InputError, match=r"cannot read the routing trace .*trace\.npz: ."):
        routing.load(str(path))


def test_choices_not_taken_may_repeat(tmp_path):
    path, _ = trace_file(
        tmp_path, expert_ids=np.full((30, 3, 2), [-1, -1]) + (np.arange(30) == 0)[:, None, None] * [3, 4]
    )
    assert routing.load(path).experts == 4


# ---- exit ---------------------------------------------------------------------------------------------------------


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
        "gemm": registry.Suite("gemm", "", lambda _: Result(True, tables=[done]), order=1),
        "layer": registry.Suite("layer", "", interrupted, order=2),
    }
    monkeypatch.setattr(suites, "known", lambda backend="cpu": some)
    monkeypatch.setattr(world, "connect", World)
    path = tmp_path / "r.h5"
    assert main.main(["gemm", "layer", "--out", str(path)]) == 130
    (run,) = results.load(path).runs
    assert [table.name for table in run.tables] == ["gemm"]
    assert run.attributes["interrupted"]


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


# ---- presets and options ------------------------------------------------------------------------------------------


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
        (["--backend", "cuda", "--moves", "experts"], "on GPUs tokens move"),
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


# ---- launcher -----------------------------------------------------------------------------------------------------


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
        assert launch_environment.mismatch(1, env).startswith(f"{want[0]} started {want[1]} tasks but MPI sees 1: ")


@pytest.mark.parametrize(("kind", "fits"), [("MPICH", "pmi2"), ("Intel MPI", "pmi2"), ("Open MPI", "pmix")])
def test_a_mismatch_names_the_fitting_launcher(kind, fits):
    message = launch_environment.mismatch(
        1, STEP | {"SLURM_STEP_NUM_TASKS": "4"}, mpi_library.Library(kind, "/opt/libmpi.so")
    )
    assert message.startswith(f"srun started 4 tasks but MPI sees 1: try --mpi={fits}")
    message = launch_environment.mismatch(
        1, {"PMI_SIZE": "4", "PMI_RANK": "0"}, mpi_library.Library(kind, "/opt/libmpi.so")
    )
    assert message == (
        "mpirun started 4 tasks but MPI sees 1: use the mpirun that belongs to the MPI library mpi4py loads, "
        f"{kind} (/opt/libmpi.so)"
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


# ---- measuring ----------------------------------------------------------------------------------------------------


def test_a_summary_is_of_the_slowest_rank():
    summary = Statistics.of(np.array([[1.0, 5.0, 1.0], [2.0, 3.0, 9.0]]))
    assert (summary.median, summary.fastest, summary.iterations) == (5.0, 2.0, 3)


def test_calls_take_turns(monkeypatch):
    monkeypatch.setattr(measure, "REPEATS", 0)
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = in_turns(World(), calls, 3)
    assert "".join(order) == "abbaab"
    assert all(len(t) == 3 and (t > 0).all() for t in times.values())
    order.clear()
    in_turns(World(), calls, 1, turn=1)
    assert "".join(order) == "ba"


def test_every_call_has_every_place_in_its_turn():
    orders = [measure.rotated(["a", "b", "c"], turn) for turn in range(4)]
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def test_schedules_take_turns_in_a_replay(monkeypatch):
    monkeypatch.setattr(measure, "REPEATS", 0)
    order: list[str] = []

    def layer(name):
        def call(x, out, return_stats):
            order.append(name)
            out[:] = x
            return out

        return call

    ctx = context.Context(World(), options.Options(iters=3), 1.0)
    call = workload.Call(np.ones((2, 3), np.float32))
    layers = {name: layer(name) for name in ("b", "f")}
    times, core, same = replay._play(ctx, layers, [call], [dict.fromkeys(layers, call.x)], 1.0)
    assert "".join(order) == "bffbbf"
    assert times.shape == core.shape == (2, 1, 1, 2)
    assert same


def test_iterations_by_time_or_by_option():
    calls = {"a": lambda: None}
    assert iterations(World(), calls, 10.0, warmup=1, asked=3) == 3
    assert iterations(World(), calls, 0.0, warmup=1, asked=None) == 4
    assert iterations(World(), calls, 100.0, warmup=3, asked=None) == 2000


def test_shorter_series_end_in_nan():
    one, two = np.array([[1.0, 2.0]]), np.array([[3.0, 4.0, 5.0]])
    got = measure.padded([[one, two], [None, one]])
    assert got.shape == (2, 2, 1, 3)
    nan = np.nan
    want = [[[[1, 2, nan]], [[3, 4, 5]]], [[[nan] * 3], [[1, 2, nan]]]]
    np.testing.assert_array_equal(got, want)


def test_idle_share_counts_the_wait_of_a_fast_rank_after_its_call():
    times = np.array([[1.0], [2.0]])
    assert idle_share(times, np.array([[0.5], [0.0]]), workers=1) == pytest.approx((0.5 + 1.0) / 4)
    assert idle_share(times, np.array([[1.0], [0.0]]), workers=2) == pytest.approx((1.0 + 2.0) / 8)


def test_the_cost_of_skew_is_per_row_and_is_formed_within_each_turn():
    even, skewed = np.array([[1.0, 4.0, 2.0], [0.5, 2.0, 2.0]]), np.array([[1.0, 4.0, 2.0], [3.0, 8.0, 8.0]])
    assert over_even(skewed, even, 10, 10) == 3.0  # the median of 3, 2 and 4, not the ratio of medians, 8 / 2
    assert over_even(skewed, even, 30, 10) == 1.0


@pytest.mark.parametrize(
    ("call", "alone", "imbalance", "reading", "arithmetic", "limit"),
    [
        (10.0, 9.9, 1.49, 1.0, 9.0, "imbalance"),
        (10.0, 5.0, 1.2, 1.0, 4.0, "communication"),
        (10.0, 12.0, 2.0, 1.0, 4.0, "imbalance"),  # other ranks computed some rows of the busiest one
        (10.0, 9.5, 1.02, 9.0, 3.0, "weights' bytes"),
        (10.0, 9.5, 1.02, 30.0, 3.0, "arithmetic"),  # the weights came from a cache
        (10.0, 9.5, 1.02, 1.0, 9.0, "arithmetic"),
    ],
)
def test_the_limit_of_a_call(call, alone, imbalance, reading, arithmetic, limit):
    assert layer_suite.limit(call, alone, imbalance, reading, arithmetic) == limit


def test_rows_have_the_type_of_the_layer():
    cfg = aristos.MoEConfig(hidden=24, ffn=16, experts=4, top_k=2, max_tokens=20, dtype="bfloat16")
    work = workload.Workload(World(), cfg, seed=0)
    with work.layer("fused", 1) as layer:
        for how in ("router", "zipf"):
            call = work.typed(work.call(20, how, 0))
            assert call.x.dtype == "bfloat16"
            assert 1e-5 < work.error(workload.execute(layer, call), work.oracle(call)) < 0.02


def test_every_routing_of_the_idle_suite_has_the_rows_of_two_ranks():
    work = workload.Workload(World(), aristos.MoEConfig(hidden=8, ffn=8, experts=6, top_k=2, max_tokens=40), seed=0)
    for size, one, source in ((1, 20, 20), (2, 20, 40), (4, 10, 40)):
        for rank in range(size):
            work.world.size, work.world.rank = size, rank
            made = {p: len(idle_suite._call(work, p, 20, 0).x) for p in (*idle_suite.PATTERNS, idle_suite.ONE_SOURCE)}
            assert made == {"uniform": 20, "zipf": 20, "late rank": 20, "one": one, "one source": source * (rank == 0)}


def test_the_idle_suite_orders_recorded_layers_by_their_busiest_expert():
    """A dense layer has no choices and is left out."""
    layers = [[(0, 1), (2, 3), (4, 5)], [(2, 3), (2, 3), (2, 3)], [(-1, -1)] * 3, [(0, 1), (0, 2), (3, 4)]]
    ids = np.moveaxis(np.array(layers), 0, 1)
    trace = routing.Trace("t.npz", ids, np.ones(ids.shape, np.float32), np.array([3]))
    found = idle_suite._recorded(context.Context(World(), options.Options(), 1.0, trace=trace))
    assert found == ["recorded, layer 0", "recorded, layer 3", "recorded, layer 1"]


def test_progress_warns_if_the_target_had_no_core_of_its_own():
    computing = np.full((4, 5, 3), 1e-6)
    puts = np.full((4, 4, 3, 1), 1e-5)

    def notes() -> str:
        return "\n".join(progress._result(1, False, puts, computing, True).sheets[0].notes)

    computing[2:, 1:] *= 1.5  # slower under puts: the effect that the suite measures
    assert "WARNING" not in notes()
    computing[2, 0, :2] *= 1.3  # slower without puts, in most rounds of one mode
    assert "WARNING: without any put the target's work took 30% longer" in notes()


def test_counted_words_have_singular_and_plural():
    assert [context.counted(n, "rank") for n in (0, 1, 2)] == ["0 ranks", "1 rank", "2 ranks"]


# ---- showing ------------------------------------------------------------------------------------------------------


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

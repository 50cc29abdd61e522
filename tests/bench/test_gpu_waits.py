"""bench/gpu_report.py: layers that its parts make wait at most 5 s, and a part that hangs says where it stands."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
try:
    from first_run import machine, parts, processes, rehearsal, tasks
finally:
    sys.path.pop(0)

import aristos
from aristos.bench import world
from aristos.bench.gpu import clock
from aristos.bench.suites import gemm_gpu, put_gpu, signal_gpu
from aristos.errors import EnvironmentProblem
from aristos.kernels.cuda.target import Target

pytestmark = pytest.mark.parallel

ALONE = ("put", "signal", "gemm", "router")  # suites without a layer


class Made(EnvironmentProblem):
    """Raised where a task would make a layer."""


@pytest.fixture
def waits(monkeypatch):
    """[(timeout, absent_timeout)] of the layers that tasks would make."""
    found = []

    def layer(cfg, comm=None, timeout=None, absent_timeout=None, **options):
        found.append((timeout, absent_timeout))
        raise Made

    monkeypatch.setattr(aristos, "MoE", layer)
    gpu = mock.MagicMock()
    gpu.facts.return_value, gpu.device.target = {}, Target.named("sm_90")
    monkeypatch.setattr(clock, "BenchGpu", lambda world: gpu)
    monkeypatch.setattr(gemm_gpu, "Products", mock.MagicMock())
    monkeypatch.setattr(world, "connect", lambda nodes, limit, timeout: world.World(limit=limit, timeout=timeout))
    return found


def started(task, words):
    """Run a task of the report until it makes a layer."""
    given = SimpleNamespace(task=task, words=words, end=time.monotonic() + 600, out="none")
    with contextlib.suppress(Made):
        tasks.TASKS[task](given)


def suites_of(part):
    """For each suite of a part that makes layers, the words that run this suite alone."""
    options = next(at for at, word in enumerate(part.words) if word.startswith("--"))
    return [(suite, *part.words[options:]) for suite in part.words[:options] if suite not in ALONE]


BENCH = [words for part in parts.PARTS if part.task == "bench" for words in suites_of(part)]


@pytest.mark.parametrize("words", BENCH, ids=[words[0] for words in BENCH])
def test_layers_of_suites_wait_five_seconds(waits, words):
    started("bench", rehearsal.smaller("bench", list(words)))
    assert waits == [(tasks.WAIT, tasks.WAIT)] == [(5.0, 5.0)]


def test_the_layers_of_the_other_parts_wait_five_seconds(waits):
    started("phases", rehearsal.smaller("phases", []))
    started("two_kernels", [])
    assert waits == [(5.0, 5.0)] * 2


def test_the_layers_of_the_tests_wait_five_seconds(monkeypatch):
    seen = []
    monkeypatch.setenv("ARISTOS_TEST_TIMEOUT", "60")

    def run(*words):
        spec = importlib.util.find_spec("gpu_layers")
        module = importlib.util.module_from_spec(spec)  # a second module object: that of the tests is not changed
        spec.loader.exec_module(module)
        seen.append(module.TIMEOUT)
        return 0

    monkeypatch.setattr(pytest, "main", run)
    started("tests", [])
    assert seen == [tasks.WAIT]
    assert os.environ["ARISTOS_TEST_TIMEOUT"] == "5.0"


def test_every_part_is_known_here():
    """Each task is tested here or makes no layer. The time limits of other waits are at most those of layers."""
    assert {each.task for each in parts.PARTS} == {"bench", "phases", "ncu", "tests", "driver", "kernels", "products"}
    assert machine.PROBE_SECONDS <= tasks.WAIT
    assert max(put_gpu.LIMIT_NS, signal_gpu.LIMIT_NS) <= 1e9 * tasks.WAIT


@pytest.mark.slow
def test_the_last_words_reach_the_page_while_a_task_has_taken_the_streams():
    """pytest redirects the streams too, and a layer may hang in the tests that it runs."""
    script = """
    import os, threading
    from aristos.substrate import attach
    from first_run import child, tasks, unfinished

    def taken(given):
        for number in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        for timer in threading.enumerate():
            if isinstance(timer, threading.Timer):
                timer.join()
        return 0

    tasks.TASKS["taken"] = taken
    attach.standing = lambda: "cuda: rank 0 of 1, epoch 3: running, 7 commands published; worker 2 holds the lock"
    child.main(["--limit", str(child.NOTICE + 2.0), "taken"])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=processes.environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    for line in (
        "the part has not ended",
        "worker 2 holds the lock",
        "HUNG: a call makes no progress at epoch 3",
        "in taken",
    ):
        assert line in done.stderr, done.stderr

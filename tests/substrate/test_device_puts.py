"""Whether MPI puts from GPU memory is probed in a child process, which may crash or hang."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
import ptxsim
from aristos.host.mpi_files import leftovers
from aristos.kernels.cuda.put_probe import LINE, STEP, THREADS, lend
from aristos.substrate.cuda import device_puts

SILENT = [sys.executable, "-c", "import sys; sys.exit('Traceback\\nno MPI here')"]  # the last line is the reason
CHILD = [sys.executable, str(Path(__file__).parents[1] / "support" / "puts_child.py")]


@pytest.fixture
def probe(monkeypatch):
    """probe(how, *seconds): the answer for a device that behaves in one of the ways of puts_child.py."""
    monkeypatch.delenv(device_puts.VARIABLE, raising=False)

    def ask(how, *seconds):
        monkeypatch.setattr(device_puts, "COMMAND", SILENT if how == "silent" else [*CHILD, how])
        device_puts.probe.cache_clear()
        return device_puts.probe(0, *seconds)

    yield ask
    device_puts.probe.cache_clear()


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("dies", r"MPI crashed \((Segmentation fault|Bus error|Aborted)\)"),
        ("waits", "MPI waits for the kernel that runs on the GPU"),
        ("elsewhere", "MPI puts 4194304 bytes from the GPU, but other values arrive"),
        ("refuses", "RuntimeError: MPI_ERR_BUFFER"),
        ("silent", "exit code 1: no MPI here"),
    ],
)
def test_an_mpi_that_cannot_put_from_a_device(probe, how, why):
    before = set(leftovers(young=0.0))
    answer = probe(how)
    assert not answer.supported
    assert set(leftovers(young=0.0)) <= before
    assert re.search(why, answer.why), answer.why


@pytest.mark.ranks(2, timeout=120)
def test_an_mpi_that_can_put_from_a_device(comm, probe, monkeypatch):
    """The child starts its own MPI, although its parent is a rank of a job. The answer is kept."""
    answer = probe("fine")
    assert answer.supported, answer.why
    monkeypatch.setattr(device_puts, "COMMAND", SILENT)
    assert device_puts.probe(0) is answer


def test_no_answer_in_time(probe):
    assert "did not return within 0.05 s" in probe("fine", 0.05).why


@pytest.mark.parametrize("value", ["0", "no"])
def test_a_variable_turns_puts_from_a_device_off(probe, monkeypatch, value):
    monkeypatch.setenv(device_puts.VARIABLE, value)
    answer = probe("fine")
    assert (answer.supported, answer.why) == (False, f"{device_puts.VARIABLE}={value}")


def test_a_child_that_does_not_start(probe, monkeypatch):
    """The probe raises nothing, because other ranks wait for its answer."""
    monkeypatch.setattr(device_puts, "alone", lambda env: {"A": "nul\0"})
    assert "the probe did not start: ValueError" in probe("fine").why


def test_a_process_without_a_gpu(monkeypatch):
    monkeypatch.delenv(device_puts.VARIABLE, raising=False)
    device_puts.probe.cache_clear()
    try:
        answer = device_puts.probe(10_000)  # no machine has so many GPUs
    finally:
        device_puts.probe.cache_clear()
    assert not answer.supported
    assert "cuInit" in answer.why or "are visible" in answer.why


@pytest.mark.slow
@pytest.mark.parametrize("released", [True, False])
def test_the_kernel_of_the_probe(released):
    """The kernel runs until it is released or its time is over. Its row is complete before it notifies the host."""
    machine = ptxsim.Machine(seed=1)
    device = machine.device(0)
    row, flags = device.array(np.zeros(100, np.int64)), machine.host_array(np.zeros(2 * LINE // 8, np.int64))
    seen = []

    def host():
        while flags.load(0, order="acquire") == 0:
            yield
        seen.append(row.load(99, order="weak"))
        for _ in range(50):
            yield
        if released:
            flags.store(LINE // 8, 1, order="release")

    device.launch(lend, 1, THREADS, row.ptr, 100, flags.ptr, 10**9 if released else 20_000)
    machine.actor(host)
    reports = machine.run()
    assert not reports, [str(report) for report in reports]
    want = np.arange(1, 101, dtype=np.uint64) * np.uint64(STEP)
    np.testing.assert_array_equal(row.copy_to_host().view(np.uint64), want)
    assert np.array(seen, np.int64).view(np.uint64).tolist() == [int(want[-1])]

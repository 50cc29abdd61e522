"""Text that no driver or Slurm prints is refused in little time and memory, by an error that quotes it."""

from __future__ import annotations

import json
import platform
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from aristos.errors import TopologyError
from aristos.host import launch_environment, slurm_variables
from aristos.launcher import take_seat
from aristos.topology import cpusets, hostlist, matrix, pci, slurm_job, slurm_network, sysfs

DIGITS = "7" * 5000  # Python's int() takes at most 4300
SECONDS = 5.0  # the limit for a call; all calls take milliseconds
MEMORY = 64 << 20


def stuck(cells: int) -> str:
    """A matrix of one GPU, whose row can be read in 2^cells ways."""
    return "GPU0\tCPU Affinity\tNUMA Affinity\nGPU0\t X \t" + "NV11" * cells + "-\n"


def ladder(steps: int) -> str:
    """Switches with three parents each, so 3^steps ways lead up."""
    names = [f"s{step}x[0-2]" for step in range(steps + 1)]
    lines = [f"SwitchName={above} Switches={below}" for above, below in zip(names[1:], names)]
    return "\n".join([*lines, "SwitchName=s0x[0-2] Nodes=n[0-2]"])


def doubled(steps: int) -> str:
    """A topology.yaml whose text is 2^steps long if aliases are followed."""
    lines = ["- topology: a", "  x0: &x0 [a, a]", *(f"  x{n}: &x{n} [*x{n - 1}, *x{n - 1}]" for n in range(1, steps))]
    return "\n".join([*lines, f"  tree: *x{steps - 1}"])


def yaml(body: str) -> str:
    return f"- topology: a\n  tree:\n    switches:\n{body}"


FINE: list[tuple[Callable, str]] = [
    (slurm_network.parse, ladder(60)),
    (slurm_network.parse, "SwitchName=s Nodes=n²"),  # Slurm too takes it for a name
    (slurm_network.parse, yaml("      - {switch: s, nodes: 2001-99-99}")),
    (slurm_network.parse, yaml("      - {switch: !!int x, nodes: !!timestamp x}")),
    (hostlist.fold, ["n" + DIGITS, "n²", "n\n7"]),
]
REFUSED: list[tuple[Callable, str]] = [
    (matrix.parse, stuck(100)),
    (matrix.parse, stuck(100_000)),
    (matrix.parse, "x" + '"' * 60_000 + "x"),
    (matrix.parse, "GPU0\tGPU1\nGPU0\t" + "X" * 900 + "\n"),
    (matrix.parse, "GPU0\n" * 20_000),
    (matrix.parse, "GPU0 GPU1\n" + "GPU1 x" * 20_000),
    (matrix.parse, "GPU0\tGPU1\nGPU0" + "X" * 100_000),
    (matrix.parse, f"GPU{DIGITS}\nGPU{DIGITS} X\n"),
    (matrix.parse, "GPU0\tGPU1\nGPU0\t X \tNV1²\nGPU1\tNV1²\t X \n"),
    (matrix.parse, f"GPU0 CPU Affinity NUMA Affinity\nGPU0 X {'0-65535,' * 100}0\n"),
    (slurm_network.parse, "SwitchName=a Switches=b\nSwitchName=b Switches=a"),
    (slurm_network.parse, "SwitchName=" + "a" * 200_000 + " x"),
    (slurm_network.parse, "a" * 200_000),
    (slurm_network.parse, "SwitchName=s[0-130000] Nodes=n[0-130000]"),
    (slurm_network.parse, "\n".join(["SwitchName=s[0-130000]"] * 5000)),
    (slurm_network.parse, f"BlockName=b Nodes=n\nBlockSizes=1,{DIGITS}"),
    (slurm_network.parse, "BlockName=b[1-100000] Nodes=n\nBlockSizes=" + ",".join(["1"] * 50_000)),
    (slurm_network.parse, doubled(60)),
    (slurm_network.parse, "- topology: &a\n  x: *a"),
    (slurm_network.parse, "- topology: a\n  tree: " + "[" * 100_000),
    (slurm_network.parse, "- topology: a\n  1: x\n  tree: {}\n  flat: x"),
    (slurm_network.parse, '- topology: "\ud800"'),
    (hostlist.expand, "n[" + ",".join(["0-131071"] * 500) + "]"),
    (hostlist.expand, "n" * 300 + "[0-131071]"),
    (hostlist.expand, "n[0-131071]x[0-131071]"),
    (hostlist.expand, "n\x1b[31m"),
    (hostlist.expand, "n\x9b7"),
    (slurm_job.counts, f"4(x{DIGITS})"),
    (lambda env: slurm_job.read(env), {"SLURM_HET_SIZE": DIGITS, "SLURM_JOB_ID": "1"}),
    (lambda pairs: slurm_network.from_addresses(pairs), [("s[0-131071].t[0-131071].n", "switch.switch.node")]),
    (lambda pairs: slurm_network.from_addresses(pairs), [(".".join(["s[0-1000]"] * 5000), "")]),
]


def limited(call: Callable[[], object]) -> object:
    """The result of a call. Fails if the call takes long or needs much memory."""
    tracemalloc.start()
    begun = time.process_time()
    try:
        return call()
    finally:
        took, most = time.process_time() - begun, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert took < SECONDS
        assert most < MEMORY


@pytest.mark.parametrize("case", range(len(FINE)))
def test_odd_text_is_read(case):
    read, text = FINE[case]
    limited(lambda: read(text))


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_hostile_text_is_refused_soon(case):
    read, text = REFUSED[case]
    with pytest.raises(TopologyError) as caught:
        limited(lambda: read(text))
    assert 0 < len(str(caught.value)) < 1000
    assert "\x1b" not in str(caught.value)


def test_a_ladder_keeps_its_links():
    found = slurm_network.parse(ladder(3))
    assert found.parents["s2x1"] == ("s3x0", "s3x1", "s3x2")
    assert found.distance("n0", "n2") == 1


def test_lists_of_cpus_are_bounded():
    assert len(cpusets.parse("0-65535")) == 65536
    for text in ("0-65536", "0-65535,1", "5-3", "²", "-1", DIGITS, "1_0", "٣"):
        with pytest.raises(ValueError, match="a list of CPUs must look like"):
            limited(lambda text=text: cpusets.parse(text))


@pytest.mark.parametrize("number", ["²", DIGITS, "٣", "-1", "1_0", " 1"])
def test_variables_that_are_no_numbers_count_as_missing(number):
    env = {"PMI_RANK": number, "PMI_SIZE": "2", "MPI_LOCALRANKID": number, "MPI_LOCALNRANKS": "2"}
    assert launch_environment.started_as(env) is None
    with pytest.raises(take_seat.NoRank):
        take_seat.local_rank(env)
    slurm = dict.fromkeys(("SLURM_STEP_NUM_NODES", "SLURM_NTASKS", "SLURM_NODEID", "SLURM_LOCALID"), number)
    assert (slurm_variables.step_nodes(slurm), slurm_variables.wanted_tasks(slurm)) == (1, 0)
    assert slurm_variables.node_number(slurm) == 0
    assert slurm_job.read({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n", **slurm}).tasks is None


def test_seats_that_another_program_wrote_count_as_missing():
    host = platform.node()
    for rows in ([[]], [{}], [["x", 0, 0, 0, "", "", "", 1]], [[5, 0, 0, 0, "", "", "", 1]], 7, None):
        assert take_seat.from_json(json.dumps([host, rows]), 1) == []
    for text in ("{", "[" * 100_000, "7", "[1]", DIGITS):
        assert take_seat.from_json(text, 1) == []


def test_odd_numbers_in_sysfs_are_unknown(tmp_path: Path):
    device = tmp_path / "sys/bus/pci/devices/0000:41:00.0"
    device.mkdir(parents=True)
    (device / "local_cpulist").write_text("0-9999999999")
    for number in ("²", DIGITS, "-1"):
        (device / "numa_node").write_text(number)
        assert pci.affinity(tmp_path, "0000:41:00.0") == (None, None)
    (tmp_path / "devices/system/node/node²").mkdir(parents=True)
    assert sysfs.numa(tmp_path) == ()
    assert sysfs.natural("n2") < sysfs.natural("n10")
    assert sysfs.natural("n" + DIGITS)

"""`nvidia-smi topo -m`: samples give the facts of their index; damaged texts are read correctly or refused."""

from __future__ import annotations

import csv
import itertools
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from topo_text import HARMLESS, SPOIL, Machine, machine, printed, seconds

from aristos.errors import TopologyError
from aristos.topology import matrix
from aristos.topology.matrix import Matrix
from aristos.topology.model import Printed

MOST = 0.100  # the processor time that a sample may take, in seconds


def facts(read: Matrix) -> tuple:
    """All facts of a matrix, for comparison."""
    return read.labels, dict(read.cells), dict(read.gpus), dict(read.nics)


def wanted(of: Machine, empty: bool = False) -> tuple:
    """The facts that the text of a made-up machine must give."""
    cells = dict(of.links) | {(label, label): "X" for label in of.labels}
    gpus = {}
    for at in range(of.gpus):
        rest = [None if cell == "N/A" else cell for cell in of.rest[at]]
        if empty:
            rest[:2] = [None, None]
        gpus[f"GPU{at}"] = Printed(*rest)
    return tuple(of.labels), cells, gpus, dict(of.nics)


class Samples(dict[str, tuple[dict[str, str], str]]):
    """All samples. The object prints as a short text, because Hypothesis prints arguments."""

    def __repr__(self) -> str:
        return f"{len(self)} samples"


@pytest.fixture(scope="module")
def samples(shared_dir: Path) -> Samples:
    """File -> (its line of the index, its text)."""
    folder = shared_dir / "samples" / "nvidia_smi_topo"
    with open(folder / "index.tsv", newline="") as file:
        index = list(csv.DictReader(file, delimiter="\t"))
    found = Samples(
        {
            line["file"]: (line, (folder / line["file"]).read_bytes().decode(errors="replace"))
            for line in index
            if (folder / line["file"]).exists()
        }
    )
    assert len(found) > 50
    return found


def check(read: Matrix, line: dict[str, str]) -> list[str]:
    """The facts of the index with which the matrix does not agree."""
    wrong = []
    if line["n_gpu"].isdigit() and (len(read.gpus), len(read.nics)) != (int(line["n_gpu"]), int(line["n_nic"])):
        wrong.append(f"{len(read.gpus)} GPUs, {len(read.nics)} NICs")
    for fact in (part.strip() for part in line["facts"].split(";")):
        if pair := re.fullmatch(r"(\w+)-(\w+)=(\w+)", fact):
            so = read.cells.get((pair[1], pair[2])) == pair[3]
        elif nic := re.fullmatch(r"(NIC\d+)=(\S+)", fact):
            so = read.nics.get(nic[1]) == nic[2]
        elif rest := re.fullmatch(r"(GPU\d+) rest=(.*)", fact):
            printed = read.gpus[rest[1]]
            so = [cell for cell in (printed.cpus, printed.numa, printed.gpu_numa) if cell] == [
                word for word in rest[2].split() if word != "N/A"
            ]
        elif symmetric := re.fullmatch(r"gpu_matrix_symmetric=(\w+)", fact):
            so = all(read.cells[a, b] == read.cells[b, a] for a in read.gpus for b in read.gpus) == (
                symmetric[1] == "True"
            )
        elif pairs := re.fullmatch(r"gpu_pairs=(.*)", fact):
            count = Counter(read.cells[pair] for pair in itertools.combinations(read.gpus, 2))
            so = dict(count) == {kind: int(n) for kind, n in (part.split(":") for part in pairs[1].split("+"))}
        else:
            continue
        if not so:
            wrong.append(fact)
    return wrong


def test_every_sample_has_the_facts_of_its_index(samples):
    wrong, checked = {}, 0
    for name, (line, text) in samples.items():
        try:
            read = matrix.parse(text)
        except TopologyError:
            continue  # this sample was damaged when it was pasted: cells stick together
        assert seconds(matrix.parse, text, MOST) < MOST, name
        checked += 1
        if found := check(read, line):
            wrong[name] = found
    assert not wrong
    assert checked > 0.9 * len(samples)


def test_the_check_of_samples_finds_wrong_facts(samples):
    """The check above sees one wrong cell, one wrong list of CPUs and one wrong name."""
    line, text = samples["b206_nvidia_b200_8gpu_vllm20862.txt"]
    text = text.replace("NIC11CPU", "NIC11\tCPU")
    assert check(matrix.parse(text), line) == []
    assert check(matrix.parse(text.replace("NV18", "NV17")), line)
    assert check(matrix.parse(text.replace("0-27,112-139", "0-26,112-138")), line)
    assert check(matrix.parse(text.replace("mlx5_4\n", "mlx5_40\n")), line)


COPIED = ["spaces for tabs", "ends of lines lost", "Windows", "coloured"]


def same_or_refused(text: str, want: tuple, how: str) -> bool:
    """Whether the text was read. It must then have the facts `want`; only facts of affinities may be missing."""
    try:
        got = facts(matrix.parse(text))
    except TopologyError:
        return False
    assert got[:2] == want[:2], f"{how}: a wrong matrix from\n{text}"
    for label, device in got[3].items():  # without a legend a device has its column's name; a name that was cut passes
        assert device in (want[3][label], label) or text.rstrip().endswith(device), f"{how}: wrong NICs from\n{text}"
    return True


@given(st.integers(0, 1 << 40), st.sampled_from(sorted(SPOIL)), st.sampled_from(["", *COPIED]))
@settings(max_examples=150, deadline=None)
def test_damaged_samples_are_read_correctly_or_are_errors(samples, seed, first, second):
    rng = random.Random(seed)
    name = rng.choice(sorted(samples))
    try:
        want = facts(matrix.parse(samples[name][1]))
    except TopologyError:
        return
    text = SPOIL[first](samples[name][1], rng)
    if second:
        text = HARMLESS[second](text, rng)
    same_or_refused(text, want, f"{name}, {first}, {second}, seed {seed}")


@given(st.integers(0, 1 << 40), st.sampled_from(sorted(SPOIL)))
@settings(max_examples=100, deadline=None)
def test_damaged_matrices_are_read_correctly_or_are_errors(seed, how):
    rng = random.Random(seed)
    of = machine(rng)
    same_or_refused(SPOIL[how](printed(of), rng), wanted(of), f"{how}, seed {seed}")


@given(st.integers(0, 1 << 40), st.lists(st.sampled_from(sorted(HARMLESS)), max_size=2, unique=True))
@settings(max_examples=100, deadline=None)
def test_copying_a_text_changes_no_fact(seed, ways):
    rng = random.Random(seed)
    of = machine(rng)
    text = printed(of)
    for way in ways:
        text = HARMLESS[way](text, rng)
    assert facts(matrix.parse(text)) == wanted(of)


def test_other_outputs_around_the_matrix():
    """The matrix may stand beside a matrix of peer access, or of another machine with more NICs in its legend."""
    of = next(found for seed in range(99) if (found := machine(random.Random(seed))).gpus == 2 and not found.nics)
    other = next(found for seed in range(99) if "NIC0" in (found := machine(random.Random(seed))).nics)
    p2p = "\tGPU0\tGPU1\nGPU0\tX\tGNS\nGPU1\tGNS\tX\n\nLegend:\n\n  GNS  = GPU not supported\n"
    for text in (printed(of) + p2p, p2p + printed(of), printed(of) + printed(other)):
        assert facts(matrix.parse(text)) == wanted(of)
    with pytest.raises(TopologyError, match="topo -p2p"):
        matrix.parse(p2p)


def test_a_very_long_word_is_an_error():
    with pytest.raises(TopologyError):
        matrix.parse(f"\tGPU0\nGPU0\t{'X' * 10000}\n")


def test_empty_cells_under_wsl():
    of = machine(random.Random(3))
    of.headings = 3
    of.rest = [["0-15", "0", "N/A"] for _ in range(of.gpus)]
    for text in (printed(of, empty=True), printed(of, empty=True).expandtabs()):
        assert facts(matrix.parse(text)) == wanted(of, empty=True)


ONE = "\tGPU0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\nGPU0\t X \t{}\n"


@pytest.mark.parametrize(
    ("cells", "cpus", "numa", "own"),
    [
        ("0-71\t0\t\t1", "0-71", "0", "1"),  # Grace
        ("0,2,4,6,8,10\t0\t\tN/A", "0,2,4,6,8,10", "0", None),
        ("1-1\t0\t\tN/A", "1-1", "0", None),  # cgroup
        ("0\t\t\tN/A", "0", None, None),
        ("\t3\t\tN/A", None, "3", None),
        ("0-63\t\tN/A\t\tN/A", "0-63", None, None),  # a virtual machine
        ("0-251\t0-1\t\tN/A", "0-251", "0-1", None),
        ("\t\t\t2", None, None, "2"),
    ],
)
def test_affinities_are_found_by_tab_stops(cells, cpus, numa, own):
    read = matrix.parse(ONE.format(cells))
    assert read.gpus["GPU0"] == Printed(cpus, numa, own)
    spaces = ONE.format(cells).expandtabs()
    if len(cells.split()) == 3:
        assert facts(matrix.parse(spaces)) == facts(read)
    else:
        with pytest.raises(TopologyError, match="expected 3 cells after the links, got"):
            matrix.parse(spaces)


def test_a_cgroup_leaves_cpus_of_some_gpus_empty():
    """CPUs that the process may not use are not printed. The tabs show which cell is empty."""
    two = "\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\nGPU0\t X \tNV4\t0\t0\nGPU1\tNV4\t X \t\t1\n"
    three = two.replace("Affinity\n", "Affinity\tGPU NUMA ID\n").replace("\t0\n", "\t0\t\tN/A\n")
    three = three.replace("\t1\n", "\t1\t\tN/A\n")
    for text in (two, three):
        read = matrix.parse(text)
        assert read.gpus == {"GPU0": Printed("0", "0"), "GPU1": Printed(None, "1")}
    assert matrix.parse(two.replace("\t\t1\n", "\t\t\n")).gpus["GPU1"] == Printed()
    for text, what in (
        (two.replace("\t\t1\n", "\n"), "cut"),
        (two.expandtabs(), "expected 2 cells after the links, got 1"),
    ):
        with pytest.raises(TopologyError, match=what):
            matrix.parse(text)


def test_many_nics_are_read_quickly():
    of = Machine(8, {f"NIC{at}": f"mlx5_{at}" for at in range(64)}, rest=[["0-63,128-191", "0", "N/A"]] * 8)
    of.links = {(a, b): "NV18" if a[0] == b[0] == "G" else "SYS" for a in of.labels for b in of.labels if a != b}
    assert facts(matrix.parse(printed(of))) == wanted(of)
    assert seconds(matrix.parse, printed(of), MOST) < MOST


def test_old_drivers_and_odd_headings():
    old = "        GPU0    GPU1    mlx4_0  CPU Affinity\nGPU0     X      SOC     PHB     0-7\n"
    old += "GPU1    SOC      X      SOC     8-15\nmlx4_0  PHB     SOC      X\n"
    assert matrix.parse(old).cells["GPU0", "GPU1"] == "SOC"
    together = (
        "GPU0 GPU1 mlx5_0 CPU Affinity NUMA Affinity\nGPU0 X NV4 SYS 1-1 0\nGPU1 NV4 X PHB 2-2 0\nmlx5_0 SYS PHB X\n"
    )
    assert matrix.parse(together).nics == {"mlx5_0": "mlx5_0"}
    long = "\tGPU0\trocep177s0f0\tCPU Affinity\nGPU0\t X \tNODE\t0-7\nrocep177s0f0\tNODE\t X \t\n"
    assert matrix.parse(long).cells["GPU0", "rocep177s0f0"] == "NODE"


def test_cells_that_stick_together_are_an_error():
    for row in ("GPU0 X NV120-31", "GPU0 XNV12 0-31"):
        with pytest.raises(TopologyError, match=row):
            matrix.parse(f"GPU0 GPU1 CPU Affinity\n{row}\nGPU1 NV12 X 32-63\n")


WHOLE = printed(machine(random.Random(11)))
TWO = "\tGPU0\tGPU1\tCPU Affinity\n"


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", "got nothing"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "has failed"),
        ("x\nFailed to initialize NVML: Driver/library version mismatch\n", "version mismatch"),
        ("bash: nvidia-smi: command not found\n", "command not found"),
        ("The -i command line argument must be used in conjunction with -n or -p.", "in conjunction"),
        (TWO, "the end of the text"),
        (TWO + "GPU0\t X \tSYS\t0-7\n", "after the row of GPU0 comes 'the end of the text'"),
        (TWO + "GPU0\t X \tSYS\t0-7\nGPU1\tSYS\n", "GPU1 SYS"),
        (TWO + "GPU0\t X \tSYS\t0-7\nGPU1\tSY\t X \t0-7\n", "'SY' is not a link class"),
        (TWO + "GPU0\t X \t\t0-7\nGPU1\tSYS\t X \t0-7\n", "GPU0 X 0-7"),
        (TWO + "GPU0\tSYS\t X \t0-7\nGPU1\tSYS\t X \t0-7\n", "GPU0 SYS X 0-7"),
        (TWO + "GPU0\t X \tSYS\t7-0\nGPU1\tSYS\t X \t0-7\n", "7-0"),
        (TWO + "GPU0\t X \tSYS\t32-63,6-127\nGPU1\tSYS\t X \t0-7\n", "32-63,6-127"),
        (TWO + "GPU0\t X \tSYS\t0,2,48,10\nGPU1\tSYS\t X \t0-7\n", "0,2,48,10"),
        (TWO + "GPU0\t X \tSYS\t0-7\t0\nGPU1\tSYS\t X \t0-7\t0\n", "cells after the links, got 2"),
        ("\tGPU0\tGPU2\nGPU0\t X \tSYS\nGPU2\tSYS\t X \n", "without gaps"),
        ("GPU0\t X \tSYS\nGPU1\tSYS\t X \n", "is missing above 'GPU0"),
        ("\tGPU0\tGPU1\nGPU0\tX\tOK\nGPU1\tOK\tX\n", "topo -p2p"),
        (TWO + "GPU0\t X \tSYS\t0-15\nGPU1\tSYS\t X \t0-1", "was cut"),
        ("\tGPU0\tGPU1\nGPU0\t X \tNV12\nGPU1\tNV12\t X \nGPU2\tSYS\tSYS\n", "another row follows: 'GPU2"),
        ("\tNIC\tGPU0\tGPU1\nGPU0\tNV12\t X \nGPU1\t X \tNV1", "GPU0"),
        (WHOLE.replace("within a NUMA node", "wi"), "its legend is incomplete"),
    ],
)
def test_a_wrong_text_is_an_error_with_the_line(text, quoted):
    with pytest.raises(TopologyError) as refused:
        matrix.parse(text)
    assert quoted in str(refused.value)


def test_a_cut_number_of_nvlinks_is_an_error():
    text = "\tGPU0\tGPU1\nGPU0\t X \tNV{}\nGPU1\tNV12\t X \n"
    with pytest.raises(TopologyError, match="cut"):
        matrix.parse(text.format(1))
    assert matrix.parse(text.format(4)).cells["GPU0", "GPU1"] == "NV4"  # it is asymmetric, which is reported as a fault


def test_nothing_heavy_is_imported():
    code = "import sys, aristos.topology; print(*({'numpy', 'numba', 'mpi4py', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""

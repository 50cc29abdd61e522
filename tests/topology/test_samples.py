"""The readers find the facts in the outputs of real commands, which lie in tests/support/samples/."""

from __future__ import annotations

from pathlib import Path

import pytest

from aristos.errors import TopologyError
from aristos.topology import matrix, slurm_job, slurm_network, smi_node

SAMPLES = Path(__file__).parents[1] / "support" / "samples"


def text(name: str) -> str:
    return (SAMPLES / name).read_text()


def kinds(name: str, *pairs: str) -> list[str]:
    """The link of each pair, as GPU0-GPU1, in a sample of `nvidia-smi topo -m`."""
    read = matrix.parse(text(name))
    return [read.cells[tuple(pair.split("-"))] for pair in pairs]  # type: ignore[index]


def test_matrices_of_gpus():
    assert kinds("topo_v100_pcie.txt", "GPU0-GPU3", "GPU3-GPU1") == ["SYS", "NODE"]
    assert kinds("topo_a100_nics.txt", "GPU0-GPU1", "GPU1-GPU2", "mlx5_0-mlx5_1") == ["NV3", "SYS", "PIX"]
    assert kinds("topo_gb200.txt", "GPU0-GPU3") == ["NV18"]
    read = matrix.parse(text("topo_a100_nics.txt"))
    assert (len(read.gpus), len(read.nics), read.gpus["GPU3"].cpus, read.gpus["GPU3"].numa) == (4, 4, "64-127", "8")


def test_networks_of_slurm():
    tree, blocks = (slurm_network.parse(text(f"scontrol_{kind}.txt")) for kind in ("tree", "block"))
    assert (tree.kind, len(tree.nodes), blocks.kind, len(blocks.nodes)) == ("tree", 16, "block", 16)
    assert [tree.distance("nid001000", f"nid00100{n}") for n in (3, 8)] == [1, 3]
    assert [blocks.distance("nid001000", f"nid00100{n}") for n in (3, 4, 8)] == [1, 3, 5]


@pytest.mark.parametrize(
    ("name", "nodes", "tasks"),
    [
        ("job_4_nodes.env", ["nid001033", "nid001644", "nid003837", "nid003840"], (4, 4, 4, 4)),
        ("job_het.env", ["nid00001", "nid00011", "nid00012"], None),
        ("job_address.env", ["cn-0256"], None),
    ],
)
def test_jobs_of_slurm(name, nodes, tasks):
    job = slurm_job.read(dict(line.split("=", 1) for line in text(name).splitlines()))
    assert job is not None
    assert (list(job.nodes), job.tasks) == (nodes, tasks)
    if name == "job_address.env":
        assert job.address is not None
        assert slurm_network.from_addresses([job.address]).nodes == {"cn-0256"}


@pytest.mark.parametrize(
    ("name", "read"), [("error_no_driver.txt", smi_node.read), ("scontrol_unknown_node.txt", slurm_network.parse)]
)
def test_an_error_of_a_command_is_no_topology(name, read):
    with pytest.raises(TopologyError):
        read(text(name))

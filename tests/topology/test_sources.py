"""nvidia-smi's other commands, NVML, sysfs, CUDA_VISIBLE_DEVICES, faults, and all of them together in `discover`."""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fake_nvml import PEER, SWITCH, FakeGpu, Library

from aristos.cli import topo
from aristos.errors import TopologyError
from aristos.topology import (
    cpusets,
    discover,
    faults,
    from_text,
    join,
    nvml,
    pci,
    smi_node,
    sysfs,
)
from aristos.topology.commands import CommandOutput
from aristos.topology.discover import node_here
from aristos.topology.model import Fault, Gpu, Link, Mig, Node, Wires
from aristos.topology.slurm_job import SlurmJob
from aristos.topology.visible import visible


def test_links_are_ordered_from_fast_to_slow():
    texts = ["X", "NV18", "NV4", "NV1", "PIX", "PXB", "PHB", "NODE", "SYS", "NET1", "NET3"]
    links = [Link.parse(text) for text in texts]
    assert sorted(links, key=lambda link: link.rank) == links
    assert [str(link) for link in links[1:]] == texts[1:]
    assert (Link.parse("SOC"), str(Link.parse("SOC"))) == (Link("SYS"), "SOC")
    for text in ("", "NV", "NV0", "PIXX", "N/A", "OK"):
        with pytest.raises(ValueError, match="a link must be"):
            Link.parse(text)


def test_lists_of_cpus():
    assert cpusets.parse("0-3,8,10-11") == {0, 1, 2, 3, 8, 10, 11}
    assert cpusets.show({11, 0, 1, 2, 3, 8, 10}) == "0-3,8,10-11"
    assert cpusets.parse("") == frozenset()
    for text in ("3-1", "a", "1-", "-1"):
        with pytest.raises(ValueError, match=r"CPUs|invalid"):
            cpusets.parse(text)


def wires(*ups: tuple[bool, ...], name: str = "NVIDIA H100 80GB HBM3") -> list[str]:
    """The faults reported for GPUs with these NVLinks."""
    return [fault.text for fault in faults.dark([Wires(at, name, up) for at, up in enumerate(ups)])]


def test_nvlinks_and_which_are_inactive():
    assert wires((True, False, True)) == ["GPU0: NVLink 1 inactive, 2 of 3 active"]
    assert wires((False, False)) == ["GPU0 (NVIDIA H100 80GB HBM3): all NVLinks are inactive"]
    assert wires((False, False), name="NVIDIA A100-PCIE-40GB") == []  # a GPU without a bridge
    assert wires((), (True, True)) == ["GPU0 shows fewer NVLinks than another NVIDIA H100 80GB HBM3: 0, not 2"]
    assert wires((True,) * 3, (True,)) == ["GPU1 shows fewer NVLinks than another NVIDIA H100 80GB HBM3: 1, not 3"]


def test_addresses_of_devices_as_sysfs_names_them():
    assert nvml.bus_id("00000000:1B:00.0") == "0000:1b:00.0"
    assert nvml.bus_id("00010000:01:00.0") == "10000:01:00.0"
    assert nvml.bus_id("1B:00") is None


def test_other_outputs_are_no_matrix(shared_dir):
    samples = shared_dir / "samples"
    for folder in ("errors", "p2p", "nvlink", "list_L", "query_gpu"):
        for file in (samples / folder).iterdir():
            with pytest.raises(TopologyError):
                smi_node.read(file.read_text())


def square(rows: str) -> str:
    """A matrix from words; each line is a GPU's row."""
    cells = [line.split() for line in rows.strip().split("\n")]
    heading = "\t" + "\t".join(f"GPU{at}" for at in range(len(cells)))
    return "\n".join([heading, *("\t".join([f"GPU{at}", *row]) for at, row in enumerate(cells))]) + "\n"


def found(rows: str) -> list[str]:
    return [fault.text for fault in smi_node.read(square(rows))[1]]


def test_an_asymmetric_matrix_counts_as_the_worse_direction():
    node, seen = smi_node.read(square("X NV6 NV6\nNV6 X NV6\nSYS SYS X"))
    assert node.links["GPU0", "GPU2"] == node.links["GPU2", "GPU0"] == Link("SYS")
    assert node.links["GPU0", "GPU1"] == Link("NV", 6)
    texts = [fault.text for fault in seen]
    assert texts[0].startswith("asymmetric: GPU0 to GPU2 is NV6, GPU2 to GPU0 is SYS; both count as SYS")
    assert any("GPU2 has no NVLink" in text for text in texts)
    assert all(fault.remedy for fault in seen)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("X NV18 NODE NODE\nNV18 X NODE NODE\nNODE NODE X NV17\nNODE NODE NV17 X", ["GPU2 and GPU3 share 17"]),
        ("X NV4 NV4\nNV4 X NV4\nNV4 NV4 X", []),
        ("X NV4 SYS SYS\nNV4 X SYS SYS\nSYS SYS X SYS\nSYS SYS SYS X", []),  # one bridge for four GPUs
        ("X NV1 NV1 NV2\nNV1 X NV2 NV1\nNV1 NV2 X NV2\nNV2 NV1 NV2 X", []),  # half a cube mesh
        ("X NV4 SYS\nNV4 X SYS\nSYS SYS X", []),  # one bridge for three
        ("X NV6 SYS\nNV6 X SYS\nSYS SYS X", ["GPU2 has no NVLink, but all other GPUs have 6 to each other"]),
        ("X SYS\nSYS X", []),
    ],
)
def test_pairs_with_fewer_nvlinks(rows, said):
    assert [text.split(" NVLinks")[0] for text in found(rows)] == said


def cube(spoil: bool) -> str:
    """Eight V100s. Each has six links, and a pair has none, one or two."""
    pairs = {
        (0, 1): 1,
        (0, 2): 2,
        (0, 3): 1,
        (0, 7): 2,
        (1, 2): 1,
        (1, 3): 2,
        (1, 6): 2,
        (2, 3): 2,
        (2, 5): 1,
        (3, 4): 1,
    }
    pairs |= {(4, 5): 2, (4, 6): 2, (4, 7): 1, (5, 6): 1, (5, 7): 2, (6, 7): 1}
    if spoil:
        pairs[0, 7] = 1
    count = [[pairs.get((min(a, b), max(a, b)), 0) for b in range(8)] for a in range(8)]
    return "\n".join(
        " ".join("X" if a == b else f"NV{count[a][b]}" if count[a][b] else "SYS" for b in range(8)) for a in range(8)
    )


def test_a_cube_mesh_is_no_fault_but_a_lost_link_in_it_is():
    assert found(cube(False)) == []
    assert [text.split(" has")[0] for text in found(cube(True))] == ["GPU0", "GPU7"]


def test_a_pair_without_a_known_link_shares_no_nvlinks():
    bond = Link("NV", 6)
    known = {("GPU0", "GPU1"): bond, ("GPU1", "GPU0"): bond}
    assert [fault.text for fault in faults.fewer(["GPU0", "GPU1", "GPU2", "GPU3"], known)] == []


def test_lists_of_cpus_that_were_cut():
    text = "\tGPU0\tCPU Affinity\nGPU0\t X \t{}\n"
    (fault,) = smi_node.read(text.format("0,2,4,6,8,10"))[1]
    assert "cuts" in fault.text
    assert "local_cpulist" in fault.remedy
    assert smi_node.read(text.format("0-31,64-95"))[1] == []


GPUS = (
    Gpu(0, "A100", "GPU-aaaa1111", "0000:01:00.0"),
    Gpu(1, "A100", "GPU-aaaa2222", "0000:41:00.0", mig=(Mig(0, "MIG-x1", "1g"), Mig(1, "MIG-x2", "1g"))),
    Gpu(2, "A100", "GPU-bbbb3333", "0000:81:00.0"),
)


@pytest.mark.parametrize(
    ("value", "wanted", "faulty"),
    [
        (None, ["GPU-aaaa1111", "MIG-x1", "GPU-bbbb3333"], False),
        ("2,0", ["GPU-bbbb3333", "GPU-aaaa1111"], False),
        ("GPU-bbbb, GPU-aaaa1", ["GPU-bbbb3333", "GPU-aaaa1111"], False),
        ("MIG-x2", ["MIG-x2"], False),
        ("1", ["MIG-x1"], False),
        ("", [], False),
        ("-1", [], False),
        ("NoDevFiles", [], False),
        ("0,7,2", ["GPU-aaaa1111"], True),
        ("GPU-aaaa", [], True),
        ("GPU-cccc", [], True),
        ("0,0", [], True),
        ("MIG-y", [], True),
        ("gpu0", [], True),
        ("\u00b2", [], True),
        ("9" * 5000, [], True),
        ("0,-1,2", ["GPU-aaaa1111"], True),
        ("0,", ["GPU-aaaa1111"], True),
    ],
)
def test_visible_devices_by_number_uuid_and_mig(value, wanted, faulty):
    seen, said = visible({} if value is None else {"CUDA_VISIBLE_DEVICES": value}, GPUS)
    assert [each.mig.uuid if each.mig else each.device.uuid for each in seen] == wanted
    assert bool(said) == faulty


def test_numbers_are_nvmls_at_any_position():
    """Numbers are positions in NVML's list. In a cgroup that shows only GPU3, number 0 is GPU3; without a cgroup number
    5 is the sixth GPU."""
    lone = (Gpu(0, "A100", "GPU-three", "0000:81:00.0"),)
    assert visible({"CUDA_VISIBLE_DEVICES": "0"}, lone)[0][0].device.pci == "0000:81:00.0"
    eight = tuple(Gpu(at, "A100", f"GPU-{at}") for at in range(8))
    assert visible({"CUDA_VISIBLE_DEVICES": "5"}, eight)[0][0].device.uuid == "GPU-5"
    gap = (Gpu(0, "A100", "GPU-0"), Gpu(2, "A100", "GPU-2"))  # number 1 has fallen off the bus
    assert [seen.device.uuid for seen in visible({"CUDA_VISIBLE_DEVICES": "2,0"}, gap)[0]] == ["GPU-2", "GPU-0"]
    assert visible({"CUDA_VISIBLE_DEVICES": "1"}, gap)[0] == ()
    unlike = (Gpu(0, "T4", "GPU-t"), Gpu(1, "A100", "GPU-a"))
    (fault,) = visible({"CUDA_VISIBLE_DEVICES": "0"}, unlike)[1]
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in fault.remedy
    assert visible({"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, unlike)[1] == []


def test_gpus_that_a_cgroup_hides():
    job = SlurmJob(("n1",), (4,), ("n1",), ("0", "1", "2", "3"), "--gpus-per-task", None)
    bus = ("0000:01:00.0", "0000:41:00.0", "0000:81:00.0", "0000:c1:00.0")
    (fault,) = faults.hidden(job, GPUS[:1], bus)
    assert "4 GPUs on this node, but this process sees 1" in fault.text
    assert "0000:41:00.0" in fault.text
    assert "--gpu-bind=none" in fault.remedy
    alone = SlurmJob(("n1",), (1,), ("n1",), ("3",), "", None)
    assert faults.hidden(alone, GPUS[:1], bus) == []
    assert faults.hidden(None, GPUS[:1], bus) == []
    slices = SlurmJob(("n1",), (2,), ("n1",), ("0", "1"), "", None)  # MIG slices of one GPU
    assert faults.hidden(slices, GPUS[1:2], bus) == []


def test_nvml_structures_have_the_librarys_sizes():
    assert ctypes.sizeof(nvml.PciInfo) == 68
    assert ctypes.sizeof(nvml.NvmlMemory) == 24
    assert ctypes.sizeof(nvml.Fabric) == 28


def switched(count: int, links: int) -> list[FakeGpu]:
    return [
        FakeGpu(
            "NVIDIA H100 80GB HBM3", f"GPU-{at}", f"0000:{at + 1:02x}:00.0", nvlinks=[(SWITCH, "0000:f0:00.0")] * links
        )
        for at in range(count)
    ]


def test_nvml_counts_nvlinks_through_switches_and_between_peers():
    gpus = switched(3, 18)
    gpus[2].nvlinks[5] = None
    library = Library(gpus, {})
    devices, links, wires, states = nvml.read(library)
    assert library.open == 0
    assert [d.nvlinks for d in devices] == [18, 18, 17]
    assert (links["GPU0", "GPU1"], links["GPU2", "GPU0"]) == (Link("NV", 18), Link("NV", 17))
    assert states == {}
    assert [fault.text for fault in faults.dark(wires)] == ["GPU2: NVLink 5 inactive, 17 of 18 active"]
    bridged = [
        FakeGpu("A6000", "GPU-0", "0000:01:00.0", nvlinks=[(PEER, "0000:02:00.0")] * 4),
        FakeGpu("A6000", "GPU-1", "0000:02:00.0", nvlinks=[(PEER, "0000:01:00.0")] * 4),
        FakeGpu("A6000", "GPU-2", "0000:03:00.0"),
    ]
    devices, links, *_ = nvml.read(Library(bridged, {(0, 2): 20, (1, 2): 40}))
    assert links["GPU0", "GPU1"] == Link("NV", 4)
    assert (links["GPU0", "GPU2"], links["GPU1", "GPU2"]) == (Link("PXB"), Link("NODE"))
    assert [d.pci for d in devices] == ["0000:01:00.0", "0000:02:00.0", "0000:03:00.0"]


def test_a_fabric_that_is_not_ready_is_a_fault(root):
    """All links are up, but no peer reaches the GPU. Only the state of the fabric shows this."""
    gpus = switched(3, 18)
    gpus[0].fabric, gpus[1].fabric, gpus[2].fabric = (3, 0), (3, 19), (2, 0)
    _, seen = node_here("host", root, smi(), lambda: Library(gpus, {}))
    assert [fault.text for fault in seen] == [
        "GPU1: the NVLink fabric is not ready (Completed, NVML error 19)",
        "GPU2: the NVLink fabric is not ready (In Progress, Success)",
    ]


def test_nvml_sees_mig_and_grace_and_a_driver_that_does_not_answer():
    gpus = [
        FakeGpu("NVIDIA GH200 480GB", "GPU-0", "0009:01:00.0", numa=1),
        FakeGpu("A100", "GPU-1", "0000:02:00.0", mig=[("A100 MIG 1g.10gb", "MIG-1"), ("A100 MIG 2g.20gb", "MIG-2")]),
    ]
    devices, *_ = nvml.read(Library(gpus, {}))
    assert (devices[0].gpu_numa, devices[1].gpu_numa) == (1, None)
    assert devices[1].mig == (Mig(0, "MIG-1", "1g.10gb"), Mig(1, "MIG-2", "2g.20gb"))
    assert devices[0].memory == 80 << 30
    assert nvml.read(Library(gpus, {}, works=False)) is None


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine's /sys: two domains of two cores with two threads each, a third for a GPU's memory, GPUs and NICs."""
    at = tmp_path / "sys"
    write(at / "devices/system/cpu/online", "0-7")
    for cpu in range(8):
        core = cpu % 4
        write(at / f"devices/system/cpu/cpu{cpu}/topology/core_cpus_list", f"{core},{core + 4}")
        for index, (level, kind, size, shared) in enumerate(
            [
                (1, "Data", "48K", f"{core},{core + 4}"),
                (1, "Instruction", "32K", f"{core},{core + 4}"),
                (3, "Unified", "36M", "0-1,4-5" if core < 2 else "2-3,6-7"),
            ]
        ):
            cache = at / f"devices/system/cpu/cpu{cpu}/cache/index{index}"
            for name, value in (("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)):
                write(cache / name, str(value))
    for domain, cpus, size, distance in (
        (0, "0-1,4-5", 64, "10 21 40"),
        (1, "2-3,6-7", 64, "21 10 41"),
        (2, "", 96, "40 41 10"),
    ):
        folder = at / f"devices/system/node/node{domain}"
        write(folder / "cpulist", cpus)
        write(folder / "meminfo", f"Node {domain} MemTotal:       {size << 20} kB")
        write(folder / "distance", distance)
    for address, where, numa, cpus in (
        ("0000:03:00.0", "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0", 0, "0-1,4-5"),
        ("0000:04:00.0", "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:01.0", 0, "0-1,4-5"),
        ("0000:08:00.0", "pci0000:00/0000:00:03.0", 0, "0-1,4-5"),
        ("0000:43:00.0", "pci0000:40/0000:40:01.0", 1, "2-3,6-7"),
        ("0000:05:00.0", "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:02.0", 0, "0-1,4-5"),
        ("0000:05:00.1", "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:02.0", 0, "0-1,4-5"),
    ):
        device = at / "devices" / where / address
        nic = address.startswith("0000:05")
        for name, value in (
            ("vendor", "0x15b3" if nic else "0x10de"),
            ("class", "0x020700" if nic else "0x030200"),
            ("numa_node", str(numa)),
            ("local_cpulist", cpus),
        ):
            write(device / name, value)
        bus = at / "bus/pci/devices"
        bus.mkdir(parents=True, exist_ok=True)
        (bus / address).symlink_to(device)
        if nic:
            adapter = at / "class/infiniband" / f"mlx5_{address[-1]}"
            adapter.mkdir(parents=True)
            (adapter / "device").symlink_to(device)
    return tmp_path


def test_the_kernels_view_of_the_machine(root):
    node = sysfs.node("host", root / "sys", allowed=frozenset({0, 1, 4, 5}))
    assert [(n.index, cpusets.show(n.cpus), n.memory >> 30) for n in node.numa] == [
        (0, "0-1,4-5", 64),
        (1, "2-3,6-7", 64),
        (2, "", 96),
    ]
    assert node.numa[1].distance == {0: 21, 1: 10, 2: 41}
    assert [cpusets.show(core) for core in node.cores] == ["0,4", "1,5", "2,6", "3,7"]
    assert [(c.level, c.size >> 10) for c in node.caches] == [(1, 48)] * 4 + [(3, 36 << 10)] * 2
    assert node.domain({0, 5}) == 0
    assert node.domain({0, 2}) is None
    assert [str(node.cpu_link({0}, other)) for other in ({0}, {1, 4}, {2})] == ["NODE", "NODE", "SYS"]
    assert str(replace(node, numa=()).cpu_link({0}, {2})) == "NODE", "domains are unknown"


def test_this_machine_agrees_with_the_operating_system():
    topology = discover(network=False)
    node = topology.nodes[topology.here]
    assert node.allowed == os.sched_getaffinity(0)
    assert node.allowed <= node.cpus
    assert frozenset().union(*node.cores) == node.cpus
    assert frozenset().union(*(n.cpus for n in node.numa)) >= node.cpus
    assert abs(node.memory - os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) < 1 << 26
    assert pickle.loads(pickle.dumps(topology)) == topology


def test_pci_devices_by_the_bridges_between_them(root):
    def link(a: str, b: str) -> str:
        return str(pci.link(root, f"0000:{a}", f"0000:{b}"))

    assert link("03:00.0", "04:00.0") == "PIX"  # two ports of a switch
    assert link("05:00.0", "05:00.1") == "PIX"  # two functions of an adapter
    assert link("03:00.0", "08:00.0") == "PHB"
    assert link("03:00.0", "43:00.0") == "SYS"
    assert pci.link(root, "0000:03:00.0", "0000:99:00.0") is None
    assert pci.gpus(root) == ("0000:03:00.0", "0000:04:00.0", "0000:08:00.0", "0000:43:00.0")
    assert [(nic.label, nic.name, nic.numa) for nic in pci.nics(root)] == [("NIC0", "mlx5_0", 0), ("NIC1", "mlx5_1", 0)]


MATRIX = "\tGPU0\tGPU1\tNIC0\tCPU Affinity\tNUMA Affinity\nGPU0\t X \tSYS\tPIX\t0\t0\nGPU1\tSYS\t X \tSYS\t2\t1\n"
MATRIX += "NIC0\tPIX\tSYS\t X \t\t\n\nNIC Legend:\n\n  NIC0: mlx5_0\n"


def smi(matrix: str | None = MATRIX):
    """nvidia-smi of a machine with two GPUs."""
    return lambda words: CommandOutput(matrix) if words[:2] == ("nvidia-smi", "topo") and matrix is not None else None


def test_without_nvml_the_matrix_has_the_gpus(root):
    node, seen = node_here("host", root, smi(), lambda: None)
    assert [(cpusets.show(d.cpus), d.cpus_from, d.numa) for d in node.devices] == [
        ("0", "nvidia-smi", 0),
        ("2", "nvidia-smi", 1),
    ]
    assert (node.nics[0].name, node.nics[0].pci) == ("mlx5_0", "0000:05:00.0")
    assert node.link("GPU0", "NIC0") == Link("PIX")
    assert [nic.name for nic in node.nics_by_distance("GPU0")] == ["mlx5_0"]
    assert seen == []


def test_nvml_is_preferred_and_sysfs_adds_the_rest(root):
    gpus = [FakeGpu("A100", "GPU-0", "0000:03:00.0"), FakeGpu("A100", "GPU-1", "0000:43:00.0")]
    node, seen = node_here("host", root, smi(None), lambda: Library(gpus, {(0, 1): 50}))
    assert node.link("GPU0", "GPU1") == Link("SYS")
    assert (node.link("GPU0", "NIC1"), node.link("GPU1", "NIC0")) == (Link("PIX"), Link("SYS"))
    assert cpusets.show(node.devices[1].cpus) == "2-3,6-7"
    assert [nic.name for nic in node.nics_by_distance("GPU1")] == ["mlx5_0", "mlx5_1"]
    assert seen == []


def test_a_driver_that_fails_is_a_fault_of_the_machine(root):
    broken = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    node, (fault,) = node_here("host", root, smi(broken), lambda: None)
    assert "has failed" in fault.text
    assert node.devices == ()
    assert len(node.cpus) == 8
    node, (fault,) = node_here("host", root, lambda words: None, lambda: None)
    assert "NVIDIA GPUs on the PCI bus: 4, but neither" in fault.text


def test_the_nodes_of_a_job_and_of_ranks(root):
    env = {"SLURM_JOB_NODELIST": "n[1-3]", "SLURM_TASKS_PER_NODE": "2,1(x2)", "SLURMD_NODENAME": "n2"}
    env |= {"SLURM_TOPOLOGY_ADDR": "top.leaf.n2", "SLURM_TOPOLOGY_ADDR_PATTERN": "switch.switch.node"}
    silent = {"root": root, "ask": lambda words: None, "library": lambda: None}
    topology = discover(env=env, **silent)
    assert [(node.name, node.tasks, node.complete) for node in topology.nodes] == [
        ("n1", 2, False),
        ("n2", 1, True),
        ("n3", 1, False),
    ]
    assert topology.here == 1
    assert topology.network.nodes == {"n2"}
    write(
        root / "etc/slurm/topology.conf", "SwitchName=a Nodes=n[1-2]\nSwitchName=b Nodes=n3\nSwitchName=c Switches=a,b"
    )
    topology = discover(env=env, **silent)
    assert [str(topology.between(1, at)) for at in range(3)] == ["NET1", "self", "NET3"]
    ranks = discover(["x", "y", "y"], env={"SLURMD_NODENAME": "y"}, **silent)
    assert ([node.name for node in ranks.nodes], ranks.ranks, ranks.here) == (["x", "y"], (0, 1, 1), 1)
    assert [node.tasks for node in ranks.nodes] == [1, 2]
    assert ranks.node("y.cluster.org").name == "y"
    with pytest.raises(KeyError, match="no node"):
        ranks.node("z")


def test_scontrol_is_preferred_to_files(root):
    env = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURMD_NODENAME": "n1"}
    write(root / "etc/slurm/topology.conf", "SwitchName=a Nodes=n[1-2]")

    def ask(text: str, ok: bool = True):
        answer = CommandOutput(text)
        answer.ok = ok
        return lambda words: answer if words[0] == "scontrol" else None

    two = "SwitchName=l1 Level=0 LinkSpeed=1 Nodes=n1\nSwitchName=l2 Level=0 LinkSpeed=1 Nodes=n2\n"
    two += "SwitchName=s Level=1 LinkSpeed=1 Nodes=n[1-2] Switches=l[1-2]\n"
    common = {"root": root, "library": lambda: None, "env": env}
    assert discover(ask=ask(two), **common).between(0, 1) == Link("NET", 3)
    assert discover(ask=ask("slurm_load_topo error", ok=False), **common).between(0, 1) == Link("NET", 1)
    assert discover(ask=ask(two), network=False, **common).network.kind == "unknown"


def test_topologies_of_ranks_are_joined():
    def part(name: str, allowed: int, gpus: int):
        node = Node(name, tuple(Gpu(at, "A100") for at in range(gpus)), allowed=frozenset({allowed}), complete=True)
        topology = from_text(None, "SwitchName=l Nodes=a,b\n")
        nodes = (Node("a"), Node("b"))
        here = ["a", "b"].index(name)
        return type(topology)((*nodes[:here], node, *nodes[here + 1 :]), topology.network, (Fault("f", "r"),), here)

    whole = join([part("a", 0, 2), part("a", 1, 2), part("b", 0, 1)])
    assert whole.ranks == (0, 0, 1)
    assert [(sorted(node.allowed), node.tasks) for node in whole.nodes] == [([0, 1], 2), ([0], 1)]
    assert whole.between(0, 1) == Link("NET", 1)
    assert [str(fault) for fault in whole.faults][:2] == ["a: f: r", "b: f: r"]
    assert "GPUs differ (a: 2 x A100; b: 1 x A100)" in str(whole.faults[2])


def run(*words: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "aristos", "topo", *map(str, words)]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=60)


def test_the_command_prints_json_alone():
    text = "\tGPU0\tGPU1\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\n"
    text += "GPU0\t X \tNV12\tPIX\t0-31\t0-1\t\tN/A\nGPU1\tNV12\t X \tSYS\t\t\t\t2\nNIC0\tPIX\tSYS\t X \t\t\t\t\n"
    text += "\nLegend:\n\nNIC Legend:\n\n  NIC0: mlx5_bond_0\n"
    done = run("--nvidia-smi", "-", "--json", stdin=text.encode())
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout) == {
        "gpus": [
            {"name": "GPU0", "numa": "0-1", "cpus": "0-31", "gpu_numa": None},
            {"name": "GPU1", "numa": None, "cpus": None, "gpu_numa": "2"},
        ],
        "nics": [{"name": "NIC0", "device": "mlx5_bond_0"}],
        "links": {
            "GPU0": {"GPU1": "NV12", "NIC0": "PIX"},
            "GPU1": {"GPU0": "NV12", "NIC0": "SYS"},
            "NIC0": {"GPU0": "PIX", "GPU1": "SYS"},
        },
        "faults": [],
    }


def test_the_commands_exit_codes(tmp_path, capsys):
    bad, good = tmp_path / "bad", tmp_path / "good"
    bad.write_text("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n")
    good.write_text(square("X NV4\nNV4 X"))
    assert topo.main(["--nvidia-smi", str(bad), "--json"]) == 3
    said = capsys.readouterr()
    assert (said.out, "has failed" in said.err) == ("", True)
    assert topo.main(["--nvidia-smi", str(tmp_path / "none")]) == 3
    assert topo.main(["--slurm-topology", str(good)]) == 3
    assert topo.main(["--nvidia-smi", str(good), "--plot", str(tmp_path / "x.gif")]) == 3
    capsys.readouterr()
    assert topo.main(["--nvidia-smi", str(good)]) == 0
    assert "GPU1  NV4   X" in capsys.readouterr().out
    with pytest.raises(SystemExit) as usage:
        topo.main(["--no-such-option"])
    assert usage.value.code == 2


def test_texts_from_windows(tmp_path, capsys):
    for code in ("utf-16", "utf-8-sig"):
        (tmp_path / code).write_bytes(square("X NV4\nNV4 X").replace("\n", "\r\n").encode(code))
        assert topo.main(["--nvidia-smi", str(tmp_path / code), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["links"]["GPU0"] == {"GPU1": "NV4"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nvidia-smi", ""], "--nvidia-smi: must be a name, got ''"),  # an empty name is not taken for this machine
        (["--slurm-topology", "", "--json"], "--slurm-topology: must be a name, got ''"),
        (["--plot", ""], "--plot: must be a name, got ''"),
        (["--nvidia-smi", "-", "--slurm-topology", "-"], "only one file can be stdin"),
        (["--again"], "--measure"),
        (["--measure", "--plot", "x.png"], "--measure"),
    ],
)
def test_wrong_use(words, said, capsys):
    with pytest.raises(SystemExit) as usage:
        topo.main(words)
    printed = capsys.readouterr()
    assert (usage.value.code, printed.out) == (2, "")
    assert said in printed.err


def test_a_closed_stdin_and_a_closed_pipe(tmp_path):
    file = tmp_path / "text"
    file.write_text(square(cube(False)))
    command = f"{sys.executable} -m aristos topo --nvidia-smi"
    for line, code, said in (
        (f"{command} - --json <&-", 3, b"stdin, which is closed"),
        (f"{command} <(echo GPU0) --json", 3, b"is a pipe: give - in its place"),
        (f"set -o pipefail; {command} {file} --json | true", 141, b""),
    ):
        done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=60)
        assert (done.returncode, done.stdout, said in done.stderr) == (code, b"", True)
        assert said or done.stderr == b""


def test_an_address_that_cannot_be_read_is_a_fault(root):
    env = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n1", "SLURM_TOPOLOGY_ADDR": "leaf[1-.n1"}
    found = discover(env=env, root=root, ask=lambda words: None, library=lambda: None)
    assert any("SLURM_TOPOLOGY_ADDR" in fault.text for fault in found.faults)


def test_the_command_on_this_machine(capsys):
    assert topo.main(["--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {"gpus", "nics", "links", "faults", "node"} <= set(said)
    assert cpusets.parse(said["node"]["allowed"]) == os.sched_getaffinity(0)


def test_pictures(tmp_path, root):
    pytest.importorskip("matplotlib")
    from aristos.topology.drawing import draw

    draw(from_text(square(cube(True)), "SwitchName=a Nodes=n[1-2]\n"), tmp_path / "all.svg")
    text = (tmp_path / "all.svg").read_text()
    assert all(f"<!-- {word} -->" in text for word in ("GPU0", "NV2", "SYS", "n[1-2]", "network: tree, 2 nodes"))
    assert "<!-- fault: GPU0 has" in text
    for name, node in (("cpu.png", sysfs.node("host", root / "sys")), ("nothing.pdf", Node(""))):
        draw(type(from_text(square("X"), None))((node,)), tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


def test_a_picture_replaces_nothing_but_a_regular_file(tmp_path, capsys):
    """A writer of a pipe would wait for its reader."""
    pytest.importorskip("matplotlib")
    text, pipe = tmp_path / "text", tmp_path / "pipe.png"
    text.write_text(square("X"))
    os.mkfifo(pipe)
    held = os.open(pipe, os.O_RDWR)
    for path, why in (
        (pipe, "must be a regular file, but it is a pipe"),
        (tmp_path / "no/x.png", "No such file or dir"),
    ):
        assert topo.main(["--nvidia-smi", str(text), "--plot", str(path)]) == 3
        assert capsys.readouterr().err.startswith(f"aristos topo: {path} cannot be drawn: {why}")
    os.close(held)


def test_nvml_reports_clocks_and_power_limit():
    """The clocks are those of the GPU with the given UUID. Values that the driver does not report are left out."""
    library = Library([FakeGpu("A", "GPU-a", ":01:00.0"), FakeGpu("B", "GPU-b", ":02:00.0")], {})
    found = {"driver_version": "580.95.05", "sm_clock_mhz": 200001, "memory_clock_mhz": 200002, "power_limit_w": 700.0}
    assert nvml.state(library, "GPU-b") == found
    assert nvml.state(library, "GPU-c") == {}
    assert nvml.state(Library([], {}, works=False), "GPU-b") == {}
    assert library.open == 0

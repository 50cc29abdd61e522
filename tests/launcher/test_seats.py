"""`aristos run`: the seats of ranks beside their devices and in their domains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from aristos.launcher import take_seat, this_node
from aristos.launcher.seats import Seat, default_ranks, seats, table
from aristos.topology import Gpu, Link, Mig, Nic, Node, Numa, cpusets
from aristos.topology.visible import VisibleDevice

ROOT = Path(__file__).resolve().parents[2]


def node(domains: int, cores: int, threads: int = 1, allowed: str = "", **more: object) -> Node:
    """A node of `domains` NUMA domains of `cores` cores. Second hardware threads are numbered after all first ones."""
    whole = domains * cores
    sets = [frozenset(c + t * whole for t in range(threads)) for c in range(whole)]
    numa = tuple(Numa(d, frozenset().union(*sets[d * cores : (d + 1) * cores])) for d in range(domains))
    cpus = frozenset().union(*sets)
    usable = cpusets.parse(allowed) if allowed else cpus
    return Node("n", numa=numa, cores=tuple(sets), cpus=cpus, allowed=usable, complete=True, **more)


def perlmutter() -> Node:
    """NERSC's GPU node as its documentation shows it: 64 cores in 4 domains, GPU 0 in the last one, a NIC in each."""
    base = node(4, 16, threads=2)
    devices = tuple(
        Gpu(g, "A100", numa=3 - g, cpus=base.numa[3 - g].cpus, cpus_from="sysfs", pci=f"0000:{g}") for g in range(4)
    )
    nics = tuple(Nic(f"NIC{i}", f"hsn{i}", numa=i) for i in range(4))
    links = {}
    for g in range(4):
        for i in range(4):
            link = Link("PHB" if i == 3 - g else "SYS")
            links[f"GPU{g}", f"NIC{i}"] = links[f"NIC{i}", f"GPU{g}"] = link
    return replace(base, devices=devices, nics=nics, links=links)


def shown(found: list[Seat]) -> list[str]:
    return [cpusets.show(seat.cpus) for seat in found]


def seen(where: Node) -> tuple[VisibleDevice, ...]:
    return this_node.usable(where.devices, {})


def test_perlmutters_reversed_gpus_follow_from_the_topology():
    where = perlmutter()
    assert default_ranks(where, seen(where)) == 4
    found = seats(where, 4, seen(where))
    assert [s.device for s in found] == [s.order for s in found] == [0, 1, 2, 3]
    assert shown(found) == ["48-63", "32-47", "16-31", "0-15"]
    assert [s.numa for s in found] == [3, 2, 1, 0]
    assert [s.nic for s in found] == ["hsn3", "hsn2", "hsn1", "hsn0"]
    assert shown(seats(where, 4, seen(where), smt=True))[0] == "48-63,112-127"
    lines = table(found).splitlines()
    assert lines[0].split() == ["rank", "cores", "NUMA", "device", "NIC"]
    assert lines[1].split() == ["0", "48-63", "3", "GPU0", "A100", "hsn3"]


@pytest.mark.parametrize(
    ("where", "ranks", "want"),
    [
        (node(2, 4), 2, ["0-3", "4-7"]),
        (node(2, 4), 4, ["0-1", "2-3", "4-5", "6-7"]),
        (node(4, 4), 2, ["0-7", "8-15"]),
        (node(2, 4), 3, ["0-1", "2-3", "4-7"]),
        (node(2, 4, threads=2), 2, ["0-3", "4-7"]),
        (node(2, 4, allowed="2-7"), 3, ["2-3", "4-5", "6-7"]),  # ranks are placed where the allowed cores are
        (node(2, 4, allowed="4-7"), 2, ["4-5", "6-7"]),
        (node(1, 2), 3, ["0-1", "0-1", "0-1"]),
    ],
)
def test_ranks_on_cores(where, ranks, want):
    found = seats(where, ranks, ())
    assert shown(found) == want
    assert all(s.device is None for s in found)


@pytest.mark.parametrize("ranks", range(1, 20))
def test_ranks_have_cores_of_their_own_in_one_domain_if_there_are_enough(ranks):
    where = node(4, 6, threads=2, allowed="0-9,12-23,24-33,36-47")
    found = seats(where, ranks, (), smt=True)
    taken = [cpu for s in found for cpu in s.cpus]
    assert len(taken) == len(set(taken))
    assert all(s.cpus and s.cpus <= where.allowed and s.sharing == 1 for s in found)
    for s in found:  # a rank has both threads of a core or none
        assert {c % 24 for c in s.cpus} == {c % 24 for c in s.cpus if c < 24}
    if ranks >= 4:
        assert all(s.numa is not None for s in found)


def test_gpus_of_one_domain_share_its_cores_and_its_nics():
    base = node(2, 8)
    devices = tuple(Gpu(g, cpus=base.numa[g // 2].cpus, cpus_from="sysfs", numa=g // 2) for g in range(4))
    nics = (Nic("NIC0", "mlx5_0"), Nic("NIC1", "mlx5_1"))
    links = {(f"GPU{g}", f"NIC{i}"): Link("PXB" if g // 2 == 0 else "SYS") for g in range(4) for i in range(2)}
    where = replace(base, devices=devices, nics=nics, links=links)
    found = seats(where, 4, seen(where))
    assert shown(found) == ["0-3", "4-7", "8-11", "12-15"]
    assert [s.nic for s in found] == ["mlx5_0", "mlx5_1", "mlx5_0", "mlx5_1"]


def test_sysfs_and_the_domain_are_preferred_to_nvidia_smis_cut_list():
    base = node(2, 8)
    cut = Gpu(0, cpus=frozenset({0, 2}), cpus_from="nvidia-smi", numa=0)
    assert shown(seats(base, 1, [VisibleDevice(cut)])) == ["0-7"]
    assert shown(seats(base, 1, [VisibleDevice(replace(cut, cpus_from="sysfs"))])) == ["0,2"]
    hidden = replace(cut, cpus=frozenset({100}), cpus_from="sysfs", numa=None)  # a cgroup hides its cores
    assert shown(seats(base, 1, [VisibleDevice(hidden)])) == ["0-15"]


def test_overlapping_core_sets_are_divided():
    base = node(1, 8)
    devices = [
        VisibleDevice(Gpu(g, cpus=cpus, cpus_from="sysfs"))
        for g, cpus in enumerate([frozenset(range(8)), frozenset(range(4)), frozenset(range(4))])
    ]
    found = seats(base, 3, devices)
    assert [len(s.cpus) for s in found] == [4, 2, 2]
    assert found[0].cpus == {4, 5, 6, 7}


def test_which_gpus_a_job_may_use():
    cut = Gpu(1, "A100", uuid="GPU-b", mig=(Mig(0, "MIG-x", "3g.40gb"), Mig(1, "MIG-y", "3g.40gb")))
    devices = (Gpu(0, "A100", uuid="GPU-a"), cut)
    found = seats(node(1, 3), 3, this_node.usable(devices, {}))
    assert [(s.device, s.mig) for s in found] == [(0, ""), (1, "MIG-x"), (1, "MIG-y")]
    (only,) = this_node.usable(devices, {"CUDA_VISIBLE_DEVICES": "GPU-a"})
    assert only.device.index == 0
    variables = take_seat.environment(found[2], {"CUDA_VISIBLE_DEVICES": "0"})
    assert variables["CUDA_VISIBLE_DEVICES"] == "MIG-y"
    assert variables["ARISTOS_DEVICE"] == "0"


def test_seats_on_the_sample_machines():
    """Ranks of equal GPUs never share a core."""
    for file, want in (
        ("topo_a100_nics.txt", ["0-31", "32-63", "64-95", "96-127"]),
        ("topo_gb200.txt", ["0-35", "36-71", "72-107", "108-143"]),
        ("topo_h100.txt", [f"{i}-{i + 31}" for i in range(0, 256, 32)]),
    ):
        found = this_node.read(ROOT / "tests" / "support" / "samples" / file)
        assert shown(seats(found.node, len(found.devices), found.devices)) == want, file


def test_seats_are_passed_to_ranks_of_this_machine_only():
    found = seats(perlmutter(), 4, seen(perlmutter()))
    text = take_seat.to_json(found)
    back = take_seat.from_json(text, 4)
    assert [replace(s, numa=None) for s in back] == [replace(s, numa=None) for s in found]
    assert take_seat.from_json(text, 3) == []
    assert take_seat.from_json("", 4) == []
    host, rows = json.loads(text)
    assert take_seat.from_json(json.dumps([host + "x", rows]), 4) == []


def test_environment_of_a_rank(tmp_path):
    port = tmp_path / "class/infiniband/mlx5_1/ports"
    for number, state in ((1, "1: DOWN"), (2, "4: ACTIVE")):
        (port / str(number)).mkdir(parents=True)
        (port / str(number) / "state").write_text(state)
    seat = Seat(1, frozenset({0}), device=5, order=1, nic="mlx5_1")
    assert take_seat.environment(seat, {}, tmp_path) == {
        "ARISTOS_LOCAL_RANK": "1",
        "ARISTOS_DEVICE": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "UCX_NET_DEVICES": "mlx5_1:2",
    }
    assert "UCX_NET_DEVICES" not in take_seat.environment(seat, {"UCX_NET_DEVICES": "all"}, tmp_path)
    assert "UCX_NET_DEVICES" not in take_seat.environment(replace(seat, nic="hsn0"), {}, tmp_path)


@pytest.mark.parametrize(
    ("env", "want"),
    [
        ({"MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4", "SLURM_LOCALID": "0"}, (1, 4)),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "3"}, (2, 3)),
        ({"SLURM_LOCALID": "1", "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "4(x2),3"}, (1, 3)),
        ({"SLURM_LOCALID": "1"}, (1, 2)),
    ],
)
def test_local_rank(env, want):
    assert take_seat.local_rank(env) == want


def test_a_seat_without_a_launcher():
    with pytest.raises(take_seat.NoRank, match="MPI_LOCALRANKID"):
        take_seat.local_rank({})

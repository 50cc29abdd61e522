"""Slurm's texts: node lists (compared with scontrol), networks of every form, and variables of jobs and steps."""

from __future__ import annotations

import csv
import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from topo_text import seconds

from aristos.errors import TopologyError
from aristos.host import launch_environment
from aristos.topology import hostlist, slurm_job, slurm_network
from aristos.topology.network import Network

numbers = st.tuples(st.integers(0, 130), st.integers(0, 6), st.integers(1, 4)).map(
    lambda n: f"{n[0]:0{n[2]}d}" if n[1] == 0 else f"{n[0]:0{n[2]}d}-{n[0] + n[1]:0{n[2]}d}"
)
brackets = st.lists(numbers, min_size=1, max_size=3).map(lambda parts: f"[{','.join(parts)}]")
pieces = st.tuples(st.sampled_from(["n", "cn-", "a_b", "gpu7x", "r"]), st.one_of(brackets, st.just("")))
names = st.tuples(st.lists(pieces, min_size=1, max_size=3), st.sampled_from(["", "-ib", ".cluster"])).map(
    lambda item: "".join(itertools.chain.from_iterable(item[0])) + item[1]
)
expressions = st.lists(names, min_size=1, max_size=3).map(",".join)


@pytest.fixture(scope="module")
def scontrol(tmp_path_factory):
    """A function that expands an expression by the real scontrol, which needs no daemon for this."""
    program = shutil.which("scontrol")
    if program is None:
        pytest.skip("no scontrol on this machine; on Debian: apt install slurm-client")
    conf = tmp_path_factory.mktemp("slurm") / "slurm.conf"
    conf.write_text("ClusterName=none\nSlurmctldHost=localhost\n")

    def ask(text: str) -> list[str]:
        command = [program, "show", "hostnames", text]
        done = subprocess.run(command, env={"SLURM_CONF": str(conf)}, capture_output=True, text=True, timeout=20)
        return done.stdout.split() if "Invalid" not in done.stderr else []

    return ask


@given(expressions)
@settings(max_examples=60, deadline=None)
def test_nodes_are_those_that_scontrol_names(scontrol, text):
    assert hostlist.expand(text) == scontrol(text)


@pytest.mark.parametrize("text", ["n[5-3]", "n[1-3", "n[1-4/2]", "n[]", "n[a-c]", "n[ 1-2 ]", "n[-1]", "n[1-2-3]"])
def test_wrong_expressions_are_errors_as_in_scontrol(scontrol, text):
    assert scontrol(text) == []
    with pytest.raises(TopologyError, match=r"got|whole"):
        hostlist.expand(text)


def test_expressions_have_limits():
    assert hostlist.expand("a,,b, c") == ["a", "b", "c"]
    with pytest.raises(TopologyError, match="131072"):
        hostlist.expand("n[0-9999][0-9999]")
    with pytest.raises(TopologyError, match="upwards"):
        hostlist.expand("n[1-99999999999]")


@given(expressions)
@settings(max_examples=60, deadline=None)
def test_folding_keeps_every_name(text):
    given_names = hostlist.expand(text)
    assert sorted(hostlist.expand(hostlist.fold(given_names))) == sorted(set(given_names))


def apart(network: Network, *pairs: tuple[str, str]) -> list[int | None]:
    assert all(network.distance(a, b) == network.distance(b, a) for a, b in pairs)
    return [network.distance(a, b) for a, b in pairs]


TREE = """# a comment
switchname=leaf1 Nodes=n[1-2] LinkSpeed=10
SwitchName=leaf2 Nodes=n[3-4]
SwitchName=leaf3 \\
    Nodes=n5
SwitchName=pod Switches=leaf[1-2]
SwitchName=top Switches=pod,leaf3
SwitchName=island Nodes=m1
"""
PAIRS = [("n1", "n1"), ("n1", "n2"), ("n1", "n3"), ("n1", "n5"), ("n1", "m1"), ("n1", "nobody")]


def test_a_tree_counts_switches_on_the_way():
    network = slurm_network.parse(TREE)
    assert (network.kind, len(network.nodes)) == ("tree", 6)
    assert apart(network, *PAIRS) == [0, 1, 3, 4, None, None]


def test_scontrols_output_is_the_same_tree():
    """scontrol lists nodes at every switch above them, but they are still attached to the leaves."""
    text = "SwitchName=leaf1 Level=0 LinkSpeed=1 Nodes=n[1-2]\nSwitchName=leaf2 Level=0 LinkSpeed=1 Nodes=n[3-4]\n"
    text += "SwitchName=leaf3 Level=0 LinkSpeed=1 Nodes=n5\nSwitchName=island Level=0 LinkSpeed=1 Nodes=m1\n"
    text += "SwitchName=pod Level=1 LinkSpeed=1 Nodes=n[1-4] Switches=leaf[1-2]\n"
    text += "SwitchName=top Level=2 LinkSpeed=1 Nodes=n[1-5] Switches=pod,leaf3\n"
    assert slurm_network.parse(text) == slurm_network.parse(TREE)


@pytest.mark.parametrize(
    ("plain", "other"),
    [
        ("=", " = "),
        ("n[1-2]", '"n[1-2]"'),
        ("n[1-2]", "n1,\\\nn2"),
        (" Nodes", " \\  \n  Nodes"),
        ("# a comment", "\ufeff# a comment"),
        ("\n", "\r\n"),
    ],
)
def test_a_file_may_have_every_form_that_slurm_reads(plain, other):
    assert plain in TREE
    assert slurm_network.parse(TREE.replace(plain, other)) == slurm_network.parse(TREE)


def test_the_shortest_of_several_ways_counts():
    text = "SwitchName=l[1-2] Nodes=x\nSwitchName=s1 Switches=l[1-2]\nSwitchName=s2 Switches=l[1-2]\n"
    text = text.replace("SwitchName=l[1-2] Nodes=x", "SwitchName=l1 Nodes=a\nSwitchName=l2 Nodes=b,a")
    assert apart(slurm_network.parse(text), ("a", "b")) == [1]


BLOCKS = "BlockName=b1 Nodes=n[1-2]\nBlockName=b2 Nodes=n[3-4]\nBlockName=b3 Nodes=n[5-6]\nBlockName=b4 Nodes=n[7-8]\n"
SHOWN = "".join(
    f"BlockName=b{at} BlockIndex={at - 1} Nodes=n[{2 * at - 1}-{2 * at}] BlockSize=2\n" for at in range(1, 5)
)
BIGGER = "AggregatedBlock=b[1-4] BlockIndex=5 Nodes=n[1-8] BlockSize=8\n"
BIGGER += "AggregatedBlock=b[1-2] BlockIndex=4 Nodes=n[1-4] BlockSize=4\n"
BIGGER += "AggregatedBlock=b[3-4] BlockIndex=6 Nodes=n[5-8] BlockSize=4\n"


@pytest.mark.parametrize("text", [BLOCKS + "BlockSizes=2,4,8\n", SHOWN + BIGGER], ids=["conf", "scontrol"])
def test_blocks_of_blocks(text):
    network = slurm_network.parse(text)
    pairs = [("n1", "n2"), ("n1", "n3"), ("n1", "n5"), ("n4", "n8"), ("n7", "n8")]
    assert (network.kind, len(network.nodes)) == ("block", 8)
    assert apart(network, *pairs) == [1, 3, 5, 5, 1]


def test_blocks_without_bigger_ones_are_not_joined():
    assert apart(slurm_network.parse(BLOCKS), ("n1", "n2"), ("n1", "n3")) == [1, None]
    assert apart(slurm_network.parse(SHOWN), ("n1", "n2"), ("n1", "n3")) == [1, None]
    # like slurmctld, join b1 and b2, and leave b3 alone
    three = "\n".join(BLOCKS.split("\n")[:3]) + "\nBlockSizes=2,4\n"
    assert apart(slurm_network.parse(three), ("n1", "n4"), ("n1", "n5")) == [3, None]


YAML = """---
- topology: a
  cluster_default: false
  flat: true
- topology: b   # the default
  cluster_default: true
  tree:
    switches:
      - switch: top
        children: s[1-2]
      - switch: s1
        nodes: n[1-2]
      - switch: s2
        nodes: n[3-4]
- topology: c
  block:
    block_sizes: [2, 4]
    blocks:
      - {block: b1, nodes: "n[1-2]"}
      - {block: b2, nodes: "n[3-4]"}
- topology: d
  ring:
    rings:
      - ring: r
        nodes: n[1-5]
- topology: e
  torus3d:
    toruses:
      - name: pod
        dims: {x: 2, y: 2, z: 1}
        nodes: n[1-4]
"""


@pytest.mark.parametrize(
    ("name", "kind", "distances"),
    [
        (None, "tree", [1, 3]),
        ("a", "flat", [None, None]),
        ("c", "block", [1, 3]),
        ("d", "ring", [1, 2]),
        ("e", "torus3d", [None, None]),
    ],
)
def test_topology_yaml(name, kind, distances):
    network = slurm_network.parse(YAML, name)
    assert network.kind == kind
    assert apart(network, ("n1", "n2"), ("n1", "n4")) == distances


def test_a_file_for_two_plugins():
    """Slurm reads the lines of its TopologyPlugin and ignores the others."""
    text = TREE + BLOCKS
    assert slurm_network.parse(text) == slurm_network.parse(TREE)
    assert slurm_network.parse(text, "block") == slurm_network.parse(BLOCKS)
    with pytest.raises(TopologyError, match="expected a topology of kind ring, got block and tree"):
        slurm_network.parse(text, "ring")


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", "got nothing"),
        ("slurm_load_topo error: Unable to contact slurm controller\n", "Unable to contact"),
        ("scontrol: error: Topology information contains no switch or node named node=n1\n", "no switch or node"),
        ("SwitchName=leaf1 Nodes=n[1-", "n[1-"),
        ("SwitchName=leaf1 Nodes=n[1-2]\nNodeName=n1\n", "NodeName=n1"),
        ("SwitchName=a Switches=b\nSwitchName=b Switches=a\n", "below itself"),
        ("SwitchName=a Nodes=x\nSwitchName=b Switches=x\n", "switches and nodes must have different names"),
        ("BlockName=b1 Nodes=n1\nBlockSizes=0,4\n", "0,4"),
        ("Include leaves.conf\nSwitchName=leaf1 Nodes=n1\n", "Aristos does not read the file that is named in 'Incl"),
        ("- topology: x\n  block: {block_sizes: few, blocks: [{block: b1, nodes: n1}]}\n", "'few'"),
        ("- topology: x\n  tree: {switches: 3}\n", "switches"),
        ("- topology: x\n  tree:\n  block:\n", "must be a tree"),
        ("- [a\n- topology: b\n", "cannot be read"),
        ("switches:\n  core: {}\n", "switches:"),
    ],
)
def test_a_wrong_network_text_is_an_error_with_the_line(text, quoted):
    with pytest.raises(TopologyError) as refused:
        slurm_network.parse(text)
    assert quoted in str(refused.value)


def test_addresses_of_nodes_make_a_network():
    node = "switch.switch.node"
    network = slurm_network.from_addresses([("top.l1.n1", node), ("top.l1.n2", node), ("top.l2.n3", node)])
    assert network.kind == "tree"
    assert apart(network, ("n1", "n2"), ("n1", "n3")) == [1, 3]
    blocks = slurm_network.from_addresses([("b1.n1", "block.node"), ("b1.n2", "block.node"), ("b2.n3", "block.node")])
    assert blocks.kind == "block"
    assert apart(blocks, ("n1", "n2"), ("n1", "n3")) == [1, None]
    several = slurm_network.from_addresses([("s[1,3].leaf.cn-0256", ""), ("..n.example.org", "switch.switch.node")])
    assert several.parents["leaf"] == ("s1", "s3")
    assert several.nodes == {"cn-0256", "n.example.org"}
    assert slurm_network.from_addresses([("n1", "node")]).kind == "unknown"


def test_samples_of_networks(shared_dir):
    """Every topology.conf, topology.yaml and output of scontrol is read within 0.25 s.

    Other programs' models are refused.
    """
    folder = shared_dir / "samples" / "slurm"
    files = (
        sorted(folder.glob("topology.*")) + sorted(folder.glob("show_topology*")) + sorted(folder.glob("topograph*"))
    )
    slurm_network.parse(YAML)  # imports the reader of YAML
    kinds = {}
    for file in files:
        text = file.read_text()
        try:
            network = slurm_network.parse(text)
        except TopologyError:
            assert "_model_" in file.name or file.name.endswith("tree_node.txt"), file
            continue
        assert seconds(slurm_network.parse, text, 0.25) < 0.25, file
        kinds[file.name] = (network.kind, len(network.nodes))
        assert None not in {network.distance(n, n) for n in network.nodes}
    assert kinds["show_topology_REAL_slurm24.11.5_tree.txt"] == ("tree", 16)
    assert kinds["show_topology_REAL_slurm24.11.5_block.txt"] == ("block", 16)
    assert kinds["topology.yaml.manpage_example"] == ("tree", 4)
    real = slurm_network.parse((folder / "show_topology_REAL_slurm24.11.5_tree.txt").read_text())
    assert apart(real, ("nid001000", "nid001003"), ("nid001000", "nid001015")) == [1, 3]
    blocks = slurm_network.parse((folder / "show_topology_REAL_slurm24.11.5_block.txt").read_text())
    some = [("nid001000", "nid001003"), ("nid001000", "nid001004"), ("nid001000", "nid001008")]
    assert apart(blocks, *some) == [1, 3, 5]


@pytest.mark.parametrize(
    ("env", "nodes", "tasks", "job_nodes"),
    [
        ({"NODELIST": "n[1-2]", "TASKS_PER_NODE": "4(x2)"}, ["n1", "n2"], (4, 4), 2),
        ({"NODELIST": "n[1-3]", "TASKS_PER_NODE": "2,1(x2)"}, ["n1", "n2", "n3"], (2, 1, 1), 3),
        ({"JOB_NODELIST": "n[1-4]", "NTASKS": "16"}, ["n1", "n2", "n3", "n4"], (4,) * 4, 4),
        ({"JOB_NODELIST": "n[1-2]", "NTASKS": "3"}, ["n1", "n2"], None, 2),
        # in `srun --overlap -N1` some variables describe the step, and TASKS_PER_NODE describes the job
        ({"JOB_NODELIST": "n3", "NODELIST": "n[1-4]", "STEP_NODELIST": "n3", "STEP_ID": "1", "NNODES": "1",
          "STEP_TASKS_PER_NODE": "1", "TASKS_PER_NODE": "8(x4)"}, ["n3"], (1,), 4),
        # TASKS_PER_NODE describes the job, the node list a step
        ({"STEP_NODELIST": "n3", "STEP_ID": "1", "TASKS_PER_NODE": "4(x30)"}, ["n3"], (4,), 1),
        ({"HET_SIZE": "2", "JOB_NODELIST_HET_GROUP_0": "a1", "JOB_NODELIST_HET_GROUP_1": "b[1-2]", "JOB_ID": "1",
          "JOB_NODELIST": "a1"}, ["a1", "b1", "b2"], None, 3),
        ({"JOB_ID": "5", "JOB_GPUS": "3"}, [], None, 0),
    ],
)  # fmt: skip
def test_jobs_and_steps(env, nodes, tasks, job_nodes):
    job = slurm_job.read({f"SLURM_{name}": value for name, value in env.items()})
    assert job is not None
    assert list(job.nodes) == nodes
    assert job.tasks == tasks
    assert len(job.job_nodes) == job_nodes


def test_no_job_and_a_job_with_wrong_variables():
    assert slurm_job.read({"PATH": "/bin", "SLURM_CONF": "/etc/slurm/slurm.conf"}) is None
    with pytest.raises(TopologyError, match="n\\[1-"):
        slurm_job.read({"SLURM_JOB_NODELIST": "n[1-"})
    with pytest.raises(TopologyError, match="tasks per node"):
        slurm_job.read({"SLURM_JOB_NODELIST": "n1", "SLURM_TASKS_PER_NODE": "four"})


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"HET_SIZE": "1000000000"}, "at most 128"),
        ({"JOB_NODELIST": "n1", "TASKS_PER_NODE": "1(x999999999)"}, "got more in"),
        ({"JOB_NODELIST": f"n[{'9' * 5000}]"}, "numbers like"),
    ],
)
def test_absurd_numbers_are_errors_at_once(env, said):
    with pytest.raises(TopologyError, match=said):
        slurm_job.read({f"SLURM_{name}": value for name, value in env.items()})


def test_digits_of_other_scripts_are_no_numbers():
    job = slurm_job.read({"SLURM_JOB_NODELIST": "n1", "SLURM_NTASKS": "\u00b2", "SLURM_HET_SIZE": "\u00b2"})
    assert (job.nodes, job.tasks) == (("n1",), None)
    assert launch_environment.started_as({"OMPI_COMM_WORLD_SIZE": "\u00b2", "OMPI_COMM_WORLD_RANK": "0"}) is None


def test_gpus_of_a_job():
    assert slurm_job.read({"SLURM_JOB_ID": "1", "SLURM_JOB_GPUS": "0-2,5"}).gpus == ("0", "1", "2", "5")
    assert slurm_job.hides_gpus({"SLURM_GPUS_PER_TASK": "1"}) == "--gpus-per-task"
    assert slurm_job.hides_gpus({"SLURM_GPU_BIND": "none"}) == ""


def test_samples_of_environments(shared_dir):
    folder = shared_dir / "samples" / "slurm"
    wanted = {
        "env_borgo_2nodes.env": (["borgo086", "borgo140"], (4, 4)),
        "env_odin_2nodes.env": (["odin013", "odin014"], (4, 4)),
        "env_perlmutter_4node_16task.env": (["nid001033", "nid001644", "nid003837", "nid003840"], (4, 4, 4, 4)),
        "env_hetjob.env": (["nid00001", "nid00011", "nid00012"], None),
        "env_sherlock_step_gpu1.env": (["sh04-16n05"], (1,)),
        "env_sciclone_topoaddr_bracket.env": (["cn-0256"], None),
    }
    read = {}
    for file in sorted(folder.glob("env_*.env")):
        env = dict(line.split("=", 1) for line in file.read_text().split("\n") if "=" in line)
        job = slurm_job.read(env)
        assert job is not None, file
        read[file.name] = (list(job.nodes), job.tasks)
        if job.address:
            assert set(job.nodes) <= slurm_network.from_addresses([job.address]).nodes
    assert {name: read[name] for name in wanted} == wanted
    with open(folder / "index.tsv", newline="") as index:
        assert len(list(csv.DictReader(index, delimiter="\t"))) > 10


def test_the_drawing_and_the_table_of_a_big_network(tmp_path: Path):
    from aristos.topology import from_text, serialize
    from aristos.topology.drawing import draw

    text = "".join(f"SwitchName=leaf{at} Nodes=n[{40 * at}-{40 * at + 39}]\n" for at in range(50))
    topology = from_text(None, text + "SwitchName=spine Switches=leaf[0-49]\n")
    assert "2000 nodes" in serialize.table(topology)
    assert serialize.as_json(topology, True)["network"]["distance"] is None
    pytest.importorskip("matplotlib")
    draw(topology, tmp_path / "big.png")
    assert (tmp_path / "big.png").stat().st_size > 10_000

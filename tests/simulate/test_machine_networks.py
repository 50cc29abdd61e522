"""Networks of machine files: Slurm's topology.conf, measured links, the planner's clusters, and shapes in YAML."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from aristos.errors import InputError
from aristos.simulate import machines, networks
from aristos.simulate.machine import Links
from aristos.simulate.topologies import Dragonfly, FatTree, Torus
from aristos.topology.links import MIB

SLURM = """
SwitchName=s0 Nodes=n[1-2]
SwitchName=s1 Nodes=n[3-10]
SwitchName=top[0-1] Switches=s[0-1]
"""


def named(routes, source, target):
    return [routes.names[link] for link in routes.routes[source * routes.nodes + target] if link >= 0]


def machine(tmp_path, text, **files):
    """The machine of a YAML file beside other files."""
    for name, content in files.items():
        (tmp_path / f"{name}.conf").write_text(content)
    file = tmp_path / "m.yaml"
    file.write_text(text)
    return machines.load(file)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "network: {fat-tree: {down: [8, 4], up: [1, 4], cables: [1, 2]}, rate: [25, 50], latency: 1, hop: 0.1}",
            FatTree((8, 4), (1, 4), (25, 50), (1, 2), 1, 0.1),
        ),
        (
            "network: {dragonfly: {groups: 3, switches: 4, nodes_each: 2, between: 2}, rate: 25}",
            Dragonfly(3, 4, 2, (25,), 2),
        ),
        ("network: {torus: [4, 3], rate: 5, hop: 0.2}", Torus((4, 3), (5,), 0.0, 0.2)),
        ("links: {latency: 1, rate: 5}", Links(1, 5)),
        ("costs: {put: 5}", Links()),
    ],
)
def test_a_network_in_yaml(tmp_path, text, wanted):
    assert machine(tmp_path, text).links == wanted


def test_slurms_switches(tmp_path):
    found = machine(tmp_path, "network: {slurm: t.conf, rate: [25, 100], latency: 2, hop: 0.5}", t=SLURM)
    routes = found.links.routes(4)  # n1, n2, n3, n4
    assert named(routes, 0, 1) == ["n1 to s0 out", "n2 to s0 in"]
    for source, target in ((0, 2), (0, 3), (1, 2), (1, 3)):
        top = f"top{target % 2}"  # of the parallel ways the target chooses one
        assert named(routes, source, target) == [
            f"n{source + 1} to s0 out",
            f"s0 to {top} out",
            f"s1 to {top} in",
            f"n{target + 1} to s1 in",
        ]
    rates = dict(zip(routes.names, routes.capacity))
    assert rates["n1 to s0 out"] == 25
    assert rates["s0 to top1 out"] == 100
    assert (routes.latency[1], routes.latency[2]) == (3000, 4000)
    assert routes.least_latency == 3000


def test_a_job_on_some_of_slurms_nodes(tmp_path):
    found = machine(tmp_path, 'network: {slurm: t.conf, nodes: "n[3,1]", rate: 25}', t=SLURM).links
    assert named(found.routes(2), 0, 1) == ["n3 to s1 out", "s1 to top1 out", "s0 to top1 in", "n1 to s0 in"]
    with pytest.raises(InputError, match="the network has 2 nodes, and 3 are asked for"):
        found.routes(3)


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ("SwitchName=a Switches=b\nSwitchName=b Switches=a\n", "t.conf: switch '[ab]' is below itself"),
        ("SwitchName=a Nodes=n1\nSwitchName=b Switches=a,c\n", "switch 'c' is below 'b', but no line says what is"),
        ("RingName=r Nodes=n[1-4]\n", "must have switches or blocks, got a network of kind 'ring'"),
        ("nonsense\n", "t.conf: expected SwitchName="),
    ],
)
def test_a_wrong_topology_is_refused(tmp_path, conf, message):
    with pytest.raises(InputError, match=message) as why:
        machine(tmp_path, "network: {slurm: t.conf, rate: 1}", t=conf)
    assert "\n" not in str(why.value)


def test_switches_that_never_meet_are_refused(tmp_path):
    conf = "SwitchName=a Nodes=n1\nSwitchName=b Nodes=n2\n"
    with pytest.raises(InputError, match="no switch is above both 'n1' and 'n2'"):
        machine(tmp_path, "network: {slurm: t.conf, rate: 1}", t=conf).links.routes(2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("network: 5", "network of .*m.yaml: must be a mapping with fat-tree, dragonfly, torus, slurm or file, got 5"),
        ("network: {rate: 5}", "must have one of fat-tree, .* or file, got rate"),
        ("network: {torus: [4], slurm: x}", "must have one of .*, got torus, slurm"),
        ("network: {torus: [4]}", "needs rate: GB/s of a link"),
        ("network: {torus: [4], rate: 0}", "rate must be a positive number, got 0"),
        ("network: {torus: [4], rate: [1, 2]}", r"rate must be a number, or a list of at most 1, one a level"),
        ("network: {torus: [4, x], rate: 1}", "each of torus must be a whole number from 1 to 524288, got 'x'"),
        ("network: {torus: [4], rate: 1, speed: 3}", "takes only the keys torus, rate, latency, hop, got speed"),
        ("network: {fat-tree: [4], rate: 1}", r"fat-tree must be a mapping with down, up, got \[4\]"),
        ("network: {fat-tree: {down: [4]}, rate: 1}", "fat-tree takes the keys down, up, cables: up is missing"),
        (
            "network: {dragonfly: {groups: 2, switches: 2, nodes_each: 2, tail: 1}, rate: 1}",
            "dragonfly takes the keys .*: got tail",
        ),
        ("network: {slurm: 5, rate: 1}", "slurm must be a file's name, got 5"),
        ("network: {slurm: t.conf, rate: 1, nodes: [n1]}", "nodes must be names as Slurm writes them"),
        ("network: {slurm: t.conf, rate: 1, nodes: n99}", "node 'n99' is below no switch of the file"),
        ("network: {file: m.json, rate: 1}", "must have only the key file, because that file has all speeds"),
        ("network: {torus: [4], rate: 1}\nlinks: {rate: 1}", "may have links or network, got both"),
    ],
)
def test_a_wrong_network_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as why:
        machine(tmp_path, text, t=SLURM)
    assert "\n" not in str(why.value)


def measured(hosts, large, small=None, contended=None):
    """A file of `aristos topo --measure`. large, contended: GB/s; small: us of a small put."""
    n = len(hosts)
    beta = [[MIB / (1e3 * x) if x else 0.0 for x in row] for row in large]
    span = {"alpha_us": [[0.0] * n] * n, "beta_us_per_mib": beta}
    together = contended and {
        **span,
        "beta_us_per_mib": [[MIB / (1e3 * x) if x else 0.0 for x in r] for r in contended],
    }
    return {
        "schema": "aristos-links/1",
        "hosts": hosts,
        "devices": [{"name": "CPU"}] * n,
        "classes": [["NET"] * n] * n,
        "small": {**span, "alpha_us": small or [[4.0] * n] * n},
        "large": span,
        "residual": [[0.0] * n] * n,
        "from": [["measured"] * n] * n,
        "contended": together,
    }


def written(tmp_path, found):
    file = tmp_path / "found.json"
    file.write_text(json.dumps(found))
    return file


def test_measured_links_of_hosts_with_a_rank_each(tmp_path):
    rates = [[0, 10, 4], [10, 0, 8], [4, 8, 0]]
    routes = machines.load(written(tmp_path, measured(["a", "b", "c"], rates))).links.routes(3)
    capacity = dict(zip(routes.names, np.round(routes.capacity, 6)))
    for a, b in itertools.permutations(range(3), 2):
        assert min(capacity[name] for name in named(routes, a, b)) == rates[a][b]
        assert routes.latency[3 * a + b] == 2000  # half of a put and its flush
    assert {name: rate for name, rate in capacity.items() if "to" not in name} == {
        "node 0 out": 10,
        "node 0 in": 10,
        "node 1 out": 10,
        "node 1 in": 10,
        "node 2 out": 8,
        "node 2 in": 8,
    }


def test_ranks_of_a_host_share_its_links(tmp_path):
    rates = [[0 if a == b else 50 if a // 2 == b // 2 else 6 for b in range(4)] for a in range(4)]
    together = [[0 if a == b else 50 if a // 2 == b // 2 else 5 for b in range(4)] for a in range(4)]
    links = networks.from_file(written(tmp_path, measured(["a", "a", "b", "b"], rates, contended=together)))
    routes = links.routes(2)
    capacity = dict(zip(routes.names, np.round(routes.capacity, 6)))
    assert capacity == {
        "node 0 out": 10,
        "node 0 in": 10,
        "node 1 out": 10,
        "node 1 in": 10,
        "node 0 to 1": 6,
        "node 1 to 0": 6,
    }
    with pytest.raises(InputError, match="the network has 2 nodes, and 3 are asked for"):
        links.routes(3)


def test_unknown_links_are_refused(tmp_path):
    found = measured(["a", "b"], [[0, 5], [5, 0]])
    found["large"]["beta_us_per_mib"] = [[0.0, None], [1.0, 0.0]]
    with pytest.raises(InputError, match="beta_us_per_mib of large puts from rank 0 to rank 1 is unknown"):
        networks.from_file(written(tmp_path, found))
    with pytest.raises(InputError, match=r"beta_us_per_mib must be positive for a simulation, got 0\.0"):
        networks.from_file(written(tmp_path, measured(["a", "b"], [[0, 0], [5, 0]])))


CLUSTER = {
    "alpha_us": 15,
    "beta_us_per_mib": 100,
    "children": [
        {
            "count": 2,
            "alpha_us": 6,
            "beta_us_per_mib": 50,
            "children": [
                {
                    "count": 3,
                    "alpha_us": 1,
                    "beta_us_per_mib": 4,
                    "children": [{"count": 4, "tflops": 300, "memory_gb": 80}],
                }
            ],
        }
    ],
}


def test_a_planners_cluster(tmp_path):
    routes = networks.from_file(written(tmp_path, CLUSTER)).routes(6)
    rates = dict(zip(routes.names, routes.capacity))
    near, far = 4 * MIB / 50e3, 4 * MIB / 100e3  # a node has 4 devices
    for a, b in itertools.permutations(range(6), 2):
        same = a // 3 == b // 3
        assert routes.latency[6 * a + b] == (6000 if same else 15000)
        assert len(named(routes, a, b)) == (2 if same else 4)
        assert min(rates[name] for name in named(routes, a, b)) == pytest.approx(near if same else far)


def test_a_planners_problem_has_the_same_network(tmp_path):
    cluster = json.loads(json.dumps(CLUSTER).replace('"tflops": 300, "memory_gb": 80', '"rate": 1.0, "memory": 8'))
    scalars = {
        "experts": 8,
        "layer_cost": 1.0,
        "payload_mib": 1,
        "crossings": 4,
        "stages": 24,
        "gradient_mib": 10,
    }
    one = networks.from_file(written(tmp_path, {**scalars, "cluster": cluster})).routes(6)
    other = networks.from_file(written(tmp_path, CLUSTER)).routes(6)
    assert one.names == other.names
    for field in ("capacity", "routes", "latency"):
        assert (getattr(one, field) == getattr(other, field)).all()


def test_a_planners_problem_with_matrices(tmp_path):
    problem = {
        "experts": 8,
        "layer_cost": 1.0,
        "payload_mib": 1,
        "crossings": 4,
        "stages": 24,
        "gradient_mib": 10,
        "devices": [{"rate": 1.0, "memory": 8}] * 3,
        "alpha_us": [[0, 3, 5], [3, 0, 7], [5, 7, 0]],
        "beta_us_per_mib": [[0, 10, 20], [10, 0, 40], [20, 40, 0]],
    }
    routes = networks.from_file(written(tmp_path, problem)).routes(3)
    rates = dict(zip(routes.names, routes.capacity))
    for a, b in itertools.permutations(range(3), 2):
        assert routes.latency[3 * a + b] == 1e3 * problem["alpha_us"][a][b]
        least = min(rates[name] for name in named(routes, a, b))
        assert least == pytest.approx(MIB / (1e3 * problem["beta_us_per_mib"][a][b]))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"schema": "other"}, "schema must be 'aristos-links/1'"),
        ({"what": 1}, "must hold measured links, a planner's cluster or a planner's problem"),
        ([1], "must hold measured links"),
        ({"children": [{"tflops": 1}]}, r"cluster.children\[0\].memory_gb is missing"),
        ({"experts": 8}, "layer_cost is missing"),
        ({**CLUSTER, "beta_us_per_mib": 0}, "beta_us_per_mib must be positive for a simulation, got 0.0"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, found, message):
    with pytest.raises(InputError, match=message):
        machines.load(written(tmp_path, found)).links.routes(2)


def test_a_cluster_of_one_node_has_no_network(tmp_path):
    one = {"alpha_us": 1, "beta_us_per_mib": 4, "children": [{"count": 4, "tflops": 300, "memory_gb": 80}]}
    network = networks.from_file(written(tmp_path, one))
    assert network.routes(1).names == []
    with pytest.raises(InputError, match="the network has 1 nodes, and 2 are asked for"):
        network.routes(2)


@pytest.mark.parametrize("name", machines.PRESETS)
def test_presets_have_networks(name):
    preset = machines.PRESETS[name]
    routes = preset.network.routes(64)
    assert (routes.capacity > 0).all()
    assert preset.source

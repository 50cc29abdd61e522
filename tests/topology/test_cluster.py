"""What `discover` finds inside jobs of a real Slurm, on virtual clusters with a switch tree and with blocks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mpi import LAUNCHER_VARIABLES

from aristos.topology import slurm_network

ROOT = Path(__file__).resolve().parents[2]
PATH = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
NODES = 8
# every task prints its node and number, what it found, and the address that Slurm gave it
SEEN = """
import json, os, sys
from aristos.topology import discover, slurm_job
t, job = discover(), slurm_job.read(os.environ)
names = [node.name for node in t.nodes]
print(json.dumps({
    "here": names[t.here], "nodes": names, "tasks": [node.tasks for node in t.nodes], "kind": t.network.kind,
    "links": [[str(t.between(a, b)) for b in range(len(names))] for a in range(len(names))],
    "address": job.address, "job": job.job_nodes, "complete": [node.complete for node in t.nodes],
}))
"""
JOB = """
srun -N8 --ntasks-per-node=2 --output={out}/all-%t {python} -c "$SEEN"
salloc --quiet -N4 -n4 srun --overlap -N1 -n1 --output={out}/one-%t {python} -c "$SEEN"
salloc --quiet -N8 --ntasks-per-node=2 srun --overlap --ntasks-per-node=2 -N2 -n3 --nodelist=n[2,5] \\
    --output={out}/some-%t {python} -m aristos topo --json
"""

pytestmark = pytest.mark.skipif(
    not all(shutil.which(name, path=PATH) for name in ("slurmctld", "slurmd", "srun", "munged")),
    reason="no Slurm on this machine; on Debian: apt install slurm-wlm munge",
)


@pytest.fixture(scope="module", params=["tree", "block"])
def said(request, tmp_path_factory) -> tuple[str, dict[str, dict]]:
    """(the plugin, file -> what a task of a job printed)."""
    out = tmp_path_factory.mktemp(request.param)
    kept = {k: v for k, v in os.environ.items() if not k.startswith((*LAUNCHER_VARIABLES, "SLURM_"))}
    env = kept | {"PYTHONPATH": str(ROOT), "PATH": PATH, "SEEN": SEEN}
    tool = [sys.executable, ROOT / "launch" / "virtual_slurm", "run", "--nodes", NODES, "--topology", request.param]
    command = [*tool, "--", "bash", "-ec", JOB.format(out=out, python=sys.executable)]
    done = subprocess.run([str(w) for w in command], env=env, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return request.param, {file.name: json.loads(file.read_text() or "null") for file in sorted(out.iterdir())}


def switches(a: int, b: int) -> int:
    """The number of switches between nodes n{a+1} and n{b+1}.

    The virtual cluster joins pairs, pairs of pairs, and so on.
    """
    return next(2 * level + 1 for level in range(4) if a >> level + 1 == b >> level + 1)


def link(a: int, b: int) -> str:
    return "self" if a == b else f"NET{switches(a, b)}"


def test_every_task_finds_the_configured_distances(said):
    plugin, files = said
    for rank in range(2 * NODES):
        seen = files[f"all-{rank:02d}" if f"all-{rank:02d}" in files else f"all-{rank}"]
        assert seen["kind"] == plugin
        assert seen["nodes"] == [f"n{at + 1}" for at in range(NODES)]
        assert seen["here"] == f"n{rank // 2 + 1}"
        assert seen["tasks"] == [2] * NODES
        assert seen["complete"] == [at == rank // 2 for at in range(NODES)]
        assert seen["links"] == [[link(a, b) for b in range(NODES)] for a in range(NODES)]


def test_the_addresses_of_the_tasks_give_the_same_distances(said):
    """Addresses are used if scontrol cannot be asked.

    They name only a node's own block, so no path joins two blocks.
    """
    plugin, files = said
    found = slurm_network.from_addresses(seen["address"] for name, seen in files.items() if name.startswith("all-"))
    assert found.kind == plugin
    for a in range(NODES):
        for b in range(NODES):
            far = 0 if a == b else switches(a, b)
            assert found.distance(f"n{a + 1}", f"n{b + 1}") == (far if plugin == "tree" or far < 3 else None)


def test_a_step_on_a_part_of_the_job_knows_both(said):
    _, files = said
    seen = files["one-0"]
    assert (seen["nodes"], seen["tasks"]) == ([seen["here"]], [1])
    assert len(seen["job"]) == 4
    assert seen["here"] in seen["job"]


def test_the_command_in_a_job(said):
    """Only the first task prints, and its output is about all nodes."""
    plugin, files = said
    seen = files["some-0"]["network"]
    assert (seen["kind"], seen["nodes"], seen["tasks"]) == (plugin, ["n2", "n5"], [2, 1])
    assert seen["distance"] == [[0, 5], [5, 0]]
    assert [files.get(f"some-{rank}") for rank in (1, 2)] == [None, None]

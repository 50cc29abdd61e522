"""The Slurm job of this process, from SLURM_* variables: its nodes, the tasks on each, and its GPUs.

Inside a step some variables change their meaning: in `srun --overlap -N1`, SLURM_NNODES and SLURM_JOB_NODELIST describe
the step, but SLURM_NODELIST still describes the job. So the nodes of the step are read from SLURM_STEP_NODELIST, and
the nodes of the job from the longer one of SLURM_JOB_NODELIST and SLURM_NODELIST.
The module `host/slurm_variables.py` reads the variables that describe only this process: its job, step, node and task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kernel_cache.texts import whole

from ..errors import TopologyError
from .hostlist import MOST, expand

NODES = ("JOB_NODELIST", "NODELIST", "STEP_NODELIST", "HET_SIZE")
OTHERS = ("JOB_ID", "JOBID", "JOB_GPUS", "STEP_GPUS")  # in a container these may be the only variables
_COUNT = re.compile(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?")
MOST_GROUPS = 128  # the most parts of a heterogeneous job that Slurm allows


@dataclass(frozen=True)
class SlurmJob:
    """A job. nodes: the nodes of the step, or of the job outside any step.

    tasks: how many tasks each node has, None if unknown. job_nodes: the nodes of the whole job. gpus: Slurm's numbers
    of the job's GPUs on this node, None if unknown. hides_gpus: the option that hides other tasks' GPUs from each task,
    '' if none does. address: SLURM_TOPOLOGY_ADDR and its pattern. In containers most variables may be missing; then
    nodes may be empty.
    """

    nodes: tuple[str, ...]
    tasks: tuple[int, ...] | None
    job_nodes: tuple[str, ...]
    gpus: tuple[str, ...] | None
    hides_gpus: str
    address: tuple[str, str] | None


def counts(text: str) -> list[int]:
    """'4(x2),3' -> [4, 4, 3]. Raises TopologyError."""
    found: list[int] = []
    for part in text.split(","):
        match = _COUNT.fullmatch(part.strip())
        if not match:
            raise TopologyError(f"expected tasks per node like 4(x2),3, got {text[:200]!r}")
        times = int(match[2] or 1)
        if len(found) + times > MOST:
            raise TopologyError(f"expected at most {MOST} nodes, got more in {text[:200]!r}")
        found += [int(match[1])] * times
    return found


def read(env: Mapping[str, str]) -> SlurmJob | None:
    """The job of this process, or None outside Slurm. Raises TopologyError if a variable cannot be read."""
    groups = _groups(env)
    lists = [env.get(f"SLURM_{name}", "") for name in NODES[:2]]
    step = env.get("SLURM_STEP_NODELIST", "") if env.get("SLURM_STEP_ID", "0").isdecimal() else ""
    if not any(env.get(f"SLURM_{name}") for name in (*NODES, *OTHERS)):
        return None
    job_nodes = groups or max((_distinct(text) for text in lists if text), key=len, default=())
    nodes = _distinct(step) if step else job_nodes
    pattern = env.get("SLURM_TOPOLOGY_ADDR_PATTERN", "")
    return SlurmJob(
        nodes=nodes,
        tasks=_tasks(env, len(nodes), bool(step)),
        job_nodes=job_nodes or nodes,
        gpus=_gpus(env),
        hides_gpus=hides_gpus(env),
        address=(env["SLURM_TOPOLOGY_ADDR"], pattern) if env.get("SLURM_TOPOLOGY_ADDR") else None,
    )


def _distinct(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(expand(text)))


def _groups(env: Mapping[str, str]) -> tuple[str, ...]:
    """Nodes of a heterogeneous job, part by part."""
    size = env.get("SLURM_HET_SIZE", "")
    if not size.isdecimal():
        return ()
    number = whole(size, MOST_GROUPS)
    if number is None:
        raise TopologyError(f"SLURM_HET_SIZE must be at most {MOST_GROUPS}, got {size[:20]!r}")
    texts = [env.get(f"SLURM_JOB_NODELIST_HET_GROUP_{at}", "") for at in range(number)]
    return _distinct(",".join(text for text in texts if text))


def _tasks(env: Mapping[str, str], nodes: int, step: bool) -> tuple[int, ...] | None:
    """How many tasks each node has; None if the variables do not say, or do not agree with the number of nodes."""
    for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE") if step else ("SLURM_TASKS_PER_NODE",):
        if env.get(name):
            found = counts(env[name])
            if len(found) == nodes:
                return tuple(found)
            if len(set(found)) == 1:  # the variable describes the whole job, and the step has some of its nodes
                return tuple(found[:1] * nodes)
    each = whole(env.get("SLURM_NTASKS_PER_NODE", ""))
    total = whole(env.get("SLURM_STEP_NUM_TASKS" if step else "SLURM_NTASKS", env.get("SLURM_NTASKS", "")))
    if each is not None:
        return (each,) * nodes
    if total is not None and nodes and total % nodes == 0:
        return (total // nodes,) * nodes
    return None


def _gpus(env: Mapping[str, str]) -> tuple[str, ...] | None:
    text = env.get("SLURM_JOB_GPUS") or env.get("SLURM_STEP_GPUS")
    if not text:
        return None
    return tuple(expand(f"[{text}]") if re.fullmatch(r"[\d,-]+", text) else text.split(","))


def hides_gpus(env: Mapping[str, str]) -> str:
    """The option by which Slurm hides other tasks' GPUs from each task, '' if none does."""
    if env.get("SLURM_GPUS_PER_TASK") or "gpu" in env.get("SLURM_TRES_PER_TASK", ""):
        return "--gpus-per-task"
    bind = env.get("SLURM_GPU_BIND") or env.get("SLURM_STEP_GPU_BIND") or env.get("SLURM_TRES_BIND", "")
    return f"--gpu-bind={bind}" if re.search("single|closest|per_task|map|mask", bind) else ""

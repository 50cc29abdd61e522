"""Slurm's variables of one process: its job, step, node and task.

`topology/slurm_job.py` reads the nodes and tasks of the whole job. `srun` starts a step. A batch script or an salloc
shell is in a job, but in no step.
"""

from __future__ import annotations

from collections.abc import Mapping

from kernel_cache.texts import whole

LOCAL_RANK = "SLURM_LOCALID"
NODE_NAME = "SLURMD_NODENAME"
STEP_TASKS = "SLURM_STEP_NUM_TASKS"
TASKS = "SLURM_NTASKS"
TASK = "SLURM_PROCID"
# variables that are kept in results
RECORDED = ("SLURM_JOB_NUM_NODES", TASKS, "SLURM_CPUS_PER_TASK", "SLURM_CPU_BIND", "SLURM_TOPOLOGY_ADDR")


def job_id(env: Mapping[str, str]) -> str:
    """The job's number, '' outside a job."""
    return env.get("SLURM_JOB_ID") or env.get("SLURM_JOBID", "")


def in_step(env: Mapping[str, str]) -> bool:
    """Whether srun started this process, directly or through a launcher's daemons."""
    return env.get("SLURM_STEP_ID", "").isdecimal()


def node_name(env: Mapping[str, str]) -> str:
    """Slurm's name of this node, '' if unknown."""
    return env.get(NODE_NAME, "")


def step_nodes(env: Mapping[str, str]) -> int:
    """The number of nodes of the job step, 1 outside Slurm."""
    number = whole(env.get("SLURM_STEP_NUM_NODES") or env.get("SLURM_NNODES", ""))
    return 1 if number is None else number


def counted(env: Mapping[str, str]) -> tuple[str, str]:
    """(nodes, tasks) of the step, or of the job outside a step, as Slurm writes them; ? if unknown."""
    step = in_step(env)
    nodes = env.get("SLURM_STEP_NUM_NODES" if step else "SLURM_JOB_NUM_NODES", "?")
    return nodes, env.get(STEP_TASKS if step else TASKS, "?")


def wanted_tasks(env: Mapping[str, str]) -> int:
    """The number of tasks requested from sbatch or salloc, 0 if none was given."""
    return whole(env.get(TASKS, "")) or 0


def mpi_type(env: Mapping[str, str]) -> str:
    """Inside a step, the step's --mpi=; outside, the default of the user or the site. '' if unknown."""
    return env.get("SLURM_MPI_TYPE", "")


def cpus_per_node(env: Mapping[str, str]) -> str:
    """Processors of the job on each node, like 4(x2),3; '' if unknown."""
    return env.get("SLURM_JOB_CPUS_PER_NODE", "")


def node_number(env: Mapping[str, str]) -> int:
    """This node's number in the step, from 0."""
    return whole(env.get("SLURM_NODEID", "")) or 0


def tasks_per_node(env: Mapping[str, str]) -> str:
    """Tasks on each node of the step, like 4(x2),3; '' if unknown."""
    return env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE", "")

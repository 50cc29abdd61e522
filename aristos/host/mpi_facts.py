"""One table of the differences between MPI libraries and their launchers: names, marks, packages, flags.

To add a library, add its row here, its known problems to `workarounds.py`, and its launcher's arguments to
`launcher/commands.py` if they differ. `mpi_library.py` finds the library in use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from . import slurm_variables


@dataclass(frozen=True)
class MpiFacts:
    """One MPI library. mark: bytes that identify its file. pmi: the value for srun's --mpi=. wheel: its pip package.

    banners: texts in the output of its `mpirun --version`. binding: advice for ranks with {cores} cores each.
    """

    kind: str
    mark: bytes
    pmi: str
    wheel: str = ""
    banners: tuple[str, ...] = ()
    binding: str = (
        "use mpirun -bind-to core:{cores} ..., or leave -bind-to out: Aristos shares a node's cores among its ranks"
    )


# Marks are searched in this order, because Intel's and Cray's files have MPICH's mark too.
MPIS = (
    MpiFacts(
        "Intel MPI",
        b"I_MPI_Check_image_status",
        "pmi2",
        "impi-rt",
        ("Intel(R) MPI",),
        "export I_MPI_PIN_DOMAIN={cores}",
    ),
    MpiFacts("Cray MPICH", b"CRAY MPICH", "cray_shasta"),
    MpiFacts(
        "Open MPI",
        b"ompi_mpi_comm_self",
        "pmix",
        "openmpi",
        ("Open MPI", "prte"),
        "use mpirun --map-by slot:PE={cores} --bind-to core ... (by default a rank has one core), or --bind-to none",
    ),
    MpiFacts("MPICH", b"MPICH Version", "pmi2", "mpich", ("HYDRA",)),
)
UNKNOWN = "unknown MPI"
DEFAULT = MPIS[-1]

# Variables in which a launcher gives each rank its number, the innermost launcher first: mpirun inside a Slurm job
# inherits Slurm's variables, which then describe mpirun's daemons.
WORLD = (  # launcher, number of tasks, this task
    ("Open MPI's mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("mpirun", "PMI_SIZE", "PMI_RANK"),
    ("srun", slurm_variables.STEP_TASKS, slurm_variables.TASK),
    ("srun", slurm_variables.TASKS, slurm_variables.TASK),
)
LOCAL = (  # variables with this rank's number on its node, and with the number of ranks on the node
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    (slurm_variables.LOCAL_RANK, ""),
)
MPIRUN_STARTED = frozenset({"MPI_LOCALNRANKS", "OMPI_COMM_WORLD_SIZE"})  # every mpirun sets one of them
# Prefixes of all variables that mpiexec and srun set for a task. A process that runs alone must not inherit these.
PREFIXES = (
    "PMI_", "PMI2_", "PMIX_", "PRTE_", "OMPI_COMM_WORLD_", "OMPI_UNIVERSE_", "OMPI_NUM_APP_", "OMPI_APP_CTX_",
    "OMPI_FIRST_RANKS", "OMPI_MCA_ess", "OMPI_MCA_orte_", "OMPI_MCA_pmix", "I_MPI_PMI_LIBRARY", "HYDRA_", "HYDI_",
    "MPI_LOCAL", "MPIEXEC_", "PALS_", "ALPS_", "SLURM_",
)  # fmt: skip
SITE_VARIABLES = ("CRAY_MPICH_DIR", "MPICH_DIR", "MPI_HOME", "I_MPI_ROOT")  # set by a site's MPI modules
# Names of the files that MPICH, Intel MPI, Open MPI and UCX keep in /dev/shm.
SHARED_FILES = r"mpich_shm_|Intel_MPI_|psm2?_|sm_segment\.|vader_segment\.|osc_sm\.|ucx_shm_"


def facts(kind: str) -> MpiFacts | None:
    """The facts of a kind of library; None if it is unknown."""
    return next((each for each in MPIS if each.kind == kind), None)


def of_banner(text: str) -> str:
    """The kind of library whose `mpirun --version` printed this text, or UNKNOWN."""
    for each in MPIS:
        if any(banner.lower() in text.lower() for banner in each.banners):
            return each.kind
    return UNKNOWN


def under_srun(env: Mapping[str, str]) -> bool:
    """Whether srun started this task itself.

    An mpirun in a job starts its daemons by srun, so its ranks inherit srun's variables.
    """
    return slurm_variables.in_step(env) and not MPIRUN_STARTED & env.keys()

"""ReFrame's configuration, to copy: a cluster with Slurm, and this machine with mpiexec.

EDIT: names, --partition, and the commands that activate the environment with Aristos (`prepare_cmds`), if python and
mpiexec are not on PATH already.
"""

site_configuration = {
    "systems": [
        {
            "name": "cluster",
            "descr": "a cluster with Slurm",
            "hostnames": ["login.*"],
            "partitions": [
                {
                    "name": "compute",
                    # Of Slurm's two backends this one needs no accounting (sacct).
                    "scheduler": "squeue",
                    "launcher": "srun",
                    # srun and MPI must use the same PMI: pmi2 for MPICH and Intel MPI, pmix for Open MPI.
                    "env_vars": [["SLURM_MPI_TYPE", "pmi2"]],
                    "access": [],  # e.g. ["--partition=compute", "--account=..."]
                    "prepare_cmds": [],  # e.g. ["module load mpich", "source ~/aristos/bin/activate"]
                    "environs": ["builtin"],
                    "max_jobs": 1,
                }
            ],
        },
        {
            "name": "local",
            "descr": "this machine",
            "hostnames": [".*"],
            "partitions": [
                {
                    "name": "mpi",
                    "scheduler": "local",
                    "launcher": "mpiexec",
                    "prepare_cmds": [],
                    "environs": ["builtin"],
                    "max_jobs": 1,
                }
            ],
        },
    ],
}

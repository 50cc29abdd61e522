#!/usr/bin/env bash
# Ranks on this machine, bound to cores of their own where there are enough:
#
#     launch/mpirun.sh                            2 ranks, `python -m aristos.bench`
#     launch/mpirun.sh 4 layer --tokens 256       4 ranks, arguments for the benchmark
#     PROGRAM=examples/layer.py launch/mpirun.sh 2
#     PYTHON=~/venv/bin/python launch/mpirun.sh 2
set -euo pipefail

ranks=${1:-2}
shift || true
python=${PYTHON:-python}

# What to run; a word a line of the array, so that blanks in paths survive.
program=(-m aristos.bench)
[[ -z ${PROGRAM:-} ]] || program=("$PROGRAM")

# The MPI library that mpi4py loads decides the flags. Asking its version does not start MPI.
library=$("$python" -c 'import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
print(MPI.Get_library_version().replace("\0", ""))')

# Its own launcher lies beside python when the library came by pip; a module's is on PATH. Another library's would start
# ranks that each see a world of one. mpiexec, since Intel's mpirun finds its parts only on PATH.
mpiexec=$(dirname "$("$python" -c 'import sys; print(sys.executable)')")/mpiexec
[[ -x $mpiexec ]] || mpiexec=mpiexec

# Cores a rank gets: its share. Aristos starts a worker for each core that a rank is bound to. (nproc would take
# OMP_NUM_THREADS for the number of cores.)
cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)
share=$((cores / ranks))

flags=(-n "$ranks")
case $library in
*"Open MPI"*)
    flags+=(--oversubscribe)                                 # a container's slot count may be lower than its cores
    ((EUID != 0)) || flags+=(--allow-run-as-root)            # it refuses root without being told
    if ((share)); then
        flags+=(--map-by "slot:PE=$share" --bind-to core)    # `share` cores for each rank
    else
        flags+=(--bind-to none)                              # more ranks than cores: let the system place them
    fi
    export OMPI_MCA_btl=${OMPI_MCA_btl:-self,sm,tcp}         # no fabric is needed inside one machine
    export OMPI_MCA_osc=${OMPI_MCA_osc:-^ucx}                # why: aristos/workarounds.py
    export PRTE_MCA_prte_silence_shared_fs=1                 # a warning about /tmp on a network file system
    ;;
*Intel*)
    export I_MPI_PIN_DOMAIN=$((share ? share : 1))           # cores a rank, in logical processors
    ((share)) || export I_MPI_PIN=0
    export I_MPI_FABRICS=${I_MPI_FABRICS:-shm}               # one machine: no network is touched
    export HYDRA_IFACE=${HYDRA_IFACE:-lo}                    # the launcher need not resolve the host's name
    ;;
*)
    ((share == 0)) || flags+=(-bind-to "core:$share")        # MPICH's hydra binds only when told
    export HYDRA_IFACE=${HYDRA_IFACE:-lo}
    ;;
esac

# BLAS would start a thread a core in every rank; the workers are what should compute.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-1}

exec "$mpiexec" "${flags[@]}" "$python" "${program[@]}" "$@"

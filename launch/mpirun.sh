#!/usr/bin/env bash
# Start ranks on this machine, each bound to cores of its own if there are enough:
#
#     launch/mpirun.sh                            2 ranks, `python -m aristos.bench`
#     launch/mpirun.sh 4 layer --tokens 256       4 ranks, arguments for the benchmark
#     PROGRAM=examples/layer.py launch/mpirun.sh 2
#     PYTHON=~/venv/bin/python launch/mpirun.sh 2
#
# `aristos run` finds the launcher of the MPI that mpi4py loads, binds the ranks, and shows what it sets and why:
#
#     aristos run --dry-run -n 4 -- python -m aristos.bench
# Without it, use the mpiexec beside python if MPI was installed by pip, and give each rank its cores, here 4. Under
# another library's mpiexec each rank is a job of one.
#
#     MPICH      HYDRA_IFACE=lo mpiexec -n 2 -bind-to core:4 python -m aristos.bench
#     Open MPI   OMPI_MCA_btl=self,sm,tcp OMPI_MCA_osc=^ucx mpiexec -n 2 --map-by slot:PE=4 --bind-to core
#                --oversubscribe (fewer slots than cores, as in containers) --allow-run-as-root python -m aristos.bench
#     Intel MPI  HYDRA_IFACE=lo I_MPI_FABRICS=shm I_MPI_PIN_DOMAIN=4 mpiexec -n 2 python -m aristos.bench
#
# and OMP_NUM_THREADS=1: otherwise BLAS starts a thread for each core in every rank, and the workers need the cores.
# On several sockets `aristos run --per numa -- ...` starts one rank a NUMA domain. The launchers' own options for
# that, which replace those for cores, are untried: MPICH -bind-to numa; Open MPI --map-by numa --bind-to numa; Intel MPI
# I_MPI_PIN_DOMAIN=numa.
set -euo pipefail

ranks=${1:-2}
shift || true
python=${PYTHON:-python}

# The program is an array, so that blanks in paths survive.
program=(-m aristos.bench)
[[ -z ${PROGRAM:-} ]] || program=("$PROGRAM")

exec "$python" -m aristos run -n "$ranks" -- "$python" "${program[@]}" "$@"

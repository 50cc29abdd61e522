"""Microbenchmarks of Aristos: `mpirun -n 2 python -m aristos.bench [SUITE ...]`. Importing this does nothing."""

"""Microbenchmarks that users run: `mpirun -n 2 python -m aristos.bench [SUITE ...]`.

Importing the package runs nothing.

Scripts that compare Aristos with outside peers are in `bench/`, beside the package.
"""

"""Results of benchmarks: runs, which have tables. Runs are appended to an HDF5 file; no crash or second writer damages
it."""

from .hdf5 import LOCK_SECONDS, SCHEMA, append, check, load
from .labelled import open
from .tables import Results, Run, Table, Variable

__all__ = ["LOCK_SECONDS", "SCHEMA", "Results", "Run", "Table", "Variable", "append", "check", "load", "open"]

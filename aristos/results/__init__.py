"""Results of benchmarks: runs, which have tables, in an HDF5 file that no crash and no second writer damages."""

from .hdf5 import LOCK_SECONDS, SCHEMA, append, check, load
from .labelled import open
from .tables import Results, Run, Table, Variable

__all__ = ["LOCK_SECONDS", "SCHEMA", "Results", "Run", "Table", "Variable", "append", "check", "load", "open"]

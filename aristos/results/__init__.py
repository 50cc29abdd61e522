"""Results of benchmarks: runs of tables, appended to an HDF5 file that no crash and no second writer damages."""

from .hdf5 import LOCK_SECONDS, SCHEMA, Results, Run, Table, Variable, append, check, load

__all__ = ["LOCK_SECONDS", "SCHEMA", "Results", "Run", "Table", "Variable", "append", "check", "load"]

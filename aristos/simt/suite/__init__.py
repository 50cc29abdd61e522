"""Kernels nobody here wrote: numba-cuda's own tests and documentation examples, run on the machine from where they
are installed. `python -m aristos.simt.suite` runs them and writes the table; record.py says what counts as what."""

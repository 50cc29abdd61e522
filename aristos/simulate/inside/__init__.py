"""Modules of the copy of the package that a simulation makes, see `simulate/copied.py`."""

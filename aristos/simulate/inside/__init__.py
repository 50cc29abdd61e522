"""Modules for the simulation's copy of the package, see `simulate/copied.py`."""

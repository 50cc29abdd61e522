"""Runs numba-cuda's own tests and documentation examples on the machine, from the place where they are installed.

`python -m ptxsim.suite` runs them and writes the table of outcomes. record.py defines the outcomes.
"""

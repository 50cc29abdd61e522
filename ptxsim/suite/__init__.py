"""numba-cuda's own tests and documentation examples on the machine, run from where they are installed.

`python -m ptxsim.suite` runs them and writes the table; record.py defines the outcomes.
"""

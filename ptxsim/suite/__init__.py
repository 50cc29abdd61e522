"""numba-cuda's own tests and documentation examples, run on the machine from the place where they are installed.

`python -m ptxsim.suite` runs them and writes the table. record.py defines the outcomes.
"""

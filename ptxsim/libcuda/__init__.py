"""A stand-in for NVIDIA's libcuda.so.1, through which programs of the driver API run on the machine unchanged.

`ptxsim run PROGRAM` (run.py) starts the program with the library, which build.py compiles from stand_in.c. The
library's first call imports session.py in the program's process, and session.py fills the library's table with the
functions of the other modules.
"""

"""`aristos run` starts a job on this machine or allocation. Each rank gets a seat: a device, cores close to it, a NIC.

`host/launch_environment.py` finds out how a rank was started. Importing this package imports no NumPy, MPI or driver.
"""

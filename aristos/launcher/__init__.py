"""`aristos run`: start a job well on what is there. Each rank gets a seat: a device, the cores near it, a NIC.

`host/launch_environment.py` tells a rank how it was started. Importing this imports no numpy, MPI or driver.
"""

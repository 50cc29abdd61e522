"""`discover()` returns one `Topology` of machine, links and network, read from NVML or nvidia-smi, sysfs and Slurm.

An import of this package imports no NumPy, MPI or driver.
"""

from .discover import discover, from_text, join
from .model import KINDS, Cache, Fault, Gpu, Link, Mig, Nic, Node, Numa, Topology
from .network import Network

__all__ = [
    "KINDS",
    "Cache",
    "Fault",
    "Gpu",
    "Link",
    "Mig",
    "Network",
    "Nic",
    "Node",
    "Numa",
    "Topology",
    "discover",
    "from_text",
    "join",
]

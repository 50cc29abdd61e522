"""The machine, the links, the network: `discover()` -> one `Topology`, from nvidia-smi, NVML, sysfs and Slurm.

Importing this imports nothing heavy: no numpy, no MPI, no driver.
"""

from .discover import discover, from_text, join
from .model import KINDS, Cache, Device, Fault, Link, Mig, Nic, Node, Numa, Topology
from .network import Network

__all__ = [
    "KINDS",
    "Cache",
    "Device",
    "Fault",
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

"""What a report means: how much it matters, which order is missing, and the smallest repair."""

from __future__ import annotations

from . import missing, tensor_fence, tensor_memory, warpgroup
from . import state as s

WRONG, FORMAL, SAME = "wrong", "formal", "same value"
MEANING = {
    WRONG: "results can be wrong",
    FORMAL: "formal: a fault by PTX's rules, which hardware seldom shows",
    SAME: "the same value is written twice",
}
FLAG = "the flag between the two"
# by what the order of two racing accesses lacks: (what is missing, the smallest repair)
ORDERS = {
    missing.UNKNOWN: ("", ""),
    missing.SCOPE_OF_ACCESS: ("scope", "use .sys for both if they are on different devices, else .gpu"),
    missing.SIZES: ("equal sizes", "use one size for both: strong accesses of unequal sizes are not ordered"),
    missing.WARP_BARRIER: ("barrier", "__syncwarp() between the two"),
    missing.BARRIER: ("barrier", "__syncthreads() between the two"),
    missing.ACQUIRE: ("acquire", f"load {FLAG} by ld.acquire, or put a fence after that load"),
    missing.SCOPE: ("scope", f"release and acquire {FLAG} with .sys between devices, with .gpu between blocks"),
    missing.RELEASE: ("fence", f"store {FLAG} by st.release, or put a fence before that store"),
    missing.BARRIER_BEFORE: ("barrier", "__syncthreads() between the earlier access and the release by its block"),
    missing.LAUNCHES: (
        "order of launches",
        "launch both in one stream, let one stream wait for an event of the other, or run griddepcontrol.wait first",
    ),
    missing.BLOCKS: ("order of blocks", "a flag with release and acquire, a grid's barrier, or two launches"),
    missing.CLUSTERS: ("barrier of the cluster", "cluster.sync() (barrier.cluster.arrive and .wait) between the two"),
    missing.DEVICES: ("order of devices", "a flag with release and acquire of sys scope"),
    missing.FENCE_AFTER: ("fence", "put the fence after the barrier too, in the thread that sets the flag"),
    missing.HOST_ORDER: ("order with the host", "a flag with release and acquire of sys scope"),
}
NODES = ("edge", "add an edge between the two nodes of the graph")  # in place of missing.LAUNCHES
INITIALISATION = ("proxy fence", "fence.mbarrier_init.release.cluster or fence.proxy.async after mbarrier.init")
WGMMA_FENCE = ("fence", "wgmma.fence between the two")
ABSENT_LANE = ("lane", "let every lane that is read run this shuffle, with a mask that names it")
TENSOR_WAITS = {
    warpgroup.LOAD_PENDING: (FORMAL, ("wait", "tcgen05.wait::ld before the first use of what was loaded")),
    tensor_memory.STORE_PENDING: (WRONG, ("wait", "tcgen05.wait::st in the warp that stores, before it signals")),
}
TENSOR_FENCES = {
    tensor_fence.AFTER: "tcgen05.fence::after_thread_sync after the wait, in the thread that uses tensor memory next",
    tensor_fence.BEFORE: "tcgen05.fence::before_thread_sync after tcgen05.wait::st, before the thread signals",
}
KINDS = {
    s.MISSING_FENCE: ("proxy fence", "fence.proxy.async between the two"),
    s.MISSING_WAIT: ("wait", "wait for the asynchronous work first"),
    s.NOT_COHERENT: ("plain load", "load without .nc: no __ldg, no const __restrict__"),
    s.UNINITIALISED: ("write", "write the memory first"),
}

BARRIER = "barrier of the cluster"
STARTS = BARRIER, "cluster.sync() before the first access to another block's shared memory"
ENDS = BARRIER, "cluster.sync() after the last access to another block's shared memory"


def of_race(detail: int) -> tuple[str, str, str]:
    """(verdict, what is missing, the repair) of a race. detail: the record's (missing.py)."""
    number = detail & (missing.SAME_VALUE - 1)
    if detail & missing.SAME_VALUE:
        return SAME, *ORDERS[number]
    return (FORMAL if number in (missing.ACQUIRE, missing.FENCE_AFTER) else WRONG), *ORDERS[number]

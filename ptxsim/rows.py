"""Rows of the register file that every program has: special registers, addresses of frame and parameters, constants.

Numba reads the rows' numbers as constants. `blocks.start_block` fills the rows.
"""

from __future__ import annotations

SPECIAL = [
    "_", "tid.x", "tid.y", "tid.z", "ntid.x", "ntid.y", "ntid.z", "ctaid.x", "ctaid.y", "ctaid.z", "nctaid.x",
    "nctaid.y", "nctaid.z", "laneid", "warpid", "nwarpid", "smid", "nsmid", "gridid", "lanemask_eq", "lanemask_le",
    "lanemask_lt", "lanemask_ge", "lanemask_gt", "PARAMS", "FRAME", "STACK", "dynamic_smem_size", "total_smem_size",
    "CARRY", "ZERO", "ONE", "envreg1", "envreg2",
]  # fmt: skip
ROW = {name: row for row, name in enumerate(SPECIAL)}
TRASH, PARAMS, FRAME = ROW["_"], ROW["PARAMS"], ROW["FRAME"]
CARRY, ZERO, ONE = ROW["CARRY"], ROW["ZERO"], ROW["ONE"]
CONSTANT_REGISTERS = {
    **{f"%{name}": ROW[name] for name in SPECIAL if name.islower() and name != "_"},
    "%laneid": ROW["laneid"],
    "WARP_SZ": -32,
    **{f"%envreg{i}": ROW["ZERO"] for i in (0, *range(3, 32))},
}
# special registers of clusters, in the order of cluster.cluster_register
CLUSTER_REGISTERS = [
    *(f"%{name}.{axis}" for name in ("clusterid", "nclusterid", "cluster_ctaid", "cluster_nctaid") for axis in "xyz"),
    "%cluster_ctarank",
    "%cluster_nctarank",
    "%is_explicit_cluster",
    "shared base",  # what is added to a shared address so that it names the block (isa.RANK_SHIFT); 0 without a cluster
]
CLOCKS = {"%clock": 0, "%clock64": 0, "%clock_hi": 1, "%globaltimer": 2, "%globaltimer_lo": 2, "%globaltimer_hi": 3}

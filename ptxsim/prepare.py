"""Lays out the tables that a run of launches needs, with slots for the blocks that can be resident."""

from __future__ import annotations

import numpy as np

from . import isa, streams, tensor_memory
from . import state as s
from .clocks import HOST
from .core import Core
from .launches import Launch, valid_bytes

PARAMETER_ALIGN = 128


def prepare(core: Core, every: list[Launch], past: int) -> None:
    """Lay out the tables for launches: queues, counters, and slots for the blocks that can be resident.

    past: how many of the launches ended in earlier runs. This run continues with their clocks.
    """
    x, launches = core.x, every[past:]
    wanted = resident(core, launches)
    slots = sum(wanted)
    per_block = max((-(-launch.threads // 32) for launch in launches), default=1)
    warp_slots = slots * per_block + 1  # the last one is for the host's actors
    rows = max((launch.program.rows for launch in launches), default=1)
    local = -(-max((launch.program.local_bytes for launch in launches), default=0) // 16) * 16 + 16
    depth = max((launch.program.depth for launch in launches), default=1)
    save = max((launch.program.save_rows for launch in launches), default=0)
    shared = -(-max((launch.shared for launch in launches), default=0) // 16) * 16 + 16
    granule = min((launch.program.granule for launch in launches), default=4)
    core.table("regs", (max(warp_slots * rows * 32, 1),), s.REGS)
    warps = core.table("warps", (warp_slots, s.W_FIELDS), s.WARPS)
    core.table("threads", (warp_slots * 32, s.T_FIELDS), s.THREADS)
    warps[:, s.W_READY], warps[:, s.W_SLOT] = -1, np.arange(warp_slots)
    warps[:, s.W_THREADS] = x[s.THREADS] + np.arange(warp_slots) * 32 * s.T_FIELDS * 8
    blocks = core.table("blocks", (max(slots, 1), s.B_FIELDS), s.BLOCKS)
    core.table("barriers", (max(slots, 1) * s.BARRIERS_PER_BLOCK, s.Q_FIELDS), s.BARRIERS)
    core.table("clusters", (max(slots, 1), s.K_FIELDS), s.CLUSTERS)
    x[s.CLUSTERED] = int(any(launch.cluster_blocks > 1 for launch in launches))
    core.table("ready", (warp_slots,), s.READY)
    core.table("local", (warp_slots * 32 * local,), s.LOCAL, np.uint8)
    stack = (4 * (depth + 1) + save) * 8
    core.table("stacks", (warp_slots * 32 * stack,), s.STACKS, np.uint8)
    core.table("copies", (warp_slots * 32 * s.C_MOST, s.C_FIELDS), s.COPIES)
    uses = {int(op) for launch in launches for op in np.unique(launch.program.code[:, isa.OP])}
    barriers = slots if uses & set(range(isa.MBINIT, isa.MBCOPIES + 1)) else 0
    most = max((launch.cluster_blocks for launch in launches), default=1) if isa.CLUSTERWAIT in uses else 1
    released = barriers or isa.CLUSTERWAIT in uses  # an mbarrier can release a whole block at once, or a cluster
    x[s.CLOCK_SPACE] = 512 + (64 * per_block * most if released else 0)
    core.table("mbarriers", (max(barriers, 1) * s.MB_MOST, s.MB_FIELDS), s.MBARRIERS)
    core.table("flight", (warp_slots * rows if core.check and uses & {isa.WGMMA, isa.TCLOAD} else 1,), s.FLIGHT)
    core.table("tensor_memory", (max(slots, 1) * tensor_memory.WORDS if isa.TCALLOC in uses else 1,), s.TENSOR_MEMORY)
    core.table("shared", (max(slots, 1) * shared,), s.SHARED_MEMORY, np.uint8)
    x[s.REGISTERS_PER_WARP], x[s.LOCAL_BYTES], x[s.STACK_BYTES] = rows * 32, local, stack
    x[s.DEPTH], x[s.SAVE_ROWS], x[s.WARP_SLOTS], x[s.BLOCK_SLOTS] = depth + 1, save, warp_slots, slots
    cells = (shared // granule + 2) * s.CELL_WORDS
    if core.check:
        core.table("known", (warp_slots, 1024), s.KNOWN)
        core.table("shared_init", (max(slots, 1) * shared,), s.SHARED_INIT, np.uint8)
        core.table("shared_shadow", (max(slots, 1) * cells,), s.SHARED_SHADOW)
    blocks[:, s.B_LAUNCH] = -1
    slot = 0
    for device, count in enumerate(wanted):
        for _ in range(count):
            row = blocks[slot]
            row[s.B_DEVICE], row[s.B_SLOT], row[s.B_FIRST_WARP] = device, slot, slot * per_block
            row[s.B_SHARED] = x[s.SHARED_MEMORY] + slot * shared
            if core.check:
                row[s.B_INIT] = x[s.SHARED_INIT] + slot * shared
                row[s.B_SHADOW] = x[s.SHARED_SHADOW] + slot * cells * 8
            slot += 1
    x[s.SLOW_UNTIL] = x[s.PENDING_COUNT] = x[s.TIMES] = x[s.SKIPS] = x[s.CLOCK_READ] = x[s.HINTED] = 0
    x[s.ASKED_BLOCK] = -1
    x[s.READY_COUNT] = x[s.DEAD] = x[s.STOP] = x[s.SUSPECT] = x[s.SPINNING] = 0
    if core.check:
        if x[s.SEQUENCE] != core.cleared:  # the host may have written since the last run
            core.tables["history"][:, s.H_COUNT] = 0
            core.cleared = int(x[s.SEQUENCE])
        if not past:  # then everything before this run is over
            if x[s.SYNC_USED]:
                core.tables["sync"][:] = 0
            x[s.SYNC_USED], x[s.SC_SYSTEM], x[s.CLOCKS_TOP] = 0, 0, 1
    x[s.PROGRESS], x[s.PATIENCE] = x[s.STEP], core.patience
    x[s.DEVICE_COUNT] = core.device_count
    if not past:
        x[s.RUN_FLOOR] = core.next_gid
        core.next_gid += 1  # because a run's first number is the host's
    lay_out_queues(core, every, past)
    core.loader.publish()


def resident(core: Core, launches: list[Launch]) -> list[int]:
    """How many blocks of each device can be resident at once.

    Only one launch of a stream runs at a time, except that a programmatic launch may run beside the launches before it.
    """
    most: dict[tuple[int, int], int] = {}
    before: dict[int, int] = {}
    for launch in launches:
        stream = id(launch.stream)
        here = min(launch.blocks, launch.per_sm * core.sm_count)
        both = here + (before.get(stream, 0) if launch.programmatic else 0)
        before[stream] = both
        key = launch.device, stream
        most[key] = max(most.get(key, 0), both)
    wanted = [0] * core.device_count
    for (device, _), count in most.items():
        wanted[device] += count
    return wanted


def lay_out_queues(core: Core, every: list[Launch], past: int) -> None:
    """Fill the tables of launches and devices, and place parameters and constants.

    The rows of the first `past` launches are those of the last run.
    """
    x, launches = core.x, every[past:]
    before = core.tables["launches"][:past] if past else None
    table = core.table("launches", (max(len(every), 1), s.L_FIELDS), s.LAUNCHES)
    if before is not None:
        table[:past] = before
        table[:past, [s.L_NEEDS, s.L_CONSTANTS, s.L_VALID]] = 0  # these launches ended, and the arrays here are gone
    found, lists = streams.places(every)
    numbers = core.table("streams", (max(len(lists), 1), s.ST_FIELDS), s.STREAMS)
    devices = core.table("devices", (core.device_count, s.D_FIELDS + s.MAX_SMS), s.DEVICES)
    devices[:, s.D_SMS] = core.sm_count
    x[s.LAUNCH_COUNT], x[s.OPEN] = len(every), len(launches)
    x[s.HELD] = 0
    core.kept = [np.array(one, np.int64) for one in lists]
    for row, one in zip(numbers, core.kept):
        row[s.ST_COUNT], row[s.ST_LIST], row[s.ST_DONE] = len(one), one.ctypes.data, (one < past).sum()
    starts = np.cumsum([0] + [-(-len(launch.params) // PARAMETER_ALIGN) * PARAMETER_ALIGN for launch in launches])
    parameters = core.table("parameters", (max(starts[-1], 1),), s.PARAMETERS, np.uint8)
    for at, launch in enumerate(launches):
        number = past + at
        launch.first, launch.base = core.next_gid, core.loader.base(launch.program)
        core.next_gid += launch.blocks
        row = table[number]
        parameters[starts[at] : starts[at] + len(launch.params)] = np.frombuffer(launch.params, np.uint8)
        constants = core.loader.constants(launch.program, launch.device)
        valid = valid_bytes(launch)
        needs = [found[id(need)] for need in launch.needs if id(need) in found]
        pairs = np.array([*needs, (0, 0)], np.int64)
        core.kept += [constants, valid, pairs]
        row[s.L_DEVICE], row[s.L_BLOCKS], row[s.L_FIRST_GID] = launch.device, launch.blocks, launch.first
        row[s.L_GX], row[s.L_GY], row[s.L_GZ] = launch.grid
        row[s.L_BX], row[s.L_BY], row[s.L_BZ] = launch.block
        row[s.L_CX], row[s.L_CY], row[s.L_CZ] = launch.cluster
        row[s.L_CLUSTER], row[s.L_EXPLICIT] = launch.cluster_blocks, launch.explicit
        row[s.L_THREADS], row[s.L_WARPS] = launch.threads, -(-launch.threads // 32)
        row[s.L_ENTRY], row[s.L_PARAMS] = launch.base + launch.info.start, isa.PARAM_WINDOW + starts[at]
        row[s.L_PARAM_BYTES] = len(launch.params)
        row[s.L_ROWS], row[s.L_SHARED] = launch.program.rows, launch.shared
        row[s.L_CONSTANTS], row[s.L_CONSTANT_COUNT] = constants.ctypes.data, len(constants)
        row[s.L_DYNAMIC], row[s.L_LOCAL], row[s.L_NUMBER] = launch.dynamic, launch.program.local_bytes, number
        row[s.L_SHARE] = s.WHOLE_SM // launch.per_sm
        row[s.L_STREAM], row[s.L_ORDER] = found[id(launch)]
        row[s.L_NEEDS], row[s.L_NEED_COUNT] = pairs.ctypes.data, len(needs)
        row[s.L_PROGRAMMATIC] = launch.programmatic and launch.needs and id(launch.needs[-1]) in found
        row[s.L_WORKSPACE] = launch.workspace
        row[s.L_GRANULE], row[s.L_VALID] = launch.program.granule, valid.ctypes.data
        row[s.L_WARPGROUP] = int((launch.program.code[:, isa.OP] == isa.WGMMA).any())
        row[s.L_STATE] = s.QUEUED
    core.running = every
    host = core.tables["threads"][-32:]
    host[:, s.T_GID] = (HOST | int(core.x[s.RUN_FLOOR])) << 10 | np.arange(32)
    host[:, s.T_CLOCK] = 1

"""The start of blocks, when an SM has space, and their removal, when their threads have ended."""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import state as s
from .access import thread_of
from .barrier import rest, wake
from .begin import begin_launches, end_launch, launch_at, trigger
from .bits import get, put, store8
from .bulk import abandon
from .cluster import cluster_over, cta_of
from .collective import FULL
from .lanes import select
from .rows import ONE, PARAMS, ROW, SPECIAL
from .units import unit
from .warpgroup import watch_registers

ROW_TID_X, ROW_TID_Y, ROW_TID_Z, ROW_NTID, ROW_CTAID, ROW_NCTAID = (
    ROW[name] for name in ("tid.x", "tid.y", "tid.z", "ntid.x", "ctaid.x", "nctaid.x")
)
ROW_LANEID, ROW_WARPID, ROW_NWARPID, ROW_SMID, ROW_NSMID, ROW_GRIDID, ROW_DYNAMIC = (
    ROW[name] for name in ("laneid", "warpid", "nwarpid", "smid", "nsmid", "gridid", "dynamic_smem_size")
)
ROW_WORKSPACE = ROW["envreg1"]
ROW_EQ, ROW_LE, ROW_LT, ROW_GE, ROW_GT = (ROW[f"lanemask_{name}"] for name in ("eq", "le", "lt", "ge", "gt"))
COUNT = len(SPECIAL)
WRITTEN = tuple(ROW[name] for name in ("_", "FRAME", "STACK", "CARRY"))  # special rows that a kernel changes


@unit
def start_block(x, device, launch, slot, sm):
    """Start the next block of a launch in a slot: set up its threads with their special registers and constants."""
    block = get(x, s.BLOCKS) + slot * s.B_FIELDS * 8
    cta = cta_of(launch, get(launch, s.L_NEXT))
    put(launch, s.L_NEXT, get(launch, s.L_NEXT) + 1)
    threads, warps = get(launch, s.L_THREADS), get(launch, s.L_WARPS)
    put(block, s.B_LAUNCH, get(launch, s.L_NUMBER))
    put(block, s.B_CTA, cta)
    put(block, s.B_THREADS, threads)
    put(block, s.B_WARPS, warps)
    put(block, s.B_LIVE, threads)
    put(block, s.B_GID, get(launch, s.L_FIRST_GID) + cta)
    put(block, s.B_FLOOR, 0)
    put(block, s.B_MAX_CLOCK, 1)
    put(block, s.B_SM, sm)
    put(block, s.B_SC, 0)
    put(block, s.B_REACHED, 0)
    put(block, s.B_VC_OUT, 0)
    put(block, s.B_AT_GRID, 0)
    put(block, s.B_MBARRIERS, 0)
    put(block, s.B_TRIGGERED, 0)
    put(block, s.B_ALLOCATES, 0)
    shared = get(launch, s.L_SHARED)
    put(block, s.B_SHARED_SIZE, shared)
    put(block, s.B_VALID, get(launch, s.L_VALID))
    clear(get(block, s.B_SHARED), shared)
    if get(x, s.CHECK):
        clear(get(block, s.B_INIT), shared)
        clear(get(block, s.B_SHADOW), (shared // get(launch, s.L_GRANULE) + 1) * s.CELL_WORDS * 8)
    for number in range(s.BARRIERS_PER_BLOCK):
        q = get(x, s.BARRIERS) + (slot * s.BARRIERS_PER_BLOCK + number) * s.Q_FIELDS * 8
        for f in range(s.Q_FIELDS):
            put(q, f, 0)
    gx, gy = get(launch, s.L_GX), get(launch, s.L_GY)
    bx, by = get(launch, s.L_BX), get(launch, s.L_BY)
    entry, gid, vc = get(launch, s.L_ENTRY), get(block, s.B_GID) << 10, get(launch, s.L_VC)
    tx, ty, tz = np.int64(0), np.int64(0), np.int64(0)
    for k in range(warps):
        number = get(block, s.B_FIRST_WARP) + k
        warp = get(x, s.WARPS) + number * s.W_FIELDS * 8
        regs = get(x, s.REGS) + number * get(x, s.REGISTERS_PER_WARP) * 8
        if get(block, s.B_READY) != get(launch, s.L_NUMBER) + 1:
            set_equal_rows(device, launch, regs, k)
        clear(regs + COUNT * 256, (get(launch, s.L_ROWS) - COUNT) * 256)
        for row in WRITTEN:
            clear(regs + row * 256, 256)
        clear(warp, s.W_SLOT * 8)  # the fields from W_SLOT on never change
        put(warp, s.W_REGS, regs)
        put(warp, s.W_BLOCK, slot)
        put(warp, s.W_INDEX, k)
        put(warp, s.W_READY, -1)
        if get(x, s.CHECK):
            known = get(x, s.KNOWN) + number * 1024 * 8
            for i in range(1024):
                put(known, i, -1)
        live = np.int64(0)
        for lane in range(32):
            tid = k * 32 + lane
            thread = thread_of(x, warp, lane)
            clear(thread, s.T_FIELDS * 8)
            put(thread, s.T_PC, entry)
            put(thread, s.T_GID, gid | tid)
            put(thread, s.T_CLOCK, 1)
            put(thread, s.T_TID, tid)
            put(thread, s.T_VC, vc)
            if tid < threads:
                live |= 1 << lane
            put(regs, ROW_TID_X * 32 + lane, tx)
            put(regs, ROW_TID_Y * 32 + lane, ty)
            put(regs, ROW_TID_Z * 32 + lane, tz)
            tx += 1
            if tx == bx:
                tx, ty = np.int64(0), ty + 1
                if ty == by:
                    ty, tz = np.int64(0), tz + 1
        put(warp, s.W_LIVE, live)
        put(warp, s.W_EXISTS, live)
        fill(regs, ROW_CTAID, cta % gx)
        fill(regs, ROW_CTAID + 1, cta // gx % gy)
        fill(regs, ROW_CTAID + 2, cta // (gx * gy))
        fill(regs, ROW_SMID, sm)
        constants = get(launch, s.L_CONSTANTS)
        for i in range(get(launch, s.L_CONSTANT_COUNT)):
            fill(regs, get(constants, 2 * i), get(constants, 2 * i + 1))
        if get(launch, s.L_WARPGROUP) and get(x, s.CHECK):
            watch_registers(x, warp, number, launch)
        select(x, warp)
        wake(x, warp)
    put(block, s.B_READY, get(launch, s.L_NUMBER) + 1)
    put(x, s.PROGRESS, get(x, s.STEP))
    return 0


@jit
def set_equal_rows(device, launch, regs, k):
    """Set the rows of special registers that are equal in warp k of every block of a launch."""
    clear(regs, COUNT * 256)
    for lane in range(32):
        put(regs, ROW_LANEID * 32 + lane, lane)
        put(regs, ROW_EQ * 32 + lane, 1 << lane)
        put(regs, ROW_LE * 32 + lane, (2 << lane) - 1)
        put(regs, ROW_LT * 32 + lane, (1 << lane) - 1)
        put(regs, ROW_GE * 32 + lane, FULL & ~((1 << lane) - 1))
        put(regs, ROW_GT * 32 + lane, FULL & ~((2 << lane) - 1))
    for i in range(3):
        fill(regs, ROW_NTID + i, get(launch, s.L_BX + i))
        fill(regs, ROW_NCTAID + i, get(launch, s.L_GX + i))
    fill(regs, ROW_WARPID, k)
    fill(regs, ROW_NWARPID, get(launch, s.L_WARPS))
    fill(regs, ROW_NSMID, get(device, s.D_SMS))
    fill(regs, ROW_GRIDID, get(launch, s.L_NUMBER))
    fill(regs, PARAMS, get(launch, s.L_PARAMS))
    fill(regs, ROW_DYNAMIC, get(launch, s.L_DYNAMIC))
    fill(regs, ROW_DYNAMIC + 1, get(launch, s.L_SHARED))
    fill(regs, ONE, 1)
    fill(regs, ROW_WORKSPACE, get(launch, s.L_WORKSPACE) >> 32)
    fill(regs, ROW_WORKSPACE + 1, get(launch, s.L_WORKSPACE) & FULL)


@jit
def fill(regs, row, value):
    """Set a row of a warp's registers in all lanes."""
    for lane in range(32):
        put(regs, row * 32 + lane, value)


@jit
def clear(address, size):
    """Set bytes to zero."""
    n = size >> 3
    for i in range(n):
        put(address, i, 0)
    for i in range(n * 8, size):
        store8(address + i, np.uint64(0))


@unit
def admit(x, number):
    """Start the blocks of a device's launches while its SMs have space: those of the earliest launch first.

    Launches that take no part of an SM, which are copies and fills, do not wait behind others.
    """
    device = get(x, s.DEVICES) + number * (s.D_FIELDS + s.MAX_SMS) * 8
    sms = get(device, s.D_SMS)
    full = False
    for k in range(get(x, s.LAUNCH_COUNT)):
        launch = launch_at(x, k)
        if get(launch, s.L_DEVICE) != number or get(launch, s.L_STATE) != s.ACTIVE:
            continue
        if full and get(launch, s.L_SHARE) != 0:
            continue
        while get(launch, s.L_NEXT) < get(launch, s.L_BLOCKS):
            size = get(launch, s.L_CLUSTER)
            if size > 1 and not cluster_fits(x, device, number, sms, launch):
                break
            if space_for(device, sms, get(launch, s.L_SHARE)) < 0 or free_slot(x, number) < 0:
                full = True
                break
            cluster = np.int64(0)
            for rank in range(size):
                sm = space_for(device, sms, get(launch, s.L_SHARE))
                slot = free_slot(x, number)
                put(device, s.D_NEXT_SM, sm + 1)
                put(device, s.D_FIELDS + sm, get(device, s.D_FIELDS + sm) + get(launch, s.L_SHARE))
                if rank == 0:
                    cluster = get(x, s.CLUSTERS) + slot * s.K_FIELDS * 8
                    clear(cluster, s.K_FIELDS * 8)
                    put(cluster, s.K_SIZE, size)
                block = get(x, s.BLOCKS) + slot * s.B_FIELDS * 8
                put(block, s.B_CLUSTER, cluster)
                put(block, s.B_RANK, rank)
                put(cluster, s.K_BLOCKS + rank, block)
                start_block(x, device, launch, slot, sm)
    return 0


@jit
def cluster_fits(x, device, number, sms, launch):
    """Whether a device has space and free slots for all blocks of the next cluster of a launch."""
    places, slots = np.int64(0), np.int64(0)
    for sm in range(sms):
        places += (s.WHOLE_SM - get(device, s.D_FIELDS + sm)) // get(launch, s.L_SHARE)
    for i in range(get(x, s.BLOCK_SLOTS)):
        block = get(x, s.BLOCKS) + i * s.B_FIELDS * 8
        slots += np.int64(get(block, s.B_DEVICE) == number and get(block, s.B_LAUNCH) < 0)
    return min(places, slots) >= get(launch, s.L_CLUSTER)


@jit
def space_for(device, sms, share):
    """The next SM that has space for a block, or -1."""
    for k in range(sms):
        sm = (get(device, s.D_NEXT_SM) + k) % sms
        if get(device, s.D_FIELDS + sm) + share <= s.WHOLE_SM:
            return np.int64(sm)
    return np.int64(-1)


@jit
def free_slot(x, number):
    """A slot of a device that holds no block, or -1."""
    for i in range(get(x, s.BLOCK_SLOTS)):
        block = get(x, s.BLOCKS) + i * s.B_FIELDS * 8
        if get(block, s.B_DEVICE) == number and get(block, s.B_LAUNCH) < 0:
            return np.int64(i)
    return np.int64(-1)


@unit
def remove_ended(x):
    """Free the slots of blocks whose clusters have ended, and end the launches whose blocks have all ended.

    Then begin the launches that waited for these launches, and start blocks where SMs have space.
    """
    put(x, s.DEAD, 0)
    for i in range(get(x, s.BLOCK_SLOTS)):
        block = get(x, s.BLOCKS) + i * s.B_FIELDS * 8
        number = get(block, s.B_LAUNCH)
        if number < 0 or get(block, s.B_LIVE) > 0 or not cluster_over(block):
            continue
        for k in range(get(block, s.B_WARPS)):
            rest(x, get(x, s.WARPS) + (get(block, s.B_FIRST_WARP) + k) * s.W_FIELDS * 8)
        device = get(x, s.DEVICES) + get(block, s.B_DEVICE) * (s.D_FIELDS + s.MAX_SMS) * 8
        sm = s.D_FIELDS + get(block, s.B_SM)
        launch = launch_at(x, number)
        put(device, sm, get(device, sm) - get(launch, s.L_SHARE))
        if get(x, s.PENDING_COUNT):
            abandon(x, block, get(launch, s.L_STOPPED))
        put(launch, s.L_DONE, get(launch, s.L_DONE) + 1)
        trigger(x, block)
        put(block, s.B_LAUNCH, -1)
        if get(launch, s.L_STOPPED):
            put(launch, s.L_DONE, get(launch, s.L_DONE) + get(launch, s.L_BLOCKS) - get(launch, s.L_NEXT))
            put(launch, s.L_NEXT, get(launch, s.L_BLOCKS))
            put(launch, s.L_TRIGGERED, get(launch, s.L_BLOCKS))
        if get(launch, s.L_DONE) == get(launch, s.L_BLOCKS):
            end_launch(x, launch)
    begin_launches(x)
    for number in range(get(x, s.DEVICE_COUNT)):
        admit(x, number)
    return 0

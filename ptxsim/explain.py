"""Turns the interpreter's records into reports, and reports where the threads of a stuck machine wait."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from . import (
    bulk,
    clocks,
    cluster,
    isa,
    mbarrier,
    missing,
    sampling,
    tensor,
    tensor_fence,
    tensor_memory,
    verdicts,
    warpgroup,
)
from . import state as s
from .core import Core
from .findings import Report
from .launches import Launch
from .shared_arrays import name_shared

AGENTS = clocks.AGENTS >> 10  # bits of a block number that mark asynchronous work
MISUSES = {  # the message for each detail of a MISUSE report
    mbarrier.NOT_SHARED: "an mbarrier must lie in shared memory, but this address does not",
    mbarrier.NO_BARRIER: "no mbarrier was initialised here, or it was invalidated",
    mbarrier.OVERWRITTEN: "something was written over the mbarrier",
    mbarrier.AGAIN: "an mbarrier is initialised a second time: mbarrier.inval must come between",
    mbarrier.BAD_COUNT: "a count must be 1 to 1048575",
    mbarrier.TOO_MANY: f"a block can have at most {s.MB_MOST} mbarriers on the machine",
    mbarrier.BEYOND: "more arrivals than the phase of the mbarrier expects",
    mbarrier.BAD_BYTES: "the bytes that a phase waits for must be within 1048575 of zero",
    bulk.BAD_SIZE: "the size must be a multiple of 16 above zero",
    bulk.NOT_DONE: "the block ended before the copy was waited for",
    warpgroup.NOT_WHOLE: "needs four warps of 32 threads, the first with a number that is a multiple of four",
    warpgroup.APART: "the lanes of the warp have different descriptors",
    warpgroup.BASE_OFFSET: "a descriptor's base offset must be 0 on the machine",
    warpgroup.NOT_ALIGNED: "the swizzle's pattern must begin at a multiple of 1024, 512 or 256 bytes (by its mode)",
    tensor.NO_MAP: "the tensor map was not encoded, or has a form that the machine lacks (interleaved, im2col)",
    tensor_memory.NO_COLUMNS: "too few columns of tensor memory are free, or the count is no power of two in 32..512",
    tensor_memory.NOT_ALLOCATED: "the block has not allocated these columns of tensor memory",
    tensor_memory.OTHER_LANES: "a warp can only reach the 32 lanes of its number modulo 4",
    tensor_memory.BAD_PRODUCT: "the machine lacks the shape, types or swizzle that these descriptors name",
    tensor_memory.NO_PAIR: "needs a pair of blocks: two of a cluster, whose ranks differ in the last bit alone",
    tensor_memory.OTHER_COUNT: "one warp of each block of the pair must allocate, and equally many columns",
    tensor_memory.BAD_SCALES: "scale factors must begin in lane 0, must not overlap D, and must begin at a byte that "
    "is a multiple of the number of factors of a row; the highest bit of a UE4M3 factor must be 0",
    tensor_memory.COPIES_DIFFER: "the four parts of 32 lanes must hold the same scale factors (tcgen05.cp .warpx4)",
    mbarrier.REMOTE: "at an mbarrier of another block a thread can only arrive, or change the count of bytes",
    mbarrier.ALL_LEFT: "all threads have dropped out of the mbarrier, whose phases need at least one arrival",
    mbarrier.ENDS_PHASE: "an arrival with .noComplete must not be the last that the phase waits for",
    cluster.NOT_STARTED: "the address lies in another block of the cluster, which may not have started yet",
    cluster.ARRIVES_AGAIN: "a thread that has arrived at the cluster's barrier must wait before it arrives again",
    cluster.NEVER_ARRIVED: "a thread that has not arrived at the cluster's barrier waits there",
    cluster.OTHER_BLOCK: "the mbarrier must lie in the block to which the copy goes",
    sampling.NO_TEXTURE: "the operand is no handle of a texture (ptxsim.texture)",
    sampling.NO_SURFACE: "the operand is no handle of a surface (ptxsim.surface)",
    sampling.OTHER_GEOMETRY: "the texture or surface has other dimensions than the instruction",
    sampling.OUTSIDE_SURFACE: "the coordinates lie outside the surface",
    tensor.NOT_128: "a box must begin at a multiple of 128 bytes in shared memory",
}


def place(machine: Core, gid_block: int) -> tuple[Launch | None, int]:
    """Find a block by its number. Returns (its launch, its index in the launch), or (None, 0) for an unknown number."""
    for launch in [*machine.running, *machine.done]:
        if launch.first <= gid_block < launch.first + launch.blocks:
            return launch, gid_block - launch.first
    return None, 0


def three_of(index: int, sizes: tuple[int, int, int]) -> tuple[int, int, int]:
    """A linear index as (x, y, z)."""
    return index % sizes[0], index // sizes[0] % sizes[1], index // (sizes[0] * sizes[1])


def line_of(machine: Core, pc: int) -> tuple[str, int, str]:
    """(file, line, PTX opcode) of an instruction."""
    program, at = machine.loader.where(pc)
    file, line = program.lines[int(program.code[at, isa.LINE])]
    return file, line, program.texts[at]


def place_of(machine: Core, launch: Launch, pc: int) -> tuple[str, int, str]:
    """(file, line, PTX opcode) of an instruction of a launch. A copy or fill has no opcode, and perhaps no line: 0."""
    file, line, opcode = line_of(machine, pc)
    return (file, line if file else 0, "") if launch.action else (file, line, opcode)


def name_address(machine: Core, launch: Launch | None, space: int, address: int) -> str:
    """An address as array[index], for messages."""
    if space == isa.SHARED:
        rank = (address >> isa.RANK_SHIFT) - isa.FIRST_RANK
        if launch is None or not 0 <= rank < launch.cluster_blocks or launch.cluster_blocks == 1:
            return name_shared(launch, address)
        return f"{name_shared(launch, address & cluster.LOW)} of the cluster's block {rank}"
    if space == isa.LOCAL:
        return f"local[byte {address}]"
    if space == isa.PARAM:
        return f"the launch's parameters[byte {address}]"
    found = machine.memory.at(address)
    if found is None:
        return f"address {address & 0xFFFFFFFFFFFFFFFF:#x}"
    name = found.name or f"array {found.number}"
    offset = address - isa.GLOBAL_START - found.start
    index = offset // found.itemsize
    if found.shape and len(found.shape) > 1 and 0 <= offset < found.size:
        return f"{name}[{', '.join(str(i) for i in np.unravel_index(index, found.shape))}]"
    return f"{name}[{index}]"


def explain(machine: Core, row: Any) -> list[Report]:
    """Turn one record into reports: for a race one for each of its two lines, else one."""
    kind, pc = int(row[s.R_KIND]), int(row[s.R_PC])
    launch, index = place(machine, int(row[s.R_BLOCK]))
    if launch is None or (launch.action and kind == s.UNINITIALISED):  # a copy may read memory that nothing has written
        return []
    file, line, opcode = place_of(machine, launch, pc)
    block: tuple[int, ...] = three_of(index, launch.grid)
    thread: tuple[int, ...] = three_of(int(row[s.R_TID]), launch.block)
    if launch.action:
        block = thread = ()
    where = name_address(machine, launch, int(row[s.R_SPACE]), int(row[s.R_ADDRESS]))
    verb = ("writes" if row[s.R_WRITE] else "reads") + f" {int(row[s.R_SIZE])} byte{'s'[: int(row[s.R_SIZE]) != 1]}"
    detail = int(row[s.R_DETAIL])
    if kind == s.RACE:
        return races(machine, row, launch, file, line, opcode, block, thread, where)
    message = {
        s.OUT_OF_BOUNDS: f"{opcode} {verb} at {where}, {outside(machine, row)}",
        s.MISALIGNED: f"{opcode} {verb} at {where}: the address is not a multiple of the size",
        s.USE_AFTER_FREE: f"{opcode} {verb} at {where}, {freed(row)}",
        s.MISSING_WAIT: f"{opcode} {verb} at {where}, the target of an asynchronous copy that was not waited for",
    }.get(kind, "")
    if kind == s.UNINITIALISED:
        message = f"{opcode} {verb} at {where}, which nothing has written"
        if int(row[s.R_SPACE]) == -1:
            where = ""
            message = f"{opcode} takes the value of lane {detail}, which does not take part: that value is undefined"
    elif kind == s.BARRIER_DIVERGENCE:
        where = ""
        message = divergence(machine, row, opcode, detail)
    elif kind == s.TRAPPED:
        where = ""
        message = {0: "trap", 1: "the stack of calls is full", 2: "a call to an address that is no function"}[detail]
    elif kind == s.MISSING_FENCE:
        message = unfenced(machine, row, f"{opcode} {verb} at {where}", opcode, detail)
    elif kind == s.MISSING_WAIT and detail:
        where = ""
        message = f"{opcode} touches a register that a wgmma.mma_async uses until its group is waited for"
        if detail == tensor_memory.COLUMN_PENDING:
            message = f"{opcode} uses tensor memory that a tcgen05.mma writes until an mbarrier has counted its commit"
        elif detail == tensor_memory.STORE_PENDING:
            message = f"{opcode} uses tensor memory that a tcgen05.st writes until its warp runs tcgen05.wait::st"
        elif detail == warpgroup.LOAD_PENDING:
            message = f"{opcode} touches a register that a tcgen05.ld writes until its warp runs tcgen05.wait::ld"
    elif kind == s.MISUSE:
        placed = (cluster.NOT_STARTED, cluster.OTHER_BLOCK, mbarrier.REMOTE, mbarrier.ALL_LEFT, mbarrier.ENDS_PHASE)
        where = where if mbarrier.NOT_SHARED < detail < bulk.BAD_SIZE or detail in placed else ""
        message = f"{opcode}: {MISUSES[detail]}" + (f" ({where})" if where else "")
    if row[s.R_SPACE] == isa.LOCAL and kind == s.MISSING_FENCE:
        where = ""
    other_line = 0
    if kind == s.NOT_COHERENT:
        writer, other_line = writes(machine, row, launch)
        rule = "this load is for memory that nothing writes while its kernel runs"
        message = f"{opcode} {verb} at {where}, which {writer}: {rule}"
    verdict, kinds = verdicts.WRONG, verdicts.KINDS.get(kind, ("", ""))
    if row[s.R_SPACE] == isa.SHARED and (kind == s.USE_AFTER_FREE or (kind, detail) == (s.MISUSE, cluster.NOT_STARTED)):
        kinds = verdicts.ENDS if kind == s.USE_AFTER_FREE else verdicts.STARTS
    if kind == s.MISSING_FENCE and detail == 1:
        verdict, kinds = verdicts.FORMAL, verdicts.INITIALISATION
    elif kind == s.MISSING_FENCE and detail == 2:
        kinds = verdicts.WGMMA_FENCE
    elif kind == s.UNINITIALISED and int(row[s.R_SPACE]) == -1:
        kinds = verdicts.ABSENT_LANE
    elif kind == s.MISSING_FENCE and detail in verdicts.TENSOR_FENCES:
        verdict, kinds = verdicts.FORMAL, ("fence", verdicts.TENSOR_FENCES[detail])
    elif kind == s.MISSING_WAIT and detail in verdicts.TENSOR_WAITS:
        verdict, kinds = verdicts.TENSOR_WAITS[detail]
    return [
        Report(
            s.KINDS[kind],
            launch.name,
            file,
            line,
            block,
            thread,
            message.lstrip(),
            where,
            other_line,
            launch.device,
            verdict,
            *kinds,
        )
    ]


def freed(row: Any) -> str:
    """The end of a message on memory that is no longer there."""
    if row[s.R_SPACE] != isa.SHARED:
        return "which was freed"
    if row[s.R_DETAIL] == cluster.NOT_ORDERED:
        return "with nothing that orders it before the end of this block"
    return "and this block has ended"


def outside(machine: Core, row: Any) -> str:
    """Why an access is out of bounds: it is beyond an array, or writes to memory that cannot be written."""
    space, number = int(row[s.R_SPACE]), int(row[s.R_DETAIL])
    constant = space == isa.GLOBAL and number > 0 and machine.memory.table[number, s.A_STATE] == s.CONSTANT
    if row[s.R_WRITE] and (space == isa.PARAM or constant):
        return "which a kernel cannot write"
    return "outside what is allocated"


def writes(machine: Core, row: Any, launch: Launch) -> tuple[str, int]:
    """Who writes the value that a load of this launch reads. Returns (the end of a sentence, the line of the store).

    The line is 0 if an actor writes.
    """
    gid = int(row[s.R_OTHER_GID]) & ~clocks.AGENTS
    if gid >> 10 & clocks.HOST:
        return "the host writes", 0
    other, _ = place(machine, gid >> 10)
    file, line, opcode = line_of(machine, int(row[s.R_OTHER_PC]))
    if other is not None and other.action:
        return f"{called(other, file, line)} writes", line if file else 0
    kernel = "the same kernel" if other is launch or other is None else f"a kernel of device {other.device}"
    return f"line {line} ({opcode}) of {kernel} writes", line


def called(action: Launch, file: str, line: int) -> str:
    """A copy or fill, with the place of its call if that is known, relative to the current folder."""
    if file and Path(file).is_relative_to(Path.cwd()):
        file = str(Path(file).relative_to(Path.cwd()))
    return f"{action.name} ({file}:{line})" if file else action.name


def unfenced(machine: Core, row: Any, access: str, opcode: str, detail: int) -> str:
    """The message for an access before which a fence is missing."""
    if detail == 2:
        return f"{opcode} takes a register touched since the last wgmma.fence: wgmma.fence must come between"
    if detail == tensor_fence.AFTER:
        return f"{opcode} uses tensor memory after a wait, with no tcgen05.fence::after_thread_sync between"
    if detail == tensor_fence.BEFORE:
        why = "no tcgen05.fence::before_thread_sync follows the tcgen05.st that wrote it"
        return f"{opcode} uses tensor memory, but {why}"
    if detail == 1:
        return f"{access}, an mbarrier whose initialisation needs fence.mbarrier_init or fence.proxy.async after it"
    _, line, opcode = line_of(machine, int(row[s.R_OTHER_PC]))
    return f"{access} by the asynchronous proxy, after line {line} ({opcode}): fence.proxy.async must come between"


def divergence(machine: Core, row: Any, opcode: str, detail: int) -> str:
    """The message for a wrong use of a barrier or of a mask of lanes. detail: the record's."""
    if detail < 0:
        return (
            f"{opcode} for the whole block: other lanes of the warp arrived, but this lane passed the barrier and ended"
        )
    if detail == 1:
        other = line_of(machine, int(row[s.R_OTHER_PC]))[1]
        return f"{opcode}: other threads of the same warp wait at the barrier of line {other}"
    if detail == 3:
        return f"{opcode}: a block has barriers 0 to 15, and a barrier's number of threads must be a multiple of 32"
    return f"{opcode}: the mask {int(row[s.R_ADDRESS]):#010x} does not name the lane that executes it"


def races(
    machine: Core,
    row: Any,
    launch: Launch,
    file: str,
    line: int,
    opcode: str,
    block: tuple[Any, ...],
    thread: tuple[Any, ...],
    where: str,
) -> list[Report]:
    """The two reports of a race, one for each of its source lines."""
    other_gid = int(row[s.R_OTHER_GID])
    work = other_gid >> 10 & AGENTS != 0  # whether asynchronous work, not a thread, made the other access
    other_gid &= ~clocks.AGENTS
    verb = "writes" if row[s.R_WRITE] else "reads"
    if other_gid >> 10 & clocks.HOST:
        owner, other_line, other_file, other_opcode = "the host", 0, "", ""
        other = None
    else:
        other, index = place(machine, other_gid >> 10)
        if other is None:
            return []
        other_file, other_line, other_opcode = place_of(machine, other, int(row[s.R_OTHER_PC]))
        b: tuple[int, ...] = three_of(index, other.grid)
        t: tuple[int, ...] = three_of(other_gid & 1023, other.block)
        owner = (
            f"block {b}"
            + (", which is still running" if work else f", thread {t}")
            + (f" of device {other.device}" if other.device != launch.device else "")
        )
    access = f"line {other_line} ({other_opcode}) of {owner}" if other_line else f"an access by {owner}"
    if other is not None and other.action:
        access, b, t = called(other, other_file, other_line), (), ()
    message = f"{opcode} {verb} {where}, with nothing that orders it after {access}".lstrip()
    verdict = (verdicts.WRONG, *verdicts.KINDS[s.MISSING_WAIT]) if work else verdicts.of_race(int(row[s.R_DETAIL]))
    if verdict[1:] == verdicts.ORDERS[missing.LAUNCHES] and other is not None and of_one_graph(launch, other):
        verdict = (verdict[0], *verdicts.NODES)
    place_here = launch.name, file, line, block, thread
    found = [Report("race", *place_here, message, where, other_line, launch.device, *verdict)]
    if other is not None and not work and (other_file, other_line) != (file, line):
        access = f"line {line} ({opcode}) of block {block}, thread {thread}"
        if launch.action or other.action:  # then this access is of another kernel, or of a copy or fill
            access = called(launch, file, line) if launch.action else f"line {line} ({opcode}) of {launch.name}"
        opcode = other_opcode or "its access"
        back = f"{opcode} of {where}, with nothing that orders it before {access}"
        place_there = other.name, other_file, other_line, b, t
        found.append(Report("race", *place_there, back, where, line, other.device, *verdict))
    return found


def of_one_graph(one: Launch, other: Launch) -> bool:
    """Whether launches are nodes of the same graph."""
    graph = getattr(one.stream, "graph", None)
    return graph is not None and graph is getattr(other.stream, "graph", None)


# ---- a stuck machine ----
WAITS_AT_RESULT = (s.AT_BARRIER, s.AT_MBARRIER, s.AT_CLUSTER, s.AT_PAIR)  # T_RESULT has the wait's instruction
SPIN = "spin here, and nothing that they read changes any more"


def stuck(machine: Core, launches: list[Launch], spinning: bool, runs: str = SPIN) -> list[Report]:
    """Report a diverged barrier or a deadlock: one report for each place where threads wait or spin.

    runs: what messages say of threads that run.
    """
    warps, threads, blocks = (machine.tables[name] for name in ("warps", "threads", "blocks"))
    places: dict[tuple[int, int], list[tuple[int, int]]] = {}
    mixed: dict[int, set[int]] = {}
    for slot in range(int(machine.x[s.WARP_SLOTS]) - 1):
        live = int(warps[slot, s.W_LIVE])
        block = blocks[int(warps[slot, s.W_BLOCK])]
        if block[s.B_LAUNCH] < 0:
            continue
        for lane in range(32):
            if not live >> lane & 1:
                continue
            thread = threads[slot * 32 + lane]
            waits = int(thread[s.T_WAIT]) if int(warps[slot, s.W_WAIT]) >> lane & 1 else s.RUNS
            pc = int(thread[s.T_RESULT if waits in WAITS_AT_RESULT else s.T_PC])
            if waits == s.RUNS and int(warps[slot, s.W_MASK]) >> lane & 1:
                pc = int(warps[slot, s.W_PC])
            if waits in (s.AT_GRID, s.AT_LAUNCH):
                pc -= 1
            places.setdefault((pc, waits), []).append((int(block[s.B_GID]), int(thread[s.T_TID])))
            mixed.setdefault(int(block[s.B_GID]), set()).add(pc if waits != s.RUNS else -1)
    queued = sum(launch.blocks for launch in launches) - blocks_started(machine)
    found = []
    for (pc, waits), threads_here in sorted(places.items()):
        gid, tid = threads_here[0]
        launch, index = place(machine, gid)
        if launch is None:
            continue
        file, line, opcode = line_of(machine, pc)
        kind = "deadlock"
        if waits in (s.AT_BARRIER, s.AT_WARP) and not spinning and len(mixed[gid]) > 1:
            kind = "barrier_divergence"
        what = {
            s.RUNS: runs,
            s.AT_BARRIER: "wait at this barrier, which other threads of the block never reach",
            s.AT_CLUSTER: "wait at the cluster's barrier, at which other threads of the cluster never arrive",
            s.AT_PAIR: "wait here for a warp of the other block of their pair, which does not allocate",
            s.AT_MBARRIER: "wait here for a phase of an mbarrier that never ends",
            s.AT_WARP: f"wait here for lanes of mask {int(threads_mask(machine, gid, tid)):#010x} that never arrive",
            s.AT_LAUNCH: "wait here for the kernel before theirs, which does not end",
            s.AT_GRID: "wait at the grid's barrier" + missing_blocks(machine, launches, launch),
        }[waits]
        message = f"{opcode}: {len(threads_here)} threads {what}"
        if len(threads_here) == 1:
            message = f"{opcode}: 1 thread " + re.sub("^(wait|spin|still run)", r"\1s", what)
        if queued > 0:
            most = resident_of(machine, launch)
            waits_for = "1 block waits" if queued == 1 else f"{queued} blocks wait"
            message += f"; {waits_for} for an SM: {most} of {launch.blocks} can be resident"
        block, thread_ = three_of(index, launch.grid), three_of(tid, launch.block)
        found.append(Report(kind, launch.name, file, line, block, thread_, message, device=launch.device))
    return found


def missing_blocks(machine: Core, launches: list[Launch], launch: Launch) -> str:
    """The end of a message that says how many blocks of a launch will never reach the grid's barrier; '' if none."""
    number = next(i for i, one in enumerate(launches) if one is launch)
    blocks, warps = machine.tables["blocks"], machine.tables["warps"]
    live = blocks[(blocks[:, s.B_LAUNCH] == number) & (blocks[:, s.B_LIVE] > 0)]
    arrived = int((warps[live[:, s.B_FIRST_WARP], s.W_LIVE] & 1).sum())
    ended = int(machine.tables["launches"][number, s.L_NEXT]) - arrived
    many = f"{ended} block{'s'[: ended != 1]}"
    return f"; in {many} all threads, or thread 0, ended without reaching it" if ended else ""


def waiting(number: int, actor: Any) -> Report:
    """The report of an actor that still waits when nothing changes any more.

    If the actor is a generator, the report has the line at which it waits.
    """
    frame = getattr(actor, "gi_frame", None)
    file, line = (frame.f_code.co_filename, frame.f_lineno) if frame is not None else ("", 0)
    name = getattr(actor, "__name__", type(actor).__name__)
    message = f"the actor {name} still waits here, and nothing changes any more"
    return Report("deadlock", "host", file, line, (0, 0, 0), (number, 0, 0), message, device=-1)


def blocks_started(machine: Core) -> int:
    """How many blocks were started, over all launches."""
    return int(machine.tables["launches"][:, s.L_NEXT].sum())


def resident_of(machine: Core, launch: Launch) -> int:
    """How many blocks of a launch its device can hold."""
    return launch.per_sm * machine.sm_count


def threads_mask(machine: Core, gid: int, tid: int) -> int:
    """The mask of lanes that a thread waits for."""
    threads = machine.tables["threads"]
    rows = threads[threads[:, s.T_GID] == (gid << 10 | tid)]
    return int(rows[0, s.T_EXPECT]) if len(rows) else 0

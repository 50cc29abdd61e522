"""Which registers the code after a backward branch may read: the state of a loop, by which spinning is noticed."""

from __future__ import annotations

from itertools import pairwise

from . import isa

USED = (isa.A, isa.B, isa.C, isa.E, isa.PRED)
ENDS = (isa.RET, isa.EXIT, isa.TRAP)
JUMPS = (isa.BRA, isa.BRX)


def list_live_rows(code: list[list[int]], operands: list[int], starts: list[int]) -> None:
    """Give each backward branch a list of operands: the rows alive there, and those alive at any loop of its function.

    Each list follows its length. operands: the lists of all instructions; the new ones are appended. starts: the first
    instructions of the functions.
    """
    for first, end in pairwise([*sorted(set(starts)), len(code)]):
        loops = [pc for pc in range(first, end) if code[pc][isa.OP] == isa.BRA and code[pc][isa.IMM] <= pc]
        if not loops:
            continue
        alive = alive_after(code, operands, first, end)
        union = 0
        for pc in loops:
            union |= alive[pc]
        for pc in loops:
            code[pc][isa.LIST] = len(operands)
            for rows in (bits(alive[pc]), bits(union)):
                operands += [len(rows), *rows]
            code[pc][isa.COUNT] = len(operands) - code[pc][isa.LIST]


def alive_after(code: list[list[int]], operands: list[int], first: int, end: int) -> dict[int, int]:
    """For the last instruction of each basic block of a function, the rows that later ones may read, as bits."""
    following = {pc: successors(code[pc], operands, pc) for pc in range(first, end)}
    begins = {first}
    for pc, targets in following.items():
        if targets != [pc + 1]:
            begins.update([pc + 1, *targets])
    blocks = list(pairwise(sorted(begins | {end})))
    effects = {begin: effect_of(code[begin:stop], operands) for begin, stop in blocks}
    before = dict.fromkeys([begin for begin, _ in blocks], 0)
    before[end] = 0
    after: dict[int, int] = {}
    changed = True
    while changed:
        changed = False
        for begin, stop in reversed(blocks):
            rows = 0
            for target in following[stop - 1]:
                rows |= before[target]
            after[stop - 1] = rows
            reads, writes = effects[begin]
            rows = (rows & ~writes) | reads
            changed = changed or rows != before[begin]
            before[begin] = rows
    return after


def successors(line: list[int], operands: list[int], pc: int) -> list[int]:
    """The instructions that may follow an instruction in its function."""
    op, guarded = line[isa.OP], line[isa.PRED] >= 0
    targets = [pc + 1] if guarded or op not in (*ENDS, *JUMPS) else []
    if op == isa.BRA:
        targets.append(line[isa.IMM])
    elif op == isa.BRX:
        targets += [pc + 1, *operands[line[isa.LIST] : line[isa.LIST] + line[isa.COUNT]]]
    return targets


def effect_of(block: list[list[int]], operands: list[int]) -> tuple[int, int]:
    """The rows that a basic block reads before it writes them, and those that it surely writes, as bits of an int.

    A doubtful row counts as read.
    """
    reads: set[int] = set()
    writes: set[int] = set()
    for line in reversed(block):
        op = line[isa.OP]
        listed = operands[line[isa.LIST] : line[isa.LIST] + line[isa.COUNT]] if op in isa.ROW_LISTS else []
        results = [line[isa.D], line[isa.D2]]
        if op in (isa.LD, isa.UNPACK):
            results, listed = [*results, *listed], []
        sources = [line[column] for column in USED if line[column] >= 0] + listed
        if line[isa.PRED] < 0 and (op < isa.BRA or op == isa.LD):
            writes.update(results)
            reads.difference_update(results)
        else:
            sources += results
        reads.update(sources)
    return as_bits(reads), as_bits(writes)


def as_bits(rows: set[int]) -> int:
    """Rows as bits of an int."""
    found = bytearray(max(rows, default=0) // 8 + 1)
    for row in rows:
        found[row >> 3] |= 1 << (row & 7)
    return int.from_bytes(found, "little")


def bits(number: int) -> list[int]:
    """The places of the bits of an int that are set."""
    data = number.to_bytes(number.bit_length() // 8 + 1, "little")
    return [8 * i + k for i, byte in enumerate(data) if byte for k in range(8) if byte >> k & 1]

"""The integer, logic and move instructions of one lane.

An operand is a pattern of 64 bits. It is first cut to the width of the instruction's type, and sign-extended if the
type is signed.
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa


@jit
def cut(x, type_):
    """The low bits of a type's size, zero-extended."""
    size = type_ & 15
    if size == 8:
        return np.uint64(x)
    return np.uint64(x) & ((np.uint64(1) << np.uint64(size * 8)) - np.uint64(1))


@jit
def spread(x, size):
    """A value of `size` bytes, sign-extended to int64."""
    if size == 8:
        return np.int64(x)
    gone = np.int64(64 - size * 8)
    return (np.int64(x) << gone) >> gone


@jit
def read(x, type_):
    """An operand as int64: sign-extended if the type is signed, else zero-extended."""
    if type_ & 0xF0 == isa.S:
        return spread(np.int64(x), type_ & 15)
    return np.int64(cut(x, type_))


@jit
def mul_high(a, b, signed):
    """The high 64 bits of a 64 x 64 bit product."""
    ua, ub = np.uint64(a), np.uint64(b)
    low = np.uint64(0xFFFFFFFF)
    s = np.uint64(32)
    a0, a1, b0, b1 = ua & low, ua >> s, ub & low, ub >> s
    mid = a1 * b0 + ((a0 * b0) >> s)
    mid2 = a0 * b1 + (mid & low)
    high = a1 * b1 + (mid >> s) + (mid2 >> s)
    if signed:
        if np.int64(a) < 0:
            high -= ub
        if np.int64(b) < 0:
            high -= ua
    return np.int64(high)


@jit
def popcount(x):
    """The number of set bits."""
    count = 0
    v = np.uint64(x)
    while v != np.uint64(0):
        v &= v - np.uint64(1)
        count += 1
    return count


@jit
def leading(x, width):
    """The number of zeros above the highest set bit of the low `width` bits."""
    count = 0
    for i in range(width - 1, -1, -1):
        if (x >> i) & 1:
            break
        count += 1
    return count


@jit
def compare(op, a, b, signed):
    """Compare two int64. op: the number of eq, ne, lt, le, gt, ge, or of the unsigned lo, ls, hi, hs."""
    if op == 0:
        return a == b
    if op == 1:
        return a != b
    if op >= 6:
        op -= 4
        signed = False
    if signed:
        less, more = a < b, a > b
    else:
        less, more = np.uint64(a) < np.uint64(b), np.uint64(a) > np.uint64(b)
    if op == 2:
        return less
    if op == 3:
        return not more
    if op == 4:
        return more
    return not less


@jit
def clamp(x, type_):
    """An int64 clamped to the range of a type of at most 32 bits."""
    bits = (type_ & 15) * 8
    if type_ & 0xF0 == isa.S:
        return min(max(x, -(np.int64(1) << (bits - 1))), (np.int64(1) << (bits - 1)) - 1)
    return min(max(x, np.int64(0)), (np.int64(1) << bits) - 1)


@jit
def permute(a, b, selector, mode):
    """The result of prmt: four bytes chosen from the eight of b:a.

    mode: 0 if each nibble of the selector chooses a byte; 1 to 6 for f4e, b4e, rc8, ecl, ecr, rc16.
    """
    source = np.uint64(np.uint64(a) & np.uint64(0xFFFFFFFF)) | (np.uint64(b) << np.uint64(32))
    result = 0
    k = selector & 3
    for i in range(4):
        nibble = (selector >> (4 * i)) & 15
        if mode == 1:
            nibble = (k + i) & 7
        elif mode == 2:
            nibble = (k - i) & 7
        elif mode == 3:
            nibble = k
        elif mode == 4:
            nibble = max(i, k)
        elif mode == 5:
            nibble = min(i, k)
        elif mode == 6:
            nibble = (k & 1) * 2 + (i & 1)
        byte = np.int64(source >> np.uint64((nibble & 7) * 8)) & 0xFF
        if nibble & 8:
            byte = 0xFF if byte & 0x80 else 0
        result |= byte << (8 * i)
    return result


@jit
def find_nth(mask, base, offset):
    """The result of fns: the place of the offset-th set bit of mask, counted from base; 0xffffffff if there is none."""
    if offset == 0:
        return base if (mask >> (base & 31)) & 1 else 0xFFFFFFFF
    step = 1 if offset > 0 else -1
    count, position = 0, base
    while 0 <= position < 32:
        if (mask >> position) & 1:
            count += 1
            if count == abs(offset):
                return position
        position += step
    return 0xFFFFFFFF


@jit
def dot(a, b, c, flags, half, signed_a, signed_b):
    """The result of dp4a or dp2a. half: whether it is dp2a, which uses the low two bytes of b, with HIGH the high."""
    total = c
    if half:
        for i in range(2):
            x = (a >> (16 * i)) & 0xFFFF
            y = (b >> (8 * (i + (2 if flags & isa.HIGH else 0)))) & 0xFF
            x = spread(x, 2) if signed_a else x
            y = spread(y, 1) if signed_b else y
            total += x * y
        return total
    for i in range(4):
        x, y = (a >> (8 * i)) & 0xFF, (b >> (8 * i)) & 0xFF
        x = spread(x, 1) if signed_a else x
        y = spread(y, 1) if signed_b else y
        total += x * y
    return total


@jit
def halves(op, type_, flags, a, b):
    """The result of add, sub, min or max of operands that pack two 16-bit numbers each."""
    result = 0
    signed = type_ == isa.S16X2
    for i in range(2):
        x, y = (a >> (16 * i)) & 0xFFFF, (b >> (16 * i)) & 0xFFFF
        if signed:
            x, y = spread(x, 2), spread(y, 2)
        if op == isa.ADD2:
            z = x + y
        elif op == isa.SUB2:
            z = x - y
        elif op == isa.MIN2:
            z = min(x, y)
        else:
            z = max(x, y)
        if flags & isa.RELU:
            z = max(z, np.int64(0))
        result |= (z & 0xFFFF) << (16 * i)
    return result


@jit
def integer(op, type_, type2, flags, imm, ra, rb, rc, re):
    """The result of an integer instruction as uint64. A predicate is 0 or 1."""
    size = type_ & 15
    bits = size * 8
    signed = type_ & 0xF0 == isa.S
    if op == isa.MOV:
        return cut(ra, type_)
    a, b = read(ra, type_), read(rb, type_)
    z = np.int64(0)
    if op == isa.ADD:
        z = a + b
        if flags & isa.SAT:
            z = clamp(z, type_)
    elif op == isa.SUB:
        z = a - b
        if flags & isa.SAT:
            z = clamp(z, type_)
    elif op == isa.MUL:
        z = a * b
    elif op == isa.MAD:
        z = a * b + read(rc, type_)
    elif op == isa.MULHI or op == isa.MADHI:
        z = mul_high(a, b, signed) if size == 8 else (a * b) >> bits
        if op == isa.MADHI:
            z += read(rc, type_)
            if flags & isa.SAT:
                z = clamp(z, type_)
    elif op == isa.MULWIDE:
        return cut(a * b, size * 2)
    elif op == isa.MADWIDE:
        return cut(a * b + np.int64(rc), size * 2)
    elif op == isa.AND:
        z = a & b
    elif op == isa.OR:
        z = a | b
    elif op == isa.XOR:
        z = a ^ b
    elif op == isa.NOT:
        z = (a ^ 1) & 1 if type_ == isa.PREDICATE else ~a
    elif op == isa.CNOT:
        z = np.int64(1) if a == 0 else np.int64(0)
    elif op == isa.SHL:
        n = np.int64(rb) & 0xFFFFFFFF
        z = np.int64(0) if n >= bits else a << n
    elif op == isa.SHR:
        n = min(np.int64(rb) & 0xFFFFFFFF, np.int64(63))
        if signed:
            z = a >> n
        else:
            z = np.int64(0) if np.int64(rb) & 0xFFFFFFFF >= bits else np.int64(np.uint64(a) >> np.uint64(n))
    elif op == isa.SETP or op == isa.SET:
        return np.uint64(compare(imm, a, b, signed))
    elif op == isa.SELP:
        z = a if rc & np.uint64(1) else b
    elif op == isa.SLCT:
        z = a if spread(np.int64(rc), 4) >= 0 else b
    elif op == isa.MIN:
        z = a if (a < b if signed else np.uint64(a) < np.uint64(b)) else b
        if flags & isa.RELU:
            z = max(z, np.int64(0))
    elif op == isa.MAX:
        z = a if (a > b if signed else np.uint64(a) > np.uint64(b)) else b
        if flags & isa.RELU:
            z = max(z, np.int64(0))
    elif op == isa.ABS:
        z = abs(a)
    elif op == isa.NEG:
        z = -a
    elif op == isa.SAD:
        ordered = a < b if signed else np.uint64(a) < np.uint64(b)
        z = read(rc, type_) + (b - a if ordered else a - b)
    elif op == isa.DIV:
        if b == 0:
            z = np.int64(-1)
        elif signed:
            if b == -1:
                z = -a
            else:
                q = np.int64(np.uint64(abs(a)) // np.uint64(abs(b)))
                z = -q if (a < 0) != (b < 0) else q
        else:
            z = np.int64(np.uint64(a) // np.uint64(b))
    elif op == isa.REM:
        if b == 0:
            z = a
        elif signed:
            if b == -1:
                z = np.int64(0)
            else:
                r = np.int64(np.uint64(abs(a)) % np.uint64(abs(b)))
                z = -r if a < 0 else r
        else:
            z = np.int64(np.uint64(a) % np.uint64(b))
    elif op == isa.SHFLEFT or op == isa.SHFRIGHT:
        n = np.int64(rc) & 0xFFFFFFFF
        n = min(n, np.int64(32)) if flags & isa.SAT else n & 31  # SAT: .clamp
        both = np.uint64(a) | (np.uint64(b) << np.uint64(32))
        if op == isa.SHFLEFT:
            z = np.int64((both << np.uint64(n)) >> np.uint64(32)) if n < 32 else a
        else:
            z = np.int64(both >> np.uint64(n))
    elif op == isa.POPC:
        return np.uint64(popcount(a))
    elif op == isa.CLZ:
        return np.uint64(leading(a, bits))
    elif op == isa.BFIND or op == isa.BFINDSHIFT:
        x = ~a if signed and a < 0 else a
        zeros = leading(x, bits)
        if zeros == bits:
            return np.uint64(0xFFFFFFFF)
        return np.uint64(zeros if op == isa.BFINDSHIFT else bits - 1 - zeros)
    elif op == isa.BREV:
        for i in range(bits):
            z |= ((a >> i) & 1) << (bits - 1 - i)
    elif op == isa.BFE:
        position, length = np.int64(rb) & 0xFF, np.int64(rc) & 0xFF
        if length:
            if signed:
                filler = (a >> min(position + length - 1, np.int64(bits - 1))) & 1
            else:
                filler = np.int64(0)
            for i in range(bits):
                source = position + i
                bit = (a >> source) & 1 if i < length and source < bits else filler
                z |= bit << i
    elif op == isa.BFI:
        position, length = np.int64(rc) & 0xFF, np.int64(re) & 0xFF
        z = b
        for i in range(length):
            if position + i >= bits:
                break
            place = np.int64(1) << (position + i)
            z = z | place if (a >> i) & 1 else z & ~place
    elif op == isa.BMSK:
        position, width = np.int64(ra) & 0xFFFFFFFF, np.int64(rb) & 0xFFFFFFFF
        if flags & isa.SAT:
            width = min(width, np.int64(32))
            position = min(position, np.int64(32))
        else:
            width, position = width & 31, position & 31
        z = ((np.int64(1) << width) - 1) << position
    elif op == isa.SZEXT:
        n = np.int64(rb) & 0xFFFFFFFF
        n = min(n, np.int64(32)) if flags & isa.SAT else n & 31
        if n == 0:
            z = np.int64(0)
        elif n >= 32:
            z = a
        elif signed:
            z = (a << (64 - n)) >> (64 - n)
        else:
            z = a & ((np.int64(1) << n) - 1)
    elif op == isa.PRMT:
        z = permute(np.int64(ra), np.int64(rb), np.int64(rc), imm)
    elif op == isa.LOP3:
        c = np.int64(rc)
        for i in range(8):
            if (imm >> i) & 1:
                z |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    elif op == isa.DP4A or op == isa.DP2A:
        z = dot(np.int64(ra), np.int64(rb), np.int64(rc), flags, op == isa.DP2A, signed, type2 & 0xF0 == isa.S)
    elif op == isa.MUL24 or op == isa.MAD24 or op == isa.MUL24HI or op == isa.MAD24HI:
        x, y = a & 0xFFFFFF, b & 0xFFFFFF
        if signed:
            x, y = (x << 40) >> 40, (y << 40) >> 40
        z = x * y
        if op == isa.MUL24HI or op == isa.MAD24HI:
            z >>= 16
        if op == isa.MAD24 or op == isa.MAD24HI:
            if op == isa.MAD24HI and flags & isa.SAT:
                z = clamp(spread(z, 4) + read(rc, type_), type_)
            else:
                z += read(rc, type_)
    elif op == isa.FNS:
        z = np.int64(find_nth(np.int64(ra) & 0xFFFFFFFF, np.int64(rb) & 0xFFFFFFFF, spread(np.int64(rc), 4)))
    elif op == isa.ISSPACEP:
        address = np.int64(ra)
        shared = isa.SHARED_WINDOW <= address < isa.SHARED_WINDOW + isa.WINDOW
        local = isa.LOCAL_WINDOW <= address < isa.LOCAL_WINDOW + isa.WINDOW
        if imm == isa.SHARED:
            far = (address - isa.SHARED_WINDOW) >> isa.RANK_SHIFT != 0
            return np.uint64(shared and not (far and flags))
        if imm == isa.LOCAL:
            return np.uint64(local)
        return np.uint64(imm == isa.GLOBAL and not shared and not local)
    else:  # ADD2, SUB2, MIN2, MAX2
        z = np.int64(halves(op, type_, flags, np.int64(ra), np.int64(rb)))
    return cut(z, type_)


@jit
def carry(op, type_, flags, ra, rb, rc, flag):
    """Run add, sub or mad with carry. Returns (result, carry out). flag: the carry in, ignored without CARRY_IN."""
    size = type_ & 15
    signed = type_ & 0xF0 == isa.S
    into = np.uint64(flag) if flags & isa.CARRY_IN else np.uint64(0)
    x, y = cut(ra, type_), cut(rb, type_)
    if op == isa.MADC or op == isa.MADCHI:
        a, b = read(ra, type_), read(rb, type_)
        if op == isa.MADC:
            x = cut(a * b, type_)
        else:
            x = cut(mul_high(a, b, signed) if size == 8 else (a * b) >> (size * 8), type_)
        y = cut(rc, type_)
    if op == isa.SUBC:  # the carry flag is the borrow
        out = np.uint64(x < y or (x == y and into != np.uint64(0)))
        return cut(x - y - into, type_), out
    total = cut(x + y + into, type_)
    out = np.uint64(total < x or (into != np.uint64(0) and total == x))
    return total, out

"""The micro-kernels of packed weights as LLVM code, in which codes become float32 in registers.

`packed.py` defines the same functions in plain Python. A panel of codes of 8 bits has, for each k, one byte for each of
32 columns. In a panel of codes of 4 bits, eight k of a column form one word of 32 bits: the even k lie in its low half,
the odd k in its high half, and the first k of a half in the lowest bits. A permutation looks values up by the low bits
of each word. Shifts bring a code, or both codes of a pair of k at once, to these bits. Widening bytes would do so too,
but on the CPU port that permutations need. Codes of fp8 are shifted and read as float16, whose values are 1/256 of the
codes' values (FP8_SCALE).
"""

from llvmlite import ir

from ...primitives.buffers import LINE
from ...quantised import FP4
from ...weight_types import FORMATS
from .code_words import FP8_SCALE
from .micro_kernels import (
    F32,
    I8,
    I16,
    I32,
    I64,
    L1_CACHE,
    SUMS,
    BFloat,
    _at,
    _broadcast,
    _declare,
    _either,
    _fma,
    _intrinsic,
    _loop,
    _prefetch,
    _store,
)
from .packed_panels import UNIT

NEAR = 6144  # bytes between the codes that are read and the codes that are prefetched
PAIR_BYTES = {name: 2 * 32 * form.bits // 8 for name, form in FORMATS.items()}  # bytes of the codes of a pair of k
if set(PAIR_BYTES) != {"fp8", "int8", "int4", "mxfp4"}:
    raise ImportError(f"weight_types names the formats {', '.join(FORMATS)}: extend `_decoded`")
# bytes of a group's widened scales: 32 scales, then 32 negated zero points if the format has them
SCALE_BYTES = {name: (1 + form.zeros) * SUMS for name, form in FORMATS.items()}
BEGINS, ENDS = 1, 2  # flags of a call of a kernel: its groups begin in this call; they end in this call
WHOLE = BEGINS | ENDS
_INT4 = [float(n) for n in (*range(8), *range(-8, 0))]
_FP4 = [float(value) for value in FP4]
_TABLES = {"int4": _INT4, "mxfp4": _FP4}


def _looked_up(builder, table, index, lanes):
    """Look up each lane of `index`: its low four bits are a place in a table of 16 float32. lanes: 16 or 8."""
    kind = ir.VectorType(F32, lanes)
    if lanes == 16:
        permute = _declare(builder, "llvm.x86.avx512.permvar.sf.512", kind, [kind, index.type])
        return builder.call(permute, [kind(table), index])
    permute = _declare(builder, "llvm.x86.avx512.vpermi2var.ps.256", kind, [kind, index.type, kind])
    return builder.call(permute, [kind(table[:8]), index, kind(table[8:])])


def _fp4(builder, nibble, lanes):
    """Convert codes of e2m1, which are the low four bits of the lanes of `nibble`, to float32.

    AVX2 permutes a table of 8 values; other instruction sets use arithmetic.
    """
    words, kind = nibble.type, ir.VectorType(F32, lanes)
    sign = builder.and_(builder.shl(nibble, words([28] * lanes)), words([-(1 << 31)] * lanes))
    if lanes == 8:
        permute = _declare(builder, "llvm.x86.avx2.permps", kind, [kind, words])
        value = builder.call(permute, [kind(_FP4[:8]), nibble])
        return builder.bitcast(builder.or_(builder.bitcast(value, words), sign), kind)
    low = builder.and_(nibble, words([7] * lanes))
    moved = builder.add(builder.shl(low, words([22] * lanes)), words([126 << 23] * lanes))  # correct from code 2 on
    value = builder.bitcast(moved, kind)
    small = builder.fmul(builder.fsub(value, kind([0.5] * lanes)), kind([2.0] * lanes))  # the values of codes 0 and 1
    value = builder.select(builder.icmp_unsigned("<", low, words([2] * lanes)), small, value)
    return builder.bitcast(builder.or_(builder.bitcast(value, words), sign), kind)


def _halves(builder, codes):
    """Convert a vector of fp8 codes to float16. The results are the codes' values divided by FP8_SCALE."""
    words = ir.VectorType(I16, codes.type.count)
    keep, seven = words([0xBF80 - 0x10000] * words.count), words([7] * words.count)
    moved = builder.and_(builder.shl(builder.sext(codes, words), seven), keep)
    return builder.bitcast(moved, ir.VectorType(ir.HalfType(), words.count))


def _decoded(builder, form, place, j, lanes, table, b, at_end):
    """Decode `lanes` columns, from column j * lanes on, of pair b of the unit of k at `place` to float32.

    Returns (values of the even k, values of the odd k). table: whether a permutation of the CPU can look up values in a
    table of 16. at_end: whether bytes beyond the columns must not be read.
    """
    codes, words, kind = (ir.VectorType(t, lanes) for t in (I8, I32, F32))
    if form in ("int8", "fp8"):
        both = (builder.load(_at(builder, place, 32 * odd + lanes * j, codes), align=1) for odd in range(2))
        if form == "int8":
            return tuple(builder.sitofp(builder.sext(x, words), kind) for x in both)
        return tuple(builder.fpext(_halves(builder, x), kind) for x in both)

    def moved(bits):
        """The columns' words, shifted right by `bits`.

        For a shift by whole bytes the load starts at a later address. Such a load reads beyond the columns.
        """
        by_load = 0 if at_end or bits % 8 else bits
        raw = builder.load(_at(builder, place, 4 * lanes * j + by_load // 8, words), align=1)
        return builder.lshr(raw, words([bits] * lanes)) if bits > by_load else raw

    low, high = moved(4 * b), moved(16 + 4 * b)
    if table:
        return tuple(_looked_up(builder, _TABLES[form], x, lanes) for x in (low, high))
    if form == "mxfp4":
        return tuple(_fp4(builder, x, lanes) for x in (low, high))
    top = (builder.shl(x, words([28] * lanes)) for x in (low, high))
    return tuple(builder.sitofp(builder.ashr(x, words([28] * lanes)), kind) for x in top)


def _decoded_fp8(builder, place):
    """Do what `_decoded` does, for all 32 columns of a pair of k. Returns (even k, odd k) for each vector of 16.

    The emitted code widens 32 codes at once.
    """
    codes, words, kind = ir.VectorType(I8, 32), ir.VectorType(I32, 16), ir.VectorType(F32, 16)
    columns = [ir.Constant(words, list(range(16 * j, 16 * j + 16))) for j in range(2)]
    both = [_halves(builder, builder.load(_at(builder, place, 32 * odd, codes), align=1)) for odd in range(2)]
    return [tuple(builder.fpext(builder.shuffle_vector(x, x, part), kind) for x in both) for part in columns]


def _joined(builder, even, odd):
    """Join the float32 values of a pair of k, which bfloat16 must hold exactly, into words of two bfloat16."""
    words = ir.VectorType(I32, even.type.count)
    low, high = builder.bitcast(even, words), builder.bitcast(odd, words)
    return builder.or_(builder.lshr(low, words([16] * even.type.count)), high)


def _pairs_of(form):
    """How many pairs of k a unit of codes has."""
    return UNIT[FORMATS[form].bits]


def _units(builder, pairs, together):
    """How many units hold `pairs` pairs of k. together: how many pairs a unit has."""
    return builder.udiv(builder.add(pairs, I64(together - 1)), I64(together)) if together > 1 else pairs


def packed_rows(form, rows, vectors, pitch, lanes, table, at_once, dot="", lean=False, words=None, near=NEAR):
    """Emit the kernel for `rows` x (`vectors` * `lanes`) sums of products of rows and codes, group by group.

    The compiled call is kernel(a, codes, sums, groups, pairs, scales, x, x_pitch, parts, flags). a: the address of the
    first row at the first k; the rows lie `pitch` bytes apart. codes: the address of the panel's codes, or of the codes
    of its second half of columns. sums: the address of the first row of 32 sums. groups: the number of groups of k, at
    least 1. pairs: the number of pairs of k in each group, at least 1. If there are several groups, each must have
    whole units of k. scales: the address of the scales, which take SCALE_BYTES for each group. x: the address of the
    sums of the first row's elements, one float32 for each group; those of the next row lie `x_pitch` bytes further.
    Without zero points x is 0. parts: the address of rows of 32 sums; if a group is longer than a call, its sums wait
    there between calls. flags: WHOLE, or for a single group BEGINS, ENDS or neither. Rows must be padded with zeros to
    a whole unit. The kernel prefetches codes `near` bytes ahead, line after line.

    at_once: how many whole groups are summed side by side; with one group at a time, the chain of additions would be
    slower than memory. dot: the name of LLVM's intrinsic for dot products, if rows are bfloat16; else "". lean: whether
    to use the fewest micro-operations, which needs vectors of 16. If so, multiply-adds read rows from memory by
    separate pointers, no load of codes crosses a line, codes are prefetched to the L1 cache, and at_once is 1.
    words: the function of `code_words` that unpacks codes for dot products, which needs vectors of 16; or None.
    """
    together = _pairs_of(form)
    kind, size, each = ir.VectorType(F32, lanes), PAIR_BYTES[form] * together, rows * vectors
    left_bytes = (4 if dot else 8) * together  # bytes of a row for one unit of k

    def emit(builder, a, codes, sums, groups, pairs, scales, x, x_pitch, parts, flags):
        units = _units(builder, pairs, together)
        fma, zero = _fma(builder, kind), [kind([0.0] * lanes)] * each

        def products(first, values):
            """Add the products of neighbouring groups, from `first` on, at the same time.

            values: the sums of all these groups, one group after another.
            """
            count = len(values) // each
            ahead = builder.add(codes, builder.add(builder.mul(builder.mul(first, units), I64(size)), I64(near)))

            def body(p, some):
                new = []
                line = builder.add(ahead, builder.mul(p, I64(count * size)))
                for offset in range(0, count * size, LINE):
                    _prefetch(builder, builder.add(line, I64(offset)))
                for q in range(count):
                    n = builder.add(builder.mul(builder.add(first, I64(q)), units), p)
                    new += unit(n, some[q * each : (q + 1) * each])
                return new

            return _loop(builder, values, units, body)

        def unit(n, some):
            place = builder.add(codes, builder.mul(n, I64(size)))
            left = builder.add(a, builder.mul(n, I64(left_bytes)))
            return pairs_of(place, [left] * vectors, some)

        def pairs_of(place, lefts, some):
            unpacked = words(builder, form, place) if words else None
            for b in range(together):
                here = [builder.add(left, I64(left_bytes // together * b)) for left in lefts]
                some = by_dot(here[0], unpacked[b], some) if unpacked else pair(place, here, b, some)
            return some

        def lean_products(g, values):
            """Do what `products` does, for one group.

            `hidden` hides from LLVM that the vectors' pointers are equal, so LLVM keeps all loads.
            """
            hidden = ir.InlineAsm(ir.FunctionType(I64, [I64]), "", "=r,0")
            n = builder.mul(g, units)
            place, left = (builder.add(x, builder.mul(n, I64(m))) for x, m in ((codes, size), (a, left_bytes)))

            def body(_, carried):
                some, (place, *lefts) = carried[:each], carried[each:]
                for offset in range(0, size, LINE):
                    _prefetch(builder, builder.add(place, I64(near + offset)), L1_CACHE)
                new = pairs_of(place, lefts, some)
                moved = [builder.add(place, I64(size)), *(builder.add(x, I64(left_bytes)) for x in lefts)]
                return new + [builder.call(hidden, [x]) for x in moved]

            start = [builder.call(hidden, [x]) for x in (place, *[left] * vectors)]
            return _loop(builder, values + start, units, body)[:each]

        def pair(place, lefts, b, some):
            if lean and form == "fp8":
                decoded = _decoded_fp8(builder, place)
            else:
                ends = [lean or j == vectors - 1 for j in range(vectors)]
                decoded = [_decoded(builder, form, place, j, lanes, table, b, end) for j, end in enumerate(ends)]
            if dot:
                return by_dot(lefts[0], [_joined(builder, *both) for both in decoded], some)
            for odd in range(2):
                new = []
                for i in range(rows):
                    for j, (left, both) in enumerate(zip(lefts, decoded)):
                        one = _broadcast(builder, _at(builder, left, pitch * i + 4 * odd, F32), lanes)
                        new.append(builder.call(fma, [one, both[odd], some[i * vectors + j]]))
                some = new
            return some

        def by_dot(left, columns, some):
            halves, new = ir.VectorType(BFloat(), 2 * lanes), []
            call = _declare(builder, dot, kind, [kind, halves, halves])
            columns = [builder.bitcast(column, halves) for column in columns]
            for i in range(rows):
                one = builder.bitcast(_broadcast(builder, _at(builder, left, pitch * i, I32), lanes), halves)
                new += [builder.call(call, [some[i * vectors + j], one, column]) for j, column in enumerate(columns)]
            return new

        def close(g, found):
            """Scale the sums of group g, and add them to the sums of the columns."""
            own = builder.add(scales, builder.mul(g, I64(SCALE_BYTES[form])))
            scale = [builder.load(_at(builder, own, 4 * lanes * j, kind), align=4) for j in range(vectors)]

            def less_zeros():
                zeros = [builder.load(_at(builder, own, SUMS + 4 * lanes * j, kind), align=4) for j in range(vectors)]
                less = []
                for i in range(rows):
                    at = builder.add(x, builder.add(builder.mul(x_pitch, I64(i)), builder.mul(g, I64(4))))
                    one = _broadcast(builder, _at(builder, at, 0, F32), lanes)
                    less += [builder.call(fma, [one, zeros[j], found[i * vectors + j]]) for j in range(vectors)]
                return less

            whole = _either(builder, x, less_zeros, lambda: found) if FORMATS[form].zeros else found
            for i in range(rows):
                for j in range(vectors):
                    total = _at(builder, sums, SUMS * i + 4 * lanes * j, kind)
                    value = builder.call(fma, [whole[i * vectors + j], scale[j], builder.load(total, align=4)])
                    builder.store(value, total, align=4)
            return zero

        def several(n, _):
            first = builder.mul(n, I64(at_once))
            found = products(first, zero * at_once)
            for q in range(at_once):
                close(builder.add(first, I64(q)), found[q * each : (q + 1) * each])
            return []

        done = I64(0)
        if at_once > 1:
            whole = builder.icmp_signed("==", flags, I64(WHOLE))
            count = builder.select(whole, builder.udiv(groups, I64(at_once)), I64(0))
            with builder.if_then(builder.icmp_signed(">", count, I64(0))):
                _loop(builder, [], count, several)
            done = builder.mul(count, I64(at_once))
        rest = builder.sub(groups, done)
        with builder.if_then(builder.icmp_signed(">", rest, I64(0))):
            waiting = [_at(builder, parts, SUMS * i + 4 * lanes * j, kind) for i in range(rows) for j in range(vectors)]
            begins, ends = builder.and_(flags, I64(BEGINS)), builder.and_(flags, I64(ENDS))
            start = _either(builder, begins, lambda: zero, lambda: [builder.load(p, align=4) for p in waiting])

            def group(n, values):
                g = builder.add(done, n)
                found = lean_products(g, values) if lean else products(g, values)
                return _either(builder, ends, lambda: close(g, found), lambda: found)

            _store(builder, _loop(builder, start, rest, group), waiting)

    return _intrinsic(f"packed_{form}_{rows}x{vectors * lanes}{'_dot' * bool(dot)}", emit)


_STORED = {"float32": F32, "bfloat16": I16, "float16": ir.HalfType(), "e8m0": I8}  # LLVM's types of a panel's scales


def widen_scales(scale, form, lanes):
    """Emit widen(source, target, groups, shared), which converts the scales of `groups` >= 1 groups to float32.

    scale: the type of the scales at `source`. A group has 32 scales there, or one scale if `shared` is not 0. At
    `target` a group takes SCALE_BYTES.
    """
    stored, kind, words = _STORED[scale], ir.VectorType(F32, lanes), ir.VectorType(I32, lanes)
    nbytes = {"float32": 4, "e8m0": 1}.get(scale, 2)

    def widened(builder, raw):
        if scale == "bfloat16":
            raw = builder.bitcast(builder.shl(builder.zext(raw, words), words([16] * lanes)), kind)
        elif scale == "float16":
            raw = builder.fpext(raw, kind)
        elif scale == "e8m0":  # the exponent bits of a float32; 0 stands for 2^-127, a denormal
            wide = builder.zext(raw, words)
            is_least = builder.icmp_unsigned("==", wide, words([0] * lanes))
            moved = builder.shl(wide, words([23] * lanes))
            raw = builder.bitcast(builder.select(is_least, words([1 << 22] * lanes), moved), kind)
        return builder.fmul(raw, kind([FP8_SCALE] * lanes)) if form == "fp8" else raw

    def emit(builder, source, target, groups, shared):
        none = ir.Constant(ir.VectorType(stored, lanes), ir.Undefined)

        def of_group(first, take):
            def body(g, _):
                out = builder.add(target, builder.mul(g, I64(SCALE_BYTES[form])))
                place = builder.add(source, builder.mul(g, I64(first)))
                for j in range(SUMS // (4 * lanes)):
                    builder.store(widened(builder, take(place, j)), _at(builder, out, 4 * lanes * j, kind), align=4)
                return []

            _loop(builder, [], groups, body)
            return []

        def one(place, j):
            value = builder.insert_element(none, builder.load(_at(builder, place, 0, stored), align=1), I32(0))
            return builder.shuffle_vector(value, none, ir.Constant(words, [0] * lanes))

        def several(place, j):
            return builder.load(_at(builder, place, nbytes * lanes * j, none.type), align=1)

        _either(builder, shared, lambda: of_group(nbytes, one), lambda: of_group(SUMS // 4 * nbytes, several))

    return _intrinsic(f"widen_scales_{scale}_{lanes}", emit)


def widen_zeros(form):
    """Emit widen(source, target, groups), which converts the zero points of `groups` >= 1 groups to float32, negated.

    At `target` a group's zero points begin SCALE_BYTES after the zero points of the group before it.
    """
    bits, columns = PAIR_BYTES[form] // 8, SUMS // 4
    codes, words, kind = (ir.VectorType(t, columns) for t in (I8, I32, F32))

    def emit(builder, source, target, groups):
        def body(g, _):
            place = builder.add(source, builder.mul(g, I64(columns * bits // 8)))
            if bits == 8:
                raw = builder.load(_at(builder, place, 0, codes), align=1)
            else:
                pairs = ir.VectorType(I8, columns // 2)
                both = builder.load(_at(builder, place, 0, pairs), align=1)
                low = builder.and_(both, pairs([15] * (columns // 2)))
                high = builder.lshr(both, pairs([4] * (columns // 2)))
                turns = [columns // 2 * (n % 2) + n // 2 for n in range(columns)]
                raw = builder.shuffle_vector(low, high, ir.Constant(words, turns))
            turned = builder.sub(words([1 << (bits - 1)] * columns), builder.zext(raw, words))
            out = _at(builder, builder.add(target, builder.mul(g, I64(SCALE_BYTES[form]))), 0, kind)
            builder.store(builder.sitofp(turned, kind), out, align=4)
            return []

        _loop(builder, [], groups, body)

    return _intrinsic(f"widen_zeros_{bits}", emit)

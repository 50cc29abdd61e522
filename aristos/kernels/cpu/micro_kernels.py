"""The micro-kernels of the CPU substrate as LLVM code: inner loops over k, whose sums stay in registers or tiles.

Each public function emits one Numba intrinsic whose arguments are int64. `gemm.py`, `widened.py` and `tiles.py` choose
among the intrinsics, and define the same functions in plain Python.
"""

import inspect

from llvmlite import ir
from numba import types
from numba.core import cgutils

from ...primitives.intrinsics import emitted

I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
VOID, BYTE, WORD = ir.VoidType(), I8.as_pointer(), I64.as_pointer()
L1_CACHE, L2_CACHE = 3, 2  # levels of llvm.prefetch
STEP = 1024  # bytes of a tile of bfloat16: 16 rows or columns, with 32 k each
NEAR = 4096  # how many bytes ahead a kernel prefetches in its own panel, if it prefetches nothing else
SUMS = 128  # bytes from one row of 32 sums to the next


class BFloat(ir.types.Type):
    """LLVM's bfloat, which llvmlite does not have."""

    intrinsic_name = "bf16"

    def _to_string(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, BFloat)

    def __hash__(self):
        return hash("bfloat")


# ---------------------------------------------------------------- what micro-kernels share


def _intrinsic(name, emit):
    """A Numba intrinsic `name` without a result. emit(builder, *values) writes its body; the values are int64."""
    count = len(inspect.signature(emit).parameters) - 1
    return emitted(types.void, *[types.int64] * count, name=name)(emit)


def _declare(builder, name, result, arguments):
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def _at(builder, address, offset, kind):
    """A pointer to `kind` that lies `offset` bytes after an int64 address. offset: a Python int, or an int64 value."""
    offset = I64(offset) if isinstance(offset, int) else offset
    return builder.bitcast(builder.gep(builder.inttoptr(address, BYTE), [offset]), kind.as_pointer())


def _loop(builder, start_values, count, body, unroll=True):
    """Emit a loop over k in range(count), with count >= 1. Returns the values after the last round.

    body(k, values) emits one round and returns the new values, which stay in registers. unroll: whether LLVM may join
    several rounds.
    """
    entry = builder.block
    head, after = builder.append_basic_block("k"), builder.append_basic_block("k.end")
    builder.branch(head)
    builder.position_at_end(head)
    k = builder.phi(I64)
    k.add_incoming(I64(0), entry)
    carried = []
    for value in start_values:
        phi = builder.phi(value.type)
        phi.add_incoming(value, entry)
        carried.append(phi)
    new = body(k, carried)
    last = builder.block
    step = builder.add(k, I64(1))
    k.add_incoming(step, last)
    for phi, value in zip(carried, new):
        phi.add_incoming(value, last)
    back = builder.cbranch(builder.icmp_signed("<", step, count), head, after)
    if not unroll:
        back.set_metadata("llvm.loop", _never_unrolled(builder.module))
    builder.position_at_end(after)
    return new


def _never_unrolled(module):
    """Metadata that forbids LLVM to unroll a loop. The node's first operand is the node, so no two loops share one."""
    rule = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
    node = module.add_metadata([rule, I32(len(module.metadata))])  # the number makes llvmlite add a new node
    node.operands = (node, rule)
    return node


def _either(builder, condition, first, second):
    """Emit a branch: the code of first() runs if the int64 `condition` is not 0, else the code of second().

    The two functions must return equally many values, of the same types.
    """
    blocks = [builder.append_basic_block(name) for name in ("carry", "fresh", "ready")]
    builder.cbranch(builder.icmp_signed("!=", condition, I64(0)), *blocks[:2])
    found, ends = [], []
    for block, emit in zip(blocks, (first, second)):
        builder.position_at_end(block)
        found.append(emit())
        ends.append(builder.block)
        builder.branch(blocks[2])
    builder.position_at_end(blocks[2])
    merged = []
    for pair in zip(*found):
        phi = builder.phi(pair[0].type)
        for value, block in zip(pair, ends):
            phi.add_incoming(value, block)
        merged.append(phi)
    return merged


def _prefetch(builder, address, level=L2_CACHE):
    prefetch = _declare(builder, "llvm.prefetch.p0", VOID, [BYTE, I32, I32, I32])
    builder.call(prefetch, [builder.inttoptr(address, BYTE), I32(0), I32(level), I32(1)])  # read; data cache


def _emit_fetch(builder, address):
    _prefetch(builder, address)


fetch = _intrinsic("fetch", _emit_fetch)


def stream(lanes):
    """Emit stream(dst, src, n), which copies n >= 1 vectors of float32 past the caches. dst is aligned to a vector."""
    vector = ir.VectorType(F32, lanes)

    def emit(builder, dst, src, n):
        def body(i, _):
            at = builder.mul(i, I64(4 * lanes))
            value = builder.load(_at(builder, src, at, vector), align=4)
            stored = builder.store(value, _at(builder, dst, at, vector), align=4 * lanes)
            stored.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))
            return []

        _loop(builder, [], n, body)

    return _intrinsic("stream", emit)


def settle(x86):
    """Emit settle(), which orders the stores of `stream` before all later stores."""

    def emit(builder):
        if x86:
            builder.call(_declare(builder, "llvm.x86.sse.sfence", VOID, []), [])
        else:
            builder.fence("release")

    return _intrinsic("settle", emit)


def _emit_transpose(builder, rows, offset, to, pitch):
    vector, picks = ir.VectorType(I32, 8), ir.VectorType(I32, 8)

    def pick(first, second, lanes):
        return builder.shuffle_vector(first, second, ir.Constant(picks, lanes))

    read = []
    for i in range(8):
        row = builder.load(_at(builder, rows, 8 * i, I64), align=8)
        read.append(builder.load(_at(builder, row, offset, vector), align=4))
    ones = []  # numbers alternately from rows i and i + 1: of columns 0, 1, 4, 5, then of columns 2, 3, 6, 7
    for i in range(0, 8, 2):
        for first in (0, 2):
            lanes = [first, first + 8, first + 1, first + 9]
            ones.append(pick(read[i], read[i + 1], [*lanes, *(lane + 4 for lane in lanes)]))
    fours = []  # numbers from four rows: of column c, then of column c + 4
    for half in (0, 4):
        for low in (0, 1):
            for first in (0, 2):
                lanes = [first, first + 1, first + 8, first + 9]
                fours.append(pick(ones[half + low], ones[half + low + 2], [*lanes, *(lane + 4 for lane in lanes)]))
    for c in range(8):
        lanes = [4 * (c // 4) + k for k in range(4)]
        column = pick(fours[c % 4], fours[4 + c % 4], [*lanes, *(lane + 8 for lane in lanes)])
        builder.store(column, _at(builder, to, builder.mul(pitch, I64(c)), vector), align=4)


transpose = _intrinsic("transpose", _emit_transpose)  # transpose(rows, offset, to, pitch): see `gemm.transpose`


def _fma(builder, vector):
    return _declare(builder, f"llvm.fma.v{vector.count}f32", vector, [vector] * 3)


def _broadcast(builder, pointer, lanes):
    """A vector whose lanes all hold the value at `pointer`."""
    value = builder.load(pointer, align=4)
    undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    return builder.shuffle_vector(
        builder.insert_element(undefined, value, I32(0)), undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    )


def _sums(builder, carry, places, vector):
    """The initial sums: the sums stored at `places` if `carry` is nonzero, else zeros."""
    return _either(
        builder,
        carry,
        lambda: [builder.load(place, align=4) for place in places],
        lambda: [vector([0.0] * vector.count) for _ in places],
    )


def _store(builder, sums, places):
    for value, place in zip(sums, places):
        builder.store(value, place, align=4)


# ---------------------------------------------------------------- rounding to bfloat16


def _rounded(builder, values, instruction):
    """Round a vector <n x float> to bfloat16, to nearest, ties to even. Returns the bits as <n x i16>.

    instruction: whether to use the CPU's conversion, which treats denormals as zeros. If not, integer operations round.
    """
    n = values.type.count
    words, halves = ir.VectorType(I32, n), ir.VectorType(I16, n)
    if instruction:
        return builder.bitcast(builder.fptrunc(values, ir.VectorType(BFloat(), n)), halves)
    bits = builder.bitcast(values, words)
    top = builder.lshr(bits, words([16] * n))
    odd = builder.and_(top, words([1] * n))
    near = builder.lshr(builder.add(builder.add(bits, words([0x7FFF] * n)), odd), words([16] * n))
    nan = builder.fcmp_unordered("uno", values, values)
    return builder.trunc(builder.select(nan, builder.or_(top, words([0x40] * n)), near), halves)


def round_block(lanes, instruction):
    """Emit round(dst, src, n), which rounds n <= 32 float32 to bfloat16. 32 float32 must be readable at src."""

    def emit(builder, dst, src, n):
        vector, halves = ir.VectorType(F32, lanes), ir.VectorType(I16, lanes)
        parts = [
            _rounded(builder, builder.load(_at(builder, src, 4 * lanes * i, vector), align=4), instruction)
            for i in range(32 // lanes)
        ]
        whole, part, done = (builder.append_basic_block(name) for name in ("whole", "part", "done"))
        spare = cgutils.alloca_once(builder, ir.ArrayType(I8, 64))
        builder.cbranch(builder.icmp_signed("==", n, I64(32)), whole, part)
        builder.position_at_end(whole)
        for i, value in enumerate(parts):
            builder.store(value, _at(builder, dst, 2 * lanes * i, halves), align=2)
        builder.branch(done)
        builder.position_at_end(part)
        for i, value in enumerate(parts):
            place = builder.gep(builder.bitcast(spare, BYTE), [I64(2 * lanes * i)])
            builder.store(value, builder.bitcast(place, halves.as_pointer()), align=2)
        target = builder.inttoptr(dst, BYTE)
        cgutils.raw_memcpy(builder, target, builder.bitcast(spare, BYTE), builder.mul(n, I64(2)), 1)
        builder.branch(done)
        builder.position_at_end(done)

    return _intrinsic("round_block", emit)


def split_block(lanes, instruction):
    """Emit split(high, low, src, n), which splits each of n <= 32 float32 into a sum of two bfloat16.

    It writes 32 bfloat16 at `high` and 32 at `low`. The values after the first n are zeros.
    """

    def emit(builder, high, low, src, n):
        vector, halves = ir.VectorType(F32, lanes), ir.VectorType(I16, lanes)
        words = ir.VectorType(I32, lanes)
        spare = builder.bitcast(cgutils.alloca_once(builder, ir.ArrayType(I8, SUMS)), BYTE)
        before, part, ready = builder.block, *(builder.append_basic_block(name) for name in ("part", "ready"))
        builder.cbranch(builder.icmp_signed("==", n, I64(32)), ready, part)
        builder.position_at_end(part)
        cgutils.memset(builder, spare, I64(SUMS), 0)
        cgutils.raw_memcpy(builder, spare, builder.inttoptr(src, BYTE), builder.mul(n, I64(4)), 1)
        copied, last = builder.ptrtoint(spare, I64), builder.block
        builder.branch(ready)
        builder.position_at_end(ready)
        source = builder.phi(I64)
        source.add_incoming(src, before)
        source.add_incoming(copied, last)
        for i in range(32 // lanes):
            values = builder.load(_at(builder, source, 4 * lanes * i, vector), align=4)
            upper = _rounded(builder, values, instruction)
            back = builder.bitcast(builder.shl(builder.zext(upper, words), words([16] * lanes)), vector)
            lower = _rounded(builder, builder.fsub(values, back), instruction)
            builder.store(upper, _at(builder, high, 2 * lanes * i, halves), align=2)
            builder.store(lower, _at(builder, low, 2 * lanes * i, halves), align=2)

    return _intrinsic("split_block", emit)


# ---------------------------------------------------------------- weighted sums of rows of 16 bits


def weighted_rows(lanes, half):
    """Emit combine(n, rows, weights, offset, sums), which sets 32 float32 at `sums` to the sum of weights[i] * row i.

    rows: the address of an array of n row addresses. weights: the address of n float32. offset: the number of bytes
    from a row's start to the 32 elements that are used. Each sum starts from zero and adds rows in order of i. half:
    whether elements are float16; if not, they are bfloat16.
    """
    vector, halves = ir.VectorType(F32, lanes), ir.VectorType(I16, lanes)
    words = ir.VectorType(I32, lanes)

    def widened(builder, raw):
        if half:
            return builder.fpext(builder.bitcast(raw, ir.VectorType(ir.HalfType(), lanes)), vector)
        return builder.bitcast(builder.shl(builder.zext(raw, words), words([16] * lanes)), vector)

    def emit(builder, n, rows, weights, offset, sums):
        def body(i, values):
            row = builder.load(_at(builder, rows, builder.mul(i, I64(8)), I64), align=8)
            weight = _broadcast(builder, _at(builder, weights, builder.mul(i, I64(4)), F32), lanes)
            first, new = builder.add(row, offset), []
            for j, value in enumerate(values):
                raw = builder.load(_at(builder, first, 2 * lanes * j, halves), align=2)
                new.append(builder.fadd(value, builder.fmul(weight, widened(builder, raw))))
            return new

        places = [_at(builder, sums, 4 * lanes * j, vector) for j in range(32 // lanes)]
        _store(builder, _loop(builder, [vector([0.0] * lanes) for _ in places], n, body), places)

    return _intrinsic("weighted_float16" if half else "weighted_bfloat16", emit)


# ---------------------------------------------------------------- float32


def micro_kernel(rows, vectors, pitch, lanes):
    """Emit the kernel for `rows` x (`vectors` * `lanes`) outputs.

    Each output is one chain of fused multiply-adds in order of k. The compiled call is kernel(a, b, c, jc, count,
    carry, ahead, pace). a: the address of the first packed row; the rows lie `pitch` bytes apart. b: the address of a
    packed panel, which has `vectors` vectors for each k. c: the address of an array of row addresses. jc: the first
    column of C that is computed. count: the number of k, at least 1. carry: nonzero if the products are added to C,
    0 if they overwrite it. For each k the kernel prefetches, from `ahead` on, as many bytes as the panel has for one k,
    and advances `ahead` by `pace` bytes. Prefetches are spread in this way because a burst of them would delay the
    loads that are needed now.
    """
    vector = ir.VectorType(F32, lanes)

    def emit(builder, a, b, c, jc, count, carry, ahead, pace):
        fma = _fma(builder, vector)
        places = []
        for i in range(rows):
            row = builder.load(builder.inttoptr(builder.add(c, I64(8 * i)), WORD))
            first = builder.add(row, builder.mul(jc, I64(4)))
            places += [_at(builder, first, 4 * lanes * j, vector) for j in range(vectors)]

        def body(k, sums):
            for line in range(0, 4 * lanes * vectors, 64):
                _prefetch(builder, builder.add(builder.add(ahead, I64(line)), builder.mul(k, pace)))
            right = builder.add(b, builder.mul(k, I64(4 * lanes * vectors)))
            left = builder.add(a, builder.mul(k, I64(4)))
            columns = [builder.load(_at(builder, right, 4 * lanes * j, vector), align=4) for j in range(vectors)]
            new = []
            for i in range(rows):
                x = _broadcast(builder, _at(builder, left, pitch * i, F32), lanes)
                new += [builder.call(fma, [x, columns[j], sums[i * vectors + j]]) for j in range(vectors)]
            return new

        _store(builder, _loop(builder, _sums(builder, carry, places, vector), count, body), places)

    return _intrinsic(f"micro_{rows}x{vectors * lanes}", emit)


def fma_loop(lanes, sums):
    """Emit loop(n, a), which runs n rounds of one fused multiply-add for each of `sums` vectors in registers.

    a: the address of `sums` vectors, which hold the initial values and later the results.
    """
    vector = ir.VectorType(F32, lanes)

    def emit(builder, count, address):
        fma = _fma(builder, vector)
        places = [_at(builder, address, 4 * lanes * i, vector) for i in range(sums)]
        start = [builder.load(place, align=4) for place in places]
        x = start[0]
        new = _loop(builder, start, count, lambda k, values: [builder.call(fma, [value, x, x]) for value in values])
        _store(builder, new, places)

    return _intrinsic(f"fma_{sums}x{lanes}", emit)


# ---------------------------------------------------------------- 16-bit weights, widened in registers


def _walk_bfloat16(name, rows, vectors, lanes, alone, fetch, multiply):
    """Emit kernel(a, b, sums, pairs, carry, ahead, pace), which multiplies rows by a panel of bfloat16 in order of k.

    For each block of 32 k, a panel has 16 lines for its first 16 columns, then 16 lines for its other columns
    (`elements.pack_pairs`). multiply(builder, a, p, raw, sums) emits the products of all rows with `raw`, the vectors
    of weights for pair p of k, and returns the new sums. alone: whether to read the lines of a block one after another,
    which is fastest from memory. If not, the lines of a pair of k are read together, which is faster from a cache.
    fetch: whether a kernel that is `alone` prefetches. If not, its loops are not unrolled, because the prefetchers of
    Zen 4 follow consecutive lines only if one load reads them all.
    """
    words, whole = ir.VectorType(I32, lanes), max(1, vectors * lanes // 16)
    each = vectors // whole  # how many vectors a line has
    vector = ir.VectorType(F32, lanes)

    def emit(builder, a, b, sums, pairs, carry, ahead, pace):
        places = [_at(builder, sums, SUMS * i + 4 * lanes * j, vector) for i in range(rows) for j in range(vectors)]

        def pair_of(p, right, values, columns):
            raw = [
                builder.load(_at(builder, right, STEP * (j // each) + 4 * lanes * (j % each), words), align=4)
                for j in columns
            ]
            return multiply(builder, a, p, raw, values)

        def together(p, values):
            block, pair = builder.lshr(p, I64(4)), builder.and_(p, I64(15))
            _prefetch(builder, builder.add(ahead, builder.mul(p, pace)))
            right = builder.add(b, builder.add(builder.mul(block, I64(2 * STEP)), builder.mul(pair, I64(64))))
            return pair_of(p, right, values, range(vectors))

        def half(first, count, right, columns, values):
            """Emit the products of `count` pairs of k, from pair `first` on, with the lines from `right` on.

            columns: the numbers of the vectors of weights that the lines hold.
            """
            chosen = [i * vectors + j for i in range(rows) for j in columns]

            def body(n, some):
                at = builder.add(right, builder.mul(n, I64(64)))
                if fetch:
                    _prefetch(builder, builder.add(at, I64(STEP * (columns[0] // each) + NEAR)))
                return pair_of(builder.add(first, n), at, some, columns)

            values = list(values)
            new = _loop(builder, [values[place] for place in chosen], count, body, unroll=fetch)
            for place, value in zip(chosen, new):
                values[place] = value
            return values

        def in_turn(block, values):
            first, right = builder.shl(block, I64(4)), builder.add(b, builder.mul(block, I64(2 * STEP)))
            rest = builder.sub(pairs, first)
            count = builder.select(builder.icmp_signed("<", rest, I64(16)), rest, I64(16))
            for line in range(whole):
                values = half(first, count, right, range(each * line, each * line + each), values)
            return values

        start = _sums(builder, carry, places, vector)
        if alone:
            blocks = builder.lshr(builder.add(pairs, I64(15)), I64(4))
            _store(builder, _loop(builder, start, blocks, in_turn), places)
        else:
            _store(builder, _loop(builder, start, pairs, together), places)

    return _intrinsic(f"{name}_{rows}x{vectors * lanes}{'_alone' * alone}", emit)


def widened_bfloat16(rows, vectors, pitch, lanes, alone=False, fetch=True):
    """Emit the kernel for `rows` x (`vectors` * `lanes`) sums of float32 rows times bfloat16 weights.

    Each sum adds products in order of k. The compiled call is kernel(a, b, sums, pairs, carry, ahead, pace). a: the
    address of the first row of A; the rows lie `pitch` bytes apart. b: the address of a packed panel (see
    `elements.pack_pairs`), or of the panel's second half of 16 columns. sums: the address of the first row of 32 sums.
    pairs: the number of pairs of k, at least 1. For each pair the kernel prefetches the cache line at `ahead`, and
    advances `ahead` by `pace` bytes. If the kernel is `alone` (see `_walk_bfloat16`), it prefetches its own panel
    instead, NEAR bytes ahead; if `fetch` is False, it prefetches nothing.
    """
    vector, words = ir.VectorType(F32, lanes), ir.VectorType(I32, lanes)
    high = words([0xFFFF0000] * lanes)

    def multiply(builder, a, p, raw, values):
        fma, left = _fma(builder, vector), builder.add(a, builder.mul(p, I64(8)))
        for odd in range(2):
            columns = [
                builder.bitcast(builder.and_(x, high) if odd else builder.shl(x, words([16] * lanes)), vector)
                for x in raw
            ]
            new = []
            for i in range(rows):
                x = _broadcast(builder, _at(builder, left, pitch * i + 4 * odd, F32), lanes)
                new += [builder.call(fma, [x, column, values[i * len(raw) + j]]) for j, column in enumerate(columns)]
            values = new
        return values

    return _walk_bfloat16("bfloat16", rows, vectors, lanes, alone, fetch, multiply)


def widened_float16(rows, vectors, pitch, lanes, unroll=True):
    """Emit the same kernel as `widened_bfloat16`, but for panels of float16, which are stored as [K][32].

    unroll: whether LLVM may unroll the loop: see `fetch` at `_walk_bfloat16`.
    """
    vector, halves = ir.VectorType(F32, lanes), ir.VectorType(ir.HalfType(), lanes)

    def emit(builder, a, b, sums, pairs, carry, ahead, pace):
        fma = _fma(builder, vector)
        places = [_at(builder, sums, SUMS * i + 4 * lanes * j, vector) for i in range(rows) for j in range(vectors)]

        def body(k, values):
            _prefetch(builder, builder.add(ahead, builder.mul(k, builder.lshr(pace, I64(1)))))
            right, left = builder.add(b, builder.mul(k, I64(64))), builder.add(a, builder.mul(k, I64(4)))
            columns = [
                builder.fpext(builder.load(_at(builder, right, 2 * lanes * j, halves), align=2), vector)
                for j in range(vectors)
            ]
            new = []
            for i in range(rows):
                x = _broadcast(builder, _at(builder, left, pitch * i, F32), lanes)
                new += [builder.call(fma, [x, columns[j], values[i * vectors + j]]) for j in range(vectors)]
            return new

        count = builder.shl(pairs, I64(1))
        _store(builder, _loop(builder, _sums(builder, carry, places, vector), count, body, unroll), places)

    return _intrinsic(f"float16_{rows}x{vectors * lanes}", emit)


def dot_bfloat16(rows, vectors, pitch, lanes, alone=False, fetch=True, *, instruction):
    """Emit the same kernel as `widened_bfloat16`, but with dot products of pairs. Rows of A are bfloat16.

    instruction: the name of LLVM's intrinsic that adds dot products to a vector of `lanes` sums.
    """
    vector, halves = ir.VectorType(F32, lanes), ir.VectorType(BFloat(), 2 * lanes)

    def multiply(builder, a, p, raw, values):
        dot = _declare(builder, instruction, vector, [vector, halves, halves])
        left, columns = builder.add(a, builder.mul(p, I64(4))), [builder.bitcast(x, halves) for x in raw]
        new = []
        for i in range(rows):
            x = builder.bitcast(_broadcast(builder, _at(builder, left, pitch * i, I32), lanes), halves)
            new += [builder.call(dot, [values[i * len(raw) + j], x, column]) for j, column in enumerate(columns)]
        return new

    return _walk_bfloat16("dot", rows, vectors, lanes, alone, fetch, multiply)


def matrix_bfloat16(rows, vectors, pitch, lanes):
    """Emit the same kernel as `dot_bfloat16`, but for vectors of 4 sums, with Arm's instruction BFMMLA.

    One BFMMLA multiplies four k of two rows by four k of two columns, and adds the 2 x 2 products to sums. So it takes
    two pairs of k, twice as many as BFDOT. If the number of pairs is odd, the last BFMMLA reads zeros after the last
    pair. If `rows` is odd, the last row is its own partner, and the sums of this partner are dropped. See "BFMMLA
    (vector)" in the Arm Architecture Reference Manual.
    """
    assert lanes == 4
    vector, words, halves = ir.VectorType(F32, 4), ir.VectorType(I32, 4), ir.VectorType(BFloat(), 8)
    two = ir.VectorType(I64, 2)
    partners = [(i, min(i + 1, rows - 1)) for i in range(0, rows, 2)]

    def pick(builder, first, second, lanes):
        return builder.shuffle_vector(first, second, ir.Constant(words, lanes))

    def emit(builder, a, b, sums, pairs, carry, ahead, pace):
        product = _declare(builder, "llvm.aarch64.neon.bfmmla", vector, [vector, halves, halves])

        def place(i, j):
            return _at(builder, sums, SUMS * i + 16 * j, vector)

        def resume():
            found = []
            for i, k in partners:
                for j in range(vectors):
                    upper, lower = builder.load(place(i, j), align=4), builder.load(place(k, j), align=4)
                    found += [pick(builder, upper, lower, [0, 1, 4, 5]), pick(builder, upper, lower, [2, 3, 6, 7])]
            return found

        def fresh():
            return [vector([0.0] * 4) for _ in range(2 * vectors * len(partners))]

        def body(q, values):
            """Emit the products of four k, which are two of the 16 pairs of a block of 32 k."""
            block, within = builder.lshr(q, I64(3)), builder.and_(q, I64(7))
            for line in range(2):
                _prefetch(
                    builder, builder.add(ahead, builder.mul(builder.add(builder.shl(q, I64(1)), I64(line)), pace))
                )
            right = builder.add(b, builder.add(builder.mul(block, I64(2 * STEP)), builder.mul(within, I64(128))))
            left = builder.add(a, builder.mul(q, I64(8)))
            rows_of = []
            for partner in partners:
                x = ir.Constant(two, ir.Undefined)
                for lane, row in enumerate(partner):
                    part = builder.load(_at(builder, left, pitch * row, I64), align=4)
                    x = builder.insert_element(x, part, I32(lane))
                rows_of.append(builder.bitcast(x, halves))
            new = list(values)
            for j in range(vectors):
                one, other = (builder.load(_at(builder, right, at + 16 * j, words), align=4) for at in (0, 64))
                for side, lanes_of in enumerate(([0, 4, 1, 5], [2, 6, 3, 7])):
                    column = builder.bitcast(pick(builder, one, other, lanes_of), halves)
                    for number, x in enumerate(rows_of):
                        at = 2 * (vectors * number + j) + side
                        new[at] = builder.call(product, [new[at], x, column])
            return new

        count = builder.lshr(builder.add(pairs, I64(1)), I64(1))
        found = _loop(builder, _either(builder, carry, resume, fresh), count, body)
        for number, (i, k) in enumerate(partners):
            for j in range(vectors):
                one, other = found[2 * (vectors * number + j) :][:2]
                builder.store(pick(builder, one, other, [0, 1, 4, 5]), place(i, j), align=4)
                if k != i:
                    builder.store(pick(builder, one, other, [2, 3, 6, 7]), place(k, j), align=4)

    return _intrinsic(f"matrix_{rows}x{vectors * lanes}", emit)


# ---------------------------------------------------------------- AMX tiles of bfloat16


class Tiles:
    """Emits operations on `down` x 2 tiles of sums.

    Tiles 0 to 3 hold the sums, tiles 4 and 5 hold parts of A, and tiles 6 and 7 hold parts of B.
    """

    def __init__(self, builder, down):
        self.builder, self.down = builder, down
        self.load = _declare(builder, "llvm.x86.tileloadd64", VOID, [I8, BYTE, I64])
        self.store = _declare(builder, "llvm.x86.tilestored64", VOID, [I8, BYTE, I64])
        self.zero = _declare(builder, "llvm.x86.tilezero", VOID, [I8])
        self.dot = _declare(builder, "llvm.x86.tdpbf16ps", VOID, [I8] * 3)

    def places(self, sums, upper):
        """(number of the tile, pointer to its sums) for each tile of sums.

        sums: the address of the first row of sums. upper: how many rows the upper tiles have.
        """
        first = [sums, self.builder.add(sums, self.builder.mul(upper, I64(SUMS)))][: self.down]
        return [(I8(2 * i + j), _at(self.builder, first[i], 64 * j, I8)) for i in range(self.down) for j in range(2)]

    def begin(self, carry, places):
        """Load the tiles of sums if `carry` is not 0, else set them to zero."""

        def resume():
            for tile, place in places:
                self.builder.call(self.load, [tile, place, I64(SUMS)])
            return []

        def fresh():
            for tile, _ in places:
                self.builder.call(self.zero, [tile])
            return []

        _either(self.builder, carry, resume, fresh)

    def load_rows(self, addresses):
        """Load the tiles of A."""
        for i, address in enumerate(addresses):
            self.builder.call(self.load, [I8(4 + i), _at(self.builder, address, 0, I8), I64(64)])

    def load_columns(self, panel):
        """Load the tiles of B from a block of 32 k of a panel."""
        for j in range(2):
            self.builder.call(self.load, [I8(6 + j), _at(self.builder, panel, STEP * j, I8), I64(64)])

    def multiply(self):
        """Add the products to the sums."""
        for i in range(self.down):
            for j in range(2):
                self.builder.call(self.dot, [I8(2 * i + j), I8(4 + i), I8(6 + j)])

    def end(self, places):
        """Store the tiles of sums."""
        for tile, place in places:
            self.builder.call(self.store, [tile, place, I64(SUMS)])


def tile_kernel(down, parts=1):
    """Emit the kernel for `down` x 2 tiles of up to 16 x 16 sums of bfloat16 products.

    The compiled call is kernel(a, below, b, sums, steps, carry, ahead, pace, upper, lower). a: the address of the
    packed upper tiles of A, which have `upper` rows of 64 bytes for each block of 32 k. below: the number of bytes from
    `a` to the lower tiles. b: the address of a packed panel. sums: the address of the first row of 32 sums. steps:
    the number of blocks of 32 k. upper, lower: the numbers of rows of the upper and lower tiles, for which `configure`
    must have been called. For each block the kernel prefetches `pace` bytes, a multiple of 64, from `ahead` on, and
    advances `ahead` by as many.
    parts: 2 if each value of the operands is a sum of two bfloat16, else 1. With two parts, a tile of low values
    follows each tile of high values. The kernel then multiplies low by high, high by high and high by low values, in
    this order, so that it loads each tile once.
    """

    def emit(builder, a, below, b, sums, steps, carry, ahead, pace, upper, lower):
        left, tile = [a, builder.add(a, below)][:down], builder.shl(upper, I64(6))
        tiles = Tiles(builder, down)

        def rows(k, part):
            """Load the tiles of A for block k. part: 0 for high values, 1 for low values."""
            offset = builder.mul(builder.add(builder.mul(k, I64(parts)), I64(part)), tile)
            tiles.load_rows([builder.add(place, offset) for place in left])

        def columns(k, part):
            tiles.load_columns(builder.add(b, builder.add(builder.mul(k, I64(2 * parts * STEP)), I64(2 * STEP * part))))

        def body(k, _):
            if parts == 2:
                rows(k, 1)
                columns(k, 0)
                tiles.multiply()
                rows(k, 0)
                tiles.multiply()
                columns(k, 1)
                tiles.multiply()
            else:
                rows(k, 0)
                columns(k, 0)
                tiles.multiply()
            here = builder.add(ahead, builder.mul(k, pace))

            def line(n, _):
                _prefetch(builder, builder.add(here, builder.mul(n, I64(64))))
                return []

            _loop(builder, [], builder.lshr(pace, I64(6)), line)
            return []

        places = tiles.places(sums, upper)
        tiles.begin(carry, places)
        _loop(builder, [], steps, body)
        tiles.end(places)

    return _intrinsic(f"tiles_{down}x2x{parts}", emit)


def _configure(builder, shapes):
    builder.call(_declare(builder, "llvm.x86.ldtilecfg", VOID, [BYTE]), [_at(builder, shapes, 0, I8)])


def _release(builder):
    builder.call(_declare(builder, "llvm.x86.tilerelease", VOID, []), [])


configure = _intrinsic("configure", _configure)  # configure(shapes): see `tiles.configure`
release = _intrinsic("release", _release)

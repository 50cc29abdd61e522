"""Micro-kernels as LLVM code for codes that become bfloat16 in memory before their products.

Where `code_words` can be used, 32 codes become bfloat16 at once. Elsewhere codes become float32 first. On AMX, codes of
int8 become float32 first too.
"""

from llvmlite import ir

from ...primitives.buffers import LINE
from ...weight_types import FORMATS
from .micro_kernels import (
    F32,
    I32,
    I64,
    STEP,
    SUMS,
    Tiles,
    _at,
    _broadcast,
    _either,
    _fma,
    _intrinsic,
    _loop,
    _prefetch,
)
from .packed_kernels import (
    PAIR_BYTES,
    SCALE_BYTES,
    _decoded,
    _joined,
    _pairs_of,
)

RING, LAG = 4, 2  # in blocks of 32 k: the size of the ring of `code_tiles`, and how far ahead it unpacks
NEAR = 12288  # bytes between the codes that are unpacked and those that are prefetched


def _unpack_block(builder, form, lanes, table, words, codes, out, near=None):
    """Unpack codes of a block of 32 k into bfloat16 at the address `out`, in the order of `elements.pack_pairs`.

    near: the address of as many bytes as the codes have; these bytes are prefetched. None: nothing is prefetched.
    """
    together, last = _pairs_of(form), 32 // lanes - 1
    vector = ir.VectorType(I32, lanes)
    for u in range(16 // together):
        offset = PAIR_BYTES[form] * together * u
        place = builder.add(codes, I64(offset))
        for line in range(offset, offset + PAIR_BYTES[form] * together, LINE) if near else ():
            _prefetch(builder, builder.add(near, I64(line)))
        if words:
            unit = words(builder, form, place)
        else:
            unit = [
                [
                    _joined(builder, *_decoded(builder, form, place, j, lanes, table, b, j == last))
                    for j in range(last + 1)
                ]
                for b in range(together)
            ]
        for b, columns in enumerate(unit):
            for j, each in enumerate(columns):
                at = 64 * (together * u + b) + STEP * (j * lanes // 16) + 4 * (j * lanes % 16)
                builder.store(each, _at(builder, out, at, vector), align=4)


def unpack(form, lanes, table, words):
    """Emit unpack(codes, panel, blocks, near), which unpacks blocks >= 1 blocks of 32 k of 32 columns into a panel.

    near: the address of as many bytes as the codes have; these bytes are prefetched. words: the function of
    `code_words` that unpacks codes, or None.
    """

    def emit(builder, codes, panel, blocks, near):
        def body(k, _):
            read = builder.mul(k, I64(16 * PAIR_BYTES[form]))
            place, ahead = builder.add(codes, read), builder.add(near, read)
            out = builder.add(panel, builder.mul(k, I64(2 * STEP)))
            _unpack_block(builder, form, lanes, table, words, place, out, ahead)
            return []

        _loop(builder, [], blocks, body)

    return _intrinsic(f"unpack_{form}_{lanes}", emit)


def code_tiles(form, down, words):
    """Emit the kernel for `down` x 2 tiles of up to 16 x 16 sums of products of bfloat16 and codes, by groups of k.

    The compiled call is kernel(a, below, codes, ring, sums, groups, blocks, carry, pitch, near, upper, lower). For each
    of `groups` >= 1 groups of `blocks` >= 1 blocks of 32 k, it computes what the kernel of `micro_kernels.tile_kernel`
    does. codes: the address of the first block's codes. ring: the address of space for RING blocks of a panel. Codes
    become bfloat16 in the ring, LAG blocks ahead of their products, so that the tile unit and the vector units work at
    the same time. pitch: the number of bytes from a group's sums to the next group's sums. near: the address of as many
    bytes as the codes have; these bytes are prefetched. The other arguments are explained at `tile_kernel`. words: see
    `unpack`.
    """
    size = 16 * PAIR_BYTES[form]

    def emit(builder, a, below, codes, ring, sums, groups, blocks, carry, pitch, near, upper, lower):
        left, total, tiles = [a, builder.add(a, below)][:down], builder.mul(groups, blocks), Tiles(builder, down)

        def panel_of(k):
            return builder.add(ring, builder.mul(builder.and_(k, I64(RING - 1)), I64(2 * STEP)))

        def unpack_if_there(k):
            with builder.if_then(builder.icmp_signed("<", k, total)):
                read = builder.mul(k, I64(size))
                _unpack_block(
                    builder,
                    form,
                    16,
                    True,
                    words,
                    builder.add(codes, read),
                    panel_of(k),
                    builder.add(near, read),
                )

        def group(g, _):
            places = tiles.places(builder.add(sums, builder.mul(g, pitch)), upper)

            def block(n, _):
                k = builder.add(builder.mul(g, blocks), n)
                unpack_if_there(builder.add(k, I64(LAG)))
                offset = builder.mul(k, builder.shl(upper, I64(6)))
                tiles.load_rows([builder.add(place, offset) for place in left])
                tiles.load_columns(panel_of(k))
                tiles.multiply()
                return []

            tiles.begin(carry, places)
            _loop(builder, [], blocks, block)
            tiles.end(places)
            return []

        for k in range(LAG):
            unpack_if_there(I64(k))
        _loop(builder, [], groups, group)

    return _intrinsic(f"code_tiles_{form}_{down}x2", emit)


def close_groups(form, lanes):
    """Emit close(m, groups, parts, pitch, sums, scales, x, x_pitch), which scales groups' sums and adds them in order.

    parts: the address of the first group's m >= 1 rows of 32 sums. There are `groups` >= 1 groups, whose sums lie
    `pitch` bytes apart. sums: the address of m rows of 32 sums, to which the groups are added. scales: the address of
    the scales, which take SCALE_BYTES for each group. x, x_pitch: as in `packed_kernels.packed_rows`.
    """
    kind = ir.VectorType(F32, lanes)

    def emit(builder, m, groups, parts, pitch, sums, scales, x, x_pitch):
        fma, vectors = _fma(builder, kind), range(SUMS // (4 * lanes))

        def loaded(place, offset):
            return [builder.load(_at(builder, place, offset + 4 * lanes * j, kind), align=4) for j in vectors]

        def row(i, _):
            out, first = (builder.add(each, builder.mul(i, I64(SUMS))) for each in (sums, parts))
            of_row = builder.add(x, builder.mul(x_pitch, i))

            def group(g, total):
                own = builder.add(first, builder.mul(g, pitch))
                scale = builder.add(scales, builder.mul(g, I64(SCALE_BYTES[form])))
                found = loaded(own, 0)

                def less_zeros():
                    one = _broadcast(builder, _at(builder, builder.add(of_row, builder.mul(g, I64(4))), 0, F32), lanes)
                    return [builder.call(fma, [one, *both]) for both in zip(loaded(scale, SUMS), found)]

                whole = _either(builder, x, less_zeros, lambda: found) if FORMATS[form].zeros else found
                return [builder.call(fma, each) for each in zip(whole, loaded(scale, 0), total)]

            for j, value in enumerate(_loop(builder, loaded(out, 0), groups, group)):
                builder.store(value, _at(builder, out, 4 * lanes * j, kind), align=4)
            return []

        _loop(builder, [], m, row)

    return _intrinsic(f"close_groups_{form}_{lanes}", emit)

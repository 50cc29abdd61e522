"""wgmma of the PTX machine against the layouts and fragments that the PTX ISA draws, stated in NumPy.

An operand's image in shared memory is written element by element from the ISA's canonical layouts; the machine reads
it through a descriptor. Products are exact, each element is one chain of float32 additions in k order from D.
"""

from __future__ import annotations

import numpy as np
import pytest
from simt_ptx import launched

KINDS = {"bf16": 16, "f16": 16, "tf32": 8}  # elements of k in an instruction
WIDTHS = {0: 16, 1: 128, 2: 64, 3: 32}  # bytes of a pattern's row, by the descriptor's mode
A_AT, B_AT = 0, 32768


def narrow(values, kind):
    """(bit patterns as elements in memory, the float32 values that they stand for)."""
    values = values.astype(np.float32)
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16), values.astype(np.float16).astype(np.float32)
    bits = values.view(np.uint32) & np.uint32(0xFFFF0000 if kind == "bf16" else 0xFFFFE000)
    return (bits >> 16).astype(np.uint16) if kind == "bf16" else bits, bits.view(np.float32)


def mixed(at, mode):
    """The swizzles of the ISA: 16-byte part p of 128-byte line r lies at p ^ r, of r's lowest 3, 2 or 1 bits."""
    line, part, rest = at // 128, at // 16 % 8, at % 16
    part ^= line % {0: 1, 1: 8, 2: 4, 3: 2}[mode]
    return line * 128 + part * 16 + rest


def image(bits, mode, turned, leading, stride):
    """Bytes of an operand [rows, k] of one instruction, in the canonical layout of a mode; the pattern at 0."""
    rows, depth = bits.shape
    size, per = bits.itemsize, 16 // bits.itemsize
    width = WIDTHS[mode]
    out = np.zeros(32768, np.uint8)
    for row in range(rows):
        for k in range(depth):
            if mode == 0 and not turned:  # 8x16-byte core matrices; stride from 8 rows to the next, leading along k
                at = row // 8 * stride + row % 8 * 16 + k // per * leading + k % per * size
            elif mode == 0:
                at = row // per * stride + k // 8 * leading + k % 8 * 16 + row % per * size
            elif not turned:
                at = row // 8 * stride + row % 8 * width + k * size
            else:
                chunk = width // size
                at = row // chunk * leading + row % chunk * size + k // 8 * stride + k % 8 * width
            at = mixed(at, mode)
            out[at : at + size] = np.frombuffer(bits[row, k].tobytes(), np.uint8)
    return out


def descriptor(start, mode, leading, stride):
    return start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | mode << 62


def strides(mode, turned, rows, depth, size):
    """(leading, stride) bytes of a packed operand."""
    if mode == 0:
        return (128, 128 * (depth * size // 16)) if not turned else (128, 256)
    width = WIDTHS[mode]
    if not turned:
        return 16, 8 * width
    return 16 * width, 8 * width  # patterns of 8 k-rows, two along k, then along the rows


def fragments(lane, n):
    """(row, column) of each accumulator of a lane of warp 0 of the warpgroup: the ISA's figure of D."""
    return [(lane // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * (lane % 4) + i % 2) for i in range(n // 2)]


def fragments_of_a(lane, kind):
    """(row, k) of each element of A that a lane holds."""
    g, t = lane // 4, lane % 4
    if kind == "tf32":
        return [(g + 8 * (i % 2), t + 4 * (i // 2)) for i in range(4)]
    return [(g + 8 * (i // 2 % 2), 2 * t + i % 2 + 8 * (i // 4)) for i in range(8)]


def chained(d, a, b):
    """d + a b, each sum rounded to float32, in k order; float64 holds a product of two 11-bit numbers exactly."""
    total = d.astype(np.float32)
    for k in range(a.shape[1]):
        total = (total.astype(np.float64) + a[:, k, None].astype(np.float64) * b[None, :, k].astype(np.float64)).astype(
            np.float32
        )
    return total


STAGE = """mov.u64 d1, tile;
mov.u64 d2, 0;
STAGE: add.u64 d3, d2, t64;
shl.b64 d3, d3, 4;
add.u64 d4, d3, a0;
add.u64 d5, d3, d1;
ld.global.v4.b32 {r1, r2, r3, r4}, [d4];
st.shared.v4.b32 [d5], {r1, r2, r3, r4};
add.u64 d2, d2, 128;
setp.lt.u64 p1, d2, 4096;
@p1 bra STAGE;
"""
TILE = ".shared .align 1024 .b8 tile[65536];"


FENCE = "wgmma.fence.sync.aligned;"
COMMIT = "wgmma.commit_group.sync.aligned;"
WAIT = COMMIT + "\nwgmma.wait_group.sync.aligned 0;"


def multiply(text, n, shared, d, a_desc, b_desc, tail, a_registers=None, before="fence.proxy.async;\nbar.sync 0;",
             after=WAIT, first=FENCE, check=True, seed=0, scale="p2", repeat=1):  # fmt: skip
    """([64, n] D, reports) of wgmma on a warpgroup; a_registers: [128, 4] uint32, A's fragments."""
    names = [f"c{i}" for i in range(n // 2)]
    lines = [STAGE, before, f"mad.wide.u32 d10, t, {2 * n}, a1;"]
    lines += [f"ld.global.b32 {name}, [d10+{4 * i}];" for i, name in enumerate(names)]
    a = f"{a_desc:#x}"
    if a_registers is not None:
        lines += ["mad.wide.u32 d11, t, 16, a2;", "ld.global.v4.b32 {r10, r11, r12, r13}, [d11];"]
        a = "{r10, r11, r12, r13}"
    else:
        lines += [f"mov.b64 d20, {a};"]
        a = "d20"
    lines += [f"mov.b64 d21, {b_desc:#x};", "setp.eq.u32 p2, t, t;", "not.pred p3, p2;", first]
    lines += [f"wgmma.mma_async.sync.aligned.{text} {{{', '.join(names)}}}, {a}, d21, {scale}, {tail};"] * repeat
    lines.append(after)
    lines += [f"st.global.b32 [d10+{4 * i}], {name};" for i, name in enumerate(names)]
    held = np.zeros((128, n // 2), np.float32)
    for thread in range(128):
        for i, (row, column) in enumerate(fragments(thread % 32, n)):
            held[thread, i] = d[thread // 32 * 16 + row, column]
    arrays = [shared, held, *([] if a_registers is None else [a_registers])]
    out, found = launched("\n".join(lines), *arrays, threads=128, module=TILE, check=check, seed=seed,
                          head=f".reg .b32 c<{n // 2}>;")  # fmt: skip
    result = np.zeros((64, n), np.float32)
    for thread in range(128):
        for i, (row, column) in enumerate(fragments(thread % 32, n)):
            result[thread // 32 * 16 + row, column] = out[1][thread, i]
    return result, found


def drawn(kind, n, seed=1):
    rng = np.random.default_rng(seed)
    depth = KINDS[kind]
    a_bits, a = narrow(rng.standard_normal((64, depth)), kind)
    b_bits, b = narrow(rng.standard_normal((n, depth)), kind)
    return a_bits, a, b_bits, b, rng.standard_normal((64, n)).astype(np.float32)


def operands(kind, n, mode=1, turned_a=False, turned_b=False, seed=1):
    """(shared memory, descriptors of A and B, A, B, D)."""
    a_bits, a, b_bits, b, d = drawn(kind, n, seed)
    shared = np.zeros(65536, np.uint8)
    size = a_bits.itemsize
    to_a, to_b = strides(mode, turned_a, 64, KINDS[kind], size), strides(mode, turned_b, n, KINDS[kind], size)
    shared[:B_AT] = image(a_bits, mode, turned_a, *to_a)
    shared[B_AT:] = image(b_bits, mode, turned_b, *to_b)
    return shared, descriptor(A_AT, mode, *to_a), descriptor(B_AT, mode, *to_b), a, b, d


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(("kind", "n"), [("bf16", 8), ("bf16", 128), ("f16", 64), ("tf32", 40), ("bf16", 256)])
def test_products_of_shared_operands(kind, n, check):
    shared, a_desc, b_desc, a, b, d = operands(kind, n)
    tail = "1, 1" if kind == "tf32" else "1, 1, 0, 0"
    got, found = multiply(f"m64n{n}k{KINDS[kind]}.f32.{kind}.{kind}", n, shared, d, a_desc, b_desc, tail, check=check)
    assert found == []
    assert np.array_equal(got, chained(d, a, b))

"""Measures the PTX machine on this core: warp instructions a second of six kernels, with and without the checker.

python bench/simt.py                 a table; --json for programs; --times 5 for the best of five runs (3)

Times are those of the run (CPU time of the process, and wall time), without compiling the kernel to PTX and loading
the interpreter. These times cannot be compared with times on a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numba import cuda

import ptxsim

BLOCKS, THREADS, TILE = 1000, 256, 64


@cuda.jit
def vector_add(a, b, c):
    i = cuda.grid(1)
    if i < c.size:
        c[i] = a[i] + b[i]


@cuda.jit
def collatz(out, most):
    """Counts the Collatz steps from each number to 1: integers, diverging branches, no memory."""
    i = cuda.grid(1)
    n, steps = i + 1, 0
    while n != 1 and steps < most:
        n = 3 * n + 1 if n & 1 else n // 2
        steps += 1
    out[i] = steps


# c = a @ b for a: [64, 64] bfloat16 by rows, b: [64, 64] bfloat16 by columns, c: [64, 64] float32; 8 warps.
GEMM = """.version 8.6
.target sm_90
.address_size 64
.visible .entry gemm(.param .u64 pa, .param .u64 pb, .param .u64 pc)
{
.reg .u64 %a, %b, %c, %o; .reg .b32 %t, %w, %g, %q, %m, %n, %k, %x, %f<4>, %h<2>; .reg .f32 %d<4>; .reg .pred %p;
ld.param.u64 %a, [pa]; ld.param.u64 %b, [pb]; ld.param.u64 %c, [pc];
mov.u32 %t, %tid.x; shr.u32 %w, %t, 5; and.b32 %t, %t, 31;
shr.u32 %g, %t, 2; and.b32 %q, %t, 3; shl.b32 %q, %q, 1;
shl.b32 %n, %w, 3; mov.u32 %m, 0;
ROWS:
mov.f32 %d0, 0f00000000; mov.f32 %d1, %d0; mov.f32 %d2, %d0; mov.f32 %d3, %d0; mov.u32 %k, 0;
STEP:
add.u32 %x, %m, %g; shl.b32 %x, %x, 6; add.u32 %x, %x, %k; add.u32 %x, %x, %q;
mul.wide.u32 %o, %x, 2; add.u64 %o, %a, %o;
ld.global.b32 %f0, [%o]; ld.global.b32 %f1, [%o+1024]; ld.global.b32 %f2, [%o+16]; ld.global.b32 %f3, [%o+1040];
add.u32 %x, %n, %g; shl.b32 %x, %x, 6; add.u32 %x, %x, %k; add.u32 %x, %x, %q;
mul.wide.u32 %o, %x, 2; add.u64 %o, %b, %o;
ld.global.b32 %h0, [%o]; ld.global.b32 %h1, [%o+16];
mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
    {%d0,%d1,%d2,%d3}, {%f0,%f1,%f2,%f3}, {%h0,%h1}, {%d0,%d1,%d2,%d3};
add.u32 %k, %k, 16; setp.lt.u32 %p, %k, 64; @%p bra STEP;
add.u32 %x, %m, %g; shl.b32 %x, %x, 6; add.u32 %x, %x, %n; add.u32 %x, %x, %q;
mul.wide.u32 %o, %x, 4; add.u64 %o, %c, %o;
st.global.v2.f32 [%o], {%d0, %d1}; st.global.v2.f32 [%o+2048], {%d2, %d3};
add.u32 %m, %m, 16; setp.lt.u32 %p, %m, 64; @%p bra ROWS;
ret;
}"""

# the same product from tiles in shared memory: cp.async, ldmatrix; a row of a tile takes 144 bytes there
TILES = """.version 8.6
.target sm_90
.address_size 64
.visible .entry tiles(.param .u64 pa, .param .u64 pb, .param .u64 pc)
{
.reg .b64 %a, %b, %c, %o; .reg .b32 %t, %w, %l, %r, %s, %x, %y, %m, %k, %sa, %sb, %f<4>, %h<2>; .reg .f32 %d<4>;
.reg .pred %p;
.shared .align 16 .b8 ta[9216]; .shared .align 16 .b8 tb[9216];
ld.param.u64 %a, [pa]; ld.param.u64 %b, [pb]; ld.param.u64 %c, [pc];
mov.u32 %t, %tid.x; shr.u32 %w, %t, 5; and.b32 %l, %t, 31; mov.u32 %sa, ta; mov.u32 %sb, tb; mov.u32 %k, 0;
COPY:
mad.lo.u32 %x, %k, 256, %t; shr.u32 %r, %x, 3; and.b32 %s, %x, 7; shl.b32 %s, %s, 4; mad.lo.u32 %s, %r, 144, %s;
mad.wide.u32 %o, %x, 16, %a; add.u32 %y, %sa, %s; cp.async.cg.shared.global [%y], [%o], 16;
mad.wide.u32 %o, %x, 16, %b; add.u32 %y, %sb, %s; cp.async.cg.shared.global [%y], [%o], 16;
add.u32 %k, %k, 1; setp.lt.u32 %p, %k, 2; @%p bra COPY;
cp.async.commit_group; cp.async.wait_group 0; bar.sync 0;
mov.u32 %m, 0;
ROWS:
mov.f32 %d0, 0f00000000; mov.f32 %d1, %d0; mov.f32 %d2, %d0; mov.f32 %d3, %d0; mov.u32 %k, 0;
STEP:
and.b32 %r, %l, 15; add.u32 %r, %r, %m; shr.u32 %s, %l, 4; mad.lo.u32 %s, %s, 8, %k; shl.b32 %s, %s, 1;
mad.lo.u32 %x, %r, 144, %s; add.u32 %x, %x, %sa;
ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%f0,%f1,%f2,%f3}, [%x];
and.b32 %r, %l, 7; mad.lo.u32 %r, %w, 8, %r; bfe.u32 %s, %l, 3, 1; mad.lo.u32 %s, %s, 8, %k; shl.b32 %s, %s, 1;
mad.lo.u32 %x, %r, 144, %s; add.u32 %x, %x, %sb;
ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%h0,%h1}, [%x];
mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
    {%d0,%d1,%d2,%d3}, {%f0,%f1,%f2,%f3}, {%h0,%h1}, {%d0,%d1,%d2,%d3};
add.u32 %k, %k, 16; setp.lt.u32 %p, %k, 64; @%p bra STEP;
shr.u32 %r, %l, 2; add.u32 %x, %m, %r; shl.b32 %x, %x, 6; mad.lo.u32 %x, %w, 8, %x;
and.b32 %r, %l, 3; mad.lo.u32 %x, %r, 2, %x; mad.wide.u32 %o, %x, 4, %c;
st.global.v2.f32 [%o], {%d0, %d1}; st.global.v2.f32 [%o+2048], {%d2, %d3};
add.u32 %m, %m, 16; setp.lt.u32 %p, %m, 64; @%p bra ROWS;
ret;
}"""

# each thread copies 8 times 32 bytes, as two vectors of 16 bytes
COPY = """.version 8.6
.target sm_90
.address_size 64
.visible .entry copy(.param .u64 from, .param .u64 to)
{
.reg .b64 %a, %b; .reg .b32 %t, %x, %f<8>; .reg .pred %p;
ld.param.u64 %a, [from]; ld.param.u64 %b, [to];
mov.u32 %t, %ctaid.x; mov.u32 %x, %tid.x; mad.lo.u32 %t, %t, 256, %x;
mad.wide.u32 %a, %t, 32, %a; mad.wide.u32 %b, %t, 32, %b; mov.u32 %x, 0;
L:
ld.global.nc.v4.b32 {%f0, %f1, %f2, %f3}, [%a]; ld.global.nc.v4.b32 {%f4, %f5, %f6, %f7}, [%a+16];
st.global.v4.b32 [%b], {%f0, %f1, %f2, %f3}; st.global.v4.b32 [%b+16], {%f4, %f5, %f6, %f7};
add.u64 %a, %a, 65536; add.u64 %b, %b, 65536; add.u32 %x, %x, 1; setp.lt.u32 %p, %x, 8; @%p bra L;
ret;
}"""


def run_vector_add(device: Any) -> Callable[[], bool]:
    """Launch a vector add: 1,000 blocks of 256 threads, float32. Returns a check of the result, for after the run."""
    a = np.random.default_rng(1).standard_normal(BLOCKS * THREADS).astype(np.float32)
    out = device.empty(a.size, np.float32)
    device.launch(vector_add, BLOCKS, THREADS, device.array(a), device.array(a[::-1].copy()), out)
    return lambda: bool(np.array_equal(out.copy_to_host(), a + a[::-1]))


def run_gemm(device: Any, ptx: str = GEMM, launches: int = 1) -> Callable[[], bool]:
    """Launch a product of 64 x 64 x 64 by mma.sync of bfloat16. The check compares it with float32 sums in k order."""
    rng = np.random.default_rng(2)
    mask = np.uint32(0xFFFF0000)
    a, b = ((rng.standard_normal((TILE, TILE)).astype(np.float32).view(np.uint32) & mask) for _ in range(2))
    out = device.empty((TILE, TILE), np.float32)
    by_columns = np.ascontiguousarray(b.T)
    inputs = [device.array((x >> 16).astype(np.uint16)) for x in (a, by_columns)]
    for _ in range(launches):
        device.launch(ptx, 1, 256, *inputs, out)

    def right() -> bool:
        want = np.zeros((TILE, TILE), np.float32)
        for k in range(TILE):
            term = a.view(np.float32)[:, k, None].astype(np.float64) * b.view(np.float32)[None, k, :]
            want = (want + term).astype(np.float32)
        return bool(np.array_equal(out.copy_to_host(), want))

    return right


def run_copy(device: Any) -> Callable[[], bool]:
    """Launch a copy of 262,144 items of 16 bits. Returns a check of the result, for after the run."""
    data = np.arange(1 << 18).astype(np.uint16)
    out = device.empty(data.size, np.uint16)
    device.launch(COPY, 8, 256, device.array(data), out)
    return lambda: bool(np.array_equal(out.copy_to_host(), data))


def run_collatz(device: Any) -> Callable[[], bool]:
    """Launch `collatz`: 16 blocks of 128 threads, at most 60 steps for each number. Returns a check of the result."""
    out = device.empty(2048, np.int64)
    device.launch(collatz, 16, 128, out, 60)

    def right() -> bool:
        want = []
        for n in range(1, 2049):
            steps = 0
            while n != 1 and steps < 60:
                n, steps = (3 * n + 1 if n & 1 else n // 2), steps + 1
            want.append(steps)
        return out.copy_to_host().tolist() == want

    return right


KERNELS = {
    "vector add, 1,000 blocks": run_vector_add,
    "64x64x64 by mma.sync": run_gemm,
    "the same, 100 launches": partial(run_gemm, launches=100),
    "100 launches by ldmatrix": partial(run_gemm, ptx=TILES, launches=100),
    "copy of 16-bit items": run_copy,
    "Collatz": run_collatz,
}


def measure(start: Callable[[Any], Callable[[], bool]], check: bool) -> dict[str, float]:
    """Measure one run: warp instructions, CPU and wall seconds, instructions a CPU second."""
    machine = ptxsim.Machine(check=check)
    right = start(machine.device(0))
    wall, cpu = time.perf_counter(), time.process_time()
    reports = machine.run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if reports or not right():
        raise SystemExit(f"bench/simt.py: wrong: {reports or 'the result'}")
    count = machine.profile().total["instructions"]
    return {"instructions": count, "cpu_seconds": cpu, "wall_seconds": wall, "rate": count / cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description="Warp instructions a second of the PTX machine.")
    parser.add_argument("--times", type=int, default=3, help="runs, of which the best counts (%(default)s)")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = []
    for name, start in KERNELS.items():
        for check in (False, True):
            best = max((measure(start, check) for _ in range(asked.times)), key=lambda row: row["rate"])
            rows.append({"kernel": name, "check": check, **best})
    if asked.json:
        print(json.dumps(rows))
        return
    print(f"{'kernel':26s}{'check':>6s}{'warp instr.':>13s}{'CPU s':>9s}{'wall s':>9s}{'million/s':>11s}")
    for row in rows:
        print(
            f"{row['kernel']:26s}{'yes' if row['check'] else 'no':>6s}{row['instructions']:13,d}"
            f"{row['cpu_seconds']:9.3f}{row['wall_seconds']:9.3f}{row['rate'] / 1e6:11.2f}"
        )


if __name__ == "__main__":
    main()

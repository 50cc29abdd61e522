"""The kernels of the backward call and of optimizers on `guarded.Arrays`: the part "backward" of guarded_kernels.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from guarded import Arrays
from guarded_calls import FLOAT32, SHAPES, Case, Weights, addresses, call, drawn

from aristos import Router
from aristos.kernels.by_isa import module
from aristos.kernels.common.scores import rule
from aristos.kernels.cpu import backward_entries, call_blocks, expert, optimizer, token_backward
from aristos.kernels.cpu import elements as cpu_elements
from aristos.kernels.cpu.panels import padded
from aristos.kernels.cpu.target import ISA
from aristos.primitives import taped
from aristos.primitives.arithmetic import BackwardRows, ExpertBlocks
from aristos.primitives.buffers import LINE


def of_store(w: Weights, rows: int, taped_rows: bool) -> Callable[[Arrays], list[np.ndarray]]:
    """Call `store_rows`, then `stored_gradients` twice: it writes, then adds.

    taped_rows: the tape has every second row.
    """
    backward = module("rounded_backward" if w.element.name == "bfloat16" else "expert_backward", ISA)

    def run(arrays: Arrays) -> list[np.ndarray]:
        hidden, ffn, array = w.hidden, w.ffn, w.element.row.array
        on_tape = [taped_rows and i % 2 == 1 for i in range(rows)]
        both = [drawn(((1 if here else 2) * hidden,), array, seed=i) for i, here in enumerate(on_tape)]
        from_rows, _ = arrays.rows("rows", both)
        to_dx, dx = arrays.empty_rows("dx", rows, hidden if w.element.name == "bfloat16" else padded(hidden))
        places, store = arrays.empty_rows("places", rows, backward.place_bytes(hidden, ffn, w.gated), np.uint8)
        scalars = np.zeros(rows, np.int64)
        scalars.view(np.float32)[::2] = drawn((rows,), seed=3)
        scalars = arrays.copy("scalars", scalars)
        words = arrays.at("weights", np.array([*w.on(arrays), *w.transposed(arrays)], np.int64))
        before = expert.hidden_bytes(ffn, w.gated)
        tape = drawn((rows, before // 4), seed=4).view(np.uint8)
        x = drawn((rows, hidden), array, seed=5).view(np.uint8)
        on = arrays.rows("tape", np.concatenate([tape, x], axis=1), LINE)[1] if taped_rows else []
        kept = [taped.entry(row.ctypes.data, taped.X | taped.HIDDEN) if i % 2 else 0 for i, row in enumerate(on)]
        call(
            w.element,
            call_blocks.BACKWARD_ROWS,
            BackwardRows(
                rows=rows,
                x=from_rows,
                y=to_dx,
                places=places,
                scalars=scalars.ctypes.data,
                weights=words,
                activation=w.code,
                hidden=hidden,
                ffn=ffn,
                scratch=arrays.space("scratch", backward.store_bytes(rows, hidden, ffn)),
                wire=0,
                kept=arrays.at("entries", np.array(kept, np.int64)) if taped_rows else 0,
            ),
            backward_entries,
        )
        results = [*dx, *store, scalars]
        for carry in (0, 1):
            made = w.gradients(arrays)
            scratch = arrays.space("scratch", backward.stored_bytes(hidden, ffn))
            backward.stored_gradients(rows, places, addresses(made), hidden, ffn, carry, scratch, backward.ALL, 0, 0)
            results += made
        return results

    return run


def of_blocks(w: Weights, rows: int) -> Callable[[Arrays], list[np.ndarray]]:
    """`expert_blocks` on float32 rows."""
    backward = module("rounded_backward" if w.element.name == "bfloat16" else "expert_backward", ISA)

    def run(arrays: Arrays) -> list[np.ndarray]:
        hidden, ffn = w.hidden, w.ffn
        from_x, _ = arrays.rows("x", drawn((rows, hidden)))
        from_dy, _ = arrays.rows("dy", drawn((rows, hidden), seed=1))
        to_dx, dx = arrays.empty_rows("dx", rows, hidden if w.element.name == "bfloat16" else padded(hidden))
        dw, made = arrays.empty("dw", (rows,)), w.gradients(arrays)
        backward.expert_blocks(
            ExpertBlocks(
                rows=rows,
                x=from_x,
                dy=from_dy,
                w=arrays.at("w", drawn((rows,), seed=2)),
                dx=to_dx,
                dw=dw.ctypes.data,
                weights=w.on(arrays),
                transposed=w.transposed(arrays),
                gradients=addresses(made),
                activation=w.code,
                hidden=hidden,
                ffn=ffn,
                carry=1,
                saved=arrays.space("saved", backward.saved_bytes(hidden, ffn, w.gated)),
                scratch=arrays.space("scratch", backward.blocks_bytes(hidden, ffn)),
            )
        )
        return [*dx, dw, *made]

    return run


def of_router_gradients(rows: int, hidden: int) -> Callable[[Arrays], list[np.ndarray]]:
    """The kernels of `token_backward`."""

    def run(arrays: Arrays) -> list[np.ndarray]:
        experts, k, wide = 19, 2, padded(19)
        from_x, _ = arrays.rows("x", drawn((rows, hidden)))
        ids = np.tile(np.array([3, experts - 1]), (rows, 1))
        logits = arrays.at("logits", drawn((rows, experts), seed=1))
        dw = arrays.at("dw", drawn((rows, k), seed=2))
        slopes = arrays.copy("slopes", np.zeros((rows, experts), np.float32))
        token_backward.logit_gradients(
            rows, logits, experts, arrays.at("ids", ids), dw, k, rule(Router()), True, 1.0, slopes.ctypes.data
        )
        from_slopes, _ = arrays.rows("slopes", slopes)
        transposed = arrays.at("router", FLOAT32.pack(drawn((hidden, experts), seed=3), True))
        to_dx, dx = arrays.empty_rows("dx", rows, padded(hidden))
        product = arrays.space("scratch", token_backward.product_bytes(experts))
        token_backward.product_rows(rows, from_slopes, experts, transposed, hidden, to_dx, product)
        out = arrays.copy("gradients", np.zeros((hidden, wide), np.float32))
        sums = arrays.copy("gradients of the bias", np.zeros(experts, np.float32))
        outer = arrays.space("scratch", token_backward.outer_sums_bytes(max(hidden, experts)))
        token_backward.add_outer_sums(
            rows, from_x, hidden, from_slopes, experts, out.ctypes.data, sums.ctypes.data, outer
        )
        dots = arrays.empty("dots", (rows,))
        token_backward.row_dots(rows, from_x, from_x, hidden, dots.ctypes.data)
        y, factors = arrays.empty("y", (1, hidden)), arrays.at("factors", drawn((1, rows), seed=4))
        token_backward.combine_rows(1, y.ctypes.data, y.strides[0], rows, factors, from_x, hidden)
        return [slopes, *dx, out, sums, dots, y]

    return run


def of_optimizer(rows: int, n: int) -> Callable[[Arrays], list[np.ndarray]]:
    """The kernels of `optimizer`."""

    def run(arrays: Arrays) -> list[np.ndarray]:
        g, pitch = arrays.at("g", drawn((rows * padded(n),))[: (rows - 1) * padded(n) + n]), 4 * padded(n)
        w, m, v = (arrays.copy(name, abs(drawn((rows, n), seed=i))) for i, name in enumerate("wmv"))
        at_w, at_m, at_v = (array.ctypes.data for array in (w, m, v))
        adam = arrays.at("scales", abs(drawn((optimizer.ADAM,))))
        optimizer.adam_rows(rows, n, at_w, g, pitch, at_m, at_v, adam)
        optimizer.momentum_rows(rows, n, at_w, g, pitch, at_m, arrays.at("scales", drawn((optimizer.MOMENTUM,))))
        return [w, m, v, np.array(optimizer.square_sum(rows, n, at_w, 4 * n))]

    return run


def backwards() -> Iterator[Case]:
    for name in ("float32", "bfloat16"):
        element = cpu_elements.ELEMENTS[name]
        for rows, hidden, ffn in (*SHAPES, (9, 515, 600)):  # the last shape's gradients are stored past the caches
            for gated in (True, False):
                w = Weights(element, hidden, ffn, gated, gated)
                said = f"{name}: {rows} rows of {hidden}/{ffn}{', gated, biases' * gated} backwards"
                yield f"{said}: store", of_store(w, rows, False)
                yield f"{said}: store and tape", of_store(w, rows, True)
                yield f"{said}: blocks", of_blocks(w, rows)
    for rows, hidden in ((1, 1), (5, 33), (9, 600)):
        yield f"router: {rows} rows of {hidden} backwards", of_router_gradients(rows, hidden)
        yield f"optimizer: {rows} rows of {hidden}", of_optimizer(rows, hidden)

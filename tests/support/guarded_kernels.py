"""Every CPU kernel on `guarded.Arrays`, in a process of its own: `python guarded_kernels.py PART`.

Results must have the bits that arrays with much memory beside them give. What an array holds is what the docstrings of
the kernels say: biases and outputs of float32 have whole vectors, those of other types whole panels of 32 columns;
scratch and places in a store start on a cache line. PART: a format of packed weights, "plain" or "backward".
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
from guarded import SIDES, Arrays
from packed_codes import PAIRS, named, random_codes

from aristos import Router
from aristos.engine.column_runs import COLUMNS
from aristos.kernels.api import entries_of
from aristos.kernels.by_isa import module
from aristos.kernels.common import activations
from aristos.kernels.common.scores import rule
from aristos.kernels.cpu import backward_entries, call_blocks, expert, optimizer, token_backward, tokens
from aristos.kernels.cpu import elements as cpu_elements
from aristos.kernels.cpu.kernel_call import KernelCall
from aristos.kernels.cpu.panels import padded
from aristos.kernels.cpu.target import ISA
from aristos.primitives import taped
from aristos.primitives.arithmetic import (
    BackwardRows,
    CombineToken,
    DownColumns,
    ExpertBlocks,
    ExpertRows,
    ExpertWeights,
    Product,
    RouteBlock,
    TurnedWeights,
    UpColumns,
    WeighShared,
)
from aristos.primitives.buffers import LINE
from aristos.weight_types import PACKED_ROWS

ElementType = cpu_elements.ElementType
Case = tuple[str, Callable[[Arrays], list[np.ndarray]]]
SHAPES = [(1, 1, 1), (3, 33, 5), (5, 100, 530), (13, 1030, 40)]  # rows, hidden, ffn
FLOAT32 = cpu_elements.ELEMENTS["float32"]
NAMES = ExpertWeights._fields


def drawn(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


@cache
def _kernel(element: ElementType, kernel: int, entries: Any) -> KernelCall:
    return KernelCall(entries, element, kernel)


def call(element: ElementType, kernel: int, record: tuple, entries: Any = None) -> int:
    return _kernel(element, kernel, entries or entries_of(element))(record)


def width(element: ElementType, columns: int) -> int:
    """Elements of a row of outputs: 32 columns are written at once, but for float32 by panels of 32 columns."""
    exact = element.name == "float32" and element != FLOAT32
    return columns if exact else element.padded(columns)


class Weights:
    """An expert's packed arrays, and those of the backward call."""

    def __init__(self, element: ElementType, hidden: int, ffn: int, gated: bool, bias: bool) -> None:
        self.element, self.hidden, self.ffn, self.gated = element, hidden, ffn, gated
        self.code = activations.word("silu")
        rng = np.random.default_rng(hidden + ffn)
        self.plain: dict[str, Any] = {}
        for name, shape in (("up", (hidden, ffn)), ("gate", (hidden, ffn)), ("down", (ffn, hidden))):
            if gated or name != "gate":
                if element.format:
                    self.plain[name] = random_codes(rng, element.weight, *shape)
                else:
                    self.plain[name] = rng.standard_normal(shape, np.float32) / np.float32(shape[0] ** 0.5)
                if bias:
                    self.plain[f"{name}_bias"] = rng.standard_normal(shape[1], np.float32)
        pack, pack_bias = element.pack, element.pack_bias
        self.packed = {n: pack_bias(a) if "bias" in n else pack(a) for n, a in self.plain.items()}

    def on(self, arrays: Arrays) -> ExpertWeights:
        return ExpertWeights(*(arrays.at(n, self.packed[n]) if n in self.packed else 0 for n in NAMES))

    def turned(self, arrays: Arrays) -> TurnedWeights:
        every = (self.element.pack(self.plain[n], True) if n in self.plain else None for n in TurnedWeights._fields)
        return TurnedWeights(*(0 if a is None else arrays.at("turned weights", a) for a in every))

    def gradients(self, arrays: Arrays) -> list[np.ndarray]:
        """Arrays for gradients in the order of ExpertWeights, size 0 for absent ones; zeros."""
        made = []
        for name in NAMES:
            shape = np.shape(self.plain.get(name, ()))
            if name not in self.plain:
                made.append(np.empty(0, np.float32))
                continue
            rows = (*shape[:-1], padded(shape[-1])) if len(shape) == 2 else shape
            made.append(arrays.copy(f"gradients of {name}", np.zeros(rows, np.float32)))
        return made


def addresses(made: list[np.ndarray]) -> tuple[int, ...]:
    return tuple(array.ctypes.data if array.size else 0 for array in made)


# ---- forward


def of_rows(w: Weights, rows: int, keep: bool) -> Callable[[Arrays], list[np.ndarray]]:
    """`expert_rows`. keep: every second row's products with up and gate are kept."""

    def run(arrays: Arrays) -> list[np.ndarray]:
        element, hidden, ffn = w.element, w.hidden, w.ffn
        from_x, _ = arrays.rows("x", drawn((rows, hidden), element.row.array))
        to_y, y = arrays.empty_rows("y", rows, width(element, hidden), element.row.array)
        nbytes, _ = entries_of(element).run_bytes(element.code, rows, 0, hidden, ffn, w.gated)
        kept: list[np.ndarray] = []
        if keep:
            _, kept = arrays.empty_rows("kept", rows, expert.hidden_bytes(ffn, w.gated), np.uint8)
        entries = [taped.entry(row.ctypes.data, taped.HIDDEN * (i % 2)) for i, row in enumerate(kept)]
        call(element, call_blocks.EXPERT_ROWS, ExpertRows(
            rows=rows, x=from_x, y=to_y, weights=w.on(arrays), activation=w.code, hidden=hidden, ffn=ffn,
            scratch=arrays.space("scratch", nbytes), wire=0,
            kept=arrays.at("entries", np.array(entries, np.int64)) if keep else 0,
        ))  # fmt: skip
        return [*y, *kept]

    return run


def of_columns(w: Weights, rows: int) -> Callable[[Arrays], list[np.ndarray]]:
    """`up_columns` and `down_columns`, share after share."""

    def run(arrays: Arrays) -> list[np.ndarray]:
        element, hidden, ffn, weights = w.element, w.hidden, w.ffn, w.on(arrays)
        from_x, _ = arrays.rows("x", drawn((rows, hidden), element.row.array))
        to_y, y = arrays.empty_rows("y", rows, width(element, hidden), element.row.array)
        nbytes, kept = entries_of(element).run_bytes(element.code, rows, rows, hidden, ffn, w.gated)
        h, scratch = arrays.space("activations", kept), arrays.space("scratch", nbytes)
        for first in range(0, ffn, COLUMNS):
            call(element, call_blocks.UP_COLUMNS, UpColumns(
                rows=rows, x=from_x, activations=h, weights=weights, activation=w.code, hidden=hidden, ffn=ffn,
                first=first, columns=min(COLUMNS, ffn - first), scratch=scratch, wire=0, kept=0,
            ))  # fmt: skip
        for first in range(0, hidden, COLUMNS):
            call(element, call_blocks.DOWN_COLUMNS, DownColumns(
                rows=rows, activations=h, y=to_y, weights=weights, ffn=ffn, first=first,
                last=min(hidden, first + COLUMNS), scratch=scratch,
            ))  # fmt: skip
        return y

    return run


def of_product(w: Weights, rows: int) -> Callable[[Arrays], list[np.ndarray]]:
    """`product` with the up projection."""

    def run(arrays: Arrays) -> list[np.ndarray]:
        element = w.element
        from_x, _ = arrays.rows("x", drawn((rows, w.hidden), element.row.array))
        to_y, y = arrays.empty_rows("y", rows, width(element, w.ffn), element.row.array)
        nbytes = entries_of(element).product_bytes(element.code, rows, w.hidden)
        call(element, call_blocks.PRODUCT, Product(
            rows=rows, x=from_x, depth=w.hidden, panels=arrays.at("panels", w.packed["up"]), columns=w.ffn, y=to_y,
            scratch=arrays.space("scratch", nbytes),
        ))  # fmt: skip
        return y

    return run


def of_sums(w: Weights, rows: int) -> Callable[[Arrays], list[np.ndarray]]:
    """Products of an operand, alone in memory, with the last panel of the up projection."""

    def run(arrays: Arrays) -> list[np.ndarray]:
        element, code, depth = w.element, w.element.code, w.hidden
        operands = module("operands", ISA, element.format)
        from_x, _ = arrays.rows("x", drawn((rows, depth), element.row.array))
        a = arrays.space("operand", operands.operand_bytes(code, rows, depth))
        spare = arrays.space("spare", int(operands.spare_bytes(rows, depth)))
        sums = arrays.copy("sums", drawn((rows, 32), seed=1))
        panels = w.packed["up"].reshape(-(-w.ffn // 32), -1)
        panel = arrays.at("panel", panels[-1])
        operands.begin(spare)
        operands.pack_operand(code, rows, from_x, depth, a)
        operands.panel_sums(code, rows, a, depth, panel, sums.ctypes.data, 1, panel, spare)
        operands.end()
        return [sums]

    return run


def experts(elements: list[ElementType]) -> Iterator[Case]:
    for element in elements:
        for rows, hidden, ffn in shapes_of(element):
            for gated in (True, False):
                w = Weights(element, hidden, ffn, gated, gated)
                name = f"{said(element)}: {rows} rows of {hidden}/{ffn}{', gated, biases' * gated}"
                yield f"{name}: expert", of_rows(w, rows, gated and not element.format)
                yield f"{name}: columns", of_columns(w, rows)
            yield f"{name}: product", of_product(w, rows)
            if element != FLOAT32:
                yield f"{name}: sums", of_sums(w, rows)


def said(element: ElementType) -> str:
    return f"{element.name}, {named(element.weight)}" if element.format else str(element.weight)


def shapes_of(element: ElementType) -> list[tuple[int, int, int]]:
    """Those whose k the groups of packed weights divide."""
    kind = element.weight
    if not element.format:
        return SHAPES
    if kind.columns == 1 and kind.group:
        return [(1, 2 * kind.group, kind.group), (14, kind.group, 5 * kind.group)]
    return [(1, 1, 1), (3, 33, 5), (14, 130, 515)]


def of_token(element: ElementType, hidden: int) -> Callable[[Arrays], list[np.ndarray]]:
    """`combine_token`."""

    def run(arrays: Arrays) -> list[np.ndarray]:
        k = 3
        rows, _ = arrays.rows("rows", drawn((k, hidden), element.row.array))
        y = arrays.empty("y", (hidden,), element.row.array)
        call(element, call_blocks.COMBINE_TOKEN, CombineToken(
            y=y.ctypes.data, k=k, weights=arrays.at("weights", drawn((k,), seed=1)), rows=rows, hidden=hidden,
            scratch=arrays.space("scratch", tokens.combine_bytes(k)),
        ))  # fmt: skip
        return [y]

    return run


def of_router(element: ElementType, count: int, hidden: int, router: Router) -> Callable[[Arrays], list[np.ndarray]]:
    """`route_block` and `weigh_shared`."""

    def run(arrays: Arrays) -> list[np.ndarray]:
        experts, k = 20, 3
        x = arrays.copy("x", drawn((count, hidden), element.row.array))
        panels = FLOAT32.pack(drawn((hidden, experts), seed=1))
        ids = arrays.empty("ids", (count, k), np.int64)
        weights, logits = arrays.empty("weights", (count, k)), arrays.empty("logits", (count, experts))
        scratch = arrays.space("scratch", tokens.route_bytes(count, hidden, experts))
        assert call(element, call_blocks.ROUTE_BLOCK, RouteBlock(
            tokens=count, x=x.ctypes.data, x_stride=x.strides[0], hidden=hidden, router=arrays.at("router", panels),
            experts=experts, k=k, score=rule(router), renormalize=int(router.renormalize),
            scale=int(np.float32(router.scale).view(np.int32)), router_bias=arrays.at("bias", drawn((experts,))),
            select_bias=0 if router.score == "softmax" else arrays.at("select bias", drawn((experts,))),
            ids=ids.ctypes.data, weights=weights.ctypes.data, pitch=k, logits=logits.ctypes.data, scratch=scratch,
        ))  # fmt: skip
        shared = arrays.empty("shared", (count,))
        column = arrays.at("column", FLOAT32.pack(drawn((hidden, 1), seed=2)))
        assert call(element, call_blocks.WEIGH_SHARED, WeighShared(
            tokens=count, x=x.ctypes.data, x_stride=x.strides[0], hidden=hidden, column=column,
            weights=shared.ctypes.data, pitch=1,
            scratch=arrays.space("scratch", tokens.route_bytes(count, hidden, 1)),
        ))  # fmt: skip
        return [ids, weights, logits, shared]

    return run


def whole_tokens(elements: list[ElementType]) -> Iterator[Case]:
    groups = Router("sigmoid", groups=4, topk_groups=2, group_score="sum_top2", scale=2.5)
    for element in elements:
        for hidden in (1, 32, 70, 1030):
            yield f"{said(element)}: a token of {hidden}", of_token(element, hidden)
            for router in (Router(), groups):
                yield f"{said(element)}: router of {hidden}, {router.score}", of_router(element, 5, hidden, router)


# ---- backward


def of_store(w: Weights, rows: int, taped_rows: bool) -> Callable[[Arrays], list[np.ndarray]]:
    """`store_rows`, then `stored_gradients`, written and added. taped_rows: the tape has what each second row needs."""
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
        words = arrays.at("weights", np.array([*w.on(arrays), *w.turned(arrays)], np.int64))
        before = expert.hidden_bytes(ffn, w.gated)
        tape = drawn((rows, before // 4), seed=4).view(np.uint8)
        x = drawn((rows, hidden), array, seed=5).view(np.uint8)
        on = arrays.rows("tape", np.concatenate([tape, x], axis=1), LINE)[1] if taped_rows else []
        kept = [taped.entry(row.ctypes.data, taped.X | taped.HIDDEN) if i % 2 else 0 for i, row in enumerate(on)]
        call(w.element, call_blocks.BACKWARD_ROWS, BackwardRows(
            rows=rows, x=from_rows, y=to_dx, places=places, scalars=scalars.ctypes.data, weights=words,
            activation=w.code, hidden=hidden, ffn=ffn,
            scratch=arrays.space("scratch", backward.store_bytes(rows, hidden, ffn)), wire=0,
            kept=arrays.at("entries", np.array(kept, np.int64)) if taped_rows else 0,
        ), backward_entries)  # fmt: skip
        results = [*dx, *store, scalars]
        for carry in (0, 1):
            made = w.gradients(arrays)
            scratch = arrays.space("scratch", backward.stored_bytes(hidden, ffn))
            backward.stored_gradients(rows, places, addresses(made), hidden, ffn, carry, scratch, backward.ALL, 0, 0)
            results += made
        return results

    return run


def of_blocks(w: Weights, rows: int) -> Callable[[Arrays], list[np.ndarray]]:
    """`expert_blocks`, whose rows are float32."""
    backward = module("rounded_backward" if w.element.name == "bfloat16" else "expert_backward", ISA)

    def run(arrays: Arrays) -> list[np.ndarray]:
        hidden, ffn = w.hidden, w.ffn
        from_x, _ = arrays.rows("x", drawn((rows, hidden)))
        from_dy, _ = arrays.rows("dy", drawn((rows, hidden), seed=1))
        to_dx, dx = arrays.empty_rows("dx", rows, hidden if w.element.name == "bfloat16" else padded(hidden))
        dw, made = arrays.empty("dw", (rows,)), w.gradients(arrays)
        backward.expert_blocks(ExpertBlocks(
            rows=rows, x=from_x, dy=from_dy, w=arrays.at("w", drawn((rows,), seed=2)), dx=to_dx, dw=dw.ctypes.data,
            weights=w.on(arrays), turned=w.turned(arrays), gradients=addresses(made), activation=w.code, hidden=hidden,
            ffn=ffn, carry=1, saved=arrays.space("saved", backward.saved_bytes(hidden, ffn, w.gated)),
            scratch=arrays.space("scratch", backward.blocks_bytes(hidden, ffn)),
        ))  # fmt: skip
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
        turned = arrays.at("router", FLOAT32.pack(drawn((hidden, experts), seed=3), True))
        to_dx, dx = arrays.empty_rows("dx", rows, padded(hidden))
        product = arrays.space("scratch", token_backward.product_bytes(experts))
        token_backward.product_rows(rows, from_slopes, experts, turned, hidden, to_dx, product)
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
        for rows, hidden, ffn in (*SHAPES, (9, 515, 600)):  # the last one's gradients go past the caches
            for gated in (True, False):
                w = Weights(element, hidden, ffn, gated, gated)
                said = f"{name}: {rows} rows of {hidden}/{ffn}{', gated, biases' * gated} backwards"
                yield f"{said}: store", of_store(w, rows, False)
                yield f"{said}: store and tape", of_store(w, rows, True)
                yield f"{said}: blocks", of_blocks(w, rows)
    for rows, hidden in ((1, 1), (5, 33), (9, 600)):
        yield f"router: {rows} rows of {hidden} backwards", of_router_gradients(rows, hidden)
        yield f"optimizer: {rows} rows of {hidden}", of_optimizer(rows, hidden)


def cases(part: str) -> Iterator[Case]:
    if part == "backward":
        yield from backwards()
    elif part == "plain":
        plain = [*cpu_elements.ELEMENTS.values()]
        split = cpu_elements.element_type("float32", "high")
        yield from experts(plain + [split] * (split not in plain))
        yield from whole_tokens(plain)
    else:
        kinds = [kind for kind in PAIRS if kind.name == part]
        yield from experts([cpu_elements.element_type(dtype, weight=kind) for dtype in PACKED_ROWS for kind in kinds])


def main(part: str) -> None:
    for name, run in cases(part):
        wanted: list[bytes] = []
        for side in SIDES:
            print(f"{name}, {side}", flush=True)
            arrays = Arrays(side)
            found = [np.ascontiguousarray(array).tobytes() for array in run(arrays)]
            arrays.check()
            assert found == (wanted := wanted or found), f"{name}: other bits, {side}"


if __name__ == "__main__":
    main(sys.argv[1])

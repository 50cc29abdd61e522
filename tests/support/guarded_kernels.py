"""Runs every CPU kernel on `guarded.Arrays`, in a process of its own: `python guarded_kernels.py PART`.

Results must have the same bits as with arrays beside which memory is free. Array sizes follow the docstrings of
the kernels: biases and outputs of float32 have whole vectors, those of other types whole panels of 32 columns. Scratch
and places in a store start on a cache line. PART: a format of packed weights, "plain", "16-bit" (which leaves float32
out) or "backward".
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import numpy as np
from guarded import SIDES, Arrays
from guarded_backward import backwards
from guarded_calls import FLOAT32, SHAPES, Case, ElementType, Weights, call, drawn, width
from packed_codes import PAIRS, named

from aristos import Router
from aristos.engine.column_runs import COLUMNS
from aristos.kernels.api import entries_of
from aristos.kernels.by_isa import module
from aristos.kernels.common.scores import rule
from aristos.kernels.cpu import call_blocks, expert, tokens
from aristos.kernels.cpu import elements as cpu_elements
from aristos.kernels.cpu.target import ISA
from aristos.primitives import taped
from aristos.primitives.arithmetic import (
    CombineToken,
    DownColumns,
    ExpertRows,
    Product,
    RouteBlock,
    UpColumns,
    WeighShared,
)
from aristos.weight_types import PACKED_ROWS


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
        call(
            element,
            call_blocks.EXPERT_ROWS,
            ExpertRows(
                rows=rows,
                x=from_x,
                y=to_y,
                weights=w.on(arrays),
                activation=w.code,
                hidden=hidden,
                ffn=ffn,
                scratch=arrays.space("scratch", nbytes),
                wire=0,
                kept=arrays.at("entries", np.array(entries, np.int64)) if keep else 0,
            ),
        )
        return [*y, *kept]

    return run


def of_columns(w: Weights, rows: int) -> Callable[[Arrays], list[np.ndarray]]:
    """The calls of `up_columns` and `down_columns`, one share after another."""

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
            call(
                element,
                call_blocks.DOWN_COLUMNS,
                DownColumns(
                    rows=rows,
                    activations=h,
                    y=to_y,
                    weights=weights,
                    ffn=ffn,
                    first=first,
                    last=min(hidden, first + COLUMNS),
                    scratch=scratch,
                ),
            )
        return y

    return run


def of_product(w: Weights, rows: int) -> Callable[[Arrays], list[np.ndarray]]:
    """The call of `product` with the up projection."""

    def run(arrays: Arrays) -> list[np.ndarray]:
        element = w.element
        from_x, _ = arrays.rows("x", drawn((rows, w.hidden), element.row.array))
        to_y, y = arrays.empty_rows("y", rows, width(element, w.ffn), element.row.array)
        nbytes = entries_of(element).product_bytes(element.code, rows, w.hidden)
        call(
            element,
            call_blocks.PRODUCT,
            Product(
                rows=rows,
                x=from_x,
                depth=w.hidden,
                panels=arrays.at("panels", w.packed["up"]),
                columns=w.ffn,
                y=to_y,
                scratch=arrays.space("scratch", nbytes),
            ),
        )
        return y

    return run


def of_sums(w: Weights, rows: int) -> Callable[[Arrays], list[np.ndarray]]:
    """Products of an operand with the last panel of the up projection. The operand lies alone in memory."""

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
    """Shapes that fit an element type: the group of packed weights divides every k."""
    kind = element.weight
    if not element.format:
        return SHAPES
    if kind.columns == 1 and kind.group:
        return [(1, 2 * kind.group, kind.group), (14, kind.group, 5 * kind.group)]
    return [(1, 1, 1), (3, 33, 5), (14, 130, 515)]


def of_token(element: ElementType, hidden: int) -> Callable[[Arrays], list[np.ndarray]]:
    """The call of `combine_token`."""

    def run(arrays: Arrays) -> list[np.ndarray]:
        k = 3
        rows, _ = arrays.rows("rows", drawn((k, hidden), element.row.array))
        y = arrays.empty("y", (hidden,), element.row.array)
        call(
            element,
            call_blocks.COMBINE_TOKEN,
            CombineToken(
                y=y.ctypes.data,
                k=k,
                weights=arrays.at("weights", drawn((k,), seed=1)),
                rows=rows,
                hidden=hidden,
                scratch=arrays.space("scratch", tokens.combine_bytes(k)),
            ),
        )
        return [y]

    return run


def of_router(element: ElementType, count: int, hidden: int, router: Router) -> Callable[[Arrays], list[np.ndarray]]:
    """The calls of `route_block` and `weigh_shared`."""

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
        assert call(
            element,
            call_blocks.WEIGH_SHARED,
            WeighShared(
                tokens=count,
                x=x.ctypes.data,
                x_stride=x.strides[0],
                hidden=hidden,
                column=column,
                weights=shared.ctypes.data,
                pitch=1,
                scratch=arrays.space("scratch", tokens.route_bytes(count, hidden, 1)),
            ),
        )
        return [ids, weights, logits, shared]

    return run


def whole_tokens(elements: list[ElementType]) -> Iterator[Case]:
    groups = Router("sigmoid", groups=4, topk_groups=2, group_score="sum_top2", scale=2.5)
    for element in elements:
        for hidden in (1, 32, 70, 1030):
            yield f"{said(element)}: a token of {hidden}", of_token(element, hidden)
            for router in (Router(), groups):
                yield f"{said(element)}: router of {hidden}, {router.score}", of_router(element, 5, hidden, router)


def cases(part: str) -> Iterator[Case]:
    if part == "backward":
        yield from backwards()
    elif part in ("plain", "16-bit"):
        plain = [each for each in cpu_elements.ELEMENTS.values() if part == "plain" or each != FLOAT32]
        split = cpu_elements.element_type("float32", "high")
        yield from experts(plain + [split] * (part == "plain" and split not in plain))
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

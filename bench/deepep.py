"""Runs the dispatch and combine kernels of DeepEP, version 1, between GPUs of one node, on simulated GPUs.

    python bench/deepep.py FOLDER [--ranks 4] [--tokens 128] [--hidden 1024] [--seed 0] [--no-stale] [-D NAME]

FOLDER is DeepEP's csrc/kernels, from a copy that the reader has. Each simulated GPU is a rank. Four kernels run there,
as in DeepEP's own program: notify_dispatch, dispatch, cached_notify_combine, combine. Between dispatch and combine the
experts leave the tokens as they are. NumPy checks what arrived. Reports are printed. The exit code is 1 if a result is
wrong.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import ptxsim
from ptxsim.findings import lines
from ptxsim.nvrtc import compiled_kernels

TOPK, PER_RANK, SEND, RECEIVE, COMBINE_THREADS = 4, 4, 8, 16, 768
FIFO = 32768  # slots of the barriers between ranks


def rounded(values: np.ndarray) -> np.ndarray:
    """The bits of whole numbers as bfloat16."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def widened(bits: np.ndarray) -> np.ndarray:
    """bfloat16 as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


class Rank:
    """The tokens of one rank and its arrays. routes: [tokens, TOPK], the experts of each token."""

    def __init__(self, gpu: ptxsim.SimulatedGpu, number: int, options: Any):
        rng = np.random.default_rng(number)
        ranks, tokens = options.ranks, options.tokens
        self.gpu, self.number = gpu, number
        self.x = rounded(rng.integers(-8, 8, (tokens, options.hidden)))
        self.routes = np.stack([rng.choice(ranks * PER_RANK, TOPK, False) for _ in range(tokens)]).astype(np.int64)
        self.weights = rng.random((tokens, TOPK)).astype(np.float32)
        self.goes = np.stack([(self.routes // PER_RANK == to).any(1) for to in range(ranks)], 1)
        words = ranks * ranks * 4 + options.channels * ranks * (16 + RECEIVE * (options.hidden * 2 + 4 + TOPK * 12))
        self.buffer = gpu.array(np.zeros(words // 4 + 64, np.int32), f"buffer of rank {number}")
        self.fifo = gpu.array(np.zeros(FIFO, np.int32), f"barriers of rank {number}")

    def launch(self, ptx: str, names: dict[str, str], all_ranks: list[Rank], options: Any) -> None:
        """Queue the four kernels in the stream of this rank's GPU."""
        gpu, me, ranks, tokens, channels = self.gpu, self.number, options.ranks, options.tokens, options.channels
        hidden, experts = options.hidden, options.ranks * PER_RANK
        buffers = gpu.array(np.array([rank.buffer.ptr for rank in all_ranks], np.uint64), "buffers")
        fifos = gpu.array(np.array([rank.fifo.ptr for rank in all_ranks], np.uint64), "barriers")
        count = sum(int(rank.goes[:, me].sum()) for rank in all_ranks)
        x, routes, weights = gpu.array(self.x, "x"), gpu.array(self.routes), gpu.array(self.weights)
        goes, to_rank = gpu.array(self.goes.astype(np.uint8)), gpu.array(self.goes.sum(0).astype(np.int32))
        to_expert = gpu.array(np.bincount(self.routes.ravel(), minlength=experts).astype(np.int32))
        self.counted = gpu.machine.host_array(np.full(1, -1, np.int32), "moe_recv_counter")
        per_expert = gpu.machine.host_array(np.full(PER_RANK, -1, np.int32), "moe_recv_expert_counter")
        sent, starts = gpu.empty((ranks, channels), np.int32), gpu.empty((ranks, ranks), np.int32)
        gpu.launch(ptx, 1 + ranks, 128, to_rank, self.counted, to_expert, per_expert, experts, tokens, channels, goes,
                   sent, starts, channels * ranks * 4, 1, buffers, fifos, 0, me, entry=names["notify"])  # fmt: skip
        self.got = gpu.empty((count, hidden), np.uint16, "recv_x")
        sources, heads = gpu.empty(count, np.int32), gpu.empty((tokens, ranks), np.int32, "send_head")
        got_routes, got_weights = gpu.empty((count, TOPK), np.int64), gpu.empty((count, TOPK), np.float32)
        received = gpu.empty((ranks, channels), np.int32)
        gpu.launch(ptx, 2 * channels, 32 * ranks, self.got, 0, sources, got_routes, got_weights, received, heads, x, 0,
                   routes, weights, goes, sent, tokens, hidden // 8, TOPK, experts, 0, buffers, me, SEND, RECEIVE,
                   entry=names["dispatch"])  # fmt: skip
        gpu.launch(
            ptx,
            1 + channels,
            max(128, 32 * ranks),
            buffers,
            heads,
            channels,
            tokens,
            channels * ranks * 2,
            fifos,
            3 * ranks,
            me,
            entry=names["notify_combine"],
        )
        self.back = gpu.empty((tokens, hidden), np.uint16, "combined_x")
        self.back_weights = gpu.empty((tokens, TOPK), np.float32, "combined_topk_weights")
        gpu.launch(ptx, 2 * channels, COMBINE_THREADS, self.back, self.back_weights, self.got, got_weights, sources,
                   starts, received, heads, count, tokens, hidden, TOPK, buffers, me, SEND, RECEIVE,
                   entry=names["combine"])  # fmt: skip

    def wrong(self, all_ranks: list[Rank]) -> list[str]:
        """The names of the results that NumPy does not confirm."""
        sent_here = np.concatenate([rank.x[rank.goes[:, self.number]] for rank in all_ranks])
        times = self.goes.sum(1, keepdims=True)
        right = {
            "number of tokens": self.counted.copy_to_host()[0] == len(sent_here),
            "dispatched tokens": np.array_equal(self.got.copy_to_host(), sent_here),
            "combined tokens": np.array_equal(widened(self.back.copy_to_host()), widened(self.x) * times),
            "combined weights": np.allclose(self.back_weights.copy_to_host(), self.weights),
        }
        return [name for name, fits in right.items() if not fits]


def main() -> int:
    """Compile, run, check and print."""
    parser = argparse.ArgumentParser(description="DeepEP's kernels between GPUs of a node, on simulated GPUs")
    parser.add_argument("folder", type=Path, help="DeepEP's csrc/kernels")
    parser.add_argument("--ranks", type=int, default=4, choices=(2, 4, 8))
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=1024, help="a multiple of 8")
    parser.add_argument("--channels", type=int, default=4, help="half of the blocks of a kernel")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-stale", action="store_true", help="memory is sequentially consistent")
    parser.add_argument("--no-check", action="store_true", help="report no races")
    parser.add_argument("-D", dest="macros", action="append", default=[], metavar="NAME[=VALUE]")
    options = parser.parse_args()
    file = options.folder / "intranode.cu"
    place, n = "deep_ep::intranode::", options.ranks
    kernels = {
        "notify": f"{place}notify_dispatch<{n}>",
        "dispatch": f"{place}dispatch<{n}>",
        "notify_combine": f"{place}cached_notify_combine<{n}>",
        "combine": f"{place}combine<nv_bfloat16, {n}, {COMBINE_THREADS}>",
    }
    begun = time.perf_counter()
    flags = tuple(f"-D{macro}" for macro in options.macros)
    ptx, mangled = compiled_kernels(file.read_text(), str(file), (9, 0), tuple(kernels.values()), flags)
    print(f"compiled in {time.perf_counter() - begun:.1f} s")
    machine = ptxsim.Machine(
        devices=n,
        sm_count=2 * options.channels,
        seed=options.seed,
        check=not options.no_check,
        stale=not options.no_stale,
    )
    ranks = [Rank(machine.device(number), number, options) for number in range(n)]
    for rank in ranks:
        rank.launch(ptx, {short: mangled[name] for short, name in kernels.items()}, ranks, options)
    begun = time.process_time()
    shown = {entry: name for name, entry in mangled.items()}
    reports = [replace(report, kernel=shown[report.kernel]) for report in machine.run()]
    print(*lines(reports), sep="\n")
    print(f"run in {time.process_time() - begun:.1f} s of processor time, {len(reports)} reports")
    wrong = [f"rank {rank.number}: {', '.join(names)}" for rank in ranks if (names := rank.wrong(ranks))]
    print(*(wrong or ["all results are right"]), sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())

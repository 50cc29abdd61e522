"""The usual exchange in PyTorch: all_to_all_single over gloo, and `mm` per expert, or one `grouped_mm` for all.

Both variants sort, exchange and combine (index_add_) alike; only their experts differ. CPU and float32 only: bf16 is
faster on CPUs that have it, but misses the error bound of the comparison.
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from typing import Any

from jobs import Floats, Ints, Job

from peers import Absent

_group_users = 0  # peers of this process that share the gloo group


def _torch(comm: Any) -> Any:
    """torch on one thread, with a gloo group of the same ranks. Raises Absent on every rank if one rank lacks it."""
    try:
        torch: Any = importlib.import_module("torch")
        dist: Any = importlib.import_module("torch.distributed")
        why = "" if dist.is_available() and dist.is_gloo_available() else "this torch has no gloo"
    except ImportError as error:
        why = f"torch is not installed ({error})"
    whys = [w for w in comm.allgather(why) if w]
    if whys:
        raise Absent(whys[0])
    torch.set_num_threads(1)
    if not dist.is_initialized():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks share this machine
        folder = comm.bcast(tempfile.mkdtemp(prefix="compare-gloo-") if comm.rank == 0 else None)
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=comm.rank, world_size=comm.size)
        comm.Barrier()
        if comm.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
    return torch


class TorchLoop:
    """Experts one after another, two `mm` each."""

    def __init__(self, comm: Any, job: Job) -> None:
        global _group_users
        self.torch = torch = _torch(comm)
        self._check()
        _group_users += 1
        self.comm, self.world = comm, comm.size
        self.E, self.k, self.H = job.shape.experts, job.shape.top_k, job.shape.hidden
        self.up, self.down = torch.from_numpy(job.up[job.local]), torch.from_numpy(job.down[job.local])
        self.y = torch.empty(job.shape.tokens, self.H)

    def _check(self) -> None:
        """Raise Absent if this torch lacks a needed function."""

    def __call__(self, x: Floats, ids: Ints, weights: Floats) -> Floats:
        torch = self.torch
        with torch.inference_mode():
            tokens, w = torch.from_numpy(x), torch.from_numpy(weights).reshape(-1)
            flat = torch.from_numpy(ids).reshape(-1)
            order = torch.argsort(flat, stable=True)
            token = order // self.k
            counts = torch.bincount(flat, minlength=self.E)
            landed_counts = torch.empty_like(counts)
            torch.distributed.all_to_all_single(landed_counts, counts)
            per_source = landed_counts.reshape(self.world, -1)
            sent = counts.reshape(self.world, -1).sum(1).tolist()
            landed = per_source.sum(1).tolist()
            rows = self._exchange(tokens.index_select(0, token), landed, sent)
            outputs = self._regrouped(rows, per_source)
            back = self._exchange(outputs, sent, landed)
            back.mul_(w.index_select(0, order).unsqueeze(1))
            self.y.zero_().index_add_(0, token, back)
        y: Floats = self.y.numpy()
        return y

    def close(self) -> None:
        """Leave the gloo group; the last peer destroys it."""
        global _group_users
        _group_users -= 1
        if _group_users == 0:
            self.torch.distributed.destroy_process_group()

    def _exchange(self, rows: Any, into: list[int], out: list[int]) -> Any:
        landed = rows.new_empty(sum(into), self.H)
        self.torch.distributed.all_to_all_single(landed, rows, into, out)
        return landed

    def _regrouped(self, rows: Any, per_source: Any) -> Any:
        """Outputs of rows ordered by (source, expert), in that order; experts see them ordered by (expert, source)."""
        torch = self.torch
        runs = torch.split(rows, per_source.reshape(-1).tolist())
        each = per_source.shape[1]
        merged = torch.cat([runs[s * each + e] for e in range(each) for s in range(self.world)])
        results = self._experts(merged, per_source.sum(0))
        parts = torch.split(results, per_source.t().reshape(-1).tolist())
        return torch.cat([parts[e * self.world + s] for s in range(self.world) for e in range(each)])

    def _experts(self, rows: Any, counts: Any) -> Any:
        torch = self.torch
        results, at = torch.empty_like(rows), 0
        for e, n in enumerate(counts.tolist()):
            if n:
                h = torch.mm(rows[at : at + n], self.up[e]).relu_()
                torch.mm(h, self.down[e], out=results[at : at + n])
                at += n
        return results


class TorchGrouped(TorchLoop):
    """All experts in two calls of `torch.nn.functional.grouped_mm`, one per GEMM."""

    def _check(self) -> None:
        if not hasattr(self.torch.nn.functional, "grouped_mm"):
            raise Absent(f"torch {self.torch.__version__} has no torch.nn.functional.grouped_mm")

    def _experts(self, rows: Any, counts: Any) -> Any:
        torch = self.torch
        grouped_mm = torch.nn.functional.grouped_mm
        ends = counts.cumsum(0).to(torch.int32)
        return grouped_mm(grouped_mm(rows, self.up, offs=ends).relu_(), self.down, offs=ends)

"""The usual exchange in PyTorch on CPUs: rows by MPI's Alltoallv or gloo's all_to_all_single, experts by torch.

All variants sort, regroup and combine alike; `exchange` and `experts` choose the rest. Each step is done in the fastest
of several ways: NumPy's radix sort (6 times as fast as torch.argsort), combine by embedding_bag (8 to 17 times as fast
as index_add_), and an allocator that keeps its memory (see teams.py). Packed weights are oneDNN's own layout, made
once, as torch's compiler does for a model that is only read. torch has only internal functions that pack weights and
multiply by packed ones; oneDNN applies the activation itself.
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from typing import Any, ClassVar

import numpy as np
from jobs import Floats, Job

from peers import Absent

_gloo_users = 0  # peers of this process that share the gloo group
_gloo_folder = ""  # the folder of the group's store; a later group needs it too


def one_thread() -> Any:
    """torch on one thread. Raises Absent."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError as error:
        raise Absent(f"torch does not import ({error})") from None
    torch.set_num_threads(1)
    return torch


def join_gloo(torch: Any, comm: Any) -> None:
    """Make the gloo group of the ranks of `comm`, once. Raises Absent. Collective."""
    global _gloo_users, _gloo_folder
    dist = torch.distributed
    if not dist.is_available() or not dist.is_gloo_available():
        raise Absent("this torch has no gloo")
    if not dist.is_initialized():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks share this machine
        _gloo_folder = comm.bcast(tempfile.mkdtemp(prefix="compare-gloo-") if comm.rank == 0 else None)
        store = f"file://{_gloo_folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=comm.rank, world_size=comm.size)
    _gloo_users += 1


def leave_gloo(torch: Any) -> None:
    """The last peer destroys the group. Collective."""
    global _gloo_users
    _gloo_users -= 1
    if _gloo_users == 0:
        torch.distributed.destroy_process_group()
        shutil.rmtree(_gloo_folder, ignore_errors=True)


def local_weights(torch: Any, job: Job, dtype: Any) -> list[Any]:
    """[up, gate or None, down] of this rank's experts: [E / world, H, F], and down [E / world, F, H]."""
    arrays = (job.up, job.gate, job.down)
    return [None if a is None else torch.from_numpy(np.array(a[job.local])).to(dtype) for a in arrays]


class Loop:
    """Experts one after another, an `mm` for each matrix."""

    def __init__(self, torch: Any, job: Job, dtype: Any) -> None:
        self.torch = torch
        self.up, self.gate, self.down = local_weights(torch, job, dtype)

    def one(self, e: int, rows: Any) -> Any:
        torch = self.torch
        h = torch.mm(rows, self.up[e])
        if self.gate is None:
            h.relu_()
        else:
            h.mul_(torch.nn.functional.silu(torch.mm(rows, self.gate[e]), inplace=True))
        return torch.mm(h, self.down[e])

    def __call__(self, rows: Any, counts: Any) -> list[Any]:
        """rows: [n, H] ordered by expert, counts: [E / world] -> for each expert its outputs [counts, H]."""
        runs = self.torch.split(rows, counts.tolist())
        return [self.one(e, run) if len(run) else run for e, run in enumerate(runs)]


class PackedLoop(Loop):
    """Experts one after another, weights in oneDNN's layout, activations applied by oneDNN."""

    def __init__(self, torch: Any, job: Job, dtype: Any) -> None:
        super().__init__(torch, job, dtype)
        try:
            pack, self.linear = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
        except AttributeError as error:
            raise Absent(f"this torch cannot pack weights by oneDNN ({error})") from None

        def packed(weights: Any) -> Any:
            return None if weights is None else [pack(weight.t().contiguous()) for weight in weights]

        self.up, self.gate, self.down = packed(self.up), packed(self.gate), packed(self.down)

    def one(self, e: int, rows: Any) -> Any:
        first = "relu" if self.gate is None else "none"
        h = self.linear(rows, self.up[e], None, first, [], "")
        if self.gate is not None:
            h.mul_(self.linear(rows, self.gate[e], None, "swish", [], ""))
        return self.linear(h, self.down[e], None, "none", [], "")


class Grouped:
    """All experts in one call of `torch.nn.functional.grouped_mm` for each matrix."""

    def __init__(self, torch: Any, job: Job, dtype: Any) -> None:
        if not hasattr(torch.nn.functional, "grouped_mm"):
            raise Absent(f"torch {torch.__version__} has no torch.nn.functional.grouped_mm")
        self.torch = torch
        self.up, self.gate, self.down = local_weights(torch, job, dtype)

    def __call__(self, rows: Any, counts: Any) -> list[Any]:
        torch = self.torch
        mm, ends = torch.nn.functional.grouped_mm, counts.cumsum(0).to(torch.int32)
        h = mm(rows, self.up, offs=ends)
        if self.gate is None:
            h.relu_()
        else:
            h.mul_(torch.nn.functional.silu(mm(rows, self.gate, offs=ends), inplace=True))
        outputs: list[Any] = torch.split(mm(h, self.down, offs=ends), counts.tolist())
        return outputs


class Mpi:
    """Rows by Alltoallv, as bytes: MPI has no bfloat16."""

    def __init__(self, torch: Any, comm: Any) -> None:
        self.torch, self.comm = torch, comm

    def counts(self, counts: Any) -> Any:
        landed = self.torch.empty_like(counts)
        self.comm.Alltoall(counts.numpy(), landed.numpy())
        return landed

    def rows(self, rows: Any, into: list[int], out: list[int]) -> Any:
        from mpi4py import MPI

        landed, width = rows.new_empty(sum(into), rows.shape[1]), rows.shape[1] * rows.element_size()

        def message(tensor: Any, counts: list[int]) -> list[Any]:
            lengths = np.array(counts, np.int64) * width
            return [tensor.view(self.torch.uint8).numpy(), lengths, np.cumsum(lengths) - lengths, MPI.BYTE]

        self.comm.Alltoallv(message(rows, out), message(landed, into))
        return landed

    def close(self) -> None:
        """Does nothing."""


class Gloo:
    """Rows by torch.distributed.all_to_all_single over gloo."""

    def __init__(self, torch: Any, comm: Any) -> None:
        self.torch = torch
        join_gloo(torch, comm)

    def counts(self, counts: Any) -> Any:
        landed = self.torch.empty_like(counts)
        self.torch.distributed.all_to_all_single(landed, counts)
        return landed

    def rows(self, rows: Any, into: list[int], out: list[int]) -> Any:
        landed = rows.new_empty(sum(into), rows.shape[1])
        self.torch.distributed.all_to_all_single(landed, rows, into, out)
        return landed

    def close(self) -> None:
        leave_gloo(self.torch)


EXCHANGES = {"mpi": Mpi, "gloo": Gloo}


def regrouped(torch: Any, experts: Any, rows: Any, per_source: Any) -> Any:
    """Outputs of rows ordered by (source, expert), in the same order. Experts get the rows by (expert, source).

    per_source: [W, experts], the number of rows of each.
    """
    world, each = per_source.shape
    runs = torch.split(rows, per_source.reshape(-1).tolist())
    merged = torch.cat([runs[s * each + e] for e in range(each) for s in range(world)])
    outputs = experts(merged, per_source.sum(0))
    parts = [torch.split(output, per_source[:, e].tolist()) for e, output in enumerate(outputs)]
    return torch.cat([parts[e][s] for s in range(world) for e in range(each)])


class TorchLayer:
    """A layer of one exchange and one way to run experts; a single rank exchanges nothing."""

    EXPERTS: ClassVar[dict[str, Any]] = {"loop": Loop, "packed": PackedLoop, "grouped": Grouped}

    def __init__(self, comm: Any, job: Job, dtype: str, exchange: str, experts: str) -> None:
        self.torch = torch = one_thread()
        self.world, self.shape = job.world, job.shape
        rows = getattr(torch, dtype)
        self.experts = self.EXPERTS[experts](torch, job, rows)
        self.exchange = EXCHANGES[exchange](torch, comm) if job.world > 1 else None
        self.xs, self.weights = torch.from_numpy(job.xs).to(rows), torch.from_numpy(job.weights).to(rows)
        self.ids = job.ids
        self.y: Any = None

    def __call__(self, i: int) -> None:
        torch, ids, k = self.torch, self.ids[i], self.shape.top_k
        with torch.inference_mode():
            order = np.argsort(ids.ravel().astype(np.uint16), kind="stable")
            at = np.empty_like(order)
            at[order] = np.arange(len(order))
            counts = torch.from_numpy(np.bincount(ids.ravel(), minlength=self.shape.experts))
            rows = self.xs[i].index_select(0, torch.from_numpy(order // k))
            back = torch.cat(self.experts(rows, counts)) if self.exchange is None else self._exchanged(rows, counts)
            places = torch.from_numpy(at.reshape(-1, k))
            bag = torch.nn.functional.embedding_bag
            self.y = bag(places, back, mode="sum", per_sample_weights=self.weights[i])

    def arrays(self) -> list[Any]:
        parts = [part for part in (self.experts.up, self.experts.gate, self.experts.down) if part is not None]
        return [self.xs, *(each for part in parts for each in part), self.y]

    def output(self) -> Floats:
        y: Floats = self.y.float().numpy()
        return y

    def close(self) -> None:
        if self.exchange is not None:
            self.exchange.close()

    def _exchanged(self, rows: Any, counts: Any) -> Any:
        """Outputs of rows that are ordered by expert, in the same order.

        They come from the ranks that hold the experts.
        """
        landed_counts = self.exchange.counts(counts)
        per_source = landed_counts.reshape(self.world, -1)
        sent, landed = counts.reshape(self.world, -1).sum(1).tolist(), per_source.sum(1).tolist()
        outputs = regrouped(self.torch, self.experts, self.exchange.rows(rows, landed, sent), per_source)
        return self.exchange.rows(outputs, sent, landed)

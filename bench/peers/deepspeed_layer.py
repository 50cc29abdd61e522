"""DeepSpeed's MoE layer on CPUs over gloo: its own dispatch, exchange and combine, with the routing from outside.

DeepSpeed's gate, its router, is replaced by a module that returns the job's experts. Nothing is dropped. So the
capacity is the largest number of a source's rows for one expert on any rank, and every expert's batch is padded to the
capacity, as with `drop_tokens=False`.
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any

from jobs import Floats, Job

from peers import Absent
from peers.torch_layer import join_gloo, leave_gloo, local_weights, one_thread


class DeepSpeedLayer:
    """deepspeed.moe.sharded_moe.MOELayer on the gloo group of all ranks."""

    def __init__(self, comm: Any, job: Job, dtype: str) -> None:
        self.torch = torch = one_thread()
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        try:
            moe: Any = importlib.import_module("deepspeed.moe.sharded_moe")
            experts: Any = importlib.import_module("deepspeed.moe.experts")
            deepspeed: Any = importlib.import_module("deepspeed")
        except ImportError as error:
            raise Absent(f"DeepSpeed does not import ({error})") from None
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        join_gloo(torch, comm)
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would compile this all-reduce here
        if not deepspeed.comm.is_initialized():
            deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
        rows = getattr(torch, dtype)
        self.gate = _given_routing(torch, job)
        weights = zip(
            *(
                w if w is not None else [None] * (job.shape.experts // job.world)
                for w in local_weights(torch, job, rows)
            )
        )
        self.tensors = [*weights]
        made = [_expert(torch, *tensors) for tensors in self.tensors]
        holder = experts.Experts(torch.nn.Identity(), len(made))
        holder.deepspeed_experts = torch.nn.ModuleList(made)
        self.layer = moe.MOELayer(self.gate, holder, "all", job.world, len(made))
        self.layer._set_ep_group(torch.distributed.group.WORLD)
        self.xs, self.y = torch.from_numpy(job.xs).to(rows), None

    def __call__(self, i: int) -> None:
        self.gate.now = i
        with self.torch.inference_mode():
            self.y = self.layer(self.xs[i], None)

    def arrays(self) -> list[Any]:
        return [self.xs, *(tensor for expert in self.tensors for tensor in expert), self.y]

    def output(self) -> Floats:
        y: Floats = self.y.float().numpy()
        return y

    def close(self) -> None:
        leave_gloo(self.torch)


def _expert(torch: Any, up: Any, gate: Any, down: Any) -> Any:
    class Expert(torch.nn.Module):
        """up, gate: [H, F]; down: [F, H]; rows: [..., H]."""

        def forward(self, rows: Any) -> Any:
            h = rows @ up
            if gate is None:
                h.relu_()
            else:
                h.mul_(torch.nn.functional.silu(rows @ gate))
            return h @ down

    return Expert()


def _given_routing(torch: Any, job: Job) -> Any:
    class GivenRouting(torch.nn.Module):
        """What DeepSpeed's gate returns: loss, capacity, experts, and by choice and token the expert, place, weight."""

        now = 0

        def _set_ep_group(self, group: Any) -> None:
            pass

        def forward(self, x: Any, used: Any, *options: Any) -> tuple[Any, ...]:
            experts, ids = job.shape.experts, torch.from_numpy(job.ids[self.now])
            mask = torch.zeros(len(ids), experts, dtype=torch.int64).scatter_(1, ids, 1)
            counts = mask.sum(0)
            capacity = counts.max()
            torch.distributed.all_reduce(capacity, op=torch.distributed.ReduceOp.MAX)
            places = (mask.cumsum(0) - 1).gather(1, ids)
            weights = torch.from_numpy(job.weights[self.now])
            return torch.zeros(()), capacity, experts, ids.t(), places.t(), weights.t(), counts

    return GivenRouting()

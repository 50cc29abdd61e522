"""Experts modules of Hugging Face transformers, as in Qwen3-MoE, computed in transformers' own ways and by Aristos.

On one rank `way` is an `experts_implementation`. On several ranks, each with tokens of its own, it is "aristos" or
"all_to_all": transformers' own exchange over gloo, with experts computed by grouped_mm.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from jobs import Floats, Job

from peers import Absent
from peers.torch_layer import join_gloo, leave_gloo, one_thread

ROOT = Path(__file__).resolve().parents[2]
TAKEN: dict[tuple[Any, int, int], tuple[Any, Any]] = {}  # (dtype, first expert, end) -> weights (gate with up, down)
MOST_BATCHED = 16  # batched_mm copies the weights of every row: 13 MB for a row of the smallest shape here


class TransformersLayer:
    """One module's experts with torch on one thread."""

    def __init__(self, comm: Any, job: Job, dtype: str, way: str) -> None:
        self.torch = torch = one_thread()
        if not job.shape.gated:
            raise Absent("the experts of these models have gates")
        if way == "batched_mm" and job.shape.tokens > MOST_BATCHED:
            raise Absent(f"batched_mm copies the weights of each row: at most {MOST_BATCHED} tokens here")
        self.comm = comm if job.world > 1 else None
        self.rows, self.way = getattr(torch, dtype), way
        self.ours = self._aristos(job) if way == "aristos" else None
        self.module = self._module(job)
        if self.ours is None and job.world > 1:
            self.call = self._exchanging()
        else:
            self.call = self.module
        self.xs, self.weights = torch.from_numpy(job.xs).to(self.rows), torch.from_numpy(job.weights).to(self.rows)
        self.ids = torch.from_numpy(job.ids)
        self.y: Any = None

    def _aristos(self, job: Job) -> Any:
        sys.path.insert(0, str(ROOT))
        from aristos.integrations import transformers as ours

        ours.options(max_tokens=job.shape.tokens, comm=self.comm, threads=1)
        return ours

    def _module(self, job: Job) -> Any:
        from transformers import AutoConfig
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

        torch, shape = self.torch, job.shape
        exchanging = self.ours is None and job.world > 1
        own = job.local if exchanging else slice(0, shape.experts)
        config = AutoConfig.for_model(
            "qwen3_moe",
            hidden_size=shape.hidden,
            moe_intermediate_size=shape.ffn,
            num_experts=own.stop - own.start,
            num_experts_per_tok=shape.top_k,
        )
        config._experts_implementation = "grouped_mm" if exchanging else self.way
        with torch.device("meta"):
            module = Qwen3MoeExperts(config).to(self.rows).eval()
        gate_up, down = self._taken(job, own)
        module.gate_up_proj = torch.nn.Parameter(gate_up, requires_grad=False)
        module.down_proj = torch.nn.Parameter(down, requires_grad=False)
        module._is_expert_parallel = exchanging
        return module

    def _taken(self, job: Job, own: slice) -> tuple[Any, Any]:
        """The weights of some experts in torch's layout. Peers with the same weights share one copy."""
        key = self.rows, own.start, own.stop
        if key not in TAKEN:
            assert job.gate is not None
            gate, up, down = (self.torch.from_numpy(each[own]).to(self.rows) for each in (job.gate, job.up, job.down))
            gate_up = self.torch.cat((gate.transpose(1, 2), up.transpose(1, 2)), dim=1)
            TAKEN[key] = gate_up.contiguous(), down.transpose(1, 2).contiguous()
        return TAKEN[key]

    def _exchanging(self) -> Any:
        from transformers.distributed.expert_parallel import AllToAllEP

        join_gloo(self.torch, self.comm)
        mesh = self.torch.distributed.init_device_mesh("cpu", (1, self.comm.size), mesh_dim_names=("one", "ep"))
        return AllToAllEP(self.module, mesh["ep"], mesh["one"])

    def __call__(self, i: int) -> None:
        with self.torch.no_grad():
            self.y = self.call(self.xs[i], self.ids[i], self.weights[i])

    def arrays(self) -> list[Any]:
        return [self.xs, self.module.gate_up_proj, self.module.down_proj, self.y]

    def kernels(self) -> dict[str, str]:
        """What Aristos's layer has run, if `way` is "aristos"."""
        if self.ours is None:
            return {}
        (layer,) = self.ours.layers_of(self.module).values()
        return {"precision": layer.cfg.precision, "isa": str(layer.moe.isa)}

    def output(self) -> Floats:
        y: Floats = self.y.float().numpy()
        return y

    def close(self) -> None:
        TAKEN.clear()
        if self.ours is not None:
            self.ours.close(self.module)
        elif self.comm is not None:
            leave_gloo(self.torch)

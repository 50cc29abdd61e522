"""kt-kernel, the experts of KTransformers on CPUs, on one rank: bfloat16, gated, by its kernels for this CPU.

It computes in a thread that it binds to core 0 itself, and the caller spins until that thread is done; so the caller
moves to the last core, which must be free. It keeps no pointers' memory alive: the arrays of a call are kept here.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np
from jobs import Floats, Job

from peers import Absent
from peers.torch_layer import one_thread

KINDS = ("AMXBF16_MOE", "AVX512BF16_MOE", "AVX2BF16_MOE")  # the first that its build for this CPU has


class KtKernelLayer:
    """All experts local; routing from outside."""

    def __init__(self, comm: Any, job: Job) -> None:
        if job.world > 1:
            raise Absent("kt-kernel has no expert parallelism: one rank only")
        if job.gate is None:
            raise Absent("kt-kernel has gated experts only")
        if (os.cpu_count() or 1) < 2:
            raise Absent("kt-kernel needs a second core for its caller")
        self.torch = torch = one_thread()
        try:
            self.ext: Any = importlib.import_module("kt_kernel").kt_kernel_ext
        except ImportError as error:
            raise Absent(f"kt-kernel does not import ({error})") from None
        kind = next((k for k in KINDS if hasattr(self.ext.moe, k)), None)
        if kind is None:
            raise Absent("this build of kt-kernel has no bfloat16 kernels")
        rows = torch.bfloat16
        self.pool = self.ext.CPUInfer(1)
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        self.moe = self._built(kind, job)
        self.xs, self.ids = torch.from_numpy(job.xs).to(rows), torch.from_numpy(job.ids)
        self.weights = torch.from_numpy(job.weights)
        self.count = torch.tensor([job.shape.tokens], dtype=torch.int32)
        self.y = torch.empty(job.shape.tokens, job.shape.hidden, dtype=rows)

    def _built(self, kind: str, job: Job) -> Any:
        """The layer; its weights are copied and packed here. It wants matrices by output: [E, F, H] and [E, H, F]."""
        torch, shape = self.torch, job.shape
        cfg = self.ext.moe.MOEConfig(shape.experts, shape.top_k, shape.hidden, shape.ffn, 0)  # 0 experts on a GPU
        cfg.max_len = max(32, shape.tokens)
        cfg.pool = self.pool.backend_
        self.kept = kept = [
            torch.from_numpy(np.ascontiguousarray(a.transpose(0, 2, 1))).to(torch.bfloat16)
            for a in (job.gate, job.up, job.down)
        ]
        cfg.gate_proj, cfg.up_proj, cfg.down_proj = (tensor.data_ptr() for tensor in kept)
        cfg.gate_scale = 0
        moe = getattr(self.ext.moe, kind)(cfg)
        order = torch.arange(shape.experts, dtype=torch.int64)
        self.pool.submit(moe.load_weights_task(order.data_ptr()))
        self.pool.sync()
        return moe

    def __call__(self, i: int) -> None:
        x, ids, weights = self.xs[i], self.ids[i], self.weights[i]
        pointers = (ids.data_ptr(), weights.data_ptr(), x.data_ptr(), self.y.data_ptr())
        self.moe.forward(self.count.data_ptr(), ids.shape[1], *pointers, False)

    def arrays(self) -> list[Any]:
        return [self.xs, *self.kept, self.y]

    def output(self) -> Floats:
        y: Floats = self.y.float().numpy()
        return y

    def close(self) -> None:
        """Does nothing: its threads end with the process."""

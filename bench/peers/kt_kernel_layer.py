"""kt-kernel, the experts of KTransformers on CPUs, on one rank: gated experts and rows of bfloat16.

kt-kernel computes in a thread that it binds to core 0 itself, and the caller spins until that thread is done. So the
caller moves to the last core, which must be free. kt-kernel does not keep the memory of its pointers alive: this module
keeps the arrays of a call. The int8 and int4 of kt-kernel quantise weights when they are loaded, with a scale for each
column, and round rows to int8. Its raw int4 takes codes with scales for groups of k, and keeps rows of 16 bits.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np
from jobs import GROUP, Floats, Job

from peers import Absent
from peers.codes import codes
from peers.torch_layer import one_thread

KINDS = {  # the first class that this build has is used; names contain AMX even in builds without AMX
    "bfloat16": ("AMXBF16_MOE", "AVX512BF16_MOE", "AVX2BF16_MOE"),
    "int8": ("AMXInt8_MOE",),
    "int4": ("AMXInt4_MOE",),
    "raw int4": ("AVX2RawInt4_MOE",),
}


class KtKernelLayer:
    """All experts local; routing from outside. weights: one of KINDS."""

    def __init__(self, comm: Any, job: Job, weights: str = "bfloat16") -> None:
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
        kind = next((k for k in KINDS[weights] if hasattr(self.ext.moe, k)), None)
        if kind is None:
            raise Absent(f"this build of kt-kernel has no kernels of {weights}")
        self.codes = weights.split()[-1]
        rows = torch.bfloat16
        self.pool = self.ext.CPUInfer(1)
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        self.moe = self._built(kind, job, raw=weights.startswith("raw"))
        self.xs, self.ids = torch.from_numpy(job.xs).to(rows), torch.from_numpy(job.ids)
        self.weights = torch.from_numpy(job.weights)
        self.count = torch.tensor([job.shape.tokens], dtype=torch.int32)
        self.y = torch.empty(job.shape.tokens, job.shape.hidden, dtype=rows)

    def _built(self, kind: str, job: Job, raw: bool) -> Any:
        """The layer; its weights are copied and packed here."""
        torch, shape = self.torch, job.shape
        cfg = self.ext.moe.MOEConfig(shape.experts, shape.top_k, shape.hidden, shape.ffn, 0)  # 0 experts on a GPU
        cfg.max_len = -(-shape.tokens // 32) * 32  # int8 and int4 take only multiples of 32
        cfg.pool = self.pool.backend_
        self.kept: list[Any] = []
        if raw:
            self._give_codes(cfg, job)
        else:
            self._give_values(cfg, job)
        moe = getattr(self.ext.moe, kind)(cfg)
        order = torch.arange(shape.experts, dtype=torch.int64)
        self.pool.submit(moe.load_weights_task(order.data_ptr()))
        self.pool.sync()
        return moe

    def _give_values(self, cfg: Any, job: Job) -> None:
        """Set the experts' matrices by output, as kt-kernel needs them: [E, F, H] and [E, H, F]."""
        torch = self.torch
        for name in ("gate", "up", "down"):
            turned = np.ascontiguousarray(getattr(job, name).transpose(0, 2, 1))
            self.kept.append(torch.from_numpy(turned).to(torch.bfloat16))
            setattr(cfg, f"{name}_proj", self.kept[-1].data_ptr())
        cfg.gate_scale = 0

    def _give_codes(self, cfg: Any, job: Job) -> None:
        """Set the experts' unsigned codes by output, two in a byte with the even k first, and scales [N, groups]."""
        torch, self.given = self.torch, []
        for name in ("gate", "up", "down"):
            held = []
            for weight in getattr(job, name):
                found, scales = codes(weight, "int4")
                unsigned = (found.T + 8).astype(np.uint8)
                two = torch.from_numpy(np.ascontiguousarray(unsigned[:, ::2] | unsigned[:, 1::2] << 4))
                held.append((two, torch.from_numpy(np.ascontiguousarray(scales.T)).to(torch.bfloat16)))
            setattr(cfg, f"{name}_projs", [[two.data_ptr() for two, _ in held]])
            setattr(cfg, f"{name}_scales", [[scale.data_ptr() for _, scale in held]])
            self.given += held
        cfg.quant_config.bits, cfg.quant_config.group_size, cfg.quant_config.zero_point = 4, GROUP, False

    def __call__(self, i: int) -> None:
        x, ids, weights = self.xs[i], self.ids[i], self.weights[i]
        pointers = (ids.data_ptr(), weights.data_ptr(), x.data_ptr(), self.y.data_ptr())
        self.moe.forward(self.count.data_ptr(), ids.shape[1], *pointers, False)

    def arrays(self) -> list[Any]:
        return [self.xs, *self.kept, self.y]

    def kernels(self) -> dict[str, str]:
        """The type of codes, from the name of the class."""
        return {} if self.codes == "bfloat16" else {"weights": self.codes}

    def output(self) -> Floats:
        y: Floats = self.y.float().numpy()
        return y

    def close(self) -> None:
        """Does nothing: its threads end with the process."""

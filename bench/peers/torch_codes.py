"""The layer of torch_layer.py with weights of codes: torch's products of 16-bit rows with weights of 8 and of 4 bits.

The products are internal functions of torch, which torchao calls too. int8 has a scale for each column; int4 has a
scale and a zero for each group of k, both in bfloat16.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from jobs import GROUP, Floats, Job

from peers import Absent
from peers.codes import bits, codes
from peers.torch_layer import Loop, TorchLayer


class CodesLoop(Loop):
    """Experts one after another. `packed` turns each matrix into a tuple, which begins with the tensor of its codes."""

    def __init__(self, torch: Any, job: Job, dtype: Any) -> None:
        self.torch, self.dtype = torch, dtype
        arrays = (job.up, job.gate, job.down)
        try:
            self.up, self.gate, self.down = (
                None if a is None else [self.packed(w) for w in a[job.local]] for a in arrays
            )
        except AttributeError as error:
            raise Absent(f"this torch has no such products ({error})") from None

    def packed(self, weight: Floats) -> tuple[Any, ...]:
        """The codes and scales of a matrix [K, N]."""
        raise NotImplementedError

    def mm(self, rows: Any, weight: tuple[Any, ...]) -> Any:
        """[n, K] times a packed matrix."""
        raise NotImplementedError

    def one(self, e: int, rows: Any) -> Any:
        h = self.mm(rows, self.up[e])
        if self.gate is None:
            h.relu_()
        else:
            h.mul_(self.torch.nn.functional.silu(self.mm(rows, self.gate[e]), inplace=True))
        return self.mm(h, self.down[e])


class Int8Loop(CodesLoop):
    """`_weight_int8pack_mm`: codes [N, K], scales [N]."""

    def packed(self, weight: Floats) -> tuple[Any, ...]:
        found, scales = codes(weight, "int8")
        torch = self.torch
        return torch.from_numpy(np.ascontiguousarray(found.T)), torch.from_numpy(scales[0]).to(self.dtype)

    def mm(self, rows: Any, weight: tuple[Any, ...]) -> Any:
        return self.torch._weight_int8pack_mm(rows, *weight)


class Int4Loop(CodesLoop):
    """`_weight_int4pack_mm_for_cpu`: codes in its own layout, scales and zeros [groups, N, 2]."""

    def packed(self, weight: Floats) -> tuple[Any, ...]:
        found, scales = codes(weight, "int4")
        torch = self.torch
        unsigned = torch.from_numpy(found.T.astype(np.int32) + 8)
        both = torch.from_numpy(np.stack([scales, np.zeros_like(scales)], axis=2))
        return torch._convert_weight_to_int4pack_for_cpu(unsigned, 1), both.to(self.dtype)

    def mm(self, rows: Any, weight: tuple[Any, ...]) -> Any:
        return self.torch._weight_int4pack_mm_for_cpu(rows, weight[0], GROUP, weight[1])


class TorchCodes(TorchLayer):
    """experts: "int8" or "int4"."""

    EXPERTS: ClassVar[dict[str, Any]] = {"int8": Int8Loop, "int4": Int4Loop}

    def arrays(self) -> list[Any]:
        return [self.xs, self.y]

    def kernels(self) -> dict[str, str]:
        """The type of the codes that were read."""
        return {"weights": bits(self.experts.up[0][0], self.shape.hidden, self.shape.ffn)}

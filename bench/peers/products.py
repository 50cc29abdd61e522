"""Matrix products as peers: x [M, K] times a weight [K, N] that is prepared once. One rank, one thread."""

from __future__ import annotations

from typing import Any

import numpy as np
from jobs import Floats, ProductJob

from peers import Absent


class NumPyProduct:
    """np.matmul, float32."""

    def __init__(self, comm: Any, job: ProductJob) -> None:
        self.xs, self.weight = job.xs, job.weight
        self.y = np.empty((job.shape.rows, job.shape.columns), np.float32)

    def __call__(self, i: int) -> None:
        np.matmul(self.xs[i], self.weight, out=self.y)

    def arrays(self) -> list[Any]:
        return [self.xs, self.weight, self.y]

    def output(self) -> Floats:
        return self.y

    def close(self) -> None:
        """Does nothing."""


class AristosProduct(NumPyProduct):
    """The kernels' product, weights packed once."""

    def __init__(self, comm: Any, job: ProductJob, dtype: str) -> None:
        from aristos import kernels
        from peers.aristos_layer import numpy_dtype

        rows = numpy_dtype(dtype)
        self.xs, self.matrix = job.xs.astype(rows), kernels.Matrix(job.weight.astype(rows))
        self.y = np.empty((job.shape.rows, job.shape.columns), rows)

    def __call__(self, i: int) -> None:
        self.matrix(self.xs[i], out=self.y)

    def arrays(self) -> list[Any]:
        return [self.xs, self.y]

    def kernels(self) -> dict[str, str]:
        """Element type and ISA of the packed weights."""
        from aristos.kernels.cpu.target import ISA

        return {"dtype": self.matrix._element.name, "precision": "highest", "isa": ISA}

    def output(self) -> Floats:
        return self.y.astype(np.float32)


class TorchProduct:
    """torch.mm, or oneDNN's product with weights in its own layout."""

    def __init__(self, comm: Any, job: ProductJob, dtype: str, packed: bool) -> None:
        from peers.torch_layer import one_thread

        self.torch = torch = one_thread()
        kind = getattr(torch, dtype)
        self.xs, self.weight = torch.from_numpy(job.xs).to(kind), torch.from_numpy(job.weight).to(kind)
        self.packed, self.y = packed, torch.empty(job.shape.rows, job.shape.columns, dtype=kind)
        if packed:
            try:
                self.linear = torch.ops.mkldnn._linear_pointwise
                self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.t().contiguous())
            except AttributeError as error:
                raise Absent(f"this torch cannot pack weights by oneDNN ({error})") from None

    def __call__(self, i: int) -> None:
        with self.torch.inference_mode():
            if self.packed:
                self.y = self.linear(self.xs[i], self.weight, None, "none", [], "")
            else:
                self.torch.mm(self.xs[i], self.weight, out=self.y)

    def arrays(self) -> list[Any]:
        return [self.xs, self.weight, self.y]

    def output(self) -> Floats:
        y: Floats = self.y.float().numpy()
        return y

    def close(self) -> None:
        """Does nothing."""

"""Loads the FP8 weights of an experts module of transformers into a layer, matrix by matrix.

The codes and the scales of blocks are not changed, if the layer has the same weight type.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..layer.moe import MoE
from ..quantised import Quantised
from ..weight_types import WeightType, packed

BLOCK = 128  # a block of BLOCK outputs and BLOCK inputs shares a scale


@dataclass(frozen=True)
class PackedExperts:
    """The packed weights of an experts module, which has all experts or only this rank's."""

    module: Any

    @property
    def weight_type(self) -> WeightType:
        """The weights' type, with a scale for each block, or one for each matrix."""
        return packed("fp8", group=0 if self.module.block_size is None else BLOCK, scale="float32")

    def load(self, moe: MoE) -> None:
        """Load this rank's experts into a layer. They are expanded only if the layer has another weight type."""
        mine = moe.placement.mine(moe.rank)
        first = 0 if len(self.module.down_proj) == moe.cfg.experts else mine[0]
        for expert in mine:
            found: dict[str, Any] = dict(self._matrices(expert - first))
            if moe.cfg.packed != self.weight_type:
                found = {name: matrix.dequantised(np.float32) for name, matrix in found.items()}
            moe.load_expert(0, expert, **found)

    def _matrices(self, expert: int) -> Iterator[tuple[str, Quantised]]:
        """(name, matrix [in, out]) for each matrix of one expert."""
        module = self.module
        yield "down", self._matrix(module.down_proj[expert], module.down_proj_scale_inv[expert])
        if module.has_gate:
            both, scales = module.gate_up_proj[expert], module.gate_up_proj_scale_inv[expert]
            for name, codes, scale in zip(("gate", "up"), both.chunk(2), scales.chunk(2), strict=True):
                yield name, self._matrix(codes, scale)
        else:
            yield "up", self._matrix(module.up_proj[expert], module.up_proj_scale_inv[expert])

    def _matrix(self, codes: torch.Tensor, scales: torch.Tensor) -> Quantised:
        """A matrix. codes: [out, in] of e4m3. scales: [blocks of out, blocks of in], or one."""
        values = codes.detach().view(torch.uint8).numpy().T
        factors = scales.detach().float().numpy().T
        if self.module.block_size is None:
            factors = np.full((1, values.shape[1]), factors.reshape(()))
        return Quantised(self.weight_type, values, factors)


def packed_experts(module: Any) -> PackedExperts | None:
    """The packed weights of an experts module; None if they are not packed. Raises InputError for other formats."""
    down = module.down_proj
    if getattr(module, "down_proj_scale_inv", None) is None or down.element_size() > 1:
        return None
    name, block = type(module).__name__, module.block_size
    if down.dtype != torch.float8_e4m3fn:
        raise InputError(f"{name}: packed weights must have dtype torch.float8_e4m3fn, got {down.dtype}")
    if block is not None and list(block) != [BLOCK, BLOCK]:
        raise InputError(
            f"{name}: block_size must be {[BLOCK, BLOCK]}, or None for one scale per matrix, got {list(block)}"
        )
    if block is not None and module.has_gate and down.shape[2] % BLOCK:
        raise InputError(
            f"{name}: the inner width of experts must be a multiple of {BLOCK}, so that no block has outputs of both"
            f" gate and up, got {down.shape[2]}"
        )
    return PackedExperts(module)

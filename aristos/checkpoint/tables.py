"""Computes ids and weights for calls of layers that choose experts by a table of token ids, in NumPy.

DeepSeek-V4's first layers have a table [V, k] of experts by token id. The weights come from the router's scores
(models/deepseek_v4 of transformers 5.24, DeepseekV4HashRouter).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import reference
from ..config import MoEConfig
from ..errors import CheckpointError, InputError
from ..primitives import arrays
from ..row_types import ON_CPUS
from .safetensors import shown
from .stored_arrays import TABLE, LayerReader

ROWS = tuple(ON_CPUS)  # dtypes of x


class TokenTable:
    """The table and the router of one layer. Raises CheckpointError if the table does not fit the layer."""

    def __init__(self, reader: LayerReader, cfg: MoEConfig) -> None:
        name = reader.prefix + reader.stored_arrays[TABLE].name
        self._where = f"{reader.directory.file(name).path}: tensor {shown(name)}"
        self._table = reader.directory.array(name)
        if self._table.ndim != 2 or self._table.shape[1] != cfg.top_k or self._table.dtype.kind not in "iu":
            raise CheckpointError(
                f"{self._where} must have ints of shape [token ids, {cfg.top_k}], got {self._table.dtype}"
                f" {list(self._table.shape)}: config.json and the tensors are of different models"
            )
        # float64, so that a token's weights, rounded to float32, do not depend on the other tokens of the call
        self._router = reader.router(1.0).astype(np.float64)
        self._cfg = cfg

    def route(self, x: Any, tokens: Any) -> tuple[np.ndarray, np.ndarray]:
        """(ids [S, k] int32, weights [S, k] float32) of tokens x [S, H] with ids `tokens` [S]."""
        given, numbers = arrays.view("x", x), arrays.view("tokens", tokens)
        if not any(arrays.is_type(given, dtype) for dtype in ROWS):
            raise arrays.wrong_dtype("x", given.dtype, " or ".join(ROWS))
        if given.ndim != 2 or given.shape[1] != self._cfg.hidden:
            raise InputError(f"x must have shape [S, {self._cfg.hidden}], got {list(given.shape)}")
        if numbers.shape != given.shape[:1] or numbers.dtype.kind not in "iu":
            raise InputError(
                f"tokens must be {len(given)} token ids, ints, one for each row of x, got {numbers.dtype}"
                f" {list(numbers.shape)}"
            )
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(self._table):
            raise InputError(f"tokens must be in 0..{len(self._table) - 1}, got {numbers.min()} to {numbers.max()}")
        ids = self._table[numbers].astype(np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self._cfg.experts:
            raise CheckpointError(
                f"{self._where} must have experts in 0..{self._cfg.experts - 1}, got {ids.min()} to {ids.max()}:"
                " download this file again"
            )
        router = self._cfg.router
        scores = given.astype(np.float64) @ self._router.T
        weights = router.scale * reference.SCORES[router.score](scores, ids, router.renormalize)
        return ids.astype(np.int32), weights.astype(np.float32)

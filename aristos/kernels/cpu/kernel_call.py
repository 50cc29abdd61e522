"""One kernel of an element type, called from Python."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernel_cache.compile import warm_up

from ...primitives.buffers import aligned
from .call_blocks import BLOCK_BYTES, HEAD_WORDS, flat
from .elements import ElementType
from .lowering import SIGNATURE


class KernelCall:
    """Calls one kernel of an element type. Not thread-safe, because all calls use one block of arguments.

    entries: the module `entries` that has the element type's kernels.
    """

    def __init__(self, entries: Any, element: ElementType, kernel: int) -> None:
        self._run, self._kernel = entries.KERNELS[element.code], kernel
        warm_up([(self._run, SIGNATURE)])
        self._block = aligned((BLOCK_BYTES // 8,), np.int64)

    def __call__(self, record: tuple[Any, ...]) -> int:
        words = flat(record)
        self._block[HEAD_WORDS : HEAD_WORDS + len(words)] = words
        return int(self._run(self._kernel, self._block.ctypes.data))

"""All cases by name, and the files of csrc that they need: `CASES`. registry.py says what a case is."""

from __future__ import annotations

import attention
import sampling
import small
from registry import CASES

MODULES = (small, sampling, attention)
__all__ = ("CASES",)

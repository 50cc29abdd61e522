"""Model directories: a memory-mapped reader of safetensors, the recipes of published families, and `Checkpoint`."""

from .checkpoint import Checkpoint

__all__ = ["Checkpoint"]

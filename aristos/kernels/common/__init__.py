"""Arithmetic that CPU and CUDA kernels share: compiled for either, bound to neither."""

"""Arithmetic that CPU and CUDA kernels share. It can be compiled for both, and depends on neither."""

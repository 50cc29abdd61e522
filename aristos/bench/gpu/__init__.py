"""Shared parts of the suites on GPUs: a GPU timed by CUDA events, calls of a layer on it, and rivals."""

"""Parts that the suites on GPUs share: a GPU timed by CUDA events, calls of a layer on it, and rivals."""

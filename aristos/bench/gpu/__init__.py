"""The suites on a card: times by CUDA events, ratios within the run."""

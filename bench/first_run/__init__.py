"""The modules of bench/gpu_report.py: a page about one GPU, written even if parts fail, hang or are missing."""

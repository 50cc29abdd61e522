"""The parts of bench/gpu_report.py: a page about one GPU that comes out whatever fails, hangs or is missing."""

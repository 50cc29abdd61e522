"""A report on one GPU, in one command that ends within 8 minutes: `python bench/gpu_report.py`.

The command checks every product kernel against float64, runs tests/gpu, and times the suites of `python -m
aristos.bench --backend cuda`, the router alone and each phase. It writes gpu-report.md, gpu-report.h5 and pictures,
with facts of the GPU, its driver and its clocks. Please send these files back. Each part is a process of its own with a
time limit.
Parts that build on wrong results are not run. docs/gpu-first-run.md says what each part should show.

`mpirun -n N python bench/gpu_report.py` reports on N GPUs of a node: products on every GPU, puts and signals between
the GPUs with the class of each link, the layer and its rivals on N ranks. Such a run does not run tests/gpu, and does
not notice whether another program uses a GPU; a run without mpirun does both. When the time is over, the whole job
ends, and gpu-report.md has the results that were found until then.

Exit codes: 0 all parts ran to their end and all outputs were right, even if a figure was missed, 1 a part failed, hung,
ran out of time or was ended by Ctrl-C, 2 a usage error, 3 no GPU, or a GPU whose figures would mean nothing.
"""

from __future__ import annotations

import sys

from first_run import command, together

if __name__ == "__main__":
    sys.exit(command.main(sys.argv[1:], str(__doc__), together.report))

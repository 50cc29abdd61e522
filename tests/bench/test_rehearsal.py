"""bench/gpu_report.py --rehearse: the whole report on the PTX machine, and reports in which one thing goes wrong.

A page must be written, or printed, and must say what went wrong.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sweeps

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")

from aristos import results

pytestmark = [pytest.mark.slow, pytest.mark.parallel]
ROOT = Path(__file__).parents[2]
REPORT = [sys.executable, str(ROOT / "bench" / "gpu_report.py"), "--rehearse"]


def rehearsed(folder, fault="nothing", parts="", minutes=60.0):
    """Run a rehearsal that writes its files to the folder: (exit code, page, output)."""
    words = [*REPORT, fault, "--out", str(folder / "r"), "--minutes", str(minutes)]
    words += ["--parts", parts] if parts else []
    done = subprocess.run(words, capture_output=True, text=True, timeout=60 * minutes + 60)
    page = folder / "r.md"
    return done.returncode, page.read_text() if page.exists() else "", done.stdout + done.stderr


def test_a_whole_rehearsal(tmp_path):
    """Every part runs, every output is right, and there are at most 8 files."""
    code, page, said = rehearsed(tmp_path)
    assert page.startswith("# Aristos on PTX machine: every part ran, every output was right\n"), (page[:3000], said)
    assert code == 0, said
    for line in (
        "| products against float64 | ok |",
        "| layer | ok |",
        "## router on PTX machine",
        "## time per phase on PTX machine",
        "## idle on PTX machine",
        "two kernels under ncu",
        "tests/gpu needs a GPU: tests/primitives/test_finite.py passed in its place",
        "- PyTorch is not used in a rehearsal, which has no GPU\n",
        "- cuBLAS is not used in a rehearsal, which has no GPU\n",
    ):
        assert line in page, page
    assert re.search(r"^- commit: [0-9a-f]{40}\+?$(?s:.*)^- numba-cuda: 0\.30", page, re.M), page
    files = sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock"))
    assert {"r.h5", "r.md"} <= set(files)
    assert len(list(tmp_path.iterdir())) <= 8, files
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 16 << 20
    names = {table.name for run in results.load(tmp_path / "r.h5").runs for table in run.tables}
    assert {"gpu_report", "layer_cuda", "put_cuda"} <= names


def test_a_wrong_product_stops_the_layer(tmp_path):
    code, page, _ = rehearsed(tmp_path, "product", "products against float64,put and signal,layer,phases")
    assert code == 1
    head = "WRONG RESULTS: products against float64; not run: layer, phases"
    assert page.startswith(f"# Aristos on PTX machine: {head}\n"), page
    assert "WRONG\n" in page
    assert "| put and signal | ok |" in page


def test_the_page_of_a_hang_has_the_state_of_the_call(tmp_path):
    """The part is ended by its limit. The page says what the layer waits for and where every thread stands."""
    code, page, _ = rehearsed(tmp_path, "hang", "layer", minutes=3.0)
    assert code == 1
    assert page.startswith("# Aristos on PTX machine: HUNG: layer\n"), page
    held = re.search(r"cuda: rank 0 of 1, epoch 2: running, \d+ commands published; worker (\d) holds the lock", page)
    assert held, page
    assert "the part has not ended" in page, "a last line is missing"
    for line in (
        rf"^  workers? .*{held[1]}.*: computes share \d+ of the (first|second) product of run \d+$",
        r"^  run \d+: \d+ rows of held expert \d; \d+ shares are open, \d+ taken, \d+ done$",
        r"in _endless$",
    ):
        assert re.search(line, page, re.M), page


def test_missing_libraries_are_named(tmp_path):
    """Without MPI, CuPy and matplotlib there are figures but no pictures, and the page says why."""
    code, page, _ = rehearsed(tmp_path, "library", "put and signal")
    assert code == 0, page
    assert "- no pictures: " in page
    assert "| put and signal | ok |" in page
    assert not list(tmp_path.glob("*.png"))


def test_a_full_disk_prints_the_page(tmp_path):
    code, _, said = rehearsed(tmp_path, "disk", "put and signal")
    assert code == 1
    assert "# Aristos on PTX machine: 2 of 12 parts ran, every output was right" in said
    assert "lacks the figures" in said
    assert "the page cannot be written" in said
    assert "| put and signal | ok |" in said
    assert not list(tmp_path.iterdir()), "no part of a page is left"


@pytest.mark.parametrize(
    ("fault", "note"),
    sweeps.turn(
        [
            ("ncu-missing", "ncu was not found on PATH"),
            ("ncu-forbidden", "may not read the counters (ERR_NVGPUCTRPERM)"),
        ]
    ),
)
def test_the_profiler_may_be_missing_or_forbidden(tmp_path, fault, note):
    code, page, _ = rehearsed(tmp_path, fault, "ncu")
    assert code == 0
    assert note in page
    assert os.listdir(tmp_path)

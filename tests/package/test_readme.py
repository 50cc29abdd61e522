"""The README's commands in a fresh clone, with only Python and make from this environment."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kernel_cache.compile import root

ROOT = Path(__file__).resolve().parents[2]
OFFLINE = ("No matching distribution", "Could not fetch", "NewConnectionError", "Temporary failure in name resolution")
ONE_SCREEN = 90  # lines, with room between the paragraphs
WIDE = 120  # columns
PARAGRAPH = 5  # lines


def test_readme_is_one_screen_and_names_its_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= ONE_SCREEN
    assert [line for line in lines if len(line) > WIDE] == []
    text = "\n".join(lines)
    commands = (
        "python3 -m venv",
        "pip install -e '.[mpich]'",
        "aristos run -n 2 -- python -m aristos.bench",
        "make bench",
        "make test",
    )
    for command in commands:
        assert command in text
    assert "install '." not in text, "without -e a copy takes the place of an editable install"
    assert "independent implementation" in text


def overloaded(text: str) -> list[str]:
    """The paragraphs that are too long, and the sentences with three links or more."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    paragraphs = [part.strip() for part in prose.split("\n\n") if part.strip() and part.lstrip()[0] not in "|-#"]
    sentences = [each for part in paragraphs for each in re.split(r"(?<=[.:;!?])\s", part)]
    return [part for part in paragraphs if part.count("\n") >= PARAGRAPH] + [
        each for each in sentences if each.count("](") > 2
    ]


def test_no_paragraph_of_the_readme_is_overloaded():
    assert overloaded((ROOT / "README.md").read_text()) == []
    assert overloaded("\n".join(["A line."] * 6))
    assert overloaded("See [a](b), [c](d) and [e](f).")


def table(text: str, first: str) -> dict[str, list[str]]:
    """The rows of the Markdown table whose head begins with `first`, by their first cell."""
    lines = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize(("family", "first"), [("amx, rocketlake", 0), ("avx512, cascadelake", 2)])
def test_the_results_of_the_readme_are_those_of_the_comparison(family, first):
    """Each cell has the times of Aristos (fused) and of the better of NumPy and torch, as in docs/performance.md.

    first: the number of the column with the machine's float32 times.
    """
    page = (ROOT / "docs" / "performance.md").read_text()
    measured = table(page[page.index(f"<!-- compare:begin {family}: uniform") :], "peer")
    shapes = [title.split()[0] for title in measured["peer"]]
    shown = table((ROOT / "README.md").read_text(), "tokens/H/F/E/k")
    isa = {"amx": "AMX", "avx512": "AVX-512"}[family.split(",")[0]]
    assert shown["tokens/H/F/E/k"][first : first + 2] == [f"Xeon ({isa}), float32", "bfloat16"]
    rows = {name.split()[0]: cells for name, cells in shown.items() if name[1] == " "}
    assert list(rows) == [shape for shape in shapes if len(shape) == 1]
    for shape, cells in rows.items():
        at = shapes.index(shape)
        times = {peer: row[at].split()[0] for peer, row in measured.items() if "(" in row[at]}
        for cell, suffix in zip(cells[first:], ("", ", bfloat16")):
            fused = times[f"Aristos fused{suffix}"]
            peers = [
                t
                for p, t in times.items()
                if p.startswith(("Alltoallv", "torch")) and p.endswith("bfloat16") == bool(suffix)
            ]
            assert cell.split(";")[0] == f"{fused} / {min(peers, key=float)}", shape


@pytest.mark.parametrize("path", ["launch/virtual_slurm", "docs/install.md", "docs/performance.md", "bench/nodes.py"])
def test_every_srun_example_has_mpi_option(path):
    """The default PMI of a site, or of the virtual cluster, may not be that of the MPI library."""
    shown = re.findall(r"srun +-N.*?python", (ROOT / path).read_text(), re.DOTALL)
    assert shown
    assert all("--mpi=" in command for command in shown)


@pytest.mark.slow
@pytest.mark.parallel
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout, so there is nothing to clone")
@pytest.mark.skipif(not shutil.which("git") or not shutil.which("make"), reason="git or make is not installed")
def test_make_bench_in_a_fresh_clone(tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True, timeout=60)
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "PIP_INDEX_URL", "PIP_CONFIG_FILE", "SSL_CERT_FILE", "HTTPS_PROXY")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    # The clone uses compiled code of equal sources; test_cache.py tests an empty cache.
    environment["ARISTOS_CACHE"] = str(root())
    environment["PIP_NO_COMPILE"] = "1"  # Python compiles the few modules that are imported
    command = ["make", "bench", "ARGS=signal gemm --iters 2"]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode and any(text in done.stderr for text in OFFLINE):
        pytest.skip(f"no package index can be reached: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = clone / "results"
    assert (results / "table.txt").read_text().strip()
    assert (results / "aristos-results.h5").stat().st_size > 0
    assert list((results / "plots").glob("*.png"))
    assert (results / "report.html").stat().st_size > 1 << 20
    assert "aristos-results.h5" in done.stdout

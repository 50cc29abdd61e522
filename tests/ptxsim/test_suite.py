"""A selection of numba-cuda's own tests on the machine; `python -m ptxsim.suite` runs all of them."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
pytest.importorskip("filecheck", reason="numba-cuda's tests need filecheck")
pytest.importorskip("cffi", reason="numba-cuda's tests need cffi")
from ptxsim.suite.__main__ import main, run_modules
from ptxsim.suite.table import load, rate, table

QUICK = [
    "doc_examples.test_vecadd",
    "doc_examples.test_matmul",
    "doc_examples.test_reduction",
    "doc_examples.test_sessionize",
    "doc_examples.test_cg",
    "cudapy.test_warp_ops",
    "cudapy.test_sync",
    "cudapy.test_sm",
    "cudapy.test_localmem",
    "cudapy.test_constmem",
    "cudapy.test_idiv",
    "cudapy.test_powi",
    "cudapy.test_boolean",
    "cudapy.test_forall",
    "cudapy.test_userexc",
    "cudapy.test_slicing",
]


def test_a_selection_agrees(tmp_path):
    output = tmp_path / "results.jsonl"
    output.touch()
    assert run_modules(QUICK, output, seconds=550, limit=60) == ""
    rows = load(output)
    agreeing, counted = rate(rows)
    assert counted >= 60, "numba-cuda's tests were not found"
    assert agreeing >= 0.8 * counted, [row for row in rows if row["outcome"] in ("differs", "refused", "time")]
    assert {row["module"] for row in rows if row["outcome"] == "agrees"} >= set(QUICK)


@pytest.mark.simt_suite
def test_all_agree(request, tmp_path, capsys):
    if "simt_suite" not in request.config.option.markexpr:
        pytest.skip("takes an hour or so: pytest -m simt_suite, or python -m ptxsim.suite")
    assert main(["--out", str(tmp_path)]) == 0, capsys.readouterr().out


def test_the_rate_counts_failures_but_not_libraries(tmp_path):
    """Failures of every kind count; tests that link a library or run no kernel do not."""
    kinds = ["agrees"] * 6 + ["differs", "refused", "time", "driver", "no_kernel", "skipped", "expected"]
    lines = [{"module": "m", "test": str(n), "outcome": kind, "libraries": []} for n, kind in enumerate(kinds)]
    lines.append({"module": "m", "test": "linked", "outcome": "differs", "libraries": ["nrt.cu"]})
    # Of two outcomes of a test the first one counts.
    lines.append({"module": "m", "test": "6", "outcome": "agrees", "libraries": []})
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert rate(load(path)) == (6, 9)


def test_the_table_counts_by_folder_and_names_tests_by_reason():
    row = {"libraries": [], "why": "", "reports": []}
    rows = [
        row
        | {"module": "cudapy.test_a", "test": "A::one", "outcome": "agrees", "reports": ["race: here", "race: there"]},
        row | {"module": "cudapy.test_b", "test": "B::two", "outcome": "refused", "why": "no opcode"},
        row | {"module": "cudapy.test_b", "test": "B::three", "outcome": "refused", "why": "no opcode"},
        row
        | {"module": "nrt.test_c", "test": "four", "outcome": "refused", "why": "no opcode", "libraries": ["nrt.cu"]},
    ]
    text = table(rows, {})
    assert "| cudapy | 1 |  | 2 |" in text
    assert "| nrt |  |  |  |  |  |  |  |  | 0 of 1 |" in text
    assert "- no opcode (3): cudapy.test_b: two, three; nrt.test_c: four (links a file)" in text
    assert "- race (1): cudapy.test_a: one" in text

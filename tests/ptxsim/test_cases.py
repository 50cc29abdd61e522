"""The published bugs in ptxsim/cases: each is reported as it was, and never as it was repaired."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from ptxsim import nvrtc
from ptxsim.cases import __main__ as command
from ptxsim.cases.run import FOLDER, run
from ptxsim.cases.table import CASES
from ptxsim.errors import EnvironmentProblem

pytestmark = pytest.mark.slow
try:
    nvrtc.loaded()
except EnvironmentProblem as missing:
    pytest.skip(str(missing), allow_module_level=True)

SCHEDULES = 4
# what some report must say is missing, where the published repair says it
MISSING = {
    **dict.fromkeys(
        ("fifo_head", "histogram", "norm_of_tokens", "rows_of_tiles", "warp_tree", "last_levels"), "barrier"
    ),
    **dict.fromkeys(("lock_scope", "poll_scope"), "scope"),
    **dict.fromkeys(("relaxed_start", "volatile_flags", "cheap_fence", "serial_blocks"), "fence"),
    "byte_flags": "equal sizes",
    "lost_acquire": "acquire",
    "absent_lanes": "lane",
    **dict.fromkeys(("stage_reuse", "ping_pong", "store_state", "poll_then_fetch"), "proxy fence"),
    "send_stages": "wait",
    **dict.fromkeys(
        ("never_waits", "shape_before_wait", "one_warp_waits_not", "wait_compiled_out", "read_before_wait"),
        "order of launches",
    ),
    **dict.fromkeys(("filled_late", "side_stream", "initialised_aside", "reused_memory"), "order of launches"),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_published_bug_is_reported_until_it_is_repaired(case):
    bad = [run(case, False, seed) for seed in range(SCHEDULES)]
    assert any(outcome.found for outcome in bad)
    good = [run(case, True, seed) for seed in range(SCHEDULES)]
    assert [outcome.reports for outcome in good] == [[]] * SCHEDULES
    assert all(outcome.right for outcome in good)
    if case.name in MISSING:
        assert MISSING[case.name] in {report.missing for outcome in bad for report in outcome.reports}


def test_cases_have_names_links_and_kernels_of_their_own():
    assert len(CASES) >= 25
    assert len({case.name for case in CASES}) == len({case.bug for case in CASES}) == len(CASES)
    used = set()
    for case in CASES:
        repository, number = case.bug.split("#")
        assert re.fullmatch(rf"https://github.com/{repository}/(issues|pull)/{number}", case.link)
        used |= {(case.source, kernel) for kernel in (*case.kernels, *case.plain)}
    kernels = {
        (path.name, name)
        for path in FOLDER.glob("*.cu")
        for name in re.findall(r"__global__ void (\w+)", path.read_text())
    }
    assert kernels == used


def test_the_command_prints_a_table(capsys):
    assert command.main(["--schedules", "2", "warp_tree"]) == 0
    out = capsys.readouterr().out
    assert "| warp_tree | [OP-DSL/OP2-Common#185]" in out
    assert "1 of 1 bugs reported in at least one of 2 schedules; 0 of 1 repaired kernels reported." in out
    with pytest.raises(SystemExit):
        command.main(["nothing"])
    assert "there is no case nothing; the cases are fifo_head," in capsys.readouterr().err


def test_the_page_has_every_case():
    text = (Path(__file__).resolve().parents[2] / "docs" / "ptxsim-cases.md").read_text()
    for case in CASES:
        assert f"| {case.name} | [{case.bug}]({case.link}) |" in text
        assert case.what in text

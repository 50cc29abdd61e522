"""Known reports that `ptxsim check` leaves out, and what it says it covered."""

from __future__ import annotations

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from ptxsim.command import main

pytestmark = pytest.mark.slow
PTX = """// simt: k<<<1, 64>>>(uint32[4]=5)
.version 8.0
.target sm_90
.address_size 64
.visible .entry k(.param .u64 a)
{
.reg .u64 %a; .reg .u32 %t;
ld.param.u64 %a, [a]; mov.u32 %t, %tid.x;
st.global.u32 [%a], %t;
st.global.u32 [%a+16], %t;
exit;
}
"""


def checked(capsys, folder, *args):
    code = main(["check", *args, str(folder / "k.ptx")])
    found = capsys.readouterr()
    return code, found.out.splitlines(), found.err


def test_known_reports_are_left_out_with_their_reason(tmp_path, capsys):
    (tmp_path / "k.ptx").write_text(PTX)
    code, out, _ = checked(capsys, tmp_path, "--schedules", "3")
    assert code == 1
    assert {line.partition(":")[0] for line in out[:-3]} == {"race", "out_of_bounds"}
    assert all(line.partition(" (and")[0].endswith(" [--seed 0]") for line in out[:-3])
    assert "k.ptx names no lines of its source" in out[-3]
    rules = tmp_path / "known"
    rules.write_text("# known\n\nrace  k.ptx:9  a counter that nobody reads\nmisuse other.ptx no longer there\n")
    code, out, _ = checked(capsys, tmp_path, "--suppress", str(rules), "--schedules", "3")
    assert code == 1
    assert [line.partition(":")[0] for line in out] == [
        "out_of_bounds",
        "suppressed 1",
        "suppressed 0",
        out[3].partition(":")[0],
        "covered",
        "1 report",
    ]
    assert out[1].endswith(": race k.ptx:9: a counter that nobody reads")
    assert out[4].startswith("covered: 1 kernel, 3 launches, seeds 0 to 2, 5 of 6 instructions; other inputs, ")
    rules.write_text("race k.ptx both\nout_of_bounds k.ptx:10 the array is longer\n")
    code, out, _ = checked(capsys, tmp_path, "--suppress", str(rules), "--no-stale", "--patience", "1000000")
    assert (code, out[-1]) == (0, "0 reports")


@pytest.mark.parametrize("line", ["race k.ptx", "rice k.ptx:9 why", "race"])
def test_a_rule_without_a_reason_is_refused(tmp_path, capsys, line):
    (tmp_path / "k.ptx").write_text(PTX)
    (tmp_path / "known").write_text("# one\n" + line + "\n")
    code, _, err = checked(capsys, tmp_path, "--suppress", str(tmp_path / "known"))
    assert code == 2
    assert "known:2: expected KIND FILE[:LINE] REASON" in err
    code, _, err = checked(capsys, tmp_path, "--suppress", str(tmp_path / "missing"))
    assert code == 2
    assert "cannot read" in err


SAME = """// simt: k<<<1, 64>>>(uint32[4]=5)
.version 8.0
.target sm_90
.address_size 64
.visible .entry k(.param .u64 a)
{
.reg .u64 %a; .shared .align 4 .b32 word;
ld.param.u64 %a, [a];
st.shared.u32 [word], 5;
st.global.u32 [%a], 5;
exit;
}
"""


def test_ready_rules_and_several_files(tmp_path, capsys, monkeypatch):
    """The rules for Triton leave out the same value in shared memory, of any file, but not in global memory."""
    (tmp_path / "k.ptx").write_text(SAME)
    code, out, _ = checked(capsys, tmp_path, "--suppress", "triton")
    assert code == 1
    assert [line.partition(":")[2] for line in out if line.startswith("race")] == [out[0].partition(":")[2]]
    assert "st.global" in out[0]
    assert out[1].startswith("suppressed 1: same_value_in_shared *: Triton: ")
    (tmp_path / "mine").write_text("race k.ptx:10 the same value")
    code, out, _ = checked(capsys, tmp_path, "--suppress", "triton", "--suppress", str(tmp_path / "mine"))
    assert (code, out[-1]) == (0, "0 reports")
    code, _, err = checked(capsys, tmp_path, "--suppress", "no-such-rules")
    assert code == 2
    assert "cannot read no-such-rules" in err

"""`aristos compare`: medians, ratios and intervals of two runs, what is judged and what is not, and what it refuses."""

from __future__ import annotations

import io
import json
import re

import h5py
import numpy as np
import pytest

from aristos import results
from aristos.bench.disturbance import CORE_SHARE, PAIR_SHARE
from aristos.bench.plots import choose
from aristos.cli.__main__ import main
from aristos.errors import InputError, ResultsError
from aristos.host import launch_environment
from aristos.report.compared import Comparison, compare
from aristos.report.facts import facts
from aristos.report.sides import Side
from aristos.results import Run, Table, guarded

pytestmark = pytest.mark.parallel


def layer(slower: float = 1.0, tokens=(8, 16), shape: str = "H 8 F 8", ranks: int = 2, **attributes) -> Table:
    """Calls of about 1 ms a token, on the slowest rank; the last one much longer."""
    rng = np.random.default_rng(0)
    times = 1e-3 * np.array(tokens)[:, None, None, None] * (1 + 0.01 * rng.random((len(tokens), 2, ranks, 20)))
    times[..., 0, :] *= 0.5
    times[..., -1] *= 9
    table = Table("layer", attributes={"shape": shape, **attributes})
    table.dim("tokens", list(tokens)).dim("schedule", ["bulk", "fused"]).dim("rank", range(ranks))
    table.dim("iteration", range(20))
    return table.add("call_time", ("tokens", "schedule", "rank", "iteration"), times * slower, "s")


def run(name: str, *tables: Table, **attributes) -> Run:
    return Run(name, {"isa": "avx512", "cpu": "x", "ranks": 2, "load_average": hash(name) % 9, **attributes}, [*tables])


def compared(*runs: Run) -> Comparison:
    """The first run against the others."""
    return compare(Side("a.h5", runs[:1]), Side("b.h5", runs[1:]))


def words(*runs: Run) -> set[str]:
    return {row.word for row in compared(*runs).rows}


def test_a_ratio_is_of_medians_of_the_slowest_rank_and_has_an_interval():
    found = compared(run("a", layer()), run("b", layer(1.5, tokens=(16, 32))))
    assert [row.what for row in found.rows] == ["layer: tokens 16, bulk", "layer: tokens 16, fused"]  # what both have
    for row in found.rows:
        assert row.first == pytest.approx(16e-3, rel=0.01)
        assert row.ratio == pytest.approx(1.5, rel=0.01)
        assert row.low <= row.ratio <= row.high
        assert row.high < 1.6  # one long call does not count
        assert row.word == "slower"
        assert row.regressed(0.4)
        assert not row.regressed(0.5)
    assert found.only_first == ["layer: tokens 8, bulk", "layer: tokens 8, fused"]
    assert found.only_second == ["layer: tokens 32, bulk", "layer: tokens 32, fused"]
    assert words(run("a", layer()), run("b", layer(0.9))) == {"faster"}
    assert words(run("a", layer()), run("b", layer())) == {"noise"}


def test_pairs_of_ranks_are_compared_by_the_median_over_pairs():
    def put(times, core=1.0) -> Table:
        table = Table("put").dim("origin", range(2)).dim("target", range(2)).dim("size", [8, 1 << 20], "B")
        table.dim("iteration", range(6)).add("latency", ("origin", "target", "size", "iteration"), times, "s")
        shares = np.ones((2, 2, 2, 2))
        shares[0, 1, 1, 1] = core
        return table.dim("end", ["origin", "target"]).add(
            "core_share", ("origin", "target", "end", "size"), shares, "1", PAIR_SHARE
        )

    times = np.full((2, 2, 2, 6), np.nan)
    times[0, 1], times[1, 0] = 1e-6, 3e-6
    found = compared(run("a", put(times)), run("b", put(times * 2, 0.5)))
    assert [(row.what, row.first, row.ratio, row.word, row.why) for row in found.rows] == [
        ("put: size 8 B", pytest.approx(2e-6), pytest.approx(2), "slower", ""),
        ("put: size 1 MiB", pytest.approx(2e-6), pytest.approx(2), "disturbed", "second rank 1: 50%"),
    ]


def test_unknown_shares_of_cores_mark_no_pair():
    every = Table("put").dim("origin", [0]).dim("target", [0]).dim("end", ["origin", "target"]).dim("put", range(7))
    every.add("latency", ("origin", "target", "put"), np.ones((1, 1, 7)), "s")
    every.add("share", ("origin", "target", "end"), np.full((1, 1, 2), np.nan), "1", PAIR_SHARE)
    assert words(run("a", every), run("b", every)) == {"noise"}


@pytest.mark.parametrize(
    ("coordinates", "units", "said"),
    [
        ([1.0000001, 1.0000002], "", ["n 1.0000001", "n 1.0000002"]),
        (np.array([0.1, 0.10000001], np.float32), "us", ["n 0.1 us", "n 0.10000001 us"]),
        ([1 << 20, (1 << 20) + 1, 1536], "B", ["n 1 MiB", "n 1048577 B", "n 1.5 KiB"]),
        ([np.nan, np.inf, 0.0], "B", ["n nan B", "n inf B", "n 0 B"]),
        (np.array([2**64 - 1, 2**64 - 2], np.uint64), "", [f"n {2**64 - 1}", f"n {2**64 - 2}"]),
    ],
)
def test_rows_with_nearly_equal_coordinates_are_different_rows(coordinates, units, said):
    table = Table("mine").dim("n", coordinates, units).dim("call", range(7))
    table.add("took", ("n", "call"), np.arange(1.0, len(said) + 1)[:, None] * np.ones(7), "s")
    found = compared(run("a", table), run("b", table))
    assert [row.what for row in found.rows] == [f"mine: {each}" for each in said]
    assert [row.first for row in found.rows] == list(range(1, len(said) + 1))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "calls", [[0.0] * 9, [-1.0] * 9, [0.0, 1.0, 0.0, 1.0, 1.0], [1.0, -1.0, 1.0] * 3, [1e300, 1e-300] * 5]
)
def test_calls_that_took_no_time_make_no_trouble(calls):
    table, usual = (Table("mine").dim("n", [1]).dim("call", range(len(each))) for each in (calls, range(9)))
    usual.add("took", ("n", "call"), np.ones((1, 9)), "s").dim("m", [1]).add(
        "other", ("m", "call"), np.ones((1, 9)), "s"
    )
    table.add("took", ("n", "call"), [calls], "s").dim("m", [1]).add("other", ("m", "call"), [calls], "s")
    table.variables["other"].values[:] = 1.0
    for sides in ((run("a", table), run("b", usual)), (run("a", usual), run("b", table))):
        found = compared(*sides)
        assert len(found.rows) + len(found.refused) == 2
        for row in found.rows:
            assert row.low is None or row.low <= row.high
        for each in found.refused:
            assert each == "mine: took: n 1: no ratio, because times are 0 or negative"


def test_disturbed_rows_are_not_judged():
    def busy(share: float, rows=slice(0, 1)) -> Table:
        table = layer(1.5)
        core = np.ones((2, 2, 2, 20))
        core[rows, :, 1] = share
        return table.add("core_share", ("tokens", "schedule", "rank", "iteration"), core, "1", CORE_SHARE)

    found = compared(run("a", layer()), run("b", busy(0.5)))
    assert [row.word for row in found.rows] == ["disturbed", "disturbed", "slower", "slower"]
    assert found.rows[0].why == "second rank 1: 50%"
    assert found.rows[0].low is None
    assert not found.rows[0].regressed(0.0)
    drifting = layer()
    drifting.variables["call_time"].values[..., 10:] *= 2
    assert words(run("a", drifting), run("b", layer())) == {"disturbed"}
    # of several runs, those in which the row was disturbed do not count
    found = compared(run("a", layer()), run("b", busy(0.5, slice(0, 2))), run("c", layer(1.1)))
    assert {row.word for row in found.rows} == {"slower"}
    assert found.rows[0].ratio == pytest.approx(1.1, rel=0.01)


def test_a_few_calls_are_not_judged():
    def once(calls: int) -> Table:
        return Table("mine").dim("call", range(calls)).add("took", "call", 1 + 1e-3 * np.arange(calls), "s")

    assert words(run("a", once(5)), run("b", once(9))) == {"too few calls"}
    assert words(run("a", once(6)), run("b", once(6))) == {"noise"}
    assert words(run("a", once(6)), run("b", once(3)), run("c", once(3))) == {"noise"}


def test_the_interval_of_several_runs_holds_what_changes_between_them():
    rng = np.random.default_rng(1)

    def once(level: float) -> Table:
        return Table("mine").dim("call", range(200)).add("took", "call", level + 1e-4 * rng.random(200), "s")

    levels = [1.0, 1.05, 0.97, 1.02, 0.99]
    alone = compared(run("a", once(levels[0])), run("b", once(levels[1])))
    assert [row.word for row in alone.rows] == ["slower"]
    first, second = ([run(f"{name}{i}", once(each)) for i, each in enumerate(levels)] for name in "ab")
    (row,) = compare(Side("a", tuple(first)), Side("b", tuple(second[::-1]))).rows
    assert row.word == "noise"
    assert row.low < 0.97
    assert row.high > 1.02
    assert row.calls == (1000, 1000)


def test_a_table_whose_parts_do_not_fit_is_refused():
    damaged = layer()
    damaged.dims["rank"].values = np.arange(3)
    with pytest.raises(ResultsError, match="'layer' is damaged: 'call_time' does not fit"):
        compared(run("a", damaged), run("b", layer()))


def test_facts_that_differ_are_named_with_both_values():
    first = run(
        "a",
        layer(dtype="float32"),
        commit="c1",
        started_utc="1",
        **{"options.tokens": [8], "options.out": "x", "options.watch": True},
    )
    second = run(
        "b", layer(dtype="bfloat16", isa="avx2"), isa="avx2", mpi_library="MPICH", started_utc="2", command="y"
    )
    assert facts(first, second) == {
        "commit": ("c1", "none"),
        "isa": ("avx512", "avx2"),
        "mpi_library": ("none", "MPICH"),
        "options.tokens": ("[8]", "none"),
        "layer, isa": ("none", "avx2"),
        "layer, dtype": ("float32", "bfloat16"),
    }


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (run("a", layer()), "a comparison needs two different runs, got a twice"),
        (run("b", Table("put")), "the tables of the first are layer, of the second put"),
        (run("b"), "of the second none"),
        (run("b", layer(shape="H 16 F 8")), "layer: the shape differs, 'H 8 F 8' and 'H 16 F 8'"),
        (
            run("b", layer(tokens=(4,))),
            "rows are such as layer: tokens 8, bulk in the first, layer: tokens 4, bulk in the second",
        ),
        (run("b", Table("layer", attributes={"shape": "H 8 F 8"})), "the second has no times in seconds"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(second, said):
    with pytest.raises(InputError, match=said):
        compared(run("a", layer()), second)


def test_runs_of_one_name_in_two_files_are_compared():
    found = compared(run("mine", layer()), run("mine", layer(1.5)))
    assert {row.word for row in found.rows} == {"slower"}


def test_one_table_of_other_work_leaves_the_others():
    mine = Table("mine").dim("step", range(9)).add("took", "step", np.ones(9), "s")
    found = compared(run("a", layer(), mine), run("b", layer(shape="H 1"), mine))
    assert [row.what for row in found.rows] == ["mine: all"]
    assert found.refused == ["layer: the shape differs, 'H 8 F 8' and 'H 1'"]


def test_times_in_other_units_and_texts_are_no_times():
    table = Table("mine").dim("call", range(7)).add("took", "call", np.ones(7), "ms")
    table.add("said", "call", np.array(["1"] * 7), "")
    table.variables["said"].units = "s"
    with pytest.raises(InputError, match="the first has no times in seconds; the second has no times in seconds"):
        compared(run("a", table), run("b", table))


@pytest.mark.slow
def test_a_sentence_names_a_few_of_many_rows():
    many = Table("mine").dim("n", range(3000)).dim("call", [0]).add("took", ("n", "call"), np.zeros((3000, 1)), "s")
    with pytest.raises(InputError, match=r"mine: n 7: no ratio, because times are 0 or negative; and 2992 more$"):
        compared(run("a", many), run("b", many))


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """Files: of runs with equal and with 20 % longer times, of two runs, of runs with one call, and without results."""
    for name, slower in (("first", 1.0), ("slower", 1.2), ("both", 1.0)):
        results.append(tmp_path / f"{name}.h5", run(name, layer(slower, isa="avx2"), isa=name))
    results.append(tmp_path / "both.h5", run("c", layer(1.2)))
    (tmp_path / "text.h5").write_text("no HDF5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.attrs["schema"] = "aristos-bench/9"
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file.attrs["x"] = 1
    few = Table("layer").dim("tokens", [8]).add("took", "tokens", [1.0], "s")
    for name in ("few", "few2"):
        results.append(tmp_path / f"{name}.h5", run(name, few))
    names = ("first", "slower", "both", "text", "other", "foreign", "few", "few2", "none")
    return {name: str(tmp_path / f"{name}.h5") for name in names}


def test_the_command_says_what_got_slower(files, capsys):
    assert main(["compare", files["first"], files["slower"]]) == 0
    out = capsys.readouterr().out
    assert "# first: first, no command\n# second: slower, no command\n# differs: isa: first | slower\n" in out
    assert re.search(r"^tokens 8, bulk +8\.0\d\d +9\.6\d\d +1\.200 +1\.\d{3} +1\.\d{3} +slower *$", out, re.MULTILINE)
    assert "slower layer" not in out
    assert "# Of 4 rows, 4 slower (the most +20.0 %: layer: tokens" in out
    assert main(["compare", files["both"]]) == 0
    assert "# first: both, " in capsys.readouterr().out
    assert main(["compare", files["both"], "--run", "c", "--run", "b"]) == 0
    assert "4 faster" in capsys.readouterr().out
    assert main(["compare", files["first"], files["both"], "--all"]) == 0
    assert "# second: both, c, " in capsys.readouterr().out


@pytest.mark.parametrize(("limit", "code"), [("5%", 1), ("0.05", 1), ("19%", 1), ("21%", 0), ("0.5", 0)])
def test_a_limit_judges_whole_intervals(files, limit, code, capsys):
    assert main(["compare", files["first"], files["slower"], "--regression", limit]) == code
    err = capsys.readouterr().err
    assert err.startswith("aristos compare: 4 rows slower by more than ") == bool(code)
    assert main(["compare", files["slower"], files["first"], "--regression", limit]) == 0


def test_json_has_every_row_and_nothing_else(files, capsys):
    assert main(["compare", files["first"], files["slower"], "--regression", "5%", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "aristos-compare/1"
    assert (found["ok"], found["regression"]) == (False, 0.05)
    assert (found["first"]["runs"], found["differs"]["isa"]) == (["first"], ["first", "slower"])
    row = found["rows"][0]
    assert row["row"] == {"tokens": "8", "schedule": "bulk"}
    assert (row["suite"], row["variable"], row["word"], row["regressed"]) == ("layer", "call_time", "slower", True)
    assert row["second_s"] / row["first_s"] == pytest.approx(row["ratio"])
    assert main(["compare", files["few"], files["few2"], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"][0]["low"], found["ok"]) == (None, True)
    assert main(["compare", files["few"], files["few2"], "--regression", "5%", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["ok"] is False


@pytest.mark.parametrize(
    ("names", "code", "said"),
    [
        (["first"], 2, "holds 1 run: give a second file"),
        (["first", "first"], 2, "got first twice"),
        (["first", "both", "--run", "first", "--run", "x"], 2, "--run must name one run"),
        (["first", "few"], 2, "the shape differs"),
        (["none", "both"], 3, "none.h5` writes one"),
        (["text", "first"], 3, "not an HDF5 file"),
        (["first", "other"], 3, "the results are of another version of Aristos, in the format 'aristos-bench/9'"),
        (["first", "foreign"], 3, "an HDF5 file with no schema"),
        (["few", "few2", "--regression", "5%"], 3, "no row could be judged. Of 1 row, 1 with too few calls to judge."),
    ],
)
def test_what_is_wrong_with_the_files_is_said_in_one_line(files, names, code, said, capsys):
    assert main(["compare", *(files.get(name, name) for name in names)]) == code
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["a", "b", "c"],
        ["a", "b", "--run", "x"],
        ["a", "--all"],
        ["a", "b", "--regression", "5"],
        ["a", "b", "--regression", "-1%"],
        ["a", "b", "--regression", "nan"],
        ["a", "b", "--regression", "five"],
        ["a", "b", "--out", ""],
        ["a", ""],
    ],
)
def test_wrong_words_are_refused(words):
    with pytest.raises(SystemExit) as end:
        main(["compare", *words])
    assert end.value.code == 2


@pytest.mark.parametrize("lines", [0, 1, 4, 8])
def test_a_reader_that_ends_early_is_no_regression(files, lines, monkeypatch):
    """`aristos compare ... | head`: the exit code is not 1, whichever line cannot be written."""

    class Head(io.StringIO):
        def write(self, text: str) -> int:
            super().write(text)
            if self.getvalue().count("\n") > lines:
                raise BrokenPipeError
            return len(text)

    monkeypatch.setattr(launch_environment, "unread", lambda: 141)
    monkeypatch.setattr("sys.stdout", Head())
    assert main(["compare", files["first"], files["slower"]]) == 141


def test_a_closed_stdout_is_an_error(files, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout", None)
    assert main(["compare", files["first"], files["slower"]]) == 3
    assert "stdout is closed" in capsys.readouterr().err


def test_texts_of_files_change_neither_the_terminal_nor_the_table(tmp_path, capsys):
    bad, long = "\x1b]0;owned\x07\r\n\u202e", "x" * 100_000
    for name in ("a", "b"):
        table = Table("mine").dim("n", [bad, long, "\N{WHITE SMILING FACE}"]).dim("call", range(7))
        table.add("took", ("n", "call"), np.ones((3, 7)), "s")
        results.append(tmp_path / f"{name}.h5", run(name, table, command=bad, cpu=bad + name, mpi_library=long + name))
    assert main(["compare", str(tmp_path / "a.h5"), str(tmp_path / "b.h5")]) == 0
    out = capsys.readouterr().out
    widest, escapes = max(map(len, out.splitlines())), {"\x1b", "\x07", "\r", "\u202e"} & set(out)
    assert widest < 1200
    assert not escapes
    assert len(re.findall(r" 1000\.000 +1000\.000 +1\.000 +1\.000 +1\.000 +noise", out)) == 3


def test_a_run_is_named_by_its_whole_name_or_its_first_letters(tmp_path, monkeypatch):
    monkeypatch.setattr(guarded, "trial", lambda path: "")
    for name in ("a", "ab", "b"):
        path = str(results.append(tmp_path / "r.h5", run(name, layer())))
    assert [choose(path, name).name for name in ("a", "ab", "b", None)] == ["a", "ab", "b", "b"]
    with pytest.raises(InputError, match="got ''; the file holds a, ab, b"):
        choose(path, "")


@pytest.mark.slow
def test_pictures_of_both_are_drawn_if_a_folder_is_named(files, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["compare", files["first"], files["slower"], "--out", str(tmp_path / "drawn")]) == 0
    (picture,) = (tmp_path / "drawn").glob("*.png")
    assert capsys.readouterr().out.endswith(f"{picture}\n")
    assert picture.stat().st_size > 10_000


def test_without_matplotlib_pictures_name_the_extra(files, tmp_path, capsys, monkeypatch):
    from aristos.errors import EnvironmentProblem
    from aristos.topology import drawing

    def missing():
        raise EnvironmentProblem("Matplotlib is not installed")

    monkeypatch.setattr(drawing, "pyplot", missing)
    assert main(["compare", files["first"], files["slower"], "--out", str(tmp_path / "drawn")]) == 3
    said = capsys.readouterr()
    assert "tokens 8, bulk" in said.out
    assert "Matplotlib is not installed" in said.err

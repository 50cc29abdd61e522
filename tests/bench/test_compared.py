"""`aristos compare`: medians, ratios and spreads of two runs, the facts that differ, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from aristos import results
from aristos.bench import compared
from aristos.cli.__main__ import main
from aristos.errors import InputError
from aristos.results import Run, Table

pytestmark = pytest.mark.parallel


def layer(slower: float = 1.0, tokens=(8, 16), shape: str = "H 8 F 8", ranks: int = 2, **attributes) -> Table:
    """A table of calls. On the slowest rank a call takes about 1 ms a token; the last call takes much longer."""
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


def records(first: Run, second: Run) -> list[dict]:
    sheets, _ = compared.compare(first, second)
    return [record for sheet in sheets for record in sheet.records]


def test_a_ratio_is_of_medians_of_the_slowest_rank_and_has_a_spread():
    found = records(run("a", layer()), run("b", layer(1.5, tokens=(16, 32))))
    assert [each["what"] for each in found] == ["tokens 16, bulk", "tokens 16, fused"]  # the rows that both runs have
    for each in found:
        assert each["first"] == pytest.approx(16, rel=0.01)
        assert each["ratio"] == pytest.approx(1.5, rel=0.01)
        assert each["low"] <= each["ratio"] <= each["high"]
        assert each["high"] < 1.6  # one long call does not count
        assert each["change"] == "slower"
    assert {each["change"] for each in records(run("a", layer()), run("b", layer(0.9)))} == {"faster"}
    assert {each["change"] for each in records(run("a", layer()), run("b", layer()))} == {"-"}


def test_pairs_of_ranks_are_compared_by_the_median_over_pairs():
    def put(times) -> Table:
        table = Table("put").dim("origin", range(2)).dim("target", range(2)).dim("size", [8, 1 << 20], "B")
        return table.dim("iteration", range(3)).add("latency", ("origin", "target", "size", "iteration"), times, "s")

    times = np.full((2, 2, 2, 3), np.nan)
    times[0, 1], times[1, 0] = 1e-6, 3e-6
    found = records(run("a", put(times)), run("b", put(times * 2)))
    assert [(each["what"], each["first"], each["ratio"]) for each in found] == [
        ("size 8 B", pytest.approx(2), pytest.approx(2)),
        ("size 1 MiB", pytest.approx(2), pytest.approx(2)),
    ]


def test_facts_that_differ_are_named_with_both_values():
    first = run(
        "a", layer(dtype="float32"), commit="c1", started_utc="1", **{"options.tokens": [8], "options.out": "x"}
    )
    second = run(
        "b", layer(dtype="bfloat16", isa="avx2"), isa="avx2", mpi_library="MPICH", started_utc="2", command="y"
    )
    assert compared.facts(first, second) == [
        "commit: c1 | none",
        "isa: avx512 | avx2",
        "mpi_library: none | MPICH",
        "options.tokens: [8] | none",
        "layer, isa: none | avx2",
        "layer, dtype: float32 | bfloat16",
    ]


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (run("a", layer()), "a comparison needs two different runs, got a twice"),
        (run("b", Table("put")), "the tables of the first run are layer, of the second put"),
        (run("b"), "of the second no table"),
        (run("b", layer(shape="H 16 F 8")), "layer: the shape differs, 'H 8 F 8' and 'H 16 F 8'"),
        (run("b", layer(tokens=(4,))), "layer: the runs have no row in common"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(second, said):
    with pytest.raises(InputError, match=said):
        compared.compare(run("a", layer()), second)


def test_one_table_of_other_work_leaves_the_others():
    mine = Table("mine").dim("step", range(9)).add("took", "step", np.ones(9), "s")
    sheets, refused = compared.compare(run("a", layer(), mine), run("b", layer(shape="H 1"), mine))
    assert [sheet.title for sheet in sheets] == ["mine: medians of two runs"]
    assert refused == ["layer: the shape differs, 'H 8 F 8' and 'H 1'"]


@pytest.mark.slow
def test_the_command_prints_both_medians_and_draws_both(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    first, both = str(tmp_path / "first.h5"), str(tmp_path / "both.h5")
    for path, runs in ((first, "a"), (both, "bc")):
        for name in runs:
            mine = Table("mine", attributes={"isa": "avx2"}).dim("tokens", [1, 2]).dim("iteration", range(4))
            mine.add("took", ("tokens", "iteration"), np.full((2, 4), ord(name) * 1e-3), "s")
            results.append(path, run(name, mine, isa="avx2" if name == "c" else "avx512"))
    assert main(["compare", first, both, "--out", str(tmp_path / "drawn")]) == 0
    out = capsys.readouterr().out
    assert "# first: a, no command\n# second: c, no command\n# differs: isa: avx512 | avx2\n" in out
    assert "tokens 1 97.000 99.000 1.02 1.02 1.02 slower" in " ".join(out.split())
    (picture,) = (tmp_path / "drawn").glob("*.png")
    assert out.endswith(f"{picture}\n")
    assert picture.stat().st_size > 10_000
    assert main(["compare", both, "--no-plots"]) == 0
    assert "# first: b, " in capsys.readouterr().out
    assert main(["compare", both, "--run", "c", "--run", "b", "--no-plots"]) == 0
    assert "# first: c, " in capsys.readouterr().out
    for words, code, said in (
        ([first], 2, "holds 1 run: give a second file"),
        ([first, first], 2, "got a twice"),
        ([first, both, "--run", "a", "--run", "x"], 2, "--run must name one run"),
        ([str(tmp_path / "none.h5"), both], 3, "No such file"),
    ):
        assert main(["compare", *words, "--no-plots"]) == code
        assert said in capsys.readouterr().err
    for words in ([first, both, first], [first, both, "--run", "a"]):
        with pytest.raises(SystemExit) as end:
            main(["compare", *words])
        assert end.value.code == 2


def test_without_matplotlib_the_tables_are_printed_all_the_same(tmp_path, capsys, monkeypatch):
    from aristos.bench import plots
    from aristos.errors import EnvironmentProblem

    def missing():
        raise EnvironmentProblem("Matplotlib is not installed")

    monkeypatch.setattr(plots, "_pyplot", missing)
    for name in "ab":
        results.append(tmp_path / "r.h5", run(name, layer()))
    assert main(["compare", str(tmp_path / "r.h5")]) == 0
    said = capsys.readouterr()
    assert "tokens 8, bulk" in said.out
    assert "no pictures: Matplotlib is not installed" in said.err

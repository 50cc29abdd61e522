"""The comparison's parts with packed weights: shapes, codes that quantisers find again, figures, groups of peers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import aristos

pytestmark = pytest.mark.parallel
BENCH = Path(__file__).resolve().parents[2] / "bench"
TEXTS = ("3/256/128/4/2/gated/int8", "3/256/128/4/2/gated/int4")


@pytest.fixture(autouse=True)
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make bench/ importable, as for a script in it."""
    monkeypatch.syspath_prepend(str(BENCH))


def weights_of(folder: Path, text: str, world: int = 1) -> tuple:
    """(the right outputs, rank 0's job) of a shape."""
    import jobs
    import oracle

    truth = oracle.make(folder, jobs.parse_shape(text), world, 0, folder)
    return truth, jobs.read(folder, 0)


def test_the_type_of_weights_is_in_the_text_of_a_shape() -> None:
    import jobs

    shape = jobs.parse_shape("1/2048/512/32/8/gated/int8@zipf")
    assert (shape.weights, shape.gated, shape.routing) == ("int8", True, "zipf")
    assert str(shape) == "1/2048/512/32/8 gated int8 zipf"
    assert jobs.parse_shape("1/256/128/32/8/int4").weights == "int4"
    assert jobs.parse_shape("1/256/128/32/8/gated").weights == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("decode", "--shapes", "1/256/200/4/2/gated/int4"), "H and F must be multiples of 128 with weights of int4"),
        (("decode", "--shapes", "1/256/128/4/2/gated/fp8"), "a shape must be one of"),
        (("decode", "--shapes", "int4"), "a shape must be one of"),
        (("decode", "--shapes", "1/256/128/4/2/gated"), "shapes of decode must end with /int8 or /int4"),
        (("one", "--shapes", TEXTS[0]), "shapes of one must not end with /int8 or /int4"),
        (("decode2", "--shapes", "1/256/128/3/2/gated/int8"), "a multiple of the 2 ranks"),
        (("decode", "--peers", "fused"), "peers of decode must be among int8"),
    ],
)
def test_shapes_that_a_part_cannot_run_are_refused(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import compare

    with pytest.raises(SystemExit) as end:
        compare.main(list(words))
    assert end.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("text", TEXTS)
def test_quantisers_get_the_codes_back(tmp_path: Path, text: str) -> None:
    """Quantisers find the codes of each column, and for int4 those of each group. The weights are exact in bfloat16."""
    import jobs
    import ml_dtypes
    from peers.codes import codes

    _, job = weights_of(tmp_path, text)
    kind, most = job.shape.weights, jobs.CODES[job.shape.weights]
    for name in ("up", "gate", "down"):
        weight = getattr(job, name)[1]
        assert np.array_equal(weight, weight.astype(ml_dtypes.bfloat16).astype(np.float32))
        mine, scales = codes(weight, kind)
        assert (np.abs(mine).max(), len(np.unique(mine))) == (most, 2 * most + 1)
        assert len(np.unique(scales)) > 2
        for group in (0, 128)[: 1 + (kind == "int4")]:
            found = aristos.quantise(weight, aristos.packed(kind, group=group))
            assert np.array_equal(found.values(), mine)
            assert np.array_equal(found.dequantised(), weight)
            assert np.array_equal(np.unique(found.scales), np.unique(scales))


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
def test_aristos_is_within_its_bound_and_says_what_it_read(tmp_path: Path, text: str) -> None:
    import peers
    import rounds
    from peers.aristos_layer import AristosLayer

    truth, job = weights_of(tmp_path, text)
    entry = peers.CODES[job.shape.weights]
    peer = AristosLayer(None, job, **entry.options)
    peer(1)
    m = rounds.ShapeResults(job.shape, 1, entries=dict(peers.CODES))
    m.errors, m.ran = {entry.name: truth.error(0, 1, peer.output())}, {entry.name: peers.ran(peer)}
    assert m.errors[entry.name] < 1e-2
    assert m.wrong() == []
    m.ran[entry.name]["weights"] = "fp8"
    assert m.wrong() == [entry.name]
    peer.close()


def decoded(text: str, world: int = 1, **turns: float) -> object:
    """Results of a shape: all 3 rounds of a peer took its value in `turns`, and every output is right."""
    import jobs
    import peers
    import rounds

    shape = jobs.parse_shape(text)
    m = rounds.ShapeResults(shape, world, iters=3, entries=peers.with_weights(peers.CODES, shape.weights))
    m.times = {name.replace("_", "-"): np.full((3, 3, world), turn) for name, turn in turns.items()}
    m.errors = dict.fromkeys(m.times, 4e-3)
    m.busiest = m.mean = np.full(3, 9e9)
    return m


def test_peers_that_round_rows_to_int8_are_listed_apart_and_count_for_few_tokens_only() -> None:
    import figures
    import report

    family = figures.Family("avx512", "x")
    few = decoded("16/256/128/4/2/gated/int4", int4=1.0, bf16=3.0, torch_int4=1.5, kt_int4=0.8)
    many = decoded("128/256/128/4/2/gated/int4", int4=1.0, torch_int4=1.1, kt_int4=0.8)
    eight = decoded("16/256/128/4/2/gated/int8", int8=1.0, torch_int8=2.0)
    assert list(eight.entries) == ["int8", "torch-int8", "kt-int8", "llama-int8", "bf16"]
    few.errors["kt-int4"] = 0.04
    assert few.wrong() == []
    found = [(f.what, f.reached.median, f.met) for f in figures.figures([few, many, eight], family) if f.unit == "×"]
    wide, every = "over the best peer with 16-bit rows", "over the best peer"
    assert found == [
        (f"{few.shape.name}: {wide}", 1.5, True),
        (f"{few.shape.name}: {every}", 0.8, False),
        (f"{many.shape.name}: {wide}", 1.1, False),
        (f"{eight.shape.name}: {wide}", 2.0, True),
        (f"{eight.shape.name}: {every}", 2.0, True),
    ]
    text = report.markdown("A title", [few, many, eight], [], [])
    four, rounded, last = (
        text.index(f"Weights of {start}")
        for start in (
            "int4, rows of bfloat16:",
            "int4, rows that the peer rounds to int8 (bound of its error: 5e-02):",
            "int8, rows of bfloat16:",
        )
    )
    assert four < text.index("torch int4, bfloat16 | 1500 ") < rounded < text.index("kt-kernel int4") < last
    assert text.count("kt-kernel int8") == 0


def test_a_wrong_peer_is_named_and_counts_for_no_goal() -> None:
    import figures
    import report

    m = decoded(TEXTS[1], int4=1.0, torch_int4=1.5)
    m.errors |= {"kt-int4": 0.2, "kt-raw-int4": float("nan")}
    m.ran = {"torch-int4": {"dtype": "bfloat16", "weights": "int4"}}
    assert m.wrong() == ["kt-int4", "kt-raw-int4"]
    text = report.markdown("A title", [m], figures.figures([m], figures.Family("avx512", "x")), [])
    for name in ("kt-kernel int4", "kt-kernel raw int4"):
        assert f"{name}, bfloat16 gave WRONG outputs on {TEXTS[1]} and was not timed there." in text
    m.ran["torch-int4"]["weights"] = "int8"
    said = "torch int4, bfloat16 computed in bfloat16 with weights of int8 instead of bfloat16 with weights of int4 and"
    assert said in report.markdown("A title", [m], [], [])


def test_peers_of_several_ranks_have_an_mpi_in_their_environments() -> None:
    import compare
    import environments

    for name, part in compare.PARTS.items():
        for entry in part.entries.values() if part.ranks != 1 else ():
            if entry.environment not in environments.OWN:
                wanted = (BENCH / "environments" / f"{entry.environment}.txt").read_text()
                assert "mpi4py==" in wanted, (name, entry.name)


def test_a_peer_without_an_output_is_timed_and_its_error_is_not_seen(tmp_path: Path) -> None:
    import report
    import rounds

    m = decoded(TEXTS[0], int8=1.0, llama_int8=2.0)
    del m.errors["llama-int8"]
    asked = []

    def team(method: str, name: str) -> list[dict[str, str]]:
        asked.append(method)
        return [{"dtype": "", "weights": "int8", "isa": "AVX2"}]

    rounds.check({"xllamacpp": team}, tmp_path, None, [m.entries["llama-int8"]], m)
    assert set(asked) == {"ran"}
    assert m.wrong() == []
    text = report.markdown("A title", [m], [], [])
    assert "| llama.cpp int8, bfloat16 | 2000 (4) | not seen |" in text
    assert "- llama.cpp int8, kernels for AVX2: the time of a model with 6 layers less that of one with 2" in text


def test_seconds_that_a_peer_returns_are_used_as_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import jobs
    import worker
    from barrier import Barrier

    monkeypatch.setattr(worker, "_waited", lambda: 0.0)  # other tests may use this core, and calls would be repeated
    Barrier.create(tmp_path / "barrier", 1)
    one = worker.Worker(None, 1, tmp_path / "barrier")
    one.job = jobs.ProductJob(jobs.Product(1, 1, 1), np.zeros((1, 1)), np.zeros((2, 1, 1)))
    one.peers = {"peer": lambda i: 0.25 + i}
    assert sorted(one.turn("peer", 4)) == [0.25, 0.25, 1.25, 1.25]
    assert one.turn("peer", 1) == [0.25]  # there is no call before the one that counts


@pytest.mark.slow
def test_a_small_run_of_every_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import compare

    monkeypatch.setattr(compare.signal, "signal", lambda *_: None)  # this process keeps its own signal handlers
    out = tmp_path / "compare.h5"
    words = ["--shapes", ",".join(TEXTS), "--rounds", "1", "--iters", "2", "--out", str(out)]
    assert compare.main(["decode", *words]) == 0
    (run,) = aristos.results.load(out).runs
    tables = {table.name: table for table in run.tables}
    for kind in ("int8", "int4"):
        table = tables[f"shape-3-256-128-4-2-gated-{kind}"]
        peers, errors = table.dims["peer"].values.tolist(), table.variables["error"].values
        assert peers[0] == kind
        assert np.isfinite(errors[0])
        assert errors[0] < 1e-2
        assert table.attributes["weights"] == table.attributes[f"weights_read.{kind}"] == kind

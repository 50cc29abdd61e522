"""The comparison's parts with weights of codes: shapes, the codes that quantisers get back, figures, peers apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import aristos

BENCH = Path(__file__).resolve().parents[2] / "bench"
TEXTS = ("3/256/128/4/2/gated/int8", "3/256/128/4/2/gated/int4")


@pytest.fixture(autouse=True)
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make bench/ importable, as for a script in it."""
    monkeypatch.syspath_prepend(str(BENCH))


def weights_of(folder: Path, text: str, world: int = 1) -> tuple:
    """(the truth, rank 0's job) of a shape."""
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
        (("decode", "--peers", "fused"), "peers of decode must be of int8"),
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
    """Of columns, and of int4 by groups too, from values that bfloat16 holds."""
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

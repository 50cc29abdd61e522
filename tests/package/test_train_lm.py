"""examples/train_lm.py: a language model has equal bits on any number of ranks and after a resume."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ASKED = argparse.Namespace(
    hidden=32, ffn=24, experts=4, layers=2, length=24, seed=3, pieces=2, lr=0.01, steps=4, validate=2, save=2
)


@pytest.fixture(scope="module")
def program() -> ModuleType:
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    import train_lm

    return train_lm


def test_gradients_of_the_decoder_are_those_of_finite_differences(program):
    from lm.decoder import Decoder, Shape, first_params

    shape = Shape(hidden=12, layers=2, heads=2, length=7, vocabulary=9)
    rng = np.random.default_rng(3)
    params: Any = {name: w + 0.2 * rng.standard_normal(w.shape) for name, w in first_params(shape, 0).items()}
    decoder = Decoder(shape, params)
    tokens = rng.integers(0, shape.vocabulary, shape.length + 1)
    # Matrices in the place of the MoE layers.
    mixers = 0.3 * rng.standard_normal((shape.layers, shape.hidden, shape.hidden))

    def loss(grads: Any = None) -> float:
        x, kept = decoder.embed(tokens[:-1]), []
        for layer, mixer in enumerate(mixers):
            x, rows, saved = decoder.attend(layer, x)
            kept.append((np.tanh(rows @ mixer), saved))
            x = x + kept[-1][0]
        total, dx = decoder.head(x, tokens[1:], shape.length, grads)
        if grads is not None:
            for layer in reversed(range(shape.layers)):
                y, saved = kept[layer]
                dx = decoder.attend_backward(layer, dx, (dx * (1 - y * y)) @ mixers[layer].T, saved, grads)
            decoder.embed_backward(tokens[:-1], dx, grads)
        return total / shape.length

    grads = {name: np.zeros_like(value) for name, value in params.items()}
    loss(grads)
    for name, value in params.items():
        for _ in range(3):
            at = tuple(rng.integers(0, n) for n in value.shape)
            before, either = value[at], []
            for step in (1e-6, -1e-6):
                value[at] = before + step
                either.append(loss())
            value[at] = before
            assert grads[name][at] == pytest.approx((either[0] - either[1]) / 2e-6, rel=1e-4, abs=1e-7), name


def test_texts_are_whole_files_and_batches_are_drawn_alike(program, tmp_path):
    from lm import corpus

    for i in range(21):
        (tmp_path / f"m{i:02d}.py").write_bytes(b"%02d\n" % i * 5)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "t.py").write_bytes(b"no")
    training, validation = corpus.load(tmp_path)
    assert bytes(validation) == b"19\n" * 5
    assert bytes(training).startswith(b"00\n" * 5 + b"01\n")
    assert len(training) == 20 * 15
    first = corpus.batch(training, 3, 8, 0, 7)
    assert first.shape == (3, 9)
    assert np.array_equal(first, corpus.batch(training, 3, 8, 0, 7))
    assert not np.array_equal(first, corpus.batch(training, 3, 8, 0, 8))


@pytest.mark.slow
@pytest.mark.parallel
@pytest.mark.ranks(2, timeout=300)
def test_ranks_and_a_resume_do_not_change_the_bits_of_a_model(comm, tmp_path_factory, program):
    from aristos import Checkpoint

    base = comm.bcast(tmp_path_factory.mktemp("lm") if comm.rank == 0 else None)

    def run(name: str, on: Any, **changed: Any) -> Path:
        asked = argparse.Namespace(**(vars(ASKED) | {"dense": False, "resume": False, "out": base / name} | changed))
        program.train(asked, on)
        comm.Barrier()
        return base / name / "model"

    whole = run("two ranks", comm)
    run("stopped", comm, steps=2)
    parts = [whole, run("stopped", comm, resume=True)]
    parts.append(run(f"alone {comm.rank}", None))
    files = [(path / "model.safetensors").read_bytes() for path in parts]
    assert files[0] == files[1] == files[2]
    losses = [np.load(path.parent / "curves.npz") for path in parts]
    for name in ("loss", "validation", "loads"):
        for other in losses[1:]:
            assert np.array_equal(losses[0][name], other[name], equal_nan=name == "validation"), name
    assert losses[0]["loss"][-1] < losses[0]["loss"][0]
    assert losses[0]["loads"].sum() == ASKED.steps * ASKED.layers * ASKED.pieces * 4 * ASKED.length * 2
    assert Checkpoint(whole).model_type == "qwen3_moe"
    written_alike(whole, comm)


def written_alike(model: Path, comm: Any) -> None:
    """Bytes of text, and the last logits, are those of one rank. If ranks outnumber prompts, some have none."""
    import generate

    prompts = [list(b"def "), list(b"import os\n"), list(b"x")]
    alone = {s.number: s for s in generate.generate(model, prompts, 4, None, "bfloat16")}
    for sequence in generate.generate(model, prompts, 4, comm, "bfloat16"):
        assert bytes(sequence.tokens) == bytes(alone[sequence.number].tokens)
        assert sequence.logits.tobytes() == alone[sequence.number].logits.tobytes()


@pytest.mark.slow
@pytest.mark.ranks(4, timeout=300)
def test_text_has_equal_bytes_on_four_ranks(comm, tmp_path_factory, program):
    base = comm.bcast(tmp_path_factory.mktemp("lm") if comm.rank == 0 else None)
    asked = argparse.Namespace(
        **(vars(ASKED) | {"dense": False, "resume": False, "out": base, "steps": 1, "pieces": 4})
    )
    program.train(asked, comm)
    comm.Barrier()
    written_alike(base / "model", comm)


def test_a_dense_model_has_one_expert_of_equal_flops_and_writes_text(program, tmp_path, monkeypatch, capsys):
    import generate

    asked = argparse.Namespace(**vars(ASKED), dense=True, resume=False, out=tmp_path)
    asked.steps = 1
    program.train(asked, None)
    with np.load(tmp_path / "curves.npz") as file:
        assert file["loads"].shape == (1, ASKED.layers, 1)
    program.picture.draw([tmp_path, tmp_path], tmp_path / "both.png")
    assert (tmp_path / "both.png").stat().st_size > 10_000
    monkeypatch.setattr(sys, "argv", ["generate.py", str(tmp_path / "model"), "--text", "def f(", "--new", "3"])
    generate.main()
    assert "--- text 0\ndef f(" in capsys.readouterr().out


def test_pieces_that_ranks_cannot_share_are_refused(program):
    class Three:
        rank, size = 0, 3

    with pytest.raises(SystemExit, match="multiple of the 3 ranks, got 4"):
        program.Trainer(program.Shape(), Three(), 4, 0.01, 0)
    assert replace(program.Shape(), hidden=64).size == 16

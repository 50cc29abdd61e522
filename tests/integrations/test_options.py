"""Options for models of transformers: from the environment, and for timelines."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from cases import PATIENCE, ROOT
from hf_models import experts_of, on_ranks, opened, small

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
IDS = torch.arange(7).reshape(1, 7)
MODULES = {f"model.layers.{layer}.mlp.experts.json" for layer in range(2)}


def chosen(text: str) -> subprocess.CompletedProcess[str]:
    """Run a program that prints its current options. text: the options in its environment."""
    code = "from aristos.integrations import options, transformers; print(options.current())"
    env = os.environ | {"ARISTOS_OPTIONS": text}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def test_options_of_the_environment():
    done = chosen('{"max_tokens": 9, "threads": 2, "weight_dtype": "int8"}')
    assert "max_tokens=9" in done.stdout, done.stderr
    assert "layer={'threads': 2}, config={'weight_dtype': 'int8'" in done.stdout


@pytest.mark.parametrize("text", ["threads=2", "[1]", '{"comm": 1}', '{"thread": 2}', '{"max_tokens": 0}'])
def test_wrong_options_in_the_environment_are_refused(ours, monkeypatch, text):
    from aristos.errors import InputError
    from aristos.integrations.options import from_environment

    monkeypatch.setenv("ARISTOS_OPTIONS", text)
    with pytest.raises(
        InputError, match=r"ARISTOS_OPTIONS must be a JSON object|takes only the arguments|max_tokens must be"
    ):
        from_environment()


def test_options_reach_the_layers(ours, tmp_path):
    """Options of the model's configuration reach the layers too."""
    given = {"threads": 2, "moves": "tokens", "schedule": "bulk", "timeout": PATIENCE}
    ours.options(max_tokens=5, precision="high", train=False, **given)
    model = opened(small("mixtral", tmp_path), "aristos").train()
    with torch.no_grad():
        model(IDS)
    moe = vars(experts_of(model)[0])["_aristos"].moe
    assert (moe.threads, moe.schedule, moe.timeout) == (2, "bulk", PATIENCE)
    assert "train" not in repr(moe)
    assert (moe.cfg.max_tokens, moe.cfg.precision) == (5, "high")
    ours.close(model)


def rows_of(events: list[dict]) -> int:
    """How many rows experts have computed."""
    return sum(each["args"]["rows"] for each in events if each.get("cat") == "expert" and each["ph"] == "X")


def test_the_last_call_of_each_layer_is_written_at_the_end(ours, tmp_path):
    ours.options(max_tokens=16, threads=1, timeout=PATIENCE, timeline=tmp_path / "calls")
    model = opened(small("mixtral", tmp_path), "aristos")
    with torch.no_grad():
        model(IDS[:, :3])
        model(IDS)
    top_k = vars(experts_of(model)[0])["_aristos"].moe.cfg.top_k
    ours.close(model)
    files = list((tmp_path / "calls").iterdir())
    assert {file.name for file in files} == MODULES
    for file in files:
        assert rows_of(json.loads(file.read_text())["traceEvents"]) == 7 * top_k


def test_after_training_the_last_forward_calls_are_written(ours, tmp_path):
    ours.options(max_tokens=16, threads=1, timeout=PATIENCE, timeline=tmp_path / "calls")
    model = opened(small("mixtral", tmp_path), "aristos").train()
    model(IDS, labels=IDS).loss.backward()
    ours.close(model)
    assert {file.name for file in (tmp_path / "calls").iterdir()} == MODULES


@pytest.mark.ranks(2, timeout=120)
def test_one_file_has_all_ranks(comm, tmp_path):
    ours, folder = on_ranks(comm, tmp_path, "mixtral")
    ours.options(max_tokens=8, threads=1, comm=comm, timeout=PATIENCE, timeline=folder / "calls")
    model = opened(folder, "aristos").train()
    model(IDS, labels=IDS).loss.backward()
    with torch.no_grad():
        model(IDS)
    ours.close(model)
    comm.Barrier()
    assert {file.name for file in (folder / "calls").iterdir()} == MODULES
    for file in (folder / "calls").iterdir():
        assert {each["pid"] for each in json.loads(file.read_text())["traceEvents"]} == {0, 1}

"""docs/layer.md and docs/training.md: examples run in order; every public method and option is named."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import aristos

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, TRAINING = ((DOCS / name).read_text() for name in ("layer.md", "training.md"))


def run_examples(page: str, **names: object) -> None:
    """Run the page's examples in order in one namespace. Those for ranks run only with a communicator."""
    for example in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        if "comm" in names or "comm.Dup()" not in example:
            exec(compile(example, "docs", "exec"), names)


def test_the_examples_run_in_order(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # one example saves files
    run_examples(PAGE)
    assert "calls: " in capsys.readouterr().out
    run_examples(TRAINING)


@pytest.mark.ranks(2)
def test_the_examples_run_on_two_ranks(comm):
    run_examples(PAGE.replace("comm=None", "comm=comm").replace("Exchange(None", "Exchange(comm"), comm=comm)


def test_the_page_names_every_public_method_and_option():
    for public in (aristos.MoE, aristos.Exchange):
        for name, _ in inspect.getmembers(public, inspect.isfunction):
            if not name.startswith("_") and name not in ("packed_weights", "synchronize"):
                assert re.search(rf"\b{name}\b", PAGE), name
    for config in (aristos.MoEConfig, aristos.Router):
        for name in inspect.signature(config).parameters:
            assert f"{name}" in PAGE, name
    for name in ("placement.mine", "ranks_per_node", "CallStats", "local=True", "layout="):
        assert name in PAGE, name

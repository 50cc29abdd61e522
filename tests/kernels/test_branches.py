"""If a table names an activation or a score without a function, importing each implementation fails."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from cases import ROOT, clean_environment

from aristos import config
from aristos.kernels.common.branches import implementations, unrolled
from kernel_cache import sources


def three(x):
    return 3 * x


def one(x):
    return x


def test_a_name_without_a_function_is_refused():
    with pytest.raises(ImportError, match=f"{__name__} has no function for four, which config.py names"):
        implementations({"one": 0, "three": 1, "four": 2}, globals())


def test_an_imported_function_of_the_name_is_refused():
    """A score named softplus would else take the helper of that name, which activations.py has."""
    with pytest.raises(ImportError, match=f"{__name__} has no function for unrolled"):
        implementations({"one": 0, "unrolled": 1}, globals())


def test_each_function_has_a_branch():
    chosen = unrolled("chosen", "x", "return case(x)", implementations({"one": 7, "three": 1}, globals()), globals())
    assert (chosen(7, 5), chosen(1, 5)) == (5, 15)
    assert chosen.__code__.co_filename == __file__


@pytest.fixture
def copy(tmp_path) -> Path:
    shutil.copytree(ROOT / "aristos", tmp_path / "aristos", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


ENTRIES = {
    "activation": ('"swiglu_oai": ', '"unheard": ActivationRule(5), "swiglu_oai": '),
    "score": ('"softmax": ScoreRule(0', '"unheard": ScoreRule(2), "softmax": ScoreRule(0'),
    "format": ('"mxfp4": Format(', '"unheard": Format(6, (64,), _FLOATS), "mxfp4": Format('),
    "valued score": ('"softmax": ScoreRule(0', '"unheard": ScoreRule(2, valued=True), "softmax": ScoreRule(0'),
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_a_table_entry_without_its_function_fails(copy, kind):
    """The import fails for CPUs, for CUDA and for the reference. So none of them computes another function instead."""
    source = copy / "aristos" / ("weight_types.py" if kind == "format" else "config.py")
    text = source.read_text()
    assert text.count(ENTRIES[kind][0]) == 1
    source.write_text(text.replace(*ENTRIES[kind]))
    modules = {
        "activation": ["kernels.cpu.elementwise", "kernels.cuda.epilogue", "reference"],
        "score": ["kernels.common.scores", "kernels.cuda.router", "reference"],
        "format": ["kernels.cpu.packed"],
        "valued score": ["kernels.common.scores", "reference", "losses"],
    }
    for module in modules[kind]:
        done = subprocess.run(
            [sys.executable, "-c", f"import aristos.{module}"],
            cwd=copy,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode != 0
        assert "unheard" in done.stderr or "numba-cuda" in done.stderr


@pytest.mark.parametrize("module", ["combine", "epilogue", "gemm", "put_probe", "put_signal", "router"])
def test_a_cuda_kernel_imports_the_lowerings_that_it_calls(module):
    """A kernel without the lowerings of `primitives.memory` compiles only if another module has imported them."""
    files = sources.files(ROOT / "aristos" / "kernels" / "cuda" / f"{module}.py")
    assert "memory_lowering.py" in {file.name for file in files}


def test_the_types_of_activations_and_scores_name_the_tables():
    assert get_args(config.Activation) == tuple(config.ACTIVATIONS)
    assert get_args(config.Score) == tuple(config.SCORES)
    assert get_args(config.ValuedScore) == config.BIASED
    assert [rule.code for rule in config.ACTIVATIONS.values()] == list(range(len(config.ACTIVATIONS)))
    assert list(config.SCORES.values()) == list(range(len(config.SCORES)))

"""Fixtures: the module under test with the options of tests, and a model with real weights."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from cases import PATIENCE, ROOT, clean_environment


@pytest.fixture
def ours():
    """The module. After the test its options are the defaults again."""
    found = importlib.import_module("aristos.integrations.transformers")
    found.options(max_tokens=16, threads=1, timeout=PATIENCE)
    yield found
    found.options()


@pytest.fixture(scope="session")
def real_model(tmp_path_factory) -> tuple[Path, str]:
    """Run examples/upcycle.py: (its directory, its stdout). The model is SmolLM2-135M-Instruct, as four experts."""
    from hf_models import needs_real_weights

    needs_real_weights()
    folder = tmp_path_factory.mktemp("real") / "model"
    command = [sys.executable, "examples/upcycle.py", folder, "--experts", "4"]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, done.stdout

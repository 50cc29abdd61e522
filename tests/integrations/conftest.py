"""The module under test, with the options of a test."""

from __future__ import annotations

import importlib

import pytest
from cases import PATIENCE


@pytest.fixture
def ours():
    """The module; its options are the defaults again after the test."""
    found = importlib.import_module("aristos.integrations.transformers")
    found.options(max_tokens=16, threads=1, timeout=PATIENCE)
    yield found
    found.options()

"""docs/tutorials/transformers-model.md: followed as a reader does, and its commands print what it says."""

from __future__ import annotations

from pathlib import Path

import pages
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install '.[transformers]'")
pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[transformers]'")
pytestmark = pytest.mark.slow
PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "transformers-model.md"


def test_the_tutorial(tmp_path):
    assert pages.follow(PAGE, tmp_path) == 4

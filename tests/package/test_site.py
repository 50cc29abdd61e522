"""The site of the documentation: its table of contents has every page, and Sphinx builds it without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_every_page_has_one_place_in_the_contents():
    index = (ROOT / "docs" / "index.md").read_text()
    docs, lists = ROOT / "docs", re.findall(r"```{toctree}\n(.*?)```", index, re.DOTALL)
    pages = [line for each in lists for line in each.splitlines() if line and not line.startswith(":")]
    found = sorted(str(path.relative_to(docs).with_suffix("")) for path in docs.glob("**/*.md"))
    assert sorted([*pages, "index"]) == found


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="Sphinx is not installed: pip install --group docs")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "objects.inv").exists()
    text = (tmp_path / "api.html").read_text()
    for name in ("aristos.MoE", "aristos.MoEConfig", "aristos.train.Adam", "aristos.planner.solve"):
        assert f'id="{name}"' in text, name

"""The tables of docs/layer.md list the scores, activations and formats of codes that the code declares."""

from __future__ import annotations

import re
from pathlib import Path

from aristos.config import ACTIVATIONS, BIASED, SCORES
from aristos.weight_types import FORMATS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "layer.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the table rows under a heading whose first cell names something."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = re.findall(r'^\| (`".*) \|$', section, re.MULTILINE)
    return [[cell.strip() for cell in line.split(" | ")] for line in lines]


def names(heading: str) -> list[str]:
    return [name for row in rows(heading) for name in re.findall(r'`"(\w+)"`', row[0])]


def test_scores():
    assert names("Routers") == list(SCORES)
    sentence = re.search(r"Groups and `select_bias` need the score ([\w, ]+)\.", PAGE)
    assert sentence is not None
    assert re.split(", | or ", sentence[1]) == list(BIASED)


def test_activations():
    assert sorted(names("Configuration")) == sorted(ACTIVATIONS)


def test_formats_of_codes():
    assert names("Packed weights") == list(FORMATS)
    for row, form in zip(rows("Packed weights"), FORMATS.values()):
        groups = [int(group) for group in re.sub(r"\(.*?\)", "", row[2]).split(",")]
        assert groups == list(form.groups)
        assert tuple(row[3].split(", ")) == form.scales
        assert (row[4] != "no") == form.zeros

"""Tables of docs/layer.md, and docstrings, list the scores, activations and formats of codes that the code declares."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from aristos import losses, quantised
from aristos.config import ACTIVATIONS, BIASED, SCORES, MoEConfig, Router
from aristos.weight_types import FORMATS, packed

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "layer.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the tables under a heading, without rows whose first cell has no name in backticks."""
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


@pytest.mark.parametrize(
    ("documented", "start", "end", "table"),
    [
        (Router, "score : ", "renormalize : ", SCORES),
        (losses.sequence, "score : ", "lengths : ", BIASED),
        (MoEConfig, "activation : ", "gated : ", ACTIVATIONS),
        (MoEConfig, "weight_dtype : ", "levels : ", FORMATS),
        (packed, "name : ", "group : ", FORMATS),
    ],
)
def test_a_docstring_names_each(documented: Any, start: str, end: str, table: Any):
    """The text of one parameter quotes each name, and no other."""
    text = re.split(rf"\n *{end}", re.split(rf"\n *{start}", documented.__doc__)[1])[0]
    assert set(re.findall(r'"(\w+)"', text)) == set(table)


def test_the_docstring_of_codes_names_each_format():
    text = re.split(r"\n *scales : ", re.split(r"\n *codes : ", quantised.Quantised.__doc__ or "")[1])[0]
    assert set(FORMATS) <= set(re.findall(r"\w+", text))

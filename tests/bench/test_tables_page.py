"""docs/tables.md explains every column of every suite."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

from aristos.bench import suites, tables
from aristos.bench.context import Column

pytestmark = pytest.mark.parallel
PAGE = " ".join((Path(__file__).parents[2] / "docs" / "tables.md").read_text().split())
MODULES = [module.name for module in pkgutil.iter_modules(suites.__path__)]


def columns(name: str) -> list[str]:
    """Titles of all sheets of a suite's module, on one line."""
    values = vars(importlib.import_module(f"aristos.bench.suites.{name}")).values()
    found = [c for v in values if isinstance(v, tuple) for c in v if isinstance(c, Column)]
    return [each.title.replace("-\n", "").replace("\n", " ") for each in [*found, tables.DISTURBED]]


@pytest.mark.parametrize("name", MODULES)
def test_every_column_is_explained(name):
    titles = columns(name)
    assert len(titles) > 4
    missing = [title for title in titles if f"*{title}*" not in PAGE]
    assert not missing, f"docs/tables.md does not explain {missing} of {name}"

"""docs/tutorials/ and docs/howto/: each page is followed as a reader does, and its commands print what it says."""

from __future__ import annotations

from pathlib import Path

import pages
import pytest
from pages import Typed

pytestmark = pytest.mark.parallel
DOCS = Path(__file__).resolve().parents[2] / "docs"
ELSEWHERE = {"transformers-model": "tests/integrations/test_tutorial.py: needs torch"}
PAGES = {page.stem: page for folder in ("tutorials", "howto") for page in sorted((DOCS / folder).glob("*.md"))}
HERE = [name for name in PAGES if name not in ELSEWHERE]
NEEDS = {"gpu-kernel": "numba_cuda"} | dict.fromkeys(
    ("language-model", "straggler", "timeline", "bench-suite"), "matplotlib"
)


@pytest.mark.slow
@pytest.mark.parametrize("name", HERE)
def test_a_page(name, tmp_path):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    assert pages.follow(PAGES[name], tmp_path)


def test_what_is_printed_is_compared():
    pages.compare(Typed("x", ("rank 1: 2 rows", "rank 0: ... rows")), "rank 0: 14 rows\nrank 1: 2  rows\n")
    pages.compare(Typed("x", ("...", "last")), "first\nlast\n")
    pages.compare(Typed("x", ()), "not shown by the page\n")
    for printed, shown in (
        ("rank 0: 14 rows\n", ("rank 0: 15 rows",)),
        ("one\n", ("one", "one")),
        ("one\ntwo\n", ("one",)),
        ("", ("...", "one")),
    ):
        with pytest.raises(AssertionError):
            pages.compare(Typed("x", shown), printed)


def test_a_page_is_followed_in_order(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\n# a.py\nimport sys\nsys.exit(3)\n```\n```console\n$ python a.py  # exit code 3\n$ echo b\nb\n```\n"
    )
    (tmp_path / "one").mkdir()
    assert pages.follow(page, tmp_path / "one") == 2
    page.write_text(page.read_text().replace("code 3", "code 2"))
    (tmp_path / "two").mkdir()
    with pytest.raises(AssertionError, match="exit code 3"):
        pages.follow(page, tmp_path / "two")

"""The documents name files, links, tests and functions that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pages
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("aristos", "bench", "docs", "examples", "kernel_cache", "launch", "packaging", "ptxsim", "tests")
DOCUMENTS = sorted(
    file
    for glob in ("*.md", "docs/**/*.md", "tests/*.md", "bench/**/*.md", "packaging/*.md")
    for file in ROOT.glob(glob)
)

FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"(?:[\w.-]+/)*[\w.-]+\.(?:py|md|sh|def|sbatch|toml)|(?:[\w.-]+/)+")
NAMES = re.compile(r"`([\w./-]+\.py)` \(((?:`\w+`,? ?)+)\)")  # `engine/steps.py` (`poison`, `decide`)

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def prose(document: Path) -> str:
    """The text of a page without blocks of code."""
    return FENCE.sub("", document.read_text())


def paths(document: Path) -> list[tuple[str, str]]:
    """(path, test name or "") of every path in backticks that belongs to this repository."""
    found = []
    for quoted in CODE.findall(prose(document)):
        path, _, test = quoted.partition("::")
        if PATH.fullmatch(path) and ours(path):
            found.append((path, test))
    return found


def ours(path: str) -> bool:
    """Whether a path starts with a folder of the repository or of the package."""
    first, slash, _ = path.partition("/")
    return bool(slash) and (first in FOLDERS or (ROOT / "aristos" / first).is_dir())


def located(path: str) -> list[Path]:
    """The files and folders that a path names, from the repository's root, or in short, like `engine/steps.py`."""
    exact = [base / path for base in (ROOT, ROOT / "aristos") if (base / path).exists()]
    return exact or [file for folder in FOLDERS for file in (ROOT / folder).rglob(path) if "/" not in path]


def functions(file: Path) -> set[str]:
    nodes = ast.walk(ast.parse(file.read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def test_a_path_that_does_not_exist_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("`engine/nothing.py`, `aristos/engine/steps.py`, `tests/engine/nothing.py::test_x`, `a/b.py`")
    assert [path for path, _ in paths(page) if not located(path)] == ["engine/nothing.py", "tests/engine/nothing.py"]


@each_document
def test_paths_in_backticks_exist(document):
    missing = sorted({path for path, _ in paths(document) if not located(path)})
    assert not missing, f"{document.relative_to(ROOT)} names files that do not exist: {', '.join(missing)}"


@each_document
def test_file_names_in_backticks_exist(document):
    names = {name for name in CODE.findall(prose(document)) if re.fullmatch(r"\w+\.py", name)}
    names -= set(pages.programs(document.read_text()))  # which the page itself has
    missing = sorted(name for name in names if not located(name))
    assert not missing, f"{document.relative_to(ROOT)} names files that do not exist: {', '.join(missing)}"


@each_document
def test_named_tests_exist(document):
    for path, test in paths(document):
        if test:
            (file,) = located(path)
            name = test.partition("[")[0]
            assert name in functions(file), f"{document.relative_to(ROOT)} names {path}::{name}, which is no test"


@each_document
def test_names_after_a_file_occur_in_it(document):
    for path, names in NAMES.findall(prose(document)):
        text = "\n".join(file.read_text() for file in located(path))
        missing = [name for name in CODE.findall(names) if not re.search(rf"\b{name}\b", text)]
        assert not missing, f"{document.relative_to(ROOT)}: {path} does not contain {', '.join(missing)}"


@each_document
def test_relative_links_lead_to_files(document):
    links = [link.partition("#")[0] for link in LINK.findall(CODE.sub("", prose(document))) if "://" not in link]
    missing = sorted({link for link in links if link and not (document.parent / link).exists()})
    assert not missing, f"{document.relative_to(ROOT)} links to files that do not exist: {', '.join(missing)}"


def anchors(document: Path) -> set[str]:
    """The anchors of a page that a link may name: its headings, as GitHub writes them, and its `id`s."""
    text = prose(document)
    headings = [heading.lower() for heading in re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE)]
    found = {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}
    return found | set(re.findall(r'<a (?:id|name)="([^"]+)"', text))


@each_document
def test_links_to_headings_lead_to_headings(document):
    missing = []
    for link in LINK.findall(CODE.sub("", prose(document))):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if anchor and "://" not in link and target.suffix == ".md" and anchor not in anchors(target):
            missing.append(link)
    assert not missing, f"{document.relative_to(ROOT)} links to headings that do not exist: {', '.join(missing)}"


def test_named_decisions_exist():
    decisions = (ROOT / "docs" / "decisions.md").read_text()
    known = set(re.findall(r"^## (\d+)\.", decisions, re.MULTILINE))
    named = {n for page in DOCUMENTS for n in re.findall(r"\[decisions? (\d+)", page.read_text())}
    named |= set(re.findall(r" \((\d+)\)", decisions))
    for path in (
        *ROOT.glob("aristos/**/*.py"),
        *ROOT.glob("tests/*.py"),
        *ROOT.glob("bench/*.py"),
        *ROOT.glob("launch/*"),
    ):
        if path.is_file():
            named |= set(re.findall(r"docs/decisions\.md, (\d+)", path.read_text()))
    assert named
    assert named <= known, f"docs/decisions.md has no {', '.join(sorted(named - known, key=int))}"


def deliberate_bugs() -> dict[str, int]:
    """How many mutations of the explorer each of its files has."""
    found: dict[str, int] = {}
    for file in sorted((ROOT / "tests" / "explore" / "bugs").glob("mutations*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            for call in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "mutation":
                    found[file.name] = found.get(file.name, 0) + 1
    return found


def test_one_document_counts_the_deliberate_bugs():
    bugs = deliberate_bugs()
    assert sum(bugs.values()) > 50
    reliability = (ROOT / "docs" / "reliability.md").read_text()
    table = re.findall(r"^\| .*?`(mutations\w*\.py)` \| (\d+) \|", reliability, re.MULTILINE)
    assert {name: int(count) for name, count in table} == bugs, "docs/reliability.md counts the bugs of each file"
    counts = [(page.name, n) for page in DOCUMENTS for n in re.findall(r"(\d+)\s+deliberate bugs", page.read_text())]
    assert counts == [("reliability.md", str(sum(bugs.values())))], "docs/reliability.md alone counts them"

"""Words that the glossary replaces do not come back: in code, comments, messages, tests and documents."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTEAD = {  # a pattern, and what to write
    r"cards?": "GPU, or device",
    r"told|tells": "reports, returns, notifies, records",
    r"hears?|heard": "reads, receives, reacts to",
    r"in vain": "idle poll; found nothing",
    r"pacers?|pacing": "progress thread",
    r"mend(?:s|ed|ing)?": "fix",
    r"whoever|by whom|to whom|for who|of whom": "name the rank, thread, process or caller",
    r"made anew|anew": "rebuilt; again",
    r"look(?:s|ed|ing)? after": "serves, polls",
}
PATTERN = re.compile(r"(?<![A-Za-z-])(?:" + "|".join(f"({p})" for p in INSTEAD) + r")(?![A-Za-z-])", re.I)
ALLOWED = re.compile(  # names in stored files and printed tables, and plain English
    r"""class/infiniband|Grandmother|tells? apart"""
)
HERE = Path(__file__).resolve()


def texts() -> list[Path]:
    """The repository's texts; where there is no git, the files of the package, its tests and documents."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    if listed.returncode == 0:
        files = [ROOT / name for name in listed.stdout.splitlines()]
    else:
        files = [
            file
            for folder in ("aristos", "bench", "docs", "kernel_cache", "ptxsim", "tests")
            for file in (ROOT / folder).rglob("*")
        ]
    kinds = {".py", ".md", ".toml", ".sh", ".sbatch"}
    return [f for f in files if f.suffix in kinds and f.is_file() and f != HERE]


@pytest.mark.parametrize(
    "word", ["the card is full", "whoever waits", "looked in vain", "it is told", "mended", "on_card"]
)
def test_a_replaced_word_is_found(word):
    assert PATTERN.search(word)


@pytest.mark.parametrize("word", ["discard", "card-carrying", "together", "recommend", "foretelling"])
def test_other_words_are_not(word):
    assert not PATTERN.search(word)


def test_no_replaced_words():
    found = []
    for file in texts():
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            for match in () if ALLOWED.search(line) else PATTERN.finditer(line):
                advice = list(INSTEAD.values())[match.lastindex - 1] if match.lastindex else ""
                found.append(f"{file.relative_to(ROOT)}:{number}: {match[0]!r}: write {advice}")
    assert not found, f"{len(found)} words, the first of them:\n" + "\n".join(found[:40])

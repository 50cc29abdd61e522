"""Simulates weak and strong scaling of three models to 256 ranks, and writes the tables of docs/scaling.md.

Each table is what one command prints as JSON; the command stands above it. All use examples/machine.yaml, so the
figures are the same on every computer. If expressions are given, only the commands in which one of them is
found are run.

Exit codes: 0 written, 1 a command failed, 2 a usage error.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from aristos.primitives.aside import write_text

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "scaling.md"
PART = re.compile(r"(<!-- (?P<command>aristos simulate .*?) -->\n).*?(<!-- end -->\n)", re.DOTALL)
CHANGES = {"base": "fused", "schedule=bulk": "bulk"}


def rounded(value: float) -> str:
    """Three significant digits."""
    return f"{float(f'{value:.3g}'):,g}"


def table(found: dict[str, Any]) -> list[str]:
    """The lines of a table: a row for each number of nodes, with what fused and bulk take."""
    rows: dict[int, dict[str, dict[str, Any]]] = {}
    for row in found["points"]:
        rows.setdefault(row["nodes"], {})[CHANGES[row["change"]]] = row
    lines = [
        "| nodes | ranks | tokens a rank | fused, ms | efficiency | idle | wire | bulk, ms | efficiency | bulk / fused"
        " | busiest / mean rows | puts a rank | protocol, KiB a rank | decisions a rank | us of a decision | binds |",
        "|---" * 16 + "|",
    ]
    for nodes, by in rows.items():
        fused, bulk = by["fused"], by["bulk"]
        cells = [
            nodes,
            fused["ranks"],
            fused["tokens"],
            rounded(fused["call_ms"]),
            f"{fused['efficiency']:.0%}",
            f"{fused['idle']:.0%}",
            f"{fused['wire']:.0%}",
            rounded(bulk["call_ms"]),
            f"{bulk['efficiency']:.0%}",
            f"{bulk['call_ms'] / fused['call_ms']:.2f}",
            f"{fused['rows_over_mean']:.2f}",
            f"{fused['puts']:,.0f}",
            f"{fused['protocol_kib']:,.0f}",
            f"{fused['decisions']:,.0f}",
            f"{fused['decision_us']:.2f}",
            fused["binds"],
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def part(match: re.Match[str]) -> str:
    """A part of the page, with the figures of a new run."""
    command = match["command"]
    print(command, flush=True)
    words = [sys.executable, "-m", "aristos", *command.split()[1:], "--json"]
    ran = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(ran.stdout)
    return "\n".join(
        [match[1].rstrip(), "", f"`{command}`, {found['seconds']:.0f} s:", "", *table(found), "", match[3]]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="run only commands in which one of these expressions is found")
    asked = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    for match in list(PART.finditer(text)):
        if asked.words and not any(re.search(word, match["command"]) for word in asked.words):
            continue
        try:
            text = text.replace(match[0], part(match))
        except subprocess.CalledProcessError as why:
            print(f"bench/scaling.py: exit code {why.returncode}: {match['command']}", file=sys.stderr)
            return 1
        write_text(PAGE, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

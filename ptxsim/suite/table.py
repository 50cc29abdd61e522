"""The outcomes of numba-cuda's tests, as counts and a table."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

COUNTED = ("agrees", "differs", "refused", "time")
OUTCOMES = (*COUNTED, "driver", "no_kernel", "skipped", "expected")


def load(path: Path) -> list[dict[str, Any]]:
    """The recorded lines, one for each test.

    Of a test with several lines (failures in its call and afterwards) only the first line counts.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows.setdefault((row["module"], row["test"]), row)
    return list(rows.values())


def counts_in(row: dict[str, Any]) -> bool:
    """Whether a test counts for the rate: its kernels ran or failed, and link no library besides libdevice."""
    return row["outcome"] in COUNTED and not row["libraries"]


def rate(rows: list[dict[str, Any]]) -> tuple[int, int]:
    """(tests that agree, tests that count)."""
    counted = [row for row in rows if counts_in(row)]
    return sum(row["outcome"] == "agrees" for row in counted), len(counted)


def table(rows: list[dict[str, Any]], broken: dict[str, str]) -> str:
    """Markdown with the counts by folder, then the tests that do not agree, by reason. results.jsonl has every test.

    broken: why modules did not run to their ends.
    """
    agreeing, counted = rate(rows)
    asking = sum(row["outcome"] == "driver" and not row["libraries"] for row in rows)
    lines = [
        f"{agreeing} of {counted} tests whose kernels use no library beyond libdevice agree "
        f"({100 * agreeing / max(counted, 1):.1f} %);",
        f"{agreeing} of {counted + asking} if those that ask for a driver count.",
        "",
        "| tests | " + " | ".join(OUTCOMES) + " | with a library, agree |",
        "|---|" + "---:|" * (len(OUTCOMES) + 1),
    ]
    folders = sorted({row["module"].partition(".")[0] for row in rows})
    for name in [*folders, "all"]:
        mine = [row for row in rows if name in ("all", row["module"].partition(".")[0])]
        plain = Counter(row["outcome"] for row in mine if not row["libraries"])
        linked = [row["outcome"] for row in mine if row["libraries"]]
        cells = [str(plain[o] or "") for o in OUTCOMES]
        extra = f"{linked.count('agrees')} of {len(linked)}" if linked else ""
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {extra} |")
    for name, wrong in broken.items():
        lines.append(f"\n{name} did not run to its end: {wrong}")
    for outcome in ("differs", "refused", "time", "driver", "skipped", "expected"):
        found = [(row["why"], row) for row in rows if row["outcome"] == outcome]
        lines += _grouped(outcome, found)
    found = [
        (row["reports"][0].partition(":")[0], row) for row in rows if row["outcome"] == "agrees" and row["reports"]
    ]
    lines += _grouped("agree, and the machine reported", found)
    return re.sub(r"/\S*?/site-packages/|/tmp/\S*/", "", "\n".join(lines)) + "\n"


def _grouped(title: str, found: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Lines of Markdown: one for each reason, with the tests that have it, by module."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for why, row in found:
        test = row["test"].rpartition("::")[2] + (" (links a file)" if row["libraries"] else "")
        reasons.setdefault(why, {}).setdefault(row["module"], []).append(test)
    lines = []
    for why, modules in reasons.items():
        tests = "; ".join(f"{module}: {', '.join(names)}" for module, names in modules.items())
        lines.append(f"- {why} ({sum(map(len, modules.values()))}): {tests}")
    return ["", f"{title}:", "", *lines] if lines else []

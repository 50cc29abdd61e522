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
    """The recorded lines; a test with several (a failure in its call and after) counts once, by the first."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows.setdefault((row["module"], row["test"]), row)
    return list(rows.values())


def counts_in(row: dict[str, Any]) -> bool:
    """Does a test count for the rate? It does if its kernels ran or failed and link only libdevice."""
    return row["outcome"] in COUNTED and not row["libraries"]


def rate(rows: list[dict[str, Any]]) -> tuple[int, int]:
    """(tests that agree, tests that count)."""
    counted = [row for row in rows if counts_in(row)]
    return sum(row["outcome"] == "agrees" for row in counted), len(counted)


def table(rows: list[dict[str, Any]], broken: dict[str, str]) -> str:
    """Markdown: counts by module, then each test that does not agree, with the reason."""
    agreeing, counted = rate(rows)
    asking = sum(row["outcome"] == "driver" and not row["libraries"] for row in rows)
    lines = [
        f"{agreeing} of {counted} tests whose kernels use no library beyond libdevice agree "
        f"({100 * agreeing / max(counted, 1):.1f} %);",
        f"{agreeing} of {counted + asking} if those that ask for a driver count.", "",
        "| module | " + " | ".join(OUTCOMES) + " | with a library, agree |", "|---|" + "---:|" * (len(OUTCOMES) + 1),
    ]  # fmt: skip
    for name in [*sorted({row["module"] for row in rows}), "all"]:
        mine = [row for row in rows if name in ("all", row["module"])]
        plain = Counter(row["outcome"] for row in mine if not row["libraries"])
        linked = [row["outcome"] for row in mine if row["libraries"]]
        cells = [str(plain[o] or "") for o in OUTCOMES]
        extra = f"{linked.count('agrees')} of {len(linked)}" if linked else ""
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {extra} |")
    for name, wrong in broken.items():
        lines.append(f"\n{name} did not run to its end: {wrong}")
    for outcome in ("differs", "refused", "time", "driver", "skipped", "expected"):
        found = [row for row in rows if row["outcome"] == outcome]
        if found:
            lines += ["", f"{outcome}:", ""]
        for row in found:
            extra = f" (links {', '.join(row['libraries'])})" if row["libraries"] else ""
            lines.append(f"- {row['module']} {row['test']}{extra}: {row['why']}")
    found = [row for row in rows if row["outcome"] == "agrees" and row["reports"]]
    if found:
        lines += ["", "agree, and the machine reported:", ""]
        lines += [f"- {row['module']} {row['test']}: {row['reports'][0]}" for row in found]
    return re.sub(r"/\S*?/site-packages/|/tmp/\S*/", "", "\n".join(lines)) + "\n"

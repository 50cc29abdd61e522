"""Writes the files that follow from `schema.py` and `call_schema.py`: python -m aristos.engine.generate.

The tables of docs/protocol.md follow from `schema.py`. Both sides of each call of a kernel, and the job of the router
kernels, follow from `call_schema.py`. If a call's argument is a word of the job, both files are used. `words.py` makes
the words themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import generate_calls, schema

HERE = Path(__file__).parent
ARITHMETIC, KERNELS = HERE.parent / "primitives" / "arithmetic.py", HERE.parent / "kernels"
BLOCKS, ROUTER_JOB = KERNELS / "cpu" / "call_blocks.py", KERNELS / "cuda" / "router_job.py"
RECORDS = HERE / "call_records.py"
PROTOCOL = HERE.parent.parent / "docs" / "protocol.md"
SHARED = ("announced", "record", "returned", "coded")  # records that another rank reads
BEGIN, END = "<!-- tables: generated -->", "<!-- end of tables -->"


def _rows(title: str, columns: str, rows: list[tuple[Any, ...]]) -> str:
    names = columns.split(", ")
    lines = [f"### {title}", "", f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows), ""])


def tables() -> str:
    """The tables of docs/protocol.md: what one rank writes for another."""
    parts = [
        _rows(
            "A line of words for a peer",
            "index, word, unit, meaning, writer",
            [
                (i, f"`{w.name}`", w.unit, w.meaning, w.writer)
                for i, w in enumerate([*schema.LINE_WORDS, schema.POSTED, schema.ENDED])
            ],
        ),
        _rows(
            "Parts of a region",
            "part, entries, entry, meaning",
            [(f"`{p.address}`", p.entries, p.entry, p.meaning) for p in schema.REGION],
        ),
        *(
            _rows(
                f"Record `{r.name}`: {r.meaning}",
                "word, field, unit, meaning",
                [(f.offset, f"`{f.name}`", f.unit, f.meaning + (f" ({f.kinds})" if f.kinds else "")) for f in r.fields],
            )
            for r in map(schema.record, SHARED)
        ),
    ]
    return "\n".join(parts)


def protocol(text: str) -> str:
    """The text of docs/protocol.md, with the schema's tables in it."""
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n\n{tables()}\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Write all files."""
    ARITHMETIC.write_text(generate_calls.arithmetic(), encoding="utf-8")
    RECORDS.write_text(generate_calls.records(), encoding="utf-8")
    BLOCKS.write_text(generate_calls.blocks(), encoding="utf-8")
    ROUTER_JOB.write_text(generate_calls.router_job(), encoding="utf-8")
    PROTOCOL.write_text(protocol(PROTOCOL.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

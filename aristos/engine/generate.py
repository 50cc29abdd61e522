"""Writes what is made from `schema.py` and `call_schema.py`: python -m aristos.engine.generate.

From the first `words.py` and the tables of docs/protocol.md, from the second both sides of each call of a kernel, what
of it a job gives (from both), and the job of the router kernels.
"""

from __future__ import annotations

import builtins
from pathlib import Path

from . import generate_calls, schema

HERE = Path(__file__).parent
ARITHMETIC, KERNELS = HERE.parent / "primitives" / "arithmetic.py", HERE.parent / "kernels"
BLOCKS, ROUTER_JOB = KERNELS / "cpu" / "call_blocks.py", KERNELS / "cuda" / "router_job.py"
RECORDS = HERE / "call_records.py"
WORDS, PROTOCOL = HERE / "words.py", HERE.parent.parent / "docs" / "protocol.md"
SHARED = ("announced", "record", "returned", "coded")  # records that another rank reads
BEGIN, END = "<!-- tables: generated -->", "<!-- end of tables -->"
HEAD = '''"""Words by name. Written by `python -m aristos.engine.generate` from `schema.py`: do not edit.

Constants number the words of a job, of the state and of a line. A function gives the index of a word in the state, or
its address in a record. Bind an index once and use it twice: the compiler does not merge them across stores.
"""

from kernel_cache.compile import inlined
'''
ARGUMENTS: dict[tuple[str, ...], str] = {
    schema.PEER: "peer",
    schema.COMPUTED: "expert",
    schema.SLOT: "slot",
    ("copies_and_end",): "slot",
    ("rows",): "i",
    ("blocks",): "block",
}


def _constants(title: str, values: list[tuple[str, int]]) -> str:
    return f"\n# ---- {title}\n" + "".join(f"{name} = {value}\n" for name, value in values)


def _numbered(words: list[schema.Word]) -> list[tuple[str, int]]:
    return [(word.name, i) for i, word in enumerate(words)]


def _function(name: str, arguments: str, value: str, meaning: str) -> str:
    return f'\n\n@inlined\ndef {name}({arguments}):\n    """{meaning}"""\n    return {value}\n'


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _table(table: schema.StateTable) -> str:
    meaning, start = _sentence(table.meaning), table.start
    if table.shape == schema.SOURCE_EXPERT:
        whole = _function(
            table.name, "job, source, expert", f"job[{start}] + source * job[MAX_COMPUTED] + expert", meaning
        )
        return whole + _function(
            f"{table.name}_at",
            "job, source_expert",
            f"job[{start}] + source_expert",
            "The same, by `source_expert`.",
        )
    argument = ARGUMENTS.get(table.shape)
    if argument is None:
        return ""  # one of schema.INDICES
    return _function(table.name, f"job, {argument}", f"job[{start}] + {argument}", meaning)


def _record(record: schema.Record) -> str:
    name = "command" if record.name == "command" else "a" if record.step == 8 else record.name
    found = ""
    for field in record.fields:
        value = f"{name} + {record.step * field.offset}" if field.offset else name
        kinds = f" ({field.kinds})" if field.kinds else ""
        found += _function(f"{record.name}_{field.name}", name, value, _sentence(field.meaning + kinds))
    return found


def _fill(part: str) -> str:
    """A function that fills a part of a job in compiled code: all words that `job.fill` wants on a GPU."""
    found = [w.name for w in schema.JOB_SCALARS if w.part == part and w.substrate != schema.CPU]
    named = ", ".join(f"{name.lower()}_" if name.lower() in dir(builtins) else name.lower() for name in found)
    lines = [f"    job[{name}] = {argument}\n" for name, argument in zip(found, named.split(", "))]
    head = f'\n\n@inlined\ndef fill_{part}(job, {named}):\n    """Fill the part `{part}` in compiled code."""\n'
    return head + "".join(lines)


def words() -> str:
    """The text of words.py."""
    job = schema.job_words()
    records = [(f"{record.name.upper()}_WORDS", record.words) for record in schema.RECORDS if record.name != "command"]
    pieces = schema.record("piece").words * schema.BACK_MOST
    sizes = [
        *records,
        ("COMMAND_HEAD", schema.COMMAND_HEAD),
        ("COMMAND_LISTS", schema.COMMAND_HEAD + pieces),
        ("COUNTER_WORDS", schema.COUNTER_WORDS),
        ("TOKEN_BLOCK", schema.TOKEN_BLOCK),
        ("BACK_MOST", schema.BACK_MOST),
        ("LISTS", schema.LISTS),
        ("SIZE_CLASSES", schema.SIZE_CLASSES),
    ]
    line = [*_numbered(schema.LINE_WORDS), ("LINE_WORDS", len(schema.LINE_WORDS))]
    text = HEAD
    text += _constants("the job", [*_numbered(job), ("JOB_WORDS", len(job))])
    text += _constants("the state", [*_numbered(schema.STATE_WORDS), ("STATE_WORDS", len(schema.STATE_WORDS))])
    behind = [(word.name, len(schema.LINE_WORDS) + i) for i, word in enumerate((schema.POSTED, schema.ENDED))]
    text += _constants("a line of words for a peer, and words behind it", [*line, *behind])
    text += _constants("counters of a worker", [*_numbered(schema.COUNTERS), ("N_REMOTE_PUTS", schema.N_REMOTE_PUTS)])
    text += _constants("sizes", sizes)
    for index in schema.INDICES:
        text += _function(index.name, index.arguments, index.value, index.meaning)
    text += _fill(schema.START) + _fill(schema.CALL)
    text += "".join(_table(table) for table in schema.TABLES)
    text += "".join(_record(record) for record in schema.RECORDS)
    return text


# ---------------------------------------------------------------- docs/protocol.md


def _rows(title: str, columns: str, rows: list[tuple]) -> str:
    names = columns.split(", ")
    lines = [f"### {title}", "", f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows), ""])


def tables() -> str:
    """The tables of docs/protocol.md: what one rank writes for another."""
    parts = [
        _rows("A line of words for a peer", "index, word, unit, meaning, writer",
              [(i, f"`{w.name}`", w.unit, w.meaning, w.writer)
               for i, w in enumerate([*schema.LINE_WORDS, schema.POSTED, schema.ENDED])]),
        _rows("Parts of a region", "part, entries, entry, meaning",
              [(f"`{p.address}`", p.entries, p.entry, p.meaning)
               for p in schema.REGION]),
        *(
            _rows(f"Record `{r.name}`: {r.meaning}", "word, field, unit, meaning",
                  [(f.offset, f"`{f.name}`", f.unit, f.meaning + (f" ({f.kinds})" if f.kinds else ""))
                   for f in r.fields])
            for r in map(schema.record, SHARED)
        ),
    ]  # fmt: skip
    return "\n".join(parts)


def protocol(text: str) -> str:
    """docs/protocol.md with its tables as the schema has them."""
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n\n{tables()}\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Write all files."""
    WORDS.write_text(words(), encoding="utf-8")
    ARITHMETIC.write_text(generate_calls.arithmetic(), encoding="utf-8")
    RECORDS.write_text(generate_calls.records(), encoding="utf-8")
    BLOCKS.write_text(generate_calls.blocks(), encoding="utf-8")
    ROUTER_JOB.write_text(generate_calls.router_job(), encoding="utf-8")
    PROTOCOL.write_text(protocol(PROTOCOL.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

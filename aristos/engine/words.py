"""Words by name. They are made from `schema.py` at import; `print(words.text())` shows them.

Constants number the words of a job, of the state and of a line. A function gives the index of a word in the state, or
its address in a record. If you need an index twice, bind it to a name: the compiler does not merge two computations of
it across stores.
"""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, Any

from kernel_cache.compile import inlined  # noqa: F401  the made text uses it

from . import schema

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...  # tests/engine/test_words.py finds a name that no word has


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
            "The same word, by the number that `source_expert` returns.",
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


def filling(name: str, found: list[str], meaning: str) -> str:
    """The text of a function that fills these words of a job in compiled code."""
    named = [f"{word.lower()}_" if word.lower() in dir(builtins) else word.lower() for word in found]
    lines = [f"    job[{word}] = {argument}\n" for word, argument in zip(found, named)]
    return f'\n\n@inlined\ndef {name}(job, {", ".join(named)}):\n    """{meaning}"""\n' + "".join(lines)


def _fill(part: str) -> str:
    """The text of a function that fills a part of a job in compiled code: all words that `job.fill` wants on a GPU."""
    found = [w.name for w in schema.JOB_SCALARS if w.part == part and w.substrate != schema.CPU]
    return filling(f"fill_{part}", found, f"Fill the part `{part}` in compiled code.")


def text() -> str:
    """The constants and functions as Python."""
    job = schema.job_words()
    records = [(f"{record.name.upper()}_WORDS", record.words) for record in schema.RECORDS if record.name != "command"]
    backs = schema.record("back").words * schema.BACK_MOST
    sizes = [
        *records,
        ("COMMAND_HEAD", schema.COMMAND_HEAD),
        ("COMMAND_LISTS", schema.COMMAND_HEAD + backs),
        ("COUNTER_WORDS", schema.COUNTER_WORDS),
        ("TOKEN_BLOCK", schema.TOKEN_BLOCK),
        ("BACK_MOST", schema.BACK_MOST),
        ("LISTS", schema.LISTS),
        ("SIZE_CLASSES", schema.SIZE_CLASSES),
    ]
    line = [*_numbered(schema.LINE_WORDS), ("LINE_WORDS", len(schema.LINE_WORDS))]
    made = _constants("the job", [*_numbered(job), ("JOB_WORDS", len(job))])
    made += _constants("the state", [*_numbered(schema.STATE_WORDS), ("STATE_WORDS", len(schema.STATE_WORDS))])
    behind = [(word.name, len(schema.LINE_WORDS) + i) for i, word in enumerate((schema.POSTED, schema.ENDED))]
    made += _constants("a line of words for a peer, and words behind it", [*line, *behind])
    made += _constants("counters of a worker", [*_numbered(schema.COUNTERS), ("N_REMOTE_PUTS", schema.N_REMOTE_PUTS)])
    made += _constants("sizes", sizes)
    for index in schema.INDICES:
        made += _function(index.name, index.arguments, index.value, index.meaning)
    made += _fill(schema.START) + _fill(schema.CALL)
    made += "".join(_table(table) for table in schema.TABLES)
    made += "".join(_record(record) for record in schema.RECORDS)
    return made


exec(compile(text(), __file__, "exec", dont_inherit=True))

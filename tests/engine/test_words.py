"""The schema, and the code and the page that are generated from it."""

from __future__ import annotations

import ast
import inspect
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from aristos.engine import codes, generate, job, layout, poison, schema, words
from aristos.engine.layout import LINE, WORD, EngineShape, StateLayout

PACKAGE = Path(words.__file__).parents[1]
SHAPE = EngineShape(world=3, ring_rows=4, stride=64, return_rows=12, max_held=2, top_k=2, experts=5, max_tokens=6)


def test_the_protocol_page_fits_the_schema():
    text = generate.PROTOCOL.read_text(encoding="utf-8")
    assert generate.protocol(text) == text, "run python -m aristos.engine.generate"


def test_names_are_used_once():
    names = [name for name, _ in re.findall(r"^(\w+) = (-?\d+)$", words.text(), re.M)]
    names += re.findall(r"^def (\w+)", words.text(), re.M)
    names += [name for name in vars(codes) if name.isupper()]
    names += re.findall(r"^(?:def )?(\w+)\b(?=\(|:| =)", Path(words.__file__).read_text(encoding="utf-8"), re.M)
    assert len(names) == len(set(names))


def unknown_words(text, package="aristos.engine"):
    """Names that a module reads from `words` but no word has. Type checkers do not find them."""
    tree = ast.parse(text)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    known: dict[bool, set[str]] = {True: set(), False: set()}  # whether `words` is the engine's -> its names
    for node in imports:
        engine = (node.module or package).rpartition(".")[2] == "engine"
        known[engine] |= {alias.asname or alias.name for alias in node.names if alias.name == "words" or not engine}
    names = known[True] - known[False]
    for node in ast.walk(tree):
        read = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names
        if read and not hasattr(words, node.attr):
            yield node.attr


def test_names_that_modules_read_are_words():
    assert list(unknown_words("from ..engine import codes, words as w\nw.IDS, w.ID, codes.X")) == ["ID"]
    assert list(unknown_words("from . import words\nwords.ID")) == ["ID"]
    for path in (*PACKAGE.rglob("*.py"), *PACKAGE.parent.glob("tests/**/*.py")):
        text = path.read_text(encoding="utf-8")
        if "import" in text and "words" in text:
            assert list(unknown_words(text, path.parent.name)) == [], path


def test_fields_of_a_record_share_a_place_only_if_no_command_has_both():
    for record in schema.RECORDS:
        for a in record.fields:
            assert a.offset < record.words, (record.name, a.name)
            for b in record.fields:
                if a is not b and a.offset == b.offset and "all" not in (a.kinds, b.kinds):
                    kinds = [set(x.kinds.split(", ")) for x in (a, b)]
                    assert all(x.kinds for x in (a, b)), (record.name, a.name, b.name)
                    assert not kinds[0] & kinds[1] or {a.name, b.name} == {"token", "crossing"}, (a.name, b.name)


def test_atomic_words_of_a_run_are_on_lines_of_their_own():
    atomic = [field.offset * WORD // LINE for field in schema.record("run").fields if field.name != "base"]
    assert len(atomic) == len(set(atomic))


def test_every_shape_is_made_of_sizes():
    sizes = schema.sizes(
        world=3, max_computed=2, copies=5, records=5, rows=12, tokens=6, top_k=2, workers=2, runs=1, batch=8
    )
    assert set(sizes) == {name for table in schema.TABLES for name in table.shape}


def test_every_table_has_a_writer_and_every_word_a_meaning():
    for table in schema.TABLES:
        assert table.writer, table.name
    for word in [*schema.job_words(), *schema.STATE_WORDS, *schema.LINE_WORDS]:
        assert word.meaning, word.name
        assert word.writer, word.name


def index_functions():
    """(name, arguments) of the functions that index the state by a table."""
    for table in schema.TABLES:
        function = getattr(words, "counter" if table.name == "counters" else table.name)
        yield table, [name for name in inspect.signature(function).parameters if name != "job"]


@pytest.mark.parametrize("workers", [1, 3])
def test_indices_enumerate_their_tables_and_no_other(workers):
    """Over all its arguments, every index function returns each entry of its table once."""
    tables = StateLayout(SHAPE, workers, 8, runs=2)
    a_job = np.zeros(job.size(5, 3), np.int64)
    job.fill_layout(a_job, SHAPE, tables)
    a_job[words.ALL_WORKERS] = workers
    entries = {
        "peer": 3,
        "source": 3,
        "expert": 2,
        "slot": 5,
        "number": 2,
        "i": 12,
        "block": 2,
        "tile": 5,
        "worker": workers,
    }
    taken: set[int] = set()
    for table, arguments in index_functions():
        if table.name == "counters":
            found = {words.counter(a_job, w, n) for w in range(workers) for n in range(schema.COUNTER_WORDS)}
        else:
            ranges = [range(entries[name]) for name in arguments]
            if table.shape == ("copies_and_end",):
                ranges = [range(6)]
            places = np.array(np.meshgrid(*ranges)).reshape(len(ranges), -1).T.tolist()
            found = {int(getattr(words, table.name)(a_job, *place)) for place in places}
            if table.name == "command":
                found |= {int(words.run_command(a_job, number)) for number in range(2)}
            step = {"landed": 6, "run": 32, "command": tables.command_words}.get(table.name, 1)
            found = {first + n for first in found for n in range(step)}
        start = getattr(words, table.start)
        assert found == set(range(tables.starts[start], tables.starts[start] + tables.sizes[start])), table.name
        assert not found & taken, table.name
        taken |= found
    assert min(taken) >= words.STATE_WORDS


def test_parts_of_a_command_follow_each_other():
    """The order is head, records `back`, lists, parts. A command's words have room for the most entries of each."""
    tables = StateLayout(SHAPE, 1, 8)
    a_job = np.zeros(job.size(5, 3), np.int64)
    job.fill_layout(a_job, SHAPE, tables)
    a_job[words.BATCH] = 8
    c = words.command(a_job, 0)
    starts = [c + words.COMMAND_HEAD, *(words.back(c, i) for i in range(1, words.BACK_MOST + 1))]
    assert starts == [c + words.COMMAND_HEAD + 2 * i for i in range(words.BACK_MOST + 1)]
    lists = [words.row_list(c), *(of(a_job, c) for of in (words.output_list, words.hidden_list, words.scalar_list))]
    lists += [words.tape_list(a_job, c)]
    lists += [words.part(a_job, c, 0)]
    assert lists[0] == starts[-1]
    assert all(b - a == 8 for a, b in pairwise(lists))
    assert words.part(a_job, c, 8) <= c + tables.command_words


@pytest.mark.parametrize(
    "path",
    [path for room in ("engine", "substrate", "explore") for path in sorted((PACKAGE / room).rglob("*.py"))],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_no_bare_offsets(path):
    """Words of records are reached by name: there is no `a + 8`, and no computed index into a table."""
    if path.name in ("words.py", "schema.py", "generate.py", "layout.py"):
        return
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?:load|store)\w*\((?:a|at|last|record)\b *(?:\+ *\d+)", text)
    if path.is_relative_to(PACKAGE / "engine"):  # other folders fill tables
        assert not re.search(r"\[words\.T_\w+\] \+", text)


def written_by_hand(text):
    """Words of a job that a module writes as `job[words.NAME]`, in any form of assignment."""
    names = {word.name for word in (*schema.JOB_SCALARS, *schema.JOB_CHECKS)}
    for node in ast.walk(ast.parse(text)) if "words." in text else ():
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            for part in getattr(node.slice, "elts", [node.slice]):
                if isinstance(part, ast.Attribute) and ast.unparse(part.value) == "words" and part.attr in names:
                    yield part.attr


def test_words_of_a_job_are_written_when_a_part_is_filled():
    """Two modules write one later. The proxy's job serves all objects, and announcements say how wide return rows are.

    Simulated calls of a rank follow each other in compiled code, so this code numbers them.
    """
    planted = "job[words.X], st[words.STATUS] = 1, 2\njob[[words.Y, words.IDS]] += 3"
    assert set(written_by_hand(planted)) == {"X", "Y", "IDS"}
    known = {"engine/job.py": {"FILLED", "EPOCH"}, "engine/proxy.py": {"RETURN_STRIDE"}}
    known["simulate/inside/actor.py"] = {"EPOCH"}
    for path in PACKAGE.rglob("*.py"):
        name = str(path.relative_to(PACKAGE))
        if not name.startswith("bench/delay/"):  # `words` is another module in `bench.delay`
            assert set(written_by_hand(path.read_text(encoding="utf-8"))) == known.get(name, set()), name


def a_filled_job(substrate, but=()):
    """A job with all of its parts but those in `but`. Each word is 7."""
    a_job = np.zeros(job.size(5, 3), np.int64)
    for part in schema.PARTS:
        if part not in but:
            job.fill(a_job, part, substrate, **dict.fromkeys(job.part_of(part, substrate).places, 7))
    return a_job


def test_every_word_of_a_job_is_in_a_part_or_in_a_layout():
    for substrate in job.SUBSTRATES:
        a_job = a_filled_job(substrate)
        for word in schema.JOB_SCALARS:
            here = word.substrate in (schema.ALL, substrate) and not word.name.startswith("P_")
            assert a_job[getattr(words, word.name)] == 7 * here, (substrate, word.name)
        job.check(a_job, substrate, 7)


@pytest.mark.parametrize("part", schema.PARTS)
def test_a_part_of_a_job_misses_no_word(part):
    given = dict.fromkeys(job.part_of(part, schema.CPU).places, 0)
    lost, _ = given.popitem()
    with pytest.raises(TypeError, match=rf"missing \['{lost}'\], unknown \['wrong'\]"):
        job.fill(np.zeros(job.size(5, 3), np.int64), part, schema.CPU, **given, wrong=1)


@pytest.mark.parametrize("part", schema.PARTS)
def test_a_job_misses_no_part_and_has_none_twice(part):
    with pytest.raises(RuntimeError, match=f"lacks the parts {part}$"):
        job.check(a_filled_job(schema.CPU, but=[part]), schema.CPU, 7)
    a_job = a_filled_job(schema.CPU)
    with pytest.raises(RuntimeError, match=f"{part!r} of a job is filled twice"):
        job.leave_out(a_job, schema.CPU, part)
    job.renew(a_job, part)
    job.leave_out(a_job, schema.CPU, part)


def test_a_call_needs_its_own_parts_again():
    a_job = a_filled_job(schema.CPU)
    job.check(a_job, schema.CPU, 7)
    with pytest.raises(RuntimeError, match=r"lacks the parts start, call$"):
        job.check(a_job, schema.CPU, 7)
    job.leave_out(a_job, schema.CPU, *schema.OF_CALL)
    job.renew_call(a_job)  # the call was prepared but not made
    job.leave_out(a_job, schema.CPU, *schema.OF_CALL)
    job.check(a_job, schema.CPU, 7)


def test_a_job_of_another_layout_is_refused():
    with pytest.raises(RuntimeError, match="must be filled for layout 8, got one for layout 7"):
        job.check(a_filled_job(schema.CPU), schema.CPU, 8)
    with pytest.raises(RuntimeError, match="'call' is filled for cuda, but other parts"):
        job.leave_out(a_filled_job(schema.CPU, but=[schema.CALL]), schema.CUDA, schema.CALL)
    with pytest.raises(RuntimeError, match="a job for cuda lacks the parts engine, tile"):
        job.check(a_filled_job(schema.CPU), schema.CUDA, 7)


def test_functions_of_gpus_fill_what_the_host_would():
    for part in (schema.START, schema.CALL):
        wanted, found = (np.zeros(words.JOB_WORDS, np.int64) for _ in range(2))
        values = {name: 2 + i for i, name in enumerate(job.part_of(part, schema.CUDA).places)}
        job.fill(wanted, part, schema.CUDA, **values)
        fill = getattr(words, f"fill_{part}")
        names = list(inspect.signature(getattr(fill, "py_func", fill)).parameters)[1:]
        assert [name.removesuffix("_") for name in names] == list(values)
        fill(found, *values.values())
        wanted[words.FILLED] = 0
        assert np.array_equal(wanted, found)


@pytest.mark.parametrize("epoch", [0, 1, (1 << 39) - 1])
@pytest.mark.parametrize("origin", [0, 1, (1 << poison.ORIGIN_BITS) - 1])
def test_a_poison_word_gives_back_what_it_holds(epoch, origin):
    causes = [value for name, value in vars(codes).items() if name.startswith("CAUSE_")]
    found = [poison.poison_word(epoch, origin, cause) for cause in causes]
    assert [poison.failure_of(word) for word in found] == [(epoch, origin, cause) for cause in causes]
    assert all(0 < word < 1 << 63 for word in found)


def test_tables_of_slots_lie_behind_the_words():
    a_job = [0] * job.size(3, 2)
    job.fill_placement(a_job, [2, 0, 1], [0, 2, 3])
    assert [a_job[words.slot_of(a_job, e)] for e in range(3)] == [2, 0, 1]
    assert [a_job[words.slot_start(a_job, r)] for r in range(3)] == [0, 2, 3]
    assert layout.WORD == 8

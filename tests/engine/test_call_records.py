"""Call records of kernels: their declarations, and the code that is generated from these."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from aristos.engine import call_records, call_schema, generate, generate_calls, schema, words
from aristos.kernels.cpu import call_blocks
from aristos.kernels.cuda import router_job
from aristos.layer import given
from aristos.layer.trained_weights import PROJECTIONS
from aristos.primitives import arithmetic
from aristos.primitives.buffers import aligned

KERNELS = Path(call_blocks.__file__).parent
CALLS = {call.name: call for call in call_schema.CALLS}
APART = [call for call in call_schema.CALLS if call not in call_schema.CROSSING]
KINDS = tuple(getattr(call_schema, name) for name in ("WORD", "BITS", "SCRATCH", "EXPERT", "TRANSPOSED", "GRADIENTS"))
STEPS = {name: (number, put, result) for name, number, put, result in call_blocks.STEPS}


def a_record(name: str, scratch: int = 0) -> tuple:
    """A record whose words are 1, 2, ..., except its address of scratch."""
    numbers = iter(range(1, 100))
    values = {}
    for each in CALLS[name].arguments:
        if each.dtype in (call_schema.EXPERT, call_schema.GRADIENTS):
            values[each.name] = arithmetic.ExpertWeights(*(next(numbers) for _ in call_schema.WEIGHTS))
        elif each.dtype == call_schema.TRANSPOSED:
            values[each.name] = arithmetic.TransposedWeights(*(next(numbers) for _ in call_schema.TRANSPOSED_WEIGHTS))
        else:
            values[each.name] = scratch if each.dtype == call_schema.SCRATCH else next(numbers)
    return getattr(arithmetic, CALLS[name].record)(**values)


def test_generated_files_fit_the_declarations():
    for path, text in (
        (generate.ARITHMETIC, generate_calls.arithmetic()),
        (generate.RECORDS, generate_calls.records()),
        (generate.BLOCKS, generate_calls.blocks()),
        (generate.ROUTER_JOB, generate_calls.router_job()),
    ):
        assert path.read_text(encoding="utf-8") == text, "run python -m aristos.engine.generate"


def test_every_argument_has_a_meaning_and_a_known_type():
    for call in call_schema.CALLS:
        names = [each.name for each in call.arguments]
        assert len(names) == len(set(names)), call.name
        for each in call.arguments:
            assert each.meaning, (call.name, each.name)
            assert each.dtype in KINDS[: None if call in APART else 4]


def test_words_name_calls_that_steps_make():
    named = {call for word in schema.JOB_SCALARS for call, _ in word.arguments}
    assert named <= {call.name for call in call_schema.CALLS if call.step}


@pytest.mark.parametrize("name", [call.name for call in call_schema.CALLS if call.step])
def test_records_get_their_words_from_the_job(name):
    """A step passes the other arguments. In this job the value of each word is the word's number."""
    job = list(range(words.JOB_WORDS))
    own = {each.name: -1 - i for i, each in enumerate(CALLS[name].arguments) if not each.word}
    made = getattr(call_records, name)
    found = getattr(made, "py_func", made)(job, **own)._asdict()
    wanted = {each.name: getattr(words, each.word) for each in CALLS[name].arguments if each.word}
    assert found == own | wanted


def test_a_word_of_the_job_becomes_an_argument(monkeypatch):
    """The word's line in schema.py is enough. The argument is the last one. Callers without a job may leave it out."""
    word = schema.Word("FLOOR", "of the scores", "float32 bits", part=schema.CALL, calls="route_block.least weigh_row")
    monkeypatch.setattr(call_schema, "JOB_SCALARS", [*schema.JOB_SCALARS, word])
    grown = call_schema._with_words(call_schema.Call("route_block", "Route.", CALLS["route_block"].arguments[:1]))
    least = call_schema.Argument("least", "", "of the scores", call_schema.BITS, "FLOOR", last=True)
    assert grown.arguments[0].name == "tokens"
    assert least in grown.arguments
    assert "    least: int = 0  # of the scores" in generate_calls._record(grown)
    assert "least=job[words.FLOOR]," in generate_calls._of_job(grown)
    assert "least=mem.float_of_bits(mem.load(block + " in generate_calls._at(grown)


def test_an_argument_is_declared_once():
    for line, wanted in (("warmth", "warmth of weigh_row"), ("hidden | columns | again", "hidden of weigh_row")):
        with pytest.raises(ValueError, match=f"argument {wanted} must be declared once"):
            call_schema._with_words(call_schema.Call("weigh_row", "Weigh.", call_schema._arguments(line)))


def lacking(name: str, source: str) -> list[str]:
    """Where source makes a record of arguments without each argument by its name."""
    records = {call.record: {argument.name for argument in call.arguments} for call in call_schema.CALLS}
    found = []
    for node in ast.walk(ast.parse(source)):
        made = getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
        named = {each.arg for each in node.keywords} if isinstance(node, ast.Call) else set()
        if made in records and None not in named and (left_out := records[made] - named):
            found.append(f"{name}:{node.lineno}: {made} lacks {', '.join(sorted(left_out))}")
    return found


def test_every_record_names_each_argument():
    """Numba cannot compile a record whose argument is left out, and its error does not name the argument."""
    root = KERNELS.parents[1]
    made = re.compile(rf"\b({'|'.join(call.record for call in call_schema.CALLS)})\(")
    files = {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*.py"))}
    assert [line for name, text in files.items() if made.search(text) for line in lacking(name, text)] == []
    assert lacking("a.py", "WeighRow(y=1, x=2, hidden=3, scratch=4)") == ["a.py:1: WeighRow lacks weight"]


@pytest.mark.parametrize("name", STEPS)
def test_kernels_read_what_steps_write(name):
    """A kernel gets every word of a record by its name. The kernel's own memory begins behind the block."""
    block = aligned((call_schema.BLOCK_WORDS,), np.int64)
    block[:] = -1
    at = block.ctypes.data
    number, put, result = STEPS[name]
    put(a_record(name, at))
    found = getattr(call_blocks, f"{name}_at")(at)
    wanted = a_record(name, at + call_blocks.BLOCK_BYTES)
    for each in CALLS[name].arguments:
        value, want = getattr(found, each.name), getattr(wanted, each.name)
        if each.dtype == call_schema.BITS:
            want = np.int32(want).view(np.float32)
        assert value == want, each.name
    assert (block[: call_schema.HEAD_WORDS] == -1).all()
    assert block[call_blocks.SPARE // 8] == -1
    assert number == getattr(call_blocks, name.upper())
    assert result == (CALLS[name].result != "")


def test_numpy_callers_write_the_same_words():
    block, other = (aligned((call_schema.BLOCK_WORDS,), np.int64) for _ in range(2))
    for name, (_, put, _) in STEPS.items():
        block[:] = other[:] = 0
        put(a_record(name, block.ctypes.data))
        words = call_blocks.flat(a_record(name, block.ctypes.data + call_blocks.BLOCK_BYTES))
        other[call_blocks.HEAD_WORDS : call_blocks.HEAD_WORDS + len(words)] = words
        assert np.array_equal(block, other), name


@pytest.mark.parametrize("name", CALLS)
def test_a_record_misses_no_argument(name):
    fields = a_record(name)._asdict()  # type: ignore[attr-defined]
    fields.pop(next(iter(fields)))
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        getattr(arithmetic, CALLS[name].record)(**fields)


def test_every_array_of_an_expert_has_its_words_in_the_job():
    for each in call_schema.WEIGHTS:
        assert hasattr(words, each.name.upper()), each.name
        assert hasattr(words, f"SHARED_{each.name.upper()}"), each.name
        assert hasattr(words, f"foreign_{each.name}"), each.name
    assert arithmetic.ExpertWeights._fields == given.PROJECTIONS
    assert arithmetic.TransposedWeights._fields == PROJECTIONS


def test_a_router_job_has_each_word_once():
    every = [each.name for each in call_schema.ROUTER_JOB]
    assert set(router_job.OF_CALL) < set(every)
    values = {name: 2 + i for i, name in enumerate(every)}
    lasting = {name: value for name, value in values.items() if name not in router_job.OF_CALL}
    job = router_job.new_job(**lasting)
    fill = router_job.fill_routing
    getattr(fill, "py_func", fill)(job, *(values[name] for name in router_job.OF_CALL))
    assert job.tolist() == list(values.values()) == router_job.whole_job(**values).tolist()
    with pytest.raises(TypeError, match=r"missing \['tokens'\], unknown \[\]"):
        router_job.whole_job(**{name: value for name, value in values.items() if name != "tokens"})
    needed = {name: value for name, value in values.items() if name not in router_job.ABSENT}
    assert {"logits", "capacity"} <= set(router_job.ABSENT) < set(every)
    assert router_job.whole_job(**needed).tolist() == [needed.get(name, 0) for name in every]
    lost, _ = lasting.popitem()
    with pytest.raises(TypeError, match=rf"missing \['{lost}'\], unknown \['x'\]"):
        router_job.new_job(**lasting, x=1)


def test_no_job_of_the_router_kernels_is_filled_by_hand():
    root = KERNELS.parents[2]
    for path in (*root.glob("aristos/**/*.py"), *root.glob("tests/**/*.py")):
        assert not re.search(r"zeros\((?!words\.)\w+\.JOB_WORDS", path.read_text(encoding="utf-8")), path


def test_kernels_have_no_numbered_arguments():
    for path in (*KERNELS.glob("*entries.py"), KERNELS / "lowering.py", KERNELS.parent / "api.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?:load|store)\w*\(\w+ *\+ *\d", text), path.name
        assert not re.search(r"\w\(\w+, \d+(?:, \w+)?\)", text), path.name

"""Texts generated from `call_schema.py`: both sides of calls, and the job of the router kernels. See `generate.py`."""

from __future__ import annotations

from . import call_schema as schema
from .words import filling

ARITHMETIC = '''"""The arithmetic that steps call by name. Written by `python -m aristos.engine.generate`: do not edit.

A function takes the address of an element type's kernels, which the job's word KERNELS holds, and a record that names
the other arguments. On CPUs `kernels/cpu/lowering.py` registers a compiled function for each name. The schedule
explorer replaces the functions by hashes. A GPU's blocks compute in the persistent kernel and call none of them.
"""

from typing import NamedTuple

BACKWARD_WEIGHTS_BYTES = {backward}  # size of one expert's addresses in a call of `backward_rows`


def _missing(name):
    raise NotImplementedError(f"nothing computes {{name}}: import aristos.kernels.cpu.lowering before the steps run")


class ExpertWeights(NamedTuple):
    """Addresses of one expert's packed weights."""

{weights}


class TransposedWeights(NamedTuple):
    """Addresses of one expert's packed weights, transposed."""

{transposed}
'''

BLOCKS = '''"""How arguments cross to compiled kernels. Written by `python -m aristos.engine.generate`: do not edit.

A block of words holds a call: result, error, then its arguments in order. put_NAME writes the record of the call
NAME into the block at the record's scratch. NAME_at reads the record from a block.
"""

from kernel_cache.compile import inlined

from ...primitives import memory as mem
from ...primitives.arithmetic import (
{records}
)

# numbers of the kernels
{numbers}
HEAD_WORDS = {head}  # words before a block's arguments: result, error
BLOCK_BYTES = {block}  # size of a block, in whole lines
SPARE = BLOCK_BYTES - 8  # place of a word that no call uses


def flat(record):
    """The words of a record in order, for a block that does not lie in the record's scratch."""
    return [word for each in record for word in (each if isinstance(each, tuple) else (each,))]
'''
ROUTER = '''"""The job of the router kernels. Written by `python -m aristos.engine.generate`: do not edit."""

import numpy as np

from kernel_cache.compile import inlined

(
{numbers}
    JOB_WORDS,
) = range({words})
LASTING = (
{lasting}
)
OF_CALL = (
{of_call}
)
ABSENT = (  # words whose 0 says that there is nothing
{absent}
)


def new_job(**values: int) -> np.ndarray:
    """A job with all words but those of a call. Raises TypeError unless `values` names all of LASTING."""
    return _filled(LASTING, values)


def whole_job(**values: int) -> np.ndarray:
    """A job with all words, for kernels launched without `begin`. Words of ABSENT may be left out: they are 0.

    Raises TypeError unless `values` has the others.
    """
    return _filled(LASTING + OF_CALL, dict.fromkeys(ABSENT, 0) | values)


def _filled(names: tuple[str, ...], values: dict[str, int]) -> np.ndarray:
    if values.keys() != set(names):
        missing, unknown = sorted(set(names) - values.keys()), sorted(values.keys() - set(names))
        raise TypeError(f"a job of the router kernels: missing {{missing}}, unknown {{unknown}}")
    job = np.zeros(JOB_WORDS, np.int64)
    for name, value in values.items():
        job[globals()[name.upper()]] = value
    return job
'''
RECORDS = '''"""The arguments of steps' calls. Written by `python -m aristos.engine.generate`: do not edit.

Each function returns the record of one call. Its parameters are the values that a step computes. It reads the call's
other arguments from the job.
"""

from kernel_cache.compile import jit

from ..primitives import arithmetic
from . import words
'''
WORD = 8
KINDS = {schema.EXPERT: "ExpertWeights", schema.TRANSPOSED: "TransposedWeights", schema.GRADIENTS: "tuple[int, ...]"}


def _field(argument: schema.Argument) -> str:
    kind = KINDS.get(argument.dtype, "int")
    unit = f"{argument.unit}: " if argument.unit else ""
    bits = ", as bits of a float32" if argument.dtype == schema.BITS else ""
    default = " = 0" if argument.last else ""
    return f"    {argument.name}: {kind}{default}  # {unit}{argument.meaning}{bits}"


def _record(call: schema.Call) -> str:
    fields = "\n".join(map(_field, call.arguments))
    return f'\n\nclass {call.record}(NamedTuple):\n    """Arguments of `{call.name}`."""\n\n{fields}\n'


def _step(call: schema.Call) -> str:
    result = f" Returns {call.result}." if call.result else ""
    return f'\n\ndef {call.name}(kernels, call):\n    """{call.meaning}{result}"""\n    _missing("{call.name}")\n'


def arithmetic() -> str:
    """The text of primitives/arithmetic.py."""
    weights, transposed = ("\n".join(map(_field, table)) for table in (schema.WEIGHTS, schema.TRANSPOSED_WEIGHTS))
    backward = WORD * len(schema.WEIGHTS + schema.TRANSPOSED_WEIGHTS)
    text = ARITHMETIC.format(backward=backward, weights=weights, transposed=transposed)
    text += "".join(map(_record, schema.CALLS))
    return text + "".join(_step(call) for call in schema.CALLS if call.step)


def _of_job(call: schema.Call) -> str:
    own = ", ".join(["job", *(each.name for each in call.arguments if not each.word)])
    lines = "".join(
        f"        {each.name}={f'job[words.{each.word}]' if each.word else each.name},\n" for each in call.arguments
    )
    head = f'\n\n@jit\ndef {call.name}({own}):\n    """Arguments of `{call.name}`."""\n'
    return f"{head}    return arithmetic.{call.record}(\n{lines}    )\n"


def records() -> str:
    """The text of engine/call_records.py."""
    return RECORDS + "".join(_of_job(call) for call in schema.CALLS if call.step)


def _places(call: schema.Call) -> list[tuple[str, str, int]]:
    """(expression, dtype, byte in the block) of each word of a call."""
    found: list[tuple[str, str]] = []
    for each in call.arguments:
        if each.dtype == schema.EXPERT:
            found += [(f"{each.name}.{part.name}", schema.WORD) for part in schema.WEIGHTS]
        else:
            found.append((each.name, each.dtype))
    return [(name, dtype, WORD * (schema.HEAD_WORDS + i)) for i, (name, dtype) in enumerate(found)]


def _put(call: schema.Call) -> str:
    lines = [
        f"    mem.store(call.scratch + {at}, call.{name}{' + BLOCK_BYTES' if dtype == schema.SCRATCH else ''})"
        for name, dtype, at in _places(call)
    ]
    head = f'\n\n@inlined\ndef put_{call.name}(call):\n    """Write the arguments of `{call.name}`."""\n'
    return head + "\n".join(lines) + "\n"


def _at(call: schema.Call) -> str:
    places = {name: (dtype, at) for name, dtype, at in _places(call)}

    def read(name: str) -> str:
        dtype, at = places[name]
        loaded = f"mem.load(block + {at})"
        return f"mem.float_of_bits({loaded})" if dtype == schema.BITS else loaded

    text = f'\n\n@inlined\ndef {call.name}_at(block):\n    """Read the arguments of `{call.name}`."""\n'
    text += f"    return {call.record}(\n"
    for each in call.arguments:
        if each.dtype == schema.EXPERT:
            text += f"        {each.name}=ExpertWeights(\n"
            text += "".join(f"            {p.name}={read(f'{each.name}.{p.name}')},\n" for p in schema.WEIGHTS)
            text += "        ),\n"
        else:
            text += f"        {each.name}={read(each.name)},\n"
    return text + "    )\n"


def _table(name: str, arrays: tuple[schema.Argument, ...], first: int) -> str:
    """The text of a function that reads some of the words at a backward call's `weights`, from number `first` on."""
    lines = "".join(f"        {each.name}=mem.load(weights + {WORD * (first + i)}),\n" for i, each in enumerate(arrays))
    record = name.title().replace("_", "")
    text = f'\n\n@inlined\ndef {name}_at(weights):\n    """Read the {record} of an expert of a backward call."""\n'
    return f"{text}    return {record}(\n{lines}    )\n"


def blocks() -> str:
    """The text of kernels/cpu/call_blocks.py."""
    with_kernel = [call for call in schema.CALLS if call.kernel]
    names = sorted(["ExpertWeights", "TransposedWeights", *(call.record for call in with_kernel)])
    text = BLOCKS.format(
        records="\n".join(f"    {name}," for name in names),
        numbers="\n".join(f"{call.name.upper()} = {i}" for i, call in enumerate(with_kernel)),
        head=schema.HEAD_WORDS,
        block=WORD * schema.BLOCK_WORDS,
    )
    text += _table("expert_weights", schema.WEIGHTS, 0) + _table(
        "transposed_weights", schema.TRANSPOSED_WEIGHTS, len(schema.WEIGHTS)
    )
    for call in with_kernel:
        text += _put(call) if call.step else ""
        text += _at(call)
    rows = [
        f"    ({call.name!r}, {call.name.upper()}, put_{call.name}, {bool(call.result)}),".replace("'", '"')
        for call in with_kernel
        if call.step
    ]
    head = "\n\n# calls by steps: name, number of the kernel, what writes the arguments, whether there is a result\n"
    return f"{text}{head}STEPS = (\n" + "\n".join(rows) + "\n)\n"


def router_job() -> str:
    """The text of kernels/cuda/router_job.py."""
    every = schema.ROUTER_JOB
    of_call = [each.name for each in every if each.dtype == schema.OF_CALL]
    numbers = "\n".join(
        f"    {each.name.upper()},  # {each.unit}{': ' * bool(each.unit)}{each.meaning}" for each in every
    )
    lasting = "\n".join(f'    "{each.name}",' for each in every if each.name not in of_call)
    names = "\n".join(f'    "{name}",' for name in of_call)
    absent = "\n".join(f'    "{each.name}",' for each in every if " 0: " in each.meaning)
    text = ROUTER.format(numbers=numbers, words=len(every) + 1, lasting=lasting, of_call=names, absent=absent)
    return text + filling("fill_routing", list(map(str.upper, of_call)), "Fill the words of a call in compiled code.")

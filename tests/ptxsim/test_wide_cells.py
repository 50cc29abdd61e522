"""Wide cells lose nothing: drawn kernels leave the same reports, values and cells with them and without them."""

from __future__ import annotations

import ctypes
import dataclasses

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
import ptxsim
from ptxsim import state as s
from ptxsim import wide
from ptxsim.units import python_function

pytestmark = pytest.mark.slow
BYTES = 4096  # of an array
# the vectors and numbers that a lane accesses: (form, bytes of a value, values)
FORMS = [
    (f"{vector}.b{8 * size}", size, count)
    for vector, count in ((".v4", 4), (".v2", 2), ("", 1))
    for size in (1, 2, 4, 8)
]
FORMS = [form for form in FORMS if form[1] * form[2] <= 16]
VECTORS = [form for form in FORMS if form[1] * form[2] >= 4 and form[2] > 1]
HEAD = """.version 8.6
.target sm_90
.address_size 64
.visible .entry k(.param .u64 p)
{
.reg .b64 %p, %a, %d<4>; .reg .b32 %t, %x, %r<4>; .reg .b16 %h<4>; .reg .pred %q;
ld.param.u64 %p, [p]; mov.u32 %t, %ctaid.x; mov.u32 %x, %tid.x; mad.lo.u32 %t, %t, 64, %x;
"""
REGISTERS = {1: "%h", 2: "%h", 4: "%r", 8: "%d"}


def kernel(rng, forms):
    """A kernel of drawn loads, stores and barriers. Lanes access the vectors of an array in a drawn order."""
    lines = [HEAD]
    for k in range(4):
        lines.append(f"add.u32 %r{k}, %t, {k}; cvt.u64.u32 %d{k}, %r{k}; cvt.u16.u32 %h{k}, %r{k};")
    for _ in range(6):
        form, size, count = forms[rng.integers(len(forms))]
        step, first = int(rng.choice([1, 1, 1, 3, 0])), int(rng.choice([0, 0, 1, 64]))
        last = BYTES // (size * count) - 1
        lines.append(f"mad.lo.u32 %x, %t, {step}, {first}; and.b32 %x, %x, {last};")
        lines.append(f"mad.wide.u32 %a, %x, {size * count}, %p; setp.ge.u32 %q, %t, {rng.choice([0, 0, 40])};")
        names = [f"{REGISTERS[size]}{k}" for k in range(count)]
        values = "{" + ", ".join(names) + "}" if count > 1 else names[0]
        kind = rng.choice(["ld.global", "ld.global.nc", "st.global", "st.global"])
        plain = kind.startswith("ld")
        lines.append(f"@%q {kind}{form} {values}, [%a];" if plain else f"@%q {kind}{form} [%a], {values};")
        if rng.random() < 0.3:
            lines.append("bar.sync 0;")
    return "\n".join([*lines, "ret;", "}"])


def marks(machine, allocation):
    """The words of an array's cells, all narrow now. Words that describe nothing are 0."""
    x, table = machine.x, machine.memory.table
    row = table[allocation.number]
    if row[s.A_SHIFT] > s.NARROW:
        at = int(table.ctypes.data) + allocation.number * s.A_FIELDS * 8
        cells = cells_at(x, row[s.A_WIDE], BYTES >> int(row[s.A_SHIFT]))
        for k in np.nonzero(cells[:, 0] != wide.SPLIT)[0]:
            python_function("split")(int(x.ctypes.data), at, int(k))
    cells = cells_at(x, row[s.A_SHADOW], BYTES // int(row[s.A_GRANULE])).copy()
    for word in range(0, s.CELL_WORDS, 2):
        cells[cells[:, word] == 0, word + 1] = 0
    return cells


def cells_at(x, first, count):
    """[count, words] int64: cells of the machine, from a number on."""
    place = int(x[s.SHADOW]) + int(first) * s.CELL_WORDS * 8
    return np.ctypeslib.as_array((ctypes.c_int64 * (count * s.CELL_WORDS)).from_address(place)).reshape(count, -1)


def outcome(seed, narrow):
    """Reports, values and cells after two runs of drawn kernels, and how many cells were wide before the last one."""
    rng = np.random.default_rng(seed)
    machine = ptxsim.Machine(seed=seed, sm_count=2)
    device = machine.device(0)
    dtype = np.dtype(rng.choice(["u1", "u2", "u4", "u8"]))
    fresh = rng.random() < 0.3
    size = BYTES // dtype.itemsize
    array = device.empty(size, dtype) if fresh else device.array(np.zeros(size, dtype), "array")
    table, number = machine.memory.table, array.allocation.number
    assert table[number, s.A_SHIFT] == s.UNDECIDED
    if narrow:
        table[number, s.A_SHIFT] = s.NARROW
    reports, wide_ones = [], 0
    for part in range(2):
        forms = VECTORS[:1] if part == 0 and rng.random() < 0.5 else (VECTORS if rng.random() < 0.5 else FORMS)
        streams = [device.stream(blocking=False) for _ in range(2)]
        for stream in streams:
            device.launch(kernel(rng, forms), 2, 64, array, entry="k", stream=stream)
        reports += [dataclasses.asdict(report) for report in machine.run()]
        shift = int(table[number, s.A_SHIFT])
        if shift > s.NARROW:
            wide_ones += int(np.sum(cells_at(machine.x, table[number, s.A_WIDE], BYTES >> shift)[:, 0] > 0))
    return reports, array.copy_to_host().tobytes(), marks(machine, array.allocation), wide_ones


@pytest.mark.parametrize("part", range(4))
def test_drawn_kernels(part):
    found, used = 0, 0
    for seed in range(40 * part, 40 * part + 40):
        reports, values, cells, wide_ones = outcome(seed, False)
        plain = outcome(seed, True)
        assert reports == plain[0], seed
        assert values == plain[1], seed
        assert np.array_equal(cells, plain[2]), seed
        found, used = found + len(reports), used + (wide_ones > 0)
    assert found > 40
    assert used > 5


def test_the_first_access_decides():
    """Vectors of more than an item give an array wide cells of their size, at most 16 bytes; single items do not."""
    for form, dtype, shift in ((".v4.b32", "u2", 4), (".v2.b32", "u1", 3), (".b32", "u2", 2), (".b32", "u4", 0)):
        machine = ptxsim.Machine()
        array = machine.device(0).array(np.zeros(BYTES // np.dtype(dtype).itemsize, dtype))
        chosen = [one for one in FORMS if one[0] == form]
        machine.device(0).launch(kernel(np.random.default_rng(1), chosen), 1, 64, array, entry="k")
        machine.run()
        assert machine.memory.table[array.allocation.number, s.A_SHIFT] == shift

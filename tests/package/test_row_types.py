"""The tables of row and weight types: derived facts against their definitions; no other file lists types."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import ml_dtypes
import numpy as np
import pytest

from aristos.layer.loading import Bits
from aristos.row_types import BY_KIND, ON_CPUS, ROUNDED, ROW_TYPES
from aristos.weight_types import SPLIT, WEIGHT_TYPES, WeightType

PACKAGE = Path(__file__).resolve().parents[2] / "aristos"
# Kernels are written type by type, formats of files have names of their own, and one suite measures two of the types.
OWN = (
    "row_types.py",
    "kernels/",
    "checkpoint/safetensors.py",
    "substrate/cuda/persistent.py",
    "bench/gpu/",
    "bench/suites/overlap.py",
    "reproducible.py",
)


@pytest.mark.parametrize("name", ROW_TYPES)
def test_facts_follow_from_the_arrays_type(name):
    row = ROW_TYPES[name]
    assert (row.name, np.dtype(row.array).itemsize, np.dtype(row.array).name) == (name, row.nbytes, row.stored)
    assert row.largest == float(ml_dtypes.finfo(row.array).max)
    if row.rounds:
        below = np.nextafter(row.overflow, 0)
        with np.errstate(over="ignore"):
            assert np.isinf(np.float64(row.overflow).astype(row.array).astype(float))
            assert float(np.float32(below).astype(row.array)) in (row.largest, np.inf)  # float32 may round it up
            assert float(np.nextafter(np.float32(row.overflow), np.float32(0)).astype(row.array)) == row.largest


def test_the_tables_of_some_types():
    assert list(ON_CPUS) == ["float32", "bfloat16", "float16"]
    assert list(ROUNDED) == ["bfloat16", "float16"]
    assert {kind: row.name for kind, row in BY_KIND.items()} == {
        "f32": "float32", "tf32": "tf32", "bf16": "bfloat16", "f16": "float16"
    }  # fmt: skip


def test_literals_for_type_checkers_name_the_types():
    assert get_args(Bits) == tuple(ROUNDED)


def test_no_other_file_lists_row_types():
    name = r"""["'](?:float32|tf32|bfloat16|float16)["']"""
    listed = re.compile(rf"""(?<!Literal\[){name}(?: *: *[^,\n]+)?, *{name}""")
    found = [
        f"{path.relative_to(PACKAGE)}: {match.group()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if not str(path.relative_to(PACKAGE)).startswith(OWN)
        for match in listed.finditer(path.read_text())
    ]
    assert found == []


INT4 = WeightType("int4", 4, group=32, scale=ROW_TYPES["bfloat16"])


def test_weight_types_of_today_are_elements_of_rows():
    for name, row in ROW_TYPES.items():
        assert WEIGHT_TYPES[name].nbytes(96, 64) == np.zeros((96, 64), row.array).nbytes
    assert SPLIT.nbytes(32, 32) == 2 * np.zeros((32, 32), ml_dtypes.bfloat16).nbytes


def test_a_packed_weight_type_says_its_bytes():
    codes, scales, zeros = 96 * 64 // 2, 3 * 64 * 2, 3 * 64 // 2
    assert INT4.nbytes(96, 64) == codes + scales
    assert replace(INT4, zero_bits=4).nbytes(96, 64) == codes + scales + zeros


@pytest.mark.parametrize("wrong", [{"group": 32}, {"zero_bits": 4}, {"scale": ROW_TYPES["float32"]}])
def test_parts_of_a_weight_type_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError, match="weight type int4: a group needs the type of its scale"):
        WeightType("int4", 4, **wrong)

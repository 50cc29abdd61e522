"""The tables of row and weight types agree with the definitions of the types, and no other file lists types."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import ml_dtypes
import numpy as np
import pytest

from aristos.errors import InputError
from aristos.layer.loading import Bits
from aristos.row_types import BY_KIND, ON_CPUS, ROUNDED, ROW_TYPES
from aristos.weight_types import FORMATS, SPLIT, WEIGHT_TYPES, WeightType, packed

PACKAGE = Path(__file__).resolve().parents[2] / "aristos"
DOCSTRING = re.compile(r'"""(?:.|\n)*?"""')
# Files that may list types: kernels are written type by type, file formats have their own names for types, and one
# suite measures two of the types.
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
            # float32 may have rounded `below` up.
            assert float(np.float32(below).astype(row.array)) in (row.largest, np.inf)
            assert float(np.nextafter(np.float32(row.overflow), np.float32(0)).astype(row.array)) == row.largest


def test_the_tables_of_some_types():
    assert list(ON_CPUS) == ["float32", "bfloat16", "float16"]
    assert list(ROUNDED) == ["bfloat16", "float16"]
    assert {kind: row.name for kind, row in BY_KIND.items()} == {
        "f32": "float32",
        "tf32": "tf32",
        "bf16": "bfloat16",
        "f16": "float16",
    }


def test_literals_for_type_checkers_name_the_types():
    assert get_args(Bits) == tuple(ROUNDED)


def elsewhere(wanted: str, own: tuple[str, ...]) -> list[str]:
    """Matches of the expression `wanted` in files of the package other than `own`. Docstrings may list types."""
    return [
        f"{path.relative_to(PACKAGE)}: {match.group()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if not str(path.relative_to(PACKAGE)).startswith(own)
        for match in re.finditer(wanted, DOCSTRING.sub("", path.read_text()))
    ]


def test_no_other_file_lists_row_types():
    name = r"""["'](?:float32|tf32|bfloat16|float16)["']"""
    assert elsewhere(rf"""(?<!Literal\[){name}(?: *: *[^,\n]+)?, *{name}""", OWN) == []
    assert elsewhere(r"""[!=]= ["']tf32["']""", ("kernels/", "bench/gpu/torch_layer.py")) == []


def test_no_other_file_lists_formats_of_codes():
    name = rf"""["'](?:{"|".join(FORMATS)})["']"""
    # Readers of models name the models' formats.
    own = "weight_types.py", "kernels/", "checkpoint/", "integrations/", "config.py"
    assert elsewhere(rf"(?:[!=]= |[,{{(] *){name}", own) == []


def test_weight_types_of_elements_are_those_of_rows():
    for name, row in ROW_TYPES.items():
        assert WEIGHT_TYPES[name].nbytes(96, 64) == np.zeros((96, 64), row.array).nbytes
        assert not WEIGHT_TYPES[name].packed
    assert SPLIT.nbytes(32, 32) == 2 * np.zeros((32, 32), ml_dtypes.bfloat16).nbytes


@pytest.mark.parametrize("name", FORMATS)
def test_defaults_are_the_first_of_a_format(name):
    form, kind = FORMATS[name], packed(name)
    assert (kind.bits, kind.group, kind.scale, kind.zeros) == (form.bits, form.groups[0], form.scales[0], False)
    assert kind.packed


def test_a_packed_weight_type_says_its_bytes():
    codes, scales, zeros = 96 * 64 // 2, 3 * 64 * 2, 3 * 64 // 2
    assert packed("int4", group=32, scale="bfloat16").nbytes(96, 64) == codes + scales
    assert packed("int4", group=32, scale="bfloat16", zeros=True).nbytes(96, 64) == codes + scales + zeros
    assert packed("fp8").nbytes(200, 130) == 200 * 130 + 2 * 2 * 4
    assert packed("mxfp4").nbytes(64, 10) == 320 + 20


def test_a_weight_type_as_text():
    assert str(WEIGHT_TYPES["bfloat16"]) == "bfloat16"
    assert str(packed("fp8")) == "fp8 with a float32 scale for 128x128"
    assert str(packed("int8")) == "int8 with a float32 scale for a column"
    assert str(packed("int4", group=32, scale="float16", zeros=True)) == (
        "int4 with a float16 scale for 32 rows and zero points"
    )


@pytest.mark.parametrize("wrong", [{"group": 32}, {"zeros": True}, {"columns": 128}])
def test_parts_of_a_weight_type_without_a_scale_are_refused(wrong):
    with pytest.raises(ValueError, match="weight type x: groups, zero points and shared columns need a scale"):
        WeightType("x", 4, **wrong)


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("int4", {"group": 96}, "group of int4 must be one of 128, 64, 32, 0, got 96"),
        ("int4", {"group": 16}, "group of int4 must be one of"),
        ("int4", {"bits": 8}, "int4 must have 4 bits"),
        ("fp8", {"columns": 64}, "a scale for 128 columns, got 8 bits and 64"),
        ("mxfp4", {"zeros": True}, "zeros of mxfp4 must be False"),
        ("int8", {"scale": "e8m0"}, "scale of int8 must be one of"),
    ],
)
def test_packed_types_that_kernels_do_not_have_are_refused(name, wrong, said):
    with pytest.raises(InputError, match=said):
        replace(packed(name), **wrong)


def groups(name: str) -> str:
    return ", ".join(map(str, FORMATS[name].groups))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("int3", {}, f"weight_dtype must be one of {', '.join(FORMATS)}, got 'int3'"),
        (4, {}, "weight_dtype must be one of .*, got 4"),
        ("int4", {"group": 48}, f"group of int4 must be one of {groups('int4')}, got 48"),
        ("int4", {"group": True}, "group of int4 must be one of .*, got True"),
        ("fp8", {"group": 32}, f"group of fp8 must be one of {groups('fp8')}, got 32"),
        ("mxfp4", {"scale": "float32"}, "scale of mxfp4 must be one of e8m0, got 'float32'"),
        ("fp8", {"zeros": True}, "zeros of fp8 must be False, got True"),
        ("int8", {"zeros": 1}, "zeros of int8 must be True or False, got 1"),
    ],
)
def test_types_that_no_format_has_are_refused(name, options, words):
    with pytest.raises(InputError, match=words):
        packed(name, **options)

"""SIMD video instructions on four bytes or two halves of a register, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from simt_ptx import Case, check, rejection

N = 256
OPERATIONS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "absdiff": lambda a, b: abs(a - b),
    "min": min,
    "max": max,
}


def inputs(seed):
    """Three arrays of random words; the last word of each has the bytes 0x80, 0x7F, 0xFF and 0."""
    made = np.random.default_rng(seed).integers(0, 1 << 32, (3, N), dtype=np.uint64).astype(np.uint32)
    made[:, -1] = [0x807FFF00, 0x7F80007F, 0xFFFFFFFF]
    return dict(zip("abc", made))


def parts(word, bits, signed):
    """The numbers in the parts of a word, the lowest first."""
    found = [word >> at & (1 << bits) - 1 for at in range(0, 32, bits)]
    return [x - (1 << bits) if signed and x >> bits - 1 else x for x in found]


def wanted(operation, count, types, form):
    """The function from the bits of a, b and c to those of the result."""
    bits = 32 // count
    least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if types[0] == "s32" else (0, (1 << bits) - 1)

    def want(a, b, c):
        pairs = zip(parts(int(a), bits, types[1] == "s32"), parts(int(b), bits, types[2] == "s32"))
        made = [OPERATIONS[operation](x, y) for x, y in pairs]
        if form == ".add":
            return (int(c) + sum(made)) % (1 << 32)
        if form == ".sat":
            made = [min(max(x, least), most) for x in made]
        return sum((x & (1 << bits) - 1) << k * bits for k, x in enumerate(made))

    return want


@pytest.mark.parametrize("operation", OPERATIONS)
def test_parts_of_words(operation):
    cases = []
    for count in (2, 4):
        for types in (("u32", "u32", "u32"), ("s32", "s32", "s32"), ("s32", "u32", "s32"), ("u32", "s32", "u32")):
            for form in ("", ".sat", ".add"):
                text = f"v{operation}{count}.{'.'.join(types)}{form} $d, $a, $b, $c;"
                cases.append(Case(text, "b32", inputs(count), wanted(operation, count, types, form)))
    check(cases)


def test_a_result_that_is_an_operand_too():
    text = "mov.b32 $d, $a; vabsdiff4.u32.u32.u32.add $d, $d, $b, $d;"
    want = wanted("absdiff", 4, ("u32",) * 3, ".add")
    check([Case(text, "b32", inputs(3), lambda a, b, c: want(a, b, a))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vadd4.u32.u32 r1, r1, r1, r1;", "type is missing"),
        ("vadd4.u32.u32.f32 r1, r1, r1, r1;", "must be .u32 or .s32"),
        ("vadd4.u32.u32.u32.sat.add r1, r1, r1, r1;", ".sat does not go with .add"),
        ("vadd4.u32.u32.u32 r1, r1, r1;", "operands"),
    ],
)
def test_wrong_forms_are_refused(text, message):
    assert message in rejection("mov.u32 r1, 0; " + text)

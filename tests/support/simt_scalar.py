"""A naive interpreter of small PTX programs: one lane at a time, every register an integer of its bits.

It reads the lines of a body as text and shares nothing with the machine. Floating-point results are exact fractions
that are rounded once (simt_numbers).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from simt_numbers import F32, F64, cut, negated, product, read, rounded, saturated, subnormal, total, value

M32, M64 = (1 << 32) - 1, (1 << 64) - 1
REGISTERS = {"h": 16, "r": 32, "d": 64, "p": 1}


class Lane:
    """registers: name -> bits; memory: the lane's 64 bytes."""

    def __init__(self, registers: dict[str, int]):
        self.registers = dict(registers)
        self.memory = bytearray(64)
        self.carry = 0

    def run(self, lines: list[str]) -> None:
        labels = {line[:-1]: at for at, line in enumerate(lines) if line.endswith(":")}
        at = 0
        while at < len(lines):
            line = lines[at].rstrip(";")
            at += 1
            if line.endswith(":"):
                continue
            guard = re.match(r"@(!?)(\w+) ", line)
            if guard:
                line = line[guard.end() :]
                if self.registers[guard[2]] == int(guard[1] == "!"):
                    continue
            opcode, _, rest = line.partition(" ")
            operands = [operand.strip() for operand in re.split(r"[,|](?![^{\[]*[}\]])", rest)]
            if opcode == "bra":
                at = labels[operands[0]]
            else:
                self.step(opcode, operands)

    def get(self, operand: str) -> int:
        if operand.startswith("!"):
            return 1 - self.registers[operand[1:]]
        if operand in self.registers:
            return self.registers[operand]
        return int(operand, 0)

    def put(self, name: str, bits: int) -> None:
        self.registers[name] = bits & ((1 << REGISTERS[name[0]]) - 1)

    def step(self, opcode: str, operands: list[str]) -> None:
        name, *mods = opcode.split(".")
        if name in ("ld", "st"):
            bits, signed = int(mods[-1][1:]), mods[-1][0] == "s"
            register, address = operands if name == "ld" else operands[::-1]
            place = int(address.strip("[]").removeprefix("own+"))
            if name == "st":
                self.memory[place : place + bits // 8] = cut(self.get(register), bits).to_bytes(bits // 8, "little")
            else:
                self.put(register, int.from_bytes(self.memory[place : place + bits // 8], "little", signed=signed))
            return
        if name == "setp":
            a, b = (self.get(x) for x in operands[2:4])
            truth = compared(mods[0], mods[-1], a, b)
            for target, fact in zip(operands[:2], (truth, not truth)):
                self.put(target, int(fact))
            return
        if name == "mov" and operands[0].startswith("{"):
            low, high = (x.strip() for x in operands[0].strip("{}").split(","))
            whole = self.get(operands[1])
            half = int(mods[0][1:]) // 2
            self.put(low, whole)
            self.put(high, whole >> half)
            return
        if name == "mov" and operands[1].startswith("{"):
            low, high = (self.get(x.strip()) for x in operands[1].strip("{}").split(","))
            self.put(operands[0], low | high << int(mods[0][1:]) // 2)
            return
        values = [self.get(x) for x in operands[1:]]
        if "cc" in mods or name in ("addc", "subc", "madc"):
            result, carry = carried(name, mods, values, self.carry)
            if "cc" in mods:
                self.carry = carry
        else:
            result = ONE_RESULT[name](mods, *values)
        self.put(operands[0], result)


def compared(test: str, kind: str, a: int, b: int) -> bool:
    if kind in ("f32", "f64"):
        form = F32 if kind == "f32" else F64
        x, y = value(a, form), value(b, form)
        if "nan" in (x[0], y[0]):
            return test.endswith("u")
        a, b = (int(signed_size(v) * 2**1100) for v in (x, y))
        test = test.removesuffix("u")
    else:
        a, b = read(a, kind), read(b, kind)
    return {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}[test]


def signed_size(x: Any) -> Any:
    size = 2**1030 if x[0] == "inf" else x[2]
    return -size if x[1] else size


def carried(name: str, mods: list[str], values: list[int], carry: int) -> tuple[int, int]:
    bits = int(mods[-1][1:])
    into = carry if name.endswith("c") else 0
    a, b = values[:2]
    if name.startswith("sub"):
        result = a - b - into
        return cut(result, bits), int(result < 0)
    if name.startswith("mad"):
        whole = read(a, mods[-1]) * read(b, mods[-1])
        a, b = cut(whole >> bits if "hi" in mods else whole, bits), values[2]
    result = a + b + into
    return cut(result, bits), result >> bits


def whole(function: Callable[..., int]) -> Callable[..., int]:
    """`function`, applied to operands that are read as integers of the instruction's last type."""
    return lambda mods, *values: function(mods, *(read(x, mods[-1]) for x in values))


def multiplied(mods: list[str], a: int, b: int, c: int = 0) -> int:
    bits = int(mods[-1][1:])
    a, b = read(a, mods[-1]), read(b, mods[-1])
    if "wide" in mods:
        return a * b + c
    return (a * b >> bits if "hi" in mods else a * b) + c


def shifted_right(mods: list[str], a: int, n: int) -> int:
    return read(a, mods[-1]) >> n


def funnel(mods: list[str], a: int, b: int, n: int) -> int:
    n = n & 31 if "wrap" in mods else min(n, 32)
    both = b << 32 | a
    return both << n >> 32 if "l" in mods else both >> n


def permuted(mods: list[str], a: int, b: int, c: int) -> int:
    data = (b << 32 | a).to_bytes(8, "little")
    result = 0
    for i in range(4):
        nibble = c >> 4 * i & 15
        byte = data[nibble & 7]
        result |= (byte if nibble < 8 else 255 * (byte >> 7)) << 8 * i
    return result


def field(mods: list[str], a: int, b: int, c: int) -> int:
    bits, start, length = int(mods[-1][1:]), b & 255, c & 255
    if not length:
        return 0
    a = read(a, mods[-1])
    inside = min(length, max(bits - start, 0))
    sign = a >> min(start + length - 1, bits - 1) & 1 if mods[-1][0] == "s" else 0
    return (a >> start & ((1 << inside) - 1) if inside else 0) | (-1 << inside if sign else 0)


def inserted(mods: list[str], a: int, b: int, c: int, n: int) -> int:
    bits, start, length = int(mods[-1][1:]), c & 255, n & 255
    mask = cut(((1 << length) - 1) << start, bits)
    return b & ~mask | a << start & mask


def looked_up(mods: list[str], a: int, b: int, c: int, table: int) -> int:
    return sum((table >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1) << i for i in range(32))


def dotted(mods: list[str], a: int, b: int, c: int) -> int:
    for i in range(4):
        c += read(a >> 8 * i, mods[0][0] + "8") * read(b >> 8 * i, mods[1][0] + "8")
    return c


def floating(mods: list[str], name: str, *bits: int) -> int:
    form = F32 if mods[-1] == "f32" else F64
    mode = next((mod for mod in mods if mod in ("rz", "rm", "rp")), "rn")
    x, y, *z = (value(b, form) for b in bits)
    if name == "mul":
        exact = product(x, y)
    elif name == "fma":
        exact = total(product(x, y), z[0], mode)
    else:
        exact = total(x, negated(y) if name == "sub" else y, mode)
    return rounded(exact, form, mode)


def divided(mods: list[str], a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def arithmetic(name: str, function: Callable[..., int]) -> Callable[..., int]:
    def either(mods: list[str], *values: int) -> int:
        if mods[-1][0] == "f":
            return floating(mods, name, *values)
        if "sat" in mods:
            return saturated(whole(function)(mods, *values), mods[-1])
        return whole(function)(mods, *values)

    return either


def converted(mods: list[str], a: int) -> int:
    to, source = mods[-2:]
    if source[0] == "f":
        x = value(a, F32 if source == "f32" else F64)
        if to[0] == "f":
            return rounded(x, F32 if to == "f32" else F64, mods[0] if mods[0] in ("rn", "rz", "rm", "rp") else "rn")
        if x[0] == "nan":
            return read(1 << int(to[1:]) - 1, to) if "64" in to + source else 0
        size = signed_size(x)
        number = size.numerator // size.denominator  # rounded down, as by rmi
        if mods[0] == "rzi" and size < 0 and number != size:
            number += 1
        return saturated(number, to)
    number = read(a, source)
    if to[0] == "f":
        return rounded(
            ("num", number < 0, abs(number) * product(("num", False, 1), ("num", False, 1))[2]),
            F32 if to == "f32" else F64,
            mods[0],
        )
    return saturated(number, to) if "sat" in mods else read(number, to)


ONE_RESULT: dict[str, Callable[..., int]] = {
    "add": arithmetic("add", lambda mods, a, b: a + b), "sub": arithmetic("sub", lambda mods, a, b: a - b),
    "mul": lambda mods, a, b: floating(mods, "mul", a, b) if mods[-1][0] == "f" else multiplied(mods, a, b),
    "mad": multiplied, "fma": lambda mods, *values: floating(mods, "fma", *values),
    "min": whole(lambda mods, a, b: min(a, b)), "max": whole(lambda mods, a, b: max(a, b)),
    "abs": whole(lambda mods, a: abs(a)), "neg": whole(lambda mods, a: -a),
    "sad": whole(lambda mods, a, b, c: c + abs(a - b)), "div": whole(divided),
    "rem": whole(lambda mods, a, b: a - divided(mods, a, b) * b),
    "and": lambda mods, a, b: a & b, "or": lambda mods, a, b: a | b, "xor": lambda mods, a, b: a ^ b,
    "not": lambda mods, a: 1 - a if mods[0] == "pred" else ~a, "cnot": lambda mods, a: int(a == 0),
    "shl": lambda mods, a, n: a << n if n < 64 else 0, "shr": shifted_right, "shf": funnel,
    "popc": lambda mods, a: a.bit_count(), "clz": lambda mods, a: int(mods[0][1:]) - a.bit_length(),
    "brev": lambda mods, a: int(f"{a:0{mods[0][1:]}b}"[::-1], 2), "bfe": field, "bfi": inserted,
    "prmt": permuted, "lop3": looked_up, "dp4a": dotted, "selp": lambda mods, a, b, p: a if p else b,
    "slct": lambda mods, a, b, c: a if read(c, "s32") >= 0 else b, "cvt": converted,
    "mov": lambda mods, a: a,
    "testp": lambda mods, a: int(TESTS[mods[0]](value(a, F32 if mods[1] == "f32" else F64), mods[1])),
}  # fmt: skip
TESTS = {
    "notanumber": lambda x, kind: x[0] == "nan",
    "finite": lambda x, kind: x[0] == "num",
    "subnormal": lambda x, kind: subnormal(x, F32 if kind == "f32" else F64),
}

"""Changes valid inputs at random: bytes, pieces, numbers, words, nodes of JSON. Equal seeds make equal inputs."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from typing import Any

NUMBERS = (
    b"0", b"-1", b"1", b"255", b"65536", b"2147483648", b"18446744073709551616", b"7" * 5000, b"1e400", b"-0", b"NaN",
    "²".encode(), "٣".encode(), b"0x10", b"1_0", b"00000000000000000001", b"1.5.2",
)  # fmt: skip
WORDS = (
    b"\x1b[31m", b"\x00", b"\xff\xfe", "\u202e".encode(), b"\xed\xa0\x80", b"\n", b"\r\n", b",", b"=", b" ", b'"', b"/",
    b"../", b"*", b"\\", b"#", b"%s", b"{}",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, -(10**400), 1.5, float("nan"), float("inf"), "",
    "x" * 300, "\x1b[31m", "\ud800", "²", [], {}, [[]], [None], {"a": 1}, "0-3", [0, 1],
)  # fmt: skip
LARGEST = 1 << 20  # the most bytes of an input
KEPT = 200  # the most inputs that are kept besides the seeds because they gave new messages


class Mutator:
    """Makes inputs from seeds. `keep` adds an input to those that are changed further."""

    def __init__(self, seed: int, seeds: Sequence[bytes], words: Sequence[bytes]) -> None:
        self.rng, self.seeds, self.words = random.Random(seed), [*seeds], [*WORDS, *words]
        self.kept: list[bytes] = []

    def keep(self, data: bytes) -> None:
        if len(data) < 1 << 16:
            self.kept.append(data)
            if len(self.kept) > KEPT:
                self.kept.pop(self.rng.randrange(KEPT))

    def make(self) -> bytes:
        """The next input."""
        rng = self.rng
        data = rng.choice(self.kept if self.kept and rng.random() < 0.5 else self.seeds)
        if data[:1] in (b"{", b"[") and rng.random() < 0.6:
            data = self._json(data)
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 8))):
            data = rng.choice(_WAYS)(self, data)[:LARGEST]
        return data

    def _at(self, data: bytes) -> int:
        return self.rng.randrange(len(data) + 1)

    def _piece(self, data: bytes) -> tuple[int, int]:
        a, length = self._at(data), int(2 ** (self.rng.random() * 10))
        return a, min(len(data), a + length)

    def flip(self, data: bytes) -> bytes:
        found = bytearray(data or b"\0")
        for _ in range(self.rng.choice((1, 1, 2, 16))):
            found[self.rng.randrange(len(found))] ^= 1 << self.rng.randrange(8)
        return bytes(found)

    def byte(self, data: bytes) -> bytes:
        at = self._at(data)
        return data[:at] + bytes([self.rng.randrange(256)]) + data[at + 1 :]

    def delete(self, data: bytes) -> bytes:
        a, b = self._piece(data)
        return data[:a] + data[b:]

    def repeat(self, data: bytes) -> bytes:
        a, b = self._piece(data)
        return data[:b] + data[a:b] * self.rng.choice((1, 1, 2, 30, 1000)) + data[b:]

    def move(self, data: bytes) -> bytes:
        a, b = self._piece(data)
        at = self._at(data)
        return data[:at] + data[a:b] + data[at:]

    def splice(self, data: bytes) -> bytes:
        other = self.rng.choice(self.seeds)
        return data[: self._at(data)] + other[self._at(other) :]

    def word(self, data: bytes) -> bytes:
        at = self._at(data)
        return data[:at] + self.rng.choice(self.words) * self.rng.choice((1, 1, 1, 2, 500)) + data[at:]

    def number(self, data: bytes) -> bytes:
        found = list(re.finditer(rb"[0-9]+", data))
        if not found:
            return self.word(data)
        one = self.rng.choice(found)
        return data[: one.start()] + self.rng.choice(NUMBERS) + data[one.end() :]

    def cut(self, data: bytes) -> bytes:
        return data[: self._at(data)]

    def _json(self, data: bytes) -> bytes:
        """Put another value in the place of a node, or another key."""
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            return data
        places: list[tuple[Any, Any]] = []
        todo = [found]
        while todo:
            node = todo.pop()
            keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
            for key in keys:
                places.append((node, key))
                todo.append(node[key])
        if places:
            node, key = self.rng.choice(places)
            way = self.rng.random()
            if way < 0.7:
                node[key] = self.rng.choice(VALUES)
            elif way < 0.85 and isinstance(node, dict):
                del node[key]
            elif isinstance(node, list):
                node.append(node[key])
        try:
            return json.dumps(found).encode()
        except (ValueError, RecursionError):
            return data


_WAYS = (
    Mutator.flip,
    Mutator.byte,
    Mutator.delete,
    Mutator.repeat,
    Mutator.move,
    Mutator.splice,
    Mutator.word,
    Mutator.word,
    Mutator.number,
    Mutator.number,
    Mutator.cut,
)

"""Modules of many kernels as one module for each kernel, which is read when the kernel is first used."""

from __future__ import annotations

import re
from dataclasses import dataclass

MANY = 1 << 20  # characters of PTX, from which on a module is read in parts
SMALL_SHARED = 48 << 10  # bytes of shared memory of a block for which a kernel needs no attribute
MARK = re.compile(r'//[^\n]*|"[^"\n]*"|[{}]|^[ \t]*(?:\.(?:visible|weak)\s+)?\.entry\s+([\w$]+)|;', re.M)
VARIABLE = re.compile(r"^\s*(?:\.(?:visible|weak|common)\s+)?\.(?:global|const)\b[^={;]*?\.[bsuf]\d+\s+([\w$]+)", re.M)
ARRAY = re.compile(r"\.shared\s+(?:\.align\s+\d+\s+)?\.[a-z](\d+)\s+[\w$]+\[(\d+)\]")


@dataclass(frozen=True)
class Parts:
    """A module's text, the places (start, end) of its kernels in it, and by variables' names the kernels that use them.

    A variable that no kernel uses has the name ''.
    """

    text: str
    kernels: dict[str, tuple[int, int]]
    users: dict[str, str]

    def text_for(self, kernel: str) -> str:
        """The text of the module with one kernel; '': with none."""
        made, at = [], 0
        for name, (start, end) in self.kernels.items():
            if name != kernel:
                made.append(self.text[at:start])
                at = end
        return "".join([*made, self.text[at:]])


def parts(text: str) -> Parts | None:
    """A module's parts, if it must be read in parts and can be.

    It must if it is long, or if its kernels declare more shared memory together than one kernel may have. It cannot if
    kernels share variables, because each part has variables of its own.
    """
    shared = sum(int(bits) // 8 * int(count) for bits, count in ARRAY.findall(text))
    if len(text) < MANY and shared <= SMALL_SHARED:
        return None
    kernels = places(text)
    if len(kernels) < 2:
        return None
    found = Parts(text, kernels, {})
    rest = found.text_for("")
    variables = VARIABLE.findall(rest)
    if any(used(rest, name) > 1 for name in variables):
        return None  # functions or other variables use one
    if variables:
        anyone = re.compile(r"(?<![\w$])(?:" + "|".join(map(re.escape, variables)) + r")(?![\w$])")
        for name, (start, end) in kernels.items():
            for variable in set(anyone.findall(text, start, end)):
                if found.users.setdefault(variable, name) != name:
                    return None
    found.users.update({variable: "" for variable in variables if variable not in found.users})
    return found


def used(text: str, name: str) -> int:
    """How often a text has a name."""
    return len(re.findall(rf"(?<![\w$]){re.escape(name)}(?![\w$])", text))


def places(text: str) -> dict[str, tuple[int, int]]:
    """The places (start, end) of the kernels in a text."""
    found: dict[str, tuple[int, int]] = {}
    depth, start, name = 0, 0, ""
    for mark in MARK.finditer(text):
        word = mark.group()
        if mark.group(1):
            start, name = mark.start(), mark.group(1)
        elif word == "{":
            depth += 1
        elif word == "}":
            depth -= 1
            if depth == 0 and name:
                found[name] = start, mark.end()
                name = ""
        elif word == ";" and depth == 0:  # a declaration
            name = ""
    return found

"""Removes from CUDA C++ the functions of the host, such as those that launch or allocate. NVRTC does not compile them.

This module does not parse C++. It finds functions outside classes by their braces. What is left is compiled as device
code.
"""

from __future__ import annotations

import re
from pathlib import Path

# text that is no code: comments, strings, characters, preprocessor lines; an unclosed comment reaches the file's end
NO_CODE = re.compile(
    r"""//[^\n]*|/\*.*?(?:\*/|\Z)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])'|^[ \t]*\#(?:\\\n|[^\n])*""", re.S | re.M
)
TRANSPARENT = re.compile(r"\bnamespace\b|\bextern$")  # before the brace of a namespace or an extern block
DEVICE = re.compile(r"\b__(global|device)__\b")
HOST = re.compile(r"<<<|\bcuda[A-Z]\w*|\bcu[A-Z]\w*|\bstd::|\b(cout|cerr|fprintf|malloc|calloc|exit)\b")
HOST_HEAD = re.compile(r"\bmain\s*\(|\b__host__\b|\bstd::")
BRACE = re.compile(r"[{}]")
INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]*<([^>\n]+)>", re.M)


def without_host_code(source: str) -> str:
    """The source with blanks in place of the host's functions, so that line numbers do not change."""
    code = NO_CODE.sub(lambda found: blank(found[0]), source)
    at = start = kept = 0
    parts = []
    while (at := code.find("{", at)) >= 0:
        start = max(code.rfind(mark, start, at) for mark in ";{}") + 1 or start
        head = code[start:at]
        if TRANSPARENT.search(re.split("[;()]", head)[-1].rstrip()):
            at += 1
            continue
        end = closing(code, at)
        start += len(head) - len(head.lstrip())
        function = ")" in head and not head.rstrip().endswith("=") and not DEVICE.search(head)
        if function and (HOST_HEAD.search(head) or HOST.search(code[at:end])):
            parts += [source[kept:start], blank(source[start:end])]
            kept = end
        at = start = end
    return "".join([*parts, source[kept:]])


def blank(text: str) -> str:
    """The text with a blank in place of each character, except for line breaks."""
    return re.sub(r"[^\n]", " ", text)


def closing(code: str, at: int) -> int:
    """The place after the brace that closes the brace at `at`, or the end of the code if none does."""
    depth = 0
    for found in BRACE.finditer(code, at):
        depth += 1 if found[0] == "{" else -1
        if depth == 0:
            return found.end()
    return len(code)


def missing_headers(source: str, folders: list[str]) -> list[str]:
    """The headers in angle brackets that lie in none of the folders. Most likely they are for the host, like vector."""
    return [
        name for name in dict.fromkeys(INCLUDE.findall(source)) if not any((Path(f) / name).exists() for f in folders)
    ]

"""Removes from CUDA C++ the functions of the host, such as those that launch or allocate. NVRTC does not compile them.

This module does not parse C++. It finds functions outside classes by their braces. What is left is compiled as device
code.
"""

from __future__ import annotations

import re
from pathlib import Path

from kernel_cache import regular

# text that is no code: comments, strings, characters, preprocessor lines; an unclosed comment reaches the file's end
NO_CODE = re.compile(
    r"""//[^\n]*|/\*.*?(?:\*/|\Z)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])'|^[ \t]*\#(?:\\\n|[^\n])*""", re.S | re.M
)
TRANSPARENT = re.compile(r"\bnamespace\b|\bextern$")  # before the brace of a namespace or an extern block
DEVICE = re.compile(r"\b__(global|device)__\b")
HOST = re.compile(r"<<<|\bcuda[A-Z]\w*|\bcu[A-Z]\w*|\bstd::|\b(cout|cerr|fprintf|malloc|calloc|exit)\b")
HOST_HEAD = re.compile(r"\bmain\s*\(|\b__host__\b|\bstd::")
# what only classes of the host have, as bases or members
HOST_CLASS = re.compile(
    r"\bstd::(exception|string|\w*stream|cerr|cout|vector|\w*map|mutex|shared_ptr|unique_ptr|function)\b"
)
CLASS = re.compile(r"\b(class|struct)\s+\w+[^;(){}=]*$")
BRACE = re.compile(r"[{}]")
INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]*<([^>\n]+)>", re.M)
ANY_INCLUDE = re.compile(r"""^([ \t]*#[ \t]*include[ \t]*)(["<])([^">\n]+)[">]""", re.M)


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
        classes = CLASS.search(head[-400:]) and not DEVICE.search(code[at:end]) and HOST_CLASS.search(code[start:end])
        if classes or (function and (HOST_HEAD.search(head) or HOST.search(code[start:end]))):
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


def with_headers(source: str, folders: list[Path]) -> tuple[str, dict[str, str]]:
    """The source without functions of the host, and the texts of the headers that it includes, without them too.

    folders: the source's own folder, and those of `-I`. Headers that lie in none of them are left out. All includes of
    the others name absolute paths, which are the keys of the texts. Line numbers do not change.
    """
    texts: dict[str, str] = {}
    todo: list[Path] = []

    def rewritten(text: str, here: Path) -> str:
        def named(found: re.Match[str]) -> str:
            places = [here, *folders] if found[2] == '"' else folders
            path = next((place / found[3] for place in places if (place / found[3]).is_file()), None)
            if path is None:
                return found[0]
            todo.append(path.resolve())
            return f'{found[1]}"{path.resolve()}"'

        return ANY_INCLUDE.sub(named, without_host_code(text))

    source = rewritten(source, folders[0])
    while todo:
        path = todo.pop()
        if str(path) not in texts:
            texts[str(path)] = ""
            texts[str(path)] = rewritten(regular.read(path).decode("utf-8", errors="replace"), path.parent)
    return source, texts

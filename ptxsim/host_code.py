"""Removes from CUDA C++ the functions of the host, such as those that launch or allocate. NVRTC does not compile them.

This module does not parse C++. It finds functions outside classes by their braces. What is left is compiled as device
code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from kernel_cache import regular

# text that is no code: comments, strings, characters, preprocessor lines; an unclosed comment reaches the file's end
NO_CODE = re.compile(
    r"""//[^\n]*|/\*.*?(?:\*/|\Z)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])'|^[ \t]*\#(?:\\\n|[^\n])*""", re.S | re.M
)
TRANSPARENT = re.compile(r"\bnamespace\b|\bextern$")  # before the brace of a namespace or an extern block
DEVICE_WORDS = ("__global__", "__device__")
MACRO = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(\w+)((?:\\\n|[^\n])*)", re.M)
HOST_CALL = re.compile(r"<<<|\bcuda[A-Z]\w*|\bcu[A-Z]\w*|\b(cout|cerr|fprintf|malloc|calloc|exit)\b")
STD = re.compile(r"\bstd::")
HOST_HEAD = re.compile(r"\bmain\s*\(|\b__host__\b|\bstd::")
CONSTEXPR = re.compile(r"\bconstexpr\b")  # before a function: its result may be known when device code is compiled
THROW = re.compile(r"(?<=[;{})])(\s*(?:else\s*)?)\bthrow\b[^;{}]*;")  # devices have no exceptions
# what only classes of the host have, as bases or members
HOST_CLASS = re.compile(
    r"\bstd::(exception|string|\w*stream|cerr|cout|vector|\w*map|mutex|shared_ptr|unique_ptr|function)\b"
)
ALIGNED = re.compile(r"\b(?:alignas|__align__)\s*\([^()]*\)")  # makes the head of a class look like a function's
CLASS = re.compile(r"\b(class|struct)\s+\w+[^;(){}=]*$")
BRACE = re.compile(r"[{}]")
HOST_WORD = re.compile(r"\b__host__\b")  # NVRTC rejects functions of the host alone, such as constructors of classes
INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]*<([^>\n]+)>", re.M)
ANY_INCLUDE = re.compile(r"""^([ \t]*#[ \t]*include[ \t]*)(["<])([^">\n]+)[">]""", re.M)


def device_words(texts: Iterable[str]) -> tuple[str, ...]:
    """The words that mark code of the device: CUDA's own, and macros of the texts that contain one, such as DINLINE."""
    macros = [found.groups() for text in texts for found in MACRO.finditer(text)]
    words = dict.fromkeys(DEVICE_WORDS)
    before = 0
    while len(words) > before:  # a macro may contain another one
        before, marks = len(words), any_of(tuple(words))
        words |= dict.fromkeys(name for name, value in macros if name not in words and marks.search(value))
    return tuple(words)


def any_of(words: tuple[str, ...]) -> re.Pattern[str]:
    """A regular expression that finds any of the words."""
    return re.compile(rf"\b(?:{'|'.join(words)})\b")


def without_host_code(source: str, words: tuple[str, ...] = ()) -> str:
    """The source with blanks in place of the host's functions, so that line numbers do not change.

    words: those that mark code of the device, if headers define some.
    """
    device = any_of(words or device_words([source]))
    code = NO_CODE.sub(lambda found: blank(found[0]), source)
    at = start = 0
    cuts: list[tuple[int, int, str]] = []  # the begin and the end of what is replaced, and by what
    while (at := code.find("{", at)) >= 0:
        start = max(code.rfind(mark, start, at) for mark in ";{}") + 1 or start
        head = code[start:at]
        if TRANSPARENT.search(re.split("[;()]", head)[-1].rstrip()):
            at += 1
            continue
        end = closing(code, at)
        start += len(head) - len(head.lstrip())
        if of_host(head, code[start:end], device):
            cuts.append((start, end, blank(source[start:end])))
        else:
            places = [(one.end(1), one.end()) for one in THROW.finditer(code, at, end)]
            changes = [(first, last, trap(code[first:last])) for first, last in places]
            changes += [(*one.span(), blank(one[0])) for one in HOST_WORD.finditer(code, start, end)]
            cuts += sorted(changes)
        at = start = end
    kept = 0
    parts = []
    for start, end, by in cuts:
        parts += [source[kept:start], by]
        kept = end
    return "".join([*parts, source[kept:]])


def of_host(head: str, text: str, device: re.Pattern[str]) -> bool:
    """Whether a function or a class is the host's alone. head: what stands before its brace. text: all of it."""
    head = ALIGNED.sub(" ", head)
    if CLASS.search(head[-400:]) and not device.search(text) and HOST_CLASS.search(text):
        return True
    if ")" not in head or head.rstrip().endswith("=") or device.search(head):
        return False
    if CONSTEXPR.search(head):
        return bool(HOST_CALL.search(text) or HOST_CLASS.search(text))
    return bool(HOST_HEAD.search(head) or HOST_CALL.search(text) or STD.search(text))


def trap(text: str) -> str:
    """What replaces a statement that throws. It has as many line breaks."""
    return "__trap();" + "\n" * text.count("\n")


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

    def place(found: re.Match[str], here: Path) -> Path | None:
        """The header that an include names, or None if it lies in none of the folders."""
        places = [here, *folders] if found[2] == '"' else folders
        path = next((place / found[3] for place in places if (place / found[3]).is_file()), None)
        return path and path.resolve()

    def included(text: str, here: Path) -> list[Path]:
        return [path for found in ANY_INCLUDE.finditer(text) if (path := place(found, here))]

    texts: dict[Path, str] = {}
    todo = included(source, folders[0])
    while todo:
        path = todo.pop()
        if path not in texts:
            texts[path] = regular.read(path).decode("utf-8", errors="replace")
            todo += included(texts[path], path.parent)
    words = device_words([source, *texts.values()])

    def rewritten(text: str, here: Path) -> str:
        def named(found: re.Match[str]) -> str:
            path = place(found, here)
            return f'{found[1]}"{path}"' if path else found[0]

        return ANY_INCLUDE.sub(named, without_host_code(text, words))

    return rewritten(source, folders[0]), {str(path): rewritten(text, path.parent) for path, text in texts.items()}

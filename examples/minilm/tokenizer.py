"""WordPiece for uncased English BERT models: text -> token ids.

The text is cleaned, lowered, stripped of accents, and split at spaces and punctuation. Then the longest pieces of the
vocabulary are taken from left to right. Pairs, padding and special tokens inside the text are not supported.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

LONGEST_WORD = 100  # characters; BERT reads a longer word as one unknown token


class WordPiece:
    def __init__(self, vocabulary: Path, max_tokens: int = 256) -> None:
        """vocabulary: a file with one piece a line, whose line number is the id; max_tokens: the longest result."""
        pieces = vocabulary.read_text(encoding="utf-8").split("\n")
        self.ids = {piece: number for number, piece in enumerate(pieces) if piece}
        self.max_tokens = max_tokens

    def __call__(self, text: str) -> list[int]:
        """text -> ids between [CLS] and [SEP], at most max_tokens of them."""
        ids = [number for word in words(text) for number in self._pieces(word)]
        return [self.ids["[CLS]"], *ids[: self.max_tokens - 2], self.ids["[SEP]"]]

    def _pieces(self, word: str) -> list[int]:
        unknown = [self.ids["[UNK]"]]
        if len(word) > LONGEST_WORD:
            return unknown
        found: list[int] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if prefix + word[start:end] in self.ids), None)
            if end is None:
                return unknown
            found.append(self.ids[prefix + word[start:end]])
            start = end
        return found


def words(text: str) -> list[str]:
    """Lower-case words without accents; every punctuation mark and CJK character is a word of its own."""
    kept = []
    for char in unicodedata.normalize("NFD", text.lower()):
        kind = unicodedata.category(char)
        if char in "\t\n\r" or kind == "Zs":
            kept.append(" ")
        elif kind == "Mn" or kind[0] == "C" or char == "\ufffd":
            continue
        elif _is_punctuation(char, kind) or _is_cjk(ord(char)):
            kept.append(f" {char} ")
        else:
            kept.append(char)
    return "".join(kept).split()


def _is_punctuation(char: str, kind: str) -> bool:
    # BERT counts every ASCII character that is neither letter, digit nor space, "$" and "^" too.
    return kind[0] == "P" or (char.isascii() and not char.isalnum())


def _is_cjk(code: int) -> bool:
    ranges = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))
    return any(low <= code <= high for low, high in ranges)

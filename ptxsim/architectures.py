"""Which architectures' PTX a machine runs: that of its own and of older ones, as a GPU does."""

from __future__ import annotations

import re
from typing import Any


def mismatch(target: str, arch: str, cc: tuple[Any, ...]) -> str:
    """Why PTX is not for a machine, and what to do; '' if the PTX is for it.

    target: the PTX's architecture, such as sm_90a. arch, cc: the machine's architecture and its compute capability.
    An `a` in the target means this architecture alone, an `f` later ones of the same major number too.
    """
    found = re.fullmatch(r"sm_(\d+)(\d)([af]?)", target)
    if found is None:
        return ""
    needed, own = (int(found[1]), int(found[2])), tuple(cc[:2])
    fits = {"a": needed == own, "f": needed[0] == own[0] and needed <= own, "": needed <= own}[found[3]]
    return "" if fits else f"is for {target}, and the machine is {arch}: add --arch {target}"

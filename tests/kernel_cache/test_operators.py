"""Each operator is resolved once for each combination of types in a compilation, and the PTX stays the same."""

from __future__ import annotations

import contextlib
import operator
import re

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
from cuda_kernels import REVERSE
from numba.core import types

from kernel_cache import offline, operators

Base = types.functions.BaseFunction


def compiled():
    """The PTX of a kernel, with its names left out, since Numba numbers them."""
    _, (text,) = offline.compiled(REVERSE.function, REVERSE.types, (9, 0))
    return re.sub(r"_ZN\w+|_cudapy_\w+", "NAME", text)


def test_the_ptx_is_the_same_and_operators_are_resolved_once(monkeypatch):
    asked: list[tuple[object, ...]] = []
    resolve = Base.get_call_type

    def noted(self, context, args, kws):
        asked.append((self.typing_key, context, *args))
        return resolve(self, context, args, kws)

    monkeypatch.setattr(Base, "get_call_type", noted)
    text = compiled()
    once = [each for each in asked if each[0] in (operator.getitem, operator.add, operator.sub, operator.mul)]
    assert once
    assert len(set(once)) == len(once)
    assert Base.get_call_type is noted
    del asked[:]
    monkeypatch.setattr(operators, "remembered", contextlib.nullcontext)
    assert compiled() == text
    again = [each for each in asked if each[0] in (operator.getitem, operator.add, operator.sub, operator.mul)]
    assert len(set(again)) < len(again)

"""Calls with different constants share compiled code; functions that only compiled code calls have no machine code."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cases import ROOT, clean_environment
from numba import boolean, int64
from numba.core.caching import NullCache

from kernel_cache.compile import jit


@jit
def scaled(value, factor, add):
    return value * factor + (1 if add else 0)


@jit
def with_constants(value):
    return scaled(value, 2, True) + scaled(value, 3, False) + scaled(value, value, value > 0)


def test_calls_with_different_constants_share_code():
    for function in (scaled, with_constants):
        function._cache = function.linked_cache = NullCache()
    with_constants.compile((int64,))
    assert list(scaled.linked) == [(int64, int64, boolean)]
    assert with_constants(5) == 11 + 15 + 26


@jit
def positive(value):
    if value < 0:
        raise ValueError("negative")
    return value


@jit
def twice_positive(value):
    return 2 * positive(value)


@pytest.fixture
def uncached(monkeypatch):
    for function in (positive, twice_positive):
        for name in ("_cache", "linked_cache"):
            monkeypatch.setattr(function, name, NullCache())


def test_a_function_that_only_compiled_code_calls_has_no_machine_code(uncached):
    assert twice_positive(4) == 8
    assert list(positive.linked) == [(int64,)]
    assert not positive.overloads
    assert positive(3) == 3  # now Python has called it, so it has machine code
    assert list(positive.overloads) == [(int64,)]


def test_an_error_in_a_called_function_reaches_python(uncached):
    with pytest.raises(ValueError, match="negative"):
        twice_positive(-1)


LATER = """
import sys; sys.path.insert(0, {folder!r})
from functions import *
print(">", {call}, list(low.linked), sum(f.stats.cache_misses.total() for f in (low, high, other, third)))
try:
    {then}
except ValueError as error:
    print(error)
"""
FUNCTIONS = """
from kernel_cache.compile import jit
@jit
def low(value):
    if value == 13:
        raise ValueError(("unlucky", value))
    return value + 1
@jit
def high(value):
    return 2 * low(value)
@jit
def other(value):
    return 3 * low(value)
@jit
def third(value):
    return 4 * low(value)
"""


def test_another_caller_links_code_from_the_cache(tmp_path):
    """A process that compiles another caller loads the code of the called function, and can raise its errors."""
    (tmp_path / "functions.py").write_text(FUNCTIONS)

    def use(call: str, then: str = "pass") -> str:
        code = LATER.format(folder=str(tmp_path), call=call, then=then)
        env = {**clean_environment(), "ARISTOS_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
        )
        return done.stdout.strip() or done.stderr.strip().splitlines()[-1]

    assert use("high(4)") == "> 10 [(int64,)] 2"
    for found in ("> 15 [(int64,)] 1", "> 15 [] 0"):  # the first process compiles, the second one loads
        assert use("other(4)", "third(13)").splitlines() == [found, "('unlucky', 13)"]

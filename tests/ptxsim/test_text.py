"""PTX text that no compiler writes is soon read or refused; errors name the line. Nothing is compiled or run."""

from __future__ import annotations

import time

import pytest

from ptxsim.errors import InputError
from ptxsim.loader import Loader
from ptxsim.lower import lower
from ptxsim.parser import parse
from ptxsim.syntax import PTXError

HEAD = ".version 8.0\n.target sm_90\n.address_size 64\n"


def kernel(body: str = "", module: str = "") -> str:
    """PTX whose body is line 6."""
    return f"{HEAD}{module}\n.visible .entry k(.param .u64 p) {{\n{body}\nret;\n}}\n"


def calls(count: int) -> str:
    """Functions that each call the next two, so there are at least 2^(count / 2) ways through them."""
    last = "".join(f".func f{n}() {{ ret; }}\n" for n in (count, count + 1))
    each = "".join(f".func f{n}() {{ call f{n + 1}, (); call f{n + 2}, (); ret; }}\n" for n in reversed(range(count)))
    return kernel("call f0, ();", last + each)


FINE = [
    HEAD,
    calls(60),
    calls(3000),
    kernel(".reg .b64 %rd<3>; mov.u64 %rd1, g;", ".global .u64 g = h; .global .u64 h = g;"),
    kernel(".reg .f64 %f<2>; mov.f64 %f1, 1.0e400;"),
    kernel(".reg .b32 %r<2000000000>; mov.u32 %r1999999999, 1;"),
]
REFUSED = [
    (kernel(".shared .align 0 .b8 s[4];"), "line 6: .align must be a power of two"),
    (kernel(".shared .align 1000000007 .b8 s[4];"), "line 6: .align must be a power of two"),
    (kernel(".shared .align -8 .b8 s[4];"), "line 6: .align must be a power of two"),
    (kernel("mov.b64 " + "{" * 5000), "line 6: braces must be nested at most 100 deep"),
    (kernel("add.s32 " + "(" * 5000), "line 6: braces must be nested at most 100 deep"),
    (kernel("", ".global .b8 g[4] = " + "{" * 5000), "line 4: braces must be nested at most 100 deep"),
    (kernel("", ".global .u64 g = nope;"), "g holds the address of nope, which is not in the module"),
    (kernel(f".reg .b32 %r<3>; mov.u32 %r1, {'9' * 6000};"), "line 6: expected a number, got '9{80}'\\.\\.\\."),
    (kernel(f".reg .b32 %r<3>; mov.u32 %r1, 0{'7' * 6000};"), "line 6: expected a number"),
    (kernel(".reg .b32 %r<99999999999999999999>;"), "line 6: a number has more than 64 bits"),
    (kernel(".reg .b32 %r<3>; mov.u32 %r¹2, 1;"), "%r¹2"),
    (kernel(".reg .b32 %r<3>; mov.u32 %r1, ٣;"), "cannot read"),
    (HEAD + ".global .b8 g[8] = {1, 2, 3", "the text ends within"),
    (HEAD + ".visible .entry k() { mov.b32 {%r1, ", "line 4"),
    (kernel(".local .b8 s[1099511627776];"), "bytes of local memory"),
]


@pytest.mark.parametrize("case", range(len(FINE)))
def test_odd_text_is_lowered_soon(case):
    begun = time.process_time()
    lower(parse(FINE[case]))
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_hostile_text_is_refused_soon(case):
    text, words = REFUSED[case]
    begun = time.process_time()
    with pytest.raises(PTXError, match=words) as caught:
        lower(parse(text))
    assert time.process_time() - begun < 5
    assert len(str(caught.value)) < 500


def test_the_longest_chain_of_calls_counts():
    program = lower(parse(calls(60)))
    assert program.depth == 63


def test_lone_surrogates_are_refused():
    with pytest.raises(PTXError, match="cannot read"):
        Loader.program(Loader.__new__(Loader), "\ud800")


def test_the_name_of_a_script_may_be_too_long():
    pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
    from ptxsim.profile import profile

    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(InputError, match="there is no file"):
            profile(name, [], False)

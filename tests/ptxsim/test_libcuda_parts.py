"""Modules of many kernels that `ptxsim run` reads in parts."""

from __future__ import annotations

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")

from ptxsim.libcuda import parts
from ptxsim.lower import lower
from ptxsim.parser import parse

HEAD = ".version 8.0\n.target sm_90\n.address_size 64\n"


def kernel(name, body="", size=32768):
    """A kernel with an array in shared memory, with braces in a comment and in a call."""
    shared = f".shared .align 4 .b8 {name}_s[{size}]; .reg .b32 %r; mov.u32 %r, {name}_s;"
    return f".visible .entry {name}(.param .u64 x)\n{{ {shared}\n// }} no end\n{{ // callseq\n}}\n{body} ret;\n}}\n"


def test_kernels_with_much_shared_memory_are_read_in_parts():
    text = HEAD + ".global .align 4 .b8 table[8];\n.global .align 4 .b8 other[8];\n"
    text += kernel("first") + kernel("second", ".reg .u64 %a; mov.u64 %a, table;")
    found = parts.parts(text)
    assert found is not None
    assert list(found.kernels) == ["first", "second"]
    assert found.users == {"table": "second", "other": ""}
    first = found.text_for("first")
    assert "first_s[" in first
    assert "other[8]" in first
    assert "second" not in first
    assert "{" not in found.text_for("")
    assert "table[8]" in found.text_for("")
    for name in ("first", "second", ""):
        made = lower(parse(found.text_for(name)))
        assert [one for one, info in made.functions.items() if info.entry] == [name][: bool(name)]
    assert parts.parts(HEAD + kernel("first") + kernel("second", size=8)) is None, "there is no need"


def test_kernels_that_share_a_variable_are_not_read_in_parts():
    uses = ".reg .u64 %a; mov.u64 %a, table;"
    text = HEAD + ".global .align 4 .b8 table[8];\n" + kernel("first", uses) + kernel("second", uses)
    assert parts.parts(text) is None
    function = ".func used()\n{ .reg .u64 %a; mov.u64 %a, table; ret; }\n"
    assert parts.parts(HEAD + ".global .u64 table;\n" + function + kernel("first") + kernel("second")) is None

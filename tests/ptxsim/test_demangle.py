"""Names of kernels as in C++."""

from __future__ import annotations

import pytest

from ptxsim import demangle


@pytest.fixture
def library():
    if demangle.library() is None:
        pytest.skip("this machine has no shared C++ library")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("mangled", "name"),
    [
        ("_Z5scaleIfEvPT_S0_", "scale<float>"),
        ("_Z3addPKfPf", "add"),
        ("_ZN5outer12_GLOBAL__N_14workEi", "outer::(anonymous namespace)::work"),
        ("_Z4pickIXadL_Z1fvEEEvv", "pick<&(f())>"),
        ("saxpy", "saxpy"),
        ("_Znothing", "_Znothing"),
    ],
)
def test_a_name_loses_its_parameters_and_its_result(mangled, name):
    assert demangle.demangled(mangled) == name


@pytest.mark.usefixtures("library")
def test_names_in_a_text_are_demangled():
    text = "race: a.cu:3: _Z5scaleIfEvPT_S0_, block (0, 0, 0): line 4 of _Z3addPKfPf"
    assert demangle.readable(text) == "race: a.cu:3: scale<float>, block (0, 0, 0): line 4 of add"


def test_without_the_library_names_stay(monkeypatch):
    monkeypatch.setattr(demangle, "library", lambda: None)
    demangle.demangled.cache_clear()
    assert demangle.readable("_Z3addPKfPf") == "_Z3addPKfPf"
    demangle.demangled.cache_clear()

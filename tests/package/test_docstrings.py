"""Docstrings of what docs/api.md describes: numpydoc's form, every parameter, default and error, examples that run."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import inspect
import sys
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from raised import raised

from aristos.errors import AristosError

DOCS = Path(__file__).resolve().parents[2] / "docs"
sys.path.insert(0, str(DOCS))
import api  # noqa: E402
import docstrings  # noqa: E402

sys.path.remove(str(DOCS))
LATER = (
    "aristos.MoE.",
    "aristos.Exchange.agree",
    "aristos.layer.training",
    "aristos.Checkpoint",
    "aristos.planner",
    "aristos.topology",
    "aristos.results",
)
# errors that the source of a function shows, but that cannot come, and why
NEVER = {"aristos.Exchange.close": {"ClosedError": "a closed exchange returns nothing"}}


class Public(NamedTuple):
    """A function, a method or a class of the page, and the class that it is a method of."""

    name: str
    found: Any
    owner: type | None = None


def publics() -> list[Public]:
    found: list[Public] = []
    for names in api.PARTS.values():
        for name in names:
            _add(found, name)
    return found


def _add(found: list[Public], name: str) -> None:
    each = api._find(name)
    if inspect.ismodule(each):
        for inner in api._public(each):
            _add(found, f"{name}.{inner}")
    elif inspect.isclass(each):
        if not issubclass(each, BaseException):
            found.append(Public(name, each))
            members = api._members(each)
            found.extend(Public(f"{name}.{member}", inspect.getattr_static(each, member), each) for member in members)
    elif callable(each):
        found.append(Public(name, each))


ALL = publics()
CHECKED = [each for each in ALL if not each.name.startswith(LATER) and each.name != "aristos.MoE"]
named = pytest.mark.parametrize("public", CHECKED, ids=[each.name for each in CHECKED])


def plain(found: Any) -> Any:
    """The function of a static or class method or of a property."""
    if isinstance(found, property):
        return found.fget
    return getattr(found, "func" if isinstance(found, cached_property) else "__func__", found)


def parameters(public: Public) -> dict[str, inspect.Parameter]:
    taken = inspect.signature(plain(public.found)).parameters
    return {name: each for name, each in taken.items() if name not in ("self", "cls")}


@named
def test_every_parameter_has_its_meaning_and_no_other_is_named(public):
    doc = docstrings.read(plain(public.found))
    entries = doc.named("Parameters") | (doc.named("Attributes") if dataclasses.is_dataclass(public.found) else {})
    taken = parameters(public)
    assert [name for name in taken if name not in entries or not (entries[name].kind and entries[name].text)] == []
    assert doc.named("Parameters").keys() <= taken.keys()


@named
def test_defaults_are_those_of_the_signature(public):
    entries = docstrings.read(plain(public.found)).named("Parameters")
    for name, taken in parameters(public).items():
        _, said, default = entries[name].kind.partition("default ") if name in entries else ("", "", "")
        if name in entries and taken.default is inspect.Parameter.empty:
            assert not said, f"{name} has no default"
        elif name in entries and isinstance(taken.default, bool | int | float | str | tuple | None):
            assert said, f"{name}: default {taken.default!r}"
            assert ast.literal_eval(default) == taken.default, name


@named
def test_every_error_that_the_source_shows_is_named(public):
    doc = docstrings.read(plain(public.found))
    if inspect.isclass(public.found):
        shown = {
            each
            for made in ("__init__", "__post_init__")
            for each in raised(vars(public.found).get(made), public.found)
        }
    else:
        shown = raised(plain(public.found), public.owner)
    text = " ".join(doc.named("Raises")) if not isinstance(public.found, property | cached_property) else doc.text
    said = tuple(each for each in classes() if each.__name__ in text.replace(".", " ").split())
    never = NEVER.get(public.name, {})
    missing = [each.__name__ for each in shown if not issubclass(each, said) and each.__name__ not in never]
    assert sorted(missing) == []


@named
def test_what_comes_back_is_described(public):
    found = plain(public.found)
    back = inspect.signature(found).return_annotation
    if inspect.isfunction(found) and parameters(public) and back not in ("None", inspect.Signature.empty):
        entries = docstrings.read(found).entries
        assert any(entries.get(section) for section in ("Returns", "Yields"))


@named
def test_the_first_line_is_a_sentence(public):
    first, _, rest = docstrings.read(plain(public.found)).text.partition("\n")
    assert first.endswith((".", ":"))
    assert not rest or rest.startswith("\n")


@pytest.mark.parametrize(
    "name", [each.name for each in CHECKED if "Examples" in docstrings.read(plain(each.found)).texts]
)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = plain(next(each.found for each in CHECKED if each.name == name))
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(found) or "", {}, name, None, 0)
    assert test.examples
    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(test)
    assert results.failed == 0


def classes() -> list[type[AristosError]]:
    found = [AristosError]
    for each in found:
        found.extend(each.__subclasses__())
    return [each for each in found if each is not AristosError]

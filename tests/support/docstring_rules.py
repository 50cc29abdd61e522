"""Rules for the docstring of a public function, method or class. A rule returns texts about what is wrong."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import inspect
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from raised import raised

from aristos.errors import AristosError

DOCS = Path(__file__).resolve().parents[2] / "docs"
sys.path.insert(0, str(DOCS))
import api  # noqa: E402
import docstrings  # noqa: E402

sys.path.remove(str(DOCS))
VARIABLE = inspect.Parameter.VAR_KEYWORD
SIMPLE = bool | int | float | str | tuple | None  # defaults that a docstring repeats as Python writes them


class Public(NamedTuple):
    """A function, a method or a class. For a method, also its class."""

    name: str
    found: Any
    owner: type | None = None

    @property
    def function(self) -> Any:
        """The function of a static or class method or of a property; for a class, the class itself."""
        if isinstance(self.found, property):
            return self.found.fget
        return getattr(self.found, "func" if isinstance(self.found, cached_property) else "__func__", self.found)

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        if getattr(self.found, "_is_protocol", False):  # a protocol has no objects of its own
            return {}
        taken = inspect.signature(self.function).parameters
        return {name: each for name, each in taken.items() if name not in ("self", "cls")}

    @property
    def doc(self) -> docstrings.Docstring:
        return docstrings.read(self.function)


def of_page() -> list[Public]:
    """Everything that docs/api.md describes, except errors."""
    return [each for names in api.PARTS.values() for name in names for each in of(name, api.find(name))]


def of(name: str, found: Any) -> Iterator[Public]:
    """An object by its name, and the public names of a module or the public members of a class."""
    if inspect.ismodule(found):
        for each in api.public(found):
            yield from of(f"{name}.{each}", getattr(found, each))
    elif inspect.isclass(found) and not issubclass(found, BaseException):
        yield Public(name, found)
        for each in api._members(found):
            yield Public(f"{name}.{each}", inspect.getattr_static(found, each), found)
    elif callable(found) and not inspect.isclass(found):
        yield Public(name, found)


def every_parameter_is_named(public: Public) -> list[str]:
    """Each parameter, and nothing else, has a kind and a text under Parameters; a dataclass may use Attributes."""
    own = public.doc.named("Parameters")
    entries = own | (public.doc.named("Attributes") if dataclasses.is_dataclass(public.found) else {})
    missing = [name for name in public.parameters if name not in entries]
    empty = [name for name in public.parameters if name in entries and not (entries[name].kind and entries[name].text)]
    unknown = own.keys() - public.parameters.keys()
    return [
        *(f"{name} is not named" for name in missing),
        *(f"{name} has no kind or no meaning" for name in empty),
        *(f"{name} is no parameter" for name in unknown),
    ]


def defaults_are_those_of_the_signature(public: Public) -> list[str]:
    """Where the signature has a default, the parameter's kind ends with `default VALUE`."""
    wrong = []
    entries = public.doc.named("Parameters")
    for name in public.parameters.keys() & entries.keys():
        default, (_, _, said) = public.parameters[name].default, entries[name].kind.partition("default ")
        if bool(said) != (default is not inspect.Parameter.empty) and public.parameters[name].kind != VARIABLE:
            wrong.append(f"{name}: the signature has {default!r}, the docstring {said!r}")
        elif said and isinstance(default, SIMPLE) and ast.literal_eval(said) != default:
            wrong.append(f"{name}: the default is {default!r}, not {said}")
    return wrong


def errors_are_named(public: Public) -> list[str]:
    """The section Raises, or a property's text, names each error that the source can raise, or a base class of it."""
    if inspect.isclass(public.found):
        makers = [vars(public.found)[name] for name in ("__init__", "__post_init__") if name in vars(public.found)]
        shown = {error for maker in makers for error in raised(maker, public.found)}
    else:
        shown = set(raised(public.function, public.owner))
    whole = isinstance(public.found, property | cached_property)
    words = (public.doc.text if whole else " ".join(public.doc.named("Raises"))).replace(".", " ").split()
    said = tuple(each for each in _errors() if each.__name__ in words)
    return [f"{each.__name__} is not named" for each in shown if not issubclass(each, said)]


def _errors() -> list[type[AristosError]]:
    found = [AristosError]
    for each in found:
        found.extend(each.__subclasses__())
    return found[1:]


def what_comes_back_is_described(public: Public) -> list[str]:
    """A function with parameters describes what it returns under Returns or Yields."""
    if not inspect.isfunction(public.function) or not public.parameters:
        return []
    if inspect.signature(public.function).return_annotation in ("None", inspect.Signature.empty):
        return []
    there = any(public.doc.entries.get(section) for section in ("Returns", "Yields"))
    return [] if there else ["what it returns is not described"]


def the_first_line_is_a_sentence(public: Public) -> list[str]:
    first, _, rest = public.doc.text.partition("\n")
    good = first.endswith((".", ":")) and (not rest or rest.startswith("\n"))
    return [] if good else [f"the first line must be a whole sentence, got {first!r}"]


def examples_run(public: Public) -> list[str]:
    if "Examples" not in public.doc.texts:
        return []
    test = doctest.DocTestParser().get_doctest(public.doc.texts["Examples"], {}, public.name, None, 0)
    said: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    return said


READ: list[Callable[[Public], list[str]]] = [
    every_parameter_is_named,
    defaults_are_those_of_the_signature,
    errors_are_named,
    what_comes_back_is_described,
    the_first_line_is_a_sentence,
]

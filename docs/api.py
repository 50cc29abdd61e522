"""Write docs/api.md, the reference of the Python API, from docstrings: `python docs/api.py` (`--check` compares).

Signatures, fields and texts come from the code; this file has only the order of the page and the names of its parts.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import re
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import docstrings

PAGE = Path(__file__).resolve().parent / "api.md"
HEAD = """# Python API

Made by `python docs/api.py` from the docstrings; change those. H: width of a token; F: width inside an expert;
E: experts; k: choices a token; S: tokens of a rank; L: experts of a rank; W: ranks. Guides with examples:
[the layer](layer.md), [published models](models.md), [the planner](planner.md), [topology](topology.md).
"""
# part of the page -> names in it: classes, functions, and modules, which stand for their public names
PARTS: dict[str, tuple[str, ...]] = {
    "The layer": ("aristos.MoE", "aristos.MoEConfig", "aristos.Router", "aristos.placement.Placement"),
    "What a call gives": (
        "aristos.Routing",
        "aristos.layer.pending.PendingCall",
        "aristos.layer.stats.CallStats",
        "aristos.layer.stats.Summary",
        "aristos.layer.stats.MessageClass",
    ),
    "Experts of your own": ("aristos.Exchange", "aristos.layer.exchange.Handle"),
    "Training": (
        "aristos.train",
        "aristos.layer.training.Tape",
        "aristos.trainable.Trainable",
        "aristos.reproducible_sum",
    ),
    "Losses": ("aristos.losses",),
    "Packed weights": ("aristos.packed", "aristos.weight_types.WeightType", "aristos.quantise", "aristos.Quantised"),
    "Published models": (
        "aristos.Checkpoint",
        "aristos.models.reduced",
        "aristos.models.shape",
        "aristos.models.Shape",
        "aristos.models.Preset",
        "aristos.models.Model",
    ),
    "The reference": tuple(
        f"aristos.reference.{name}"
        for name in ("moe", "backward", "expert", "shared_expert", "route", "weights", "error")
    ),
    "Planner": ("aristos.planner",),
    "Topology": ("aristos.topology",),
    "Results": ("aristos.results",),
    "Errors": ("aristos.errors",),
}
# files of examples/ shown with a class; tests/package/test_examples.py runs them
EXAMPLE_FILES = PAGE.parents[1] / "examples"
EXAMPLES = {"aristos.MoE": "layer.py", "aristos.Exchange": "exchange.py"}
EVENTS = """## Events of a timeline

`MoE.events()` gives tuples (worker, kind, start, end, which, rows). `which` is a rank for `dispatch` and `wait`, and
an expert's id for `expert`.

| kind | what the worker did |
| --- | --- |
"""
KINDS = {
    "route": "scored a block of tokens and chose their experts",
    "pack": "counted rows by expert and gave them places in the packed order",
    "dispatch": "copied rows to rank `which`, or handed them to the wire",
    "expert": "computed rows of one expert",
    "combine": "added the outputs of a block of tokens, weighted",
    "wire": "served MPI between nodes; within a wait, if it had nothing else to do",
    "wait": "had no command: it waited for rank `which`, or, if that is its own, for another worker",
}


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, names in PARTS.items():
        parts.append(f"## {title}\n")
        for name in names:
            parts += _described(name)
    return "\n".join([*parts, events()])


def events() -> str:
    """The part about events of a timeline."""
    from aristos.layer.cpu import EVENT_KINDS

    missing = set(EVENT_KINDS.values()) ^ set(KINDS)
    if missing:
        raise SystemExit(f"KINDS of docs/api.py and the events of the code differ: {', '.join(sorted(missing))}")
    return EVENTS + "".join(f"| `{kind}` | {text} |\n" for kind, text in KINDS.items())


def kind_of(found: Any) -> str:
    """What an object is: "module", "exception", "class", "function" or "data"."""
    if inspect.ismodule(found):
        return "module"
    if inspect.isclass(found):
        return "exception" if issubclass(found, BaseException) else "class"
    return "function" if callable(found) else "data"


def _described(name: str) -> list[str]:
    found = find(name)
    if inspect.ismodule(found):
        return [_text(found), *(line for each in public(found) for line in _described(f"{name}.{each}"))]
    if inspect.isclass(found):
        return _of_class(name, found)
    if callable(found):
        return [f"### `{name}`\n", _code(f"{name.rsplit('.', 1)[1]}{_signature(found)}"), _text(found)]
    return [f"### `{name}`\n", _code(f"{name.rsplit('.', 1)[1]} = {found!r}")]


def _of_class(name: str, cls: type) -> list[str]:
    short = name.rsplit(".", 1)[1]
    if issubclass(cls, BaseException):
        bases = ", ".join(f"`{base.__name__}`" for base in cls.__bases__ if base.__module__ != "kernel_cache.errors")
        return [f"- **`{short}`** ({bases}): {_indented(_text(cls).strip())}\n"]
    lines = [f"### `{name}`\n"]
    if "__init__" in vars(cls):
        lines.append(_code(f"{short}{_signature(cls)}"))
    lines.append(_text(cls))
    if name in EXAMPLES:
        text = (EXAMPLE_FILES / EXAMPLES[name]).read_text().split('"""', 2)[2].strip()
        lines.append(f"An example, [examples/{EXAMPLES[name]}](../examples/{EXAMPLES[name]}):\n\n{_code(text)}")
    for each in _members(cls):
        member = inspect.getattr_static(cls, each)
        text = _text(getattr(cls, each) if isinstance(member, classmethod | staticmethod) else member).strip()
        if isinstance(member, property | cached_property):
            lines.append(f"- **`{each}`**: {_indented(text)}\n")
        else:
            heading = "call" if each == "__call__" else each
            lines.append(f"#### `{short}.{heading}`\n")
            lines += [_code(f"{'moe' if each == '__call__' else heading}{_signature(getattr(cls, each))}"), text + "\n"]
    return lines


def _members(cls: type) -> list[str]:
    """Public methods and properties with a docstring: those of the class, then of its bases here; `__call__` first."""
    found: dict[str, None] = {}
    for base in cls.__mro__:
        elsewhere = base is not cls and base.__module__ == cls.__module__  # the base has a heading of its own
        if base.__module__.startswith("aristos") and not elsewhere:
            for name, member in vars(base).items():
                shown = name == "__call__" or not name.startswith("_")
                plain = isinstance(
                    member, property | cached_property | classmethod | staticmethod
                ) or inspect.isfunction(member)
                if shown and plain and _described_here(member):
                    found[name] = None
    return sorted(found, key=lambda name: name != "__call__")


def _described_here(member: Any) -> bool:
    """Whether a member has a docstring of its own. An inherited one is shown with the base."""
    return bool(getattr(member, "__func__", member).__doc__)


def public(module: Any) -> list[str]:
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return [name for name in listed if not name.startswith("_")]
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value)
    ]


def find(name: str) -> Any:
    parts = name.split(".")
    found: Any = importlib.import_module(parts[0])
    for part in parts[1:]:
        if not hasattr(found, part):
            importlib.import_module(f"{found.__name__}.{part}")
        found = getattr(found, part)
    return found


def _signature(found: Any) -> str:
    """The signature without self. If it is long, each argument has a line of its own."""
    signature = inspect.signature(found)
    taken = [p for name, p in signature.parameters.items() if name != "self"]
    arguments = [_argument(p) for p in taken]
    kinds = [p.kind for p in taken]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        arguments.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    back = signature.return_annotation
    end = "" if back is inspect.Signature.empty or inspect.isclass(found) else f" -> {_annotation(back)}"
    line = ", ".join(arguments)
    if len(line) < 90:
        return f"({line}){end}"
    return "(\n" + "".join(f"    {argument},\n" for argument in arguments) + f"){end}"


def _argument(p: inspect.Parameter) -> str:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(p.kind, "")
    typed = "" if p.annotation is inspect.Parameter.empty else f": {_annotation(p.annotation)}"
    if p.default is inspect.Parameter.empty:
        return f"{stars}{p.name}{typed}"
    shown = "..." if "<factory>" in repr(p.default) else getattr(p.default, "__name__", repr(p.default))
    return f"{p.name}{typed} = {shown}" if typed else f"{p.name}={shown}"


def _annotation(found: Any) -> str:
    return found if isinstance(found, str) else inspect.formatannotation(found)


def _text(found: Any) -> str:
    """The docstring as Markdown; nothing for a dataclass without one."""
    doc = docstrings.markdown(found)
    if inspect.isclass(found) and dataclasses.is_dataclass(found) and doc.startswith(f"{found.__name__}("):
        doc = ""
    return doc + "\n"


def _indented(text: str) -> str:
    return re.sub(r"\n(?=.)", "\n  ", text)


def _code(text: str) -> str:
    return f"```python\n{text}\n```\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is not up to date")
    made = page()
    if parser.parse_args().check:
        return int(not PAGE.exists() or PAGE.read_text() != made)
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Docstrings in docs/api.md have numpydoc's form and name all parameters, defaults and errors; their examples run."""

from __future__ import annotations

import textwrap

import docstring_rules as rules
import pytest
from docstring_rules import Public

NEVER = {  # function -> errors that its source suggests -> why they cannot occur
    "aristos.MoE.close": {"ClosedError": "a closed layer has nothing to close"},
    "aristos.MoE.events": {"InputError": "every layer has a timeline"},
    "aristos.Exchange.close": {"ClosedError": "a closed exchange has nothing to return"},
    "aristos.planner.Plan.achieved": {"InputError": "the groups of a plan are a partition"},
    "aristos.reference.weights": {"InputError": "a configuration with one expert is valid if that with all experts is"},
}
PAGE = rules.of_page()
SHOWN = [each for each in PAGE if "Examples" in each.doc.texts]


@pytest.mark.parametrize("rule", rules.READ, ids=lambda rule: rule.__name__)
def test_a_rule_holds_for_the_whole_page(rule):
    found = {each.name: wrong for each in PAGE if (wrong := [w for w in rule(each) if not never(each, w)])}
    assert not found, "\n".join(f"{name}: {'; '.join(wrong)}" for name, wrong in found.items())


def never(public: Public, wrong: str) -> bool:
    return wrong.split()[0] in NEVER.get(public.name, ())


@pytest.mark.parametrize("public", SHOWN, ids=[each.name for each in SHOWN])
def test_examples_run(public, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert rules.examples_run(public) == []


def test_the_rules_find_what_is_wrong():
    def run(x: int, most: int = 3) -> int:
        return min(x, most)

    def read(text: str) -> list[str]:
        run.__doc__ = textwrap.dedent(text)
        return [wrong for rule in rules.READ for wrong in rule(Public("run", run))]

    assert len(read("Count")) == 4
    whole = """Count.

    Parameters
    ----------
    x : int
        What to count.
    most : int, default 3
        The most.

    Returns
    -------
    int
        The same.
    """
    assert read(whole) == []
    assert read(whole.replace("default 3", "default 4")) == ["most: the default is 3, not 4"]
    assert read(whole.replace("        What to count.\n", "")) == ["x has no kind or no meaning"]
    assert read(whole.replace("x :", "z :")) == ["x is not named", "z is no parameter"]


def test_an_error_that_is_raised_below_is_found():
    from raised import raised

    from aristos.config import MoEConfig
    from aristos.errors import InputError
    from aristos.results import Table

    assert raised(MoEConfig.__post_init__, MoEConfig) == {InputError}
    assert raised(Table.to_dict, Table) == set()

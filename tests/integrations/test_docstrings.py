"""Docstrings of the integrations' public names keep the rules for docs/api.md. That page is made without torch."""

from __future__ import annotations

import docstring_rules as rules
import pytest

pytest.importorskip("transformers")

from aristos.integrations import torch as module_of_torch
from aristos.integrations import transformers

PUBLIC = [
    *rules.of("transformers", transformers),
    *(
        each
        for each in rules.of("Experts", module_of_torch.Experts)
        if each.name in ("Experts", "Experts.load", "Experts.forward")
    ),
]
# the sum gets valid pieces on every rank, so it never raises PeerInputError
NEVER = ("transformers.average_dense_grads", ["PeerInputError is not named"])


@pytest.mark.parametrize("rule", rules.READ, ids=lambda rule: rule.__name__)
def test_a_rule_holds_for_all_of_them(rule):
    found = {each.name: wrong for each in PUBLIC if (wrong := rule(each))}
    assert [each for each in found.items() if each != NEVER] == []

"""Costs that are fitted to observed calls are those that the calls were made with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aristos.simulate.machine import Costs

TRUE = replace(
    Costs(), copy_row=25, copy_kib=140, combine_token=40, combine_kib=90, call=60e3, collective=80e3, collective_kib=300
)
LAYERS = ((2048, 512, 2, 2000), (256, 3072, 4, 500), (24, 1280, 2, 24))  # tokens, bytes of a row, choices, rows moved
BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """bench/truth_fit.py as a module."""
    monkeypatch.syspath_prepend(str(BENCH))
    import truth_fit

    return truth_fit


def observed(fit, costs, slower=1.0):
    """What calls of LAYERS show. slower: a factor on all times of the first layer."""
    made = []
    for i, (tokens, width, choices, moved) in enumerate(LAYERS):
        kib, factor = 4 * moved * width / 1024, slower if i == 0 else 1.0
        made.append(
            fit.Observed(
                tokens=tokens,
                row_bytes=width,
                choices=choices,
                moved=moved,
                collective_kib=kib,
                dispatch=factor * moved * (costs.copy_row + costs.copy_kib * width / 1024),
                combine=factor * tokens * (costs.combine_token + costs.combine_kib * choices * width / 1024),
                outside=factor * costs.call,
                between=factor * (costs.call + 3 * costs.collective + costs.collective_kib * kib),
            )
        )
    return made


def test_the_costs_of_undisturbed_calls_are_found(fit):
    found = fit.costs(Costs(), observed(fit, TRUE))
    for name in ("copy_row", "copy_kib", "combine_token", "combine_kib", "call", "collective", "collective_kib"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-6), name
    assert found.load == Costs().load


def test_no_cost_is_negative(fit):
    """Rows that are cheap where they are wide would need a negative cost for each KiB."""
    cheap = [replace(each, dispatch=1000.0 * each.moved / each.row_bytes) for each in observed(fit, TRUE)]
    found = fit.costs(Costs(), cheap)
    assert found.copy_row >= 0
    assert found.copy_kib == 0


def test_a_disturbed_layer_moves_the_costs_by_less_than_its_disturbance(fit):
    found = fit.costs(Costs(), observed(fit, TRUE, slower=1.5))
    assert found.call == pytest.approx(TRUE.call)
    assert TRUE.copy_kib / 1.5 < found.copy_kib < 1.5 * TRUE.copy_kib


def test_of_equal_layers_the_least_disturbed_times_count(fit):
    disturbed = observed(fit, TRUE, slower=3)[0]
    least = fit.least([disturbed, replace(observed(fit, TRUE)[0], combine=2 * disturbed.combine)])
    assert least == replace(observed(fit, TRUE)[0], combine=disturbed.combine)

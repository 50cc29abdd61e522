"""Tests against a real card; their modules are skipped where there is none."""

from __future__ import annotations

import pytest


@pytest.fixture
def card():
    from card import Card

    return Card()

"""Tests on a real GPU. Without a GPU their modules are skipped."""

from __future__ import annotations

import pytest


@pytest.fixture
def gpu():
    from gpu_executor import GpuExecutor

    return GpuExecutor()

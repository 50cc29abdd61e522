"""Tests on a real GPU; their modules are skipped without one."""

from __future__ import annotations

import pytest


@pytest.fixture
def gpu():
    from gpu_executor import GpuExecutor

    return GpuExecutor()

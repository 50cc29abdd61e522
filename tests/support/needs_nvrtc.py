"""The mark of tests that compile CUDA C++ by NVRTC; they are skipped where it is not installed."""

from __future__ import annotations

import pytest

from ptxsim import nvrtc
from ptxsim.errors import EnvironmentProblem

try:
    nvrtc.loaded()
    NVRTC = True
except EnvironmentProblem:
    NVRTC = False
compiles = pytest.mark.skipif(not NVRTC, reason="NVRTC is not installed")

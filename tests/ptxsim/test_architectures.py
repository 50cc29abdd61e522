"""Which architectures' PTX a machine runs."""

from __future__ import annotations

import pytest

from kernel_cache import offline
from ptxsim.architectures import mismatch


@pytest.mark.parametrize(
    ("target", "arch", "fits"),
    [
        ("sm_80", "sm_90", True),
        ("sm_90", "sm_90", True),
        ("sm_90a", "sm_90", True),
        ("sm_90a", "sm_90a", True),
        ("sm_100", "sm_100a", True),
        ("sm_100f", "sm_103", True),
        ("sm_90", "sm_89", False),
        ("sm_90a", "sm_100", False),
        ("sm_100f", "sm_120", False),
        ("sm_103f", "sm_100", False),
        ("sm_120", "sm_90", False),
        ("", "sm_90", True),
    ],
)
def test_a_machine_runs_older_ptx_and_that_of_its_own_architecture(target, arch, fits):
    why = mismatch(target, arch, offline.capability(arch))
    assert why == ("" if fits else f"is for {target}, and the machine is {arch}: add --arch {target}")

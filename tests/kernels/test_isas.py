"""The choice of an instruction set, and kernels of every one that this machine has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from aristos.errors import EnvironmentProblem
from aristos.primitives import isa

SCRIPT = """
import hashlib
import numpy as np
from aristos import kernels
rng = np.random.default_rng(0)
for hidden, ffn, rows in ((70, 530, 13), (1030, 40, 9)):
    up, gate, down = (rng.standard_normal(shape, np.float32) for shape in ((hidden, ffn), (hidden, ffn), (ffn, hidden)))
    y = kernels.ffn(rng.standard_normal((rows, hidden), np.float32), up, down, gate, activation="silu")
    print(hashlib.sha256(np.ascontiguousarray(y).tobytes()).hexdigest())
"""


def test_the_best_isa_is_chosen_unless_one_is_named():
    zen3 = {"avx2": True, "fma": True, "avx512f": False}
    intel = {"avx2": True, "fma": True, "avx512f": True, "avx512vl": True}
    assert isa.choose(intel, None) == isa.choose(intel, "") == isa.choose(intel, "avx512") == "avx512"
    assert isa.choose(intel, "avx2") == "avx2"
    assert isa.choose(zen3, None) == "avx2"
    assert isa.choose({}, None) == "generic"
    assert isa.choose(intel | {"avx512vl": False}, None) == "avx2"
    with pytest.raises(EnvironmentProblem, match="ARISTOS_ISA must be one of avx2, generic on this CPU, got 'avx512'"):
        isa.choose(zen3, "avx512")


@pytest.mark.slow
def test_every_isa_of_this_machine_gives_the_same_float32_bits():
    """A float32 sum is one chain of fused multiply-adds in k order, whatever the width of the vectors."""
    has = [name for name, needs in isa.NEEDS.items() if all(isa.target()[1].get(need) for need in needs)]
    outputs = {}
    for name in has:
        env = os.environ | {"ARISTOS_ISA": name}
        done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        outputs[name] = done.stdout
    assert len(set(outputs.values())) == 1, outputs

"""The choice of an instruction set, and kernels of every set that this machine has.

Tests of one set use the same compiled kernels. All are in this file, so that one worker compiles them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sweeps

from aristos.errors import EnvironmentProblem
from aristos.primitives import isa
from aristos.weight_types import FORMATS

SUPPORT = Path(__file__).resolve().parents[1] / "support"
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
    zen3 = dict.fromkeys(("avx2", "fma", "f16c"), True)
    skylake = zen3 | dict.fromkeys(("avx512f", "avx512vl"), True)
    zen4 = skylake | dict.fromkeys(("avx512bw", "avx512vbmi", "avx512bf16"), True)
    sapphire_rapids = zen4 | dict.fromkeys(("amx-tile", "amx-bf16"), True)
    assert isa.available("znver3", zen3) == ["avx2", "generic"]
    assert isa.available("skylake-avx512", skylake) == ["avx512", "avx2", "generic"]
    assert isa.available("sapphirerapids", sapphire_rapids) == ["amx", "avx512", "avx512bf16", "avx2", "generic"]
    assert isa.available("apple-m1", {"neon": True}) == ["neon", "generic"]
    assert isa.available("neoverse-v2", {"neon": True, "bf16": True}) == ["neonbf16", "neon", "generic"]
    assert isa.available("znver4", zen4)[0] == "avx512bf16"
    assert isa.available("cooperlake", zen4 | {"avx512vbmi": False}) == ["avx512", "avx2", "generic"]
    assert isa.available("znver3", zen3 | {"f16c": False}) == ["generic"]
    has = isa.available("sapphirerapids", sapphire_rapids)
    assert isa.choose(has, None, "") == isa.choose(has, "", "") == "amx"
    assert isa.choose(has, None, "no permission") == "avx512"
    assert isa.choose(has, "avx2", "") == "avx2"
    with pytest.raises(EnvironmentProblem, match=r"ARISTOS_ISA must be one of avx2, generic .*, got 'avx512'"):
        isa.choose(isa.available("znver3", zen3), "avx512", "")
    with pytest.raises(EnvironmentProblem, match=r"got 'amx' \(no permission\)"):
        isa.choose(has, "amx", "no permission")


def test_ranks_agree_on_the_best_set_that_all_have():
    intel, zen4 = ("amx", "avx512", "avx512bf16", "avx2", "generic"), ("avx512bf16", "avx512", "avx2", "generic")
    zen3, arm = ("avx2", "generic"), ("generic",)

    def agreed(*offers: tuple[tuple[str, ...], bool]) -> str:
        in_order = [isa.Offer(*offer) for offer in offers]
        assert isa.agreed(in_order) == isa.agreed(in_order[::-1]), "the order of the ranks must not count"
        return isa.agreed(in_order)

    assert agreed((intel, False)) == agreed((intel, False), (intel, False)) == "amx"
    assert agreed((intel, False), (intel, False), (zen4, False)) == "avx512"
    assert agreed((intel, False), (zen4, False), (zen4, False)) == "avx512bf16"
    assert agreed((intel, False), (zen3, False), (zen4, False)) == "avx2"
    assert agreed((intel, True), (zen3, False)) == "avx2"  # forced, and the other rank lacks it
    assert agreed((intel[2:], True), (intel, False), (intel, False)) == "avx512bf16"  # forced, and all have it
    assert agreed((intel[3:], True), (intel, False)) == "avx2"
    assert agreed((intel, False), (arm, False)) == "generic"
    offers = [isa.Offer(intel, False), isa.Offer(zen3, False), isa.Offer(intel, False), isa.Offer(zen4, False)]
    assert isa.passed_over("avx2", offers) == "amx on ranks 0, 2; avx512bf16 on rank 3"
    assert isa.passed_over("amx", [isa.Offer(intel, False)]) == ""


USABLE = [name for name in isa.available(*isa.target()) if name != "amx" or not isa.tiles_refused()]
ROUNDED, MATRIX, PACKED = (
    str(Path(__file__).with_name(f"test_{name}.py")) for name in ("rounded_experts", "matrix", "packed")
)


def on_each(names: Iterable[str], *words: str, **variables: str) -> dict[str, str]:
    """What Python prints with each ISA, two processes at a time."""

    def run(name: str) -> str:
        env = os.environ | {"ARISTOS_ISA": name} | variables
        done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, f"{name}\n{done.stdout}{done.stderr}"
        return done.stdout

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(run, names)))


def wide(names: Iterable[str]) -> list[str]:
    """The ISAs that share their float32 kernels: on x86 those with 512-bit vectors, on Arm those of NEON."""
    return [name for name in names if name not in ("avx2", "generic")]


def guarded() -> list[tuple[str, str]]:
    """[(part, ISA)]: the parts of `guarded_kernels` that this run makes, and with which ISA.

    Each part has the next ISA in each run. Half of the formats are left out until all ISAs had their turn, then the
    other half. Of ISAs with equal float32 kernels, all but the best run the 16-bit half of the plain part. KERNELS=all
    runs all pairs.
    """
    parts, names = ["plain", "backward", *FORMATS], isa.usable()
    left_out = () if sweeps.everything() else list(FORMATS)[sweeps.number() // len(names) % 2 :: 2]
    pairs = [
        (part, name) for place, part in enumerate(parts) for name in sweeps.turn(names, place) if part not in left_out
    ]
    halved = [("plain", name) for name in wide(names)[1:] if not sweeps.everything()]
    return [("16-bit", pair[1]) if pair in halved else pair for pair in pairs]


def test_runs_one_after_another_make_every_part_with_every_isa(monkeypatch):
    """Of the plain part, an ISA that shares its float32 kernels with a better one may make only the 16-bit half."""
    names, made = isa.usable(), set()
    for number in range(2 * len(names)):
        monkeypatch.setenv("KERNELS", str(number))
        one = guarded()
        assert sum(part in FORMATS for part, _ in one) <= (len(FORMATS) + 1) // 2
        made |= {("plain" if part == "16-bit" else part, name) for part, name in one}
    assert made == {(part, name) for part in ("plain", "backward", *FORMATS) for name in names}
    monkeypatch.setenv("KERNELS", "all")
    assert set(guarded()) == made


@pytest.mark.slow
@pytest.mark.parametrize(("part", "name"), guarded())
def test_kernels_touch_nothing_beyond_their_arrays(part, name):
    """`guarded_kernels` makes the calls, with arrays beside pages that nothing may touch.

    A process that touches such a page dies, and its last line names the call.
    """
    env = os.environ | {"ARISTOS_ISA": name}
    words = [sys.executable, str(SUPPORT / "guarded_kernels.py"), part]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=900)
    said = done.stdout.splitlines()
    assert done.returncode == 0, f"{said[-1:]}, after {len(said)} calls\n{done.stderr[-4000:]}"
    assert len(said) > 30


@pytest.mark.slow
def test_every_isa_of_this_machine_gives_the_same_float32_bits():
    """A float32 sum is one chain of fused multiply-adds in k order, whatever the width of the vectors.

    ISAs with 512-bit vectors have the same float32 kernels, so only the best of them runs, and the next one of the
    others in each run.
    """
    others = [name for name in USABLE[1:] if name not in wide(USABLE)]
    outputs = on_each([USABLE[0], *sweeps.turn(others)], "-c", SCRIPT)
    assert len(set(outputs.values())) == 1, outputs


@pytest.mark.slow
def test_16_bit_experts_on_every_isa_of_this_machine():
    """Each run has the next ISA, which has also the plain part of `guarded`. The quick tier runs the best one."""
    names = [name for name in sweeps.turn(USABLE) if name != USABLE[0]]
    on_each(names, "-m", "pytest", "-q", "-p", "no:cacheprovider", ROUNDED)


@pytest.mark.slow
def test_packed_experts_on_the_other_isas_of_this_machine():
    """The tests of every code run, and tests of some shapes with rows of bfloat16.

    `guarded` pairs formats and ISAs, so a run has the same half of the formats here.
    """

    def run(name: str) -> None:
        forms = " or ".join(form for form in FORMATS if (form, name) in guarded())
        chosen = f"(whatever_shape and bfloat16 or every_code) and ({forms})"
        on_each([name], "-m", "pytest", "-q", "-p", "no:cacheprovider", PACKED, "-k", chosen)

    names = [name for name in USABLE[1:] if any((form, name) in guarded() for form in FORMATS)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, names))


@pytest.mark.slow
def test_kernels_as_plain_python_for_a_kind_of_product_that_this_machine_lacks():
    """One such kind runs as plain Python: tiles, dot products, Arm's products or wide weights. Runs take turns."""
    chosen = "float64 or chunked or column or passes or combine or split"
    large = "1030 or 515 or 193 or 1300 or [100-130 or test_every_type"
    kinds = [kind for kind in ("amx", "avx512bf16", "neonbf16", "avx2") if kind not in USABLE]
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", ROUNDED, MATRIX, PACKED)
    chosen = f"({chosen}) and not ({large}) or every_code or small_expert"
    on_each(sweeps.turn(kinds), *words, "-k", chosen, NUMBA_DISABLE_JIT="1")

"""Options: accepted values, refused values with the value quoted; importing the package does no work."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
from cases import ROOT, clean_environment

import aristos
from aristos import MoEConfig, Router
from aristos.config import ACTIVATIONS, SCORES
from aristos.errors import InputError
from aristos.placement import Placement

GOOD: dict[str, Any] = {"hidden": 8, "ffn": 16, "experts": 4, "top_k": 2}


def test_the_default_configuration():
    cfg = MoEConfig(hidden=8, ffn=16, experts=4)
    assert (cfg.top_k, cfg.activation, cfg.gated, cfg.bias, cfg.dtype, cfg.max_tokens) == (
        2,
        "gelu",
        False,
        False,
        "float32",
        4096,
    )
    assert cfg.router == Router(score="softmax", renormalize=True, scale=1.0)


def test_configurations_are_frozen_hashable_and_comparable():
    cfg = MoEConfig(**GOOD)
    with pytest.raises(FrozenInstanceError):
        cfg.hidden = 9  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        cfg.router.scale = 2.0  # type: ignore[misc]
    assert cfg == MoEConfig(**GOOD)
    assert len({cfg, MoEConfig(**GOOD), replace(cfg, ffn=17)}) == 2
    assert eval(repr(cfg), {"MoEConfig": MoEConfig, "Router": Router}) == cfg


@pytest.mark.parametrize("name", ["hidden", "ffn", "experts", "top_k", "max_tokens"])
@pytest.mark.parametrize("value", [0, -1, 1.0, "8", None, True, np.float32(8)])
def test_a_size_that_is_no_positive_int_is_refused(name, value):
    most = "of at most 1048576" if name == "experts" else r"below 2\*\*40"
    with pytest.raises(InputError, match=rf"{name} must be a positive int {most}, got ") as caught:
        MoEConfig(**{**GOOD, name: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation": "GELU"}, f"activation must be one of {', '.join(ACTIVATIONS)}, got 'GELU'"),
        ({"dtype": "float64"}, "dtype must be one of float32, tf32, bfloat16, float16, got 'float64'"),
        ({"gated": 1}, "gated must be True or False, got 1"),
        ({"bias": None}, "bias must be True or False, got None"),
        ({"activation": "swiglu_oai"}, "activation='swiglu_oai' requires gated=True, got gated=False"),
        ({"limit": 7.0}, r"limit requires gated=True, got limit=7\.0 with gated=False"),
        ({"limit": 0.0, "gated": True}, r"a positive number within the range of float32, got 0\.0"),
        (
            {"limit": float("inf"), "gated": True},
            "a positive number within the range of float32, got inf",
        ),
        ({"limit": "7", "gated": True}, "a positive number within the range of float32, got '7'"),
        ({"limit": 1e-46, "gated": True}, "a positive number within the range of float32, got 1e-46"),
        ({"limit": True, "gated": True}, "a positive number within the range of float32, got True"),
        ({"router": "softmax"}, "router must be an aristos.Router, got 'softmax'"),
        ({"top_k": 5}, r"top_k must be at most experts \(4\), got 5"),
    ],
)
def test_wrong_options_are_refused_with_their_value(changes: dict[str, Any], words):
    with pytest.raises(InputError, match=words):
        MoEConfig(**{**GOOD, **changes})


@pytest.mark.parametrize("value", [7, 7.0, np.float16(7), np.float32(7), np.longdouble(7), np.int8(7), np.uint64(7)])
@pytest.mark.filterwarnings("error")
def test_a_limit_may_be_any_number(value):
    """A NumPy number is converted before it is compared: the upper bound does not fit into a float16."""
    cfg = MoEConfig(**GOOD, gated=True, limit=value)
    assert cfg == MoEConfig(**GOOD, gated=True, limit=7.0)
    assert type(cfg.limit) is float


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"score": "largest"}, f"score must be one of {', '.join(SCORES)}, got 'largest'"),
        ({"renormalize": 1}, "renormalize must be True or False, got 1"),
        ({"scale": float("nan")}, "scale must be a finite number within the range of float32, got nan"),
        ({"scale": float("inf")}, "scale must be a finite number within the range of float32, got inf"),
        ({"scale": "1"}, "scale must be a finite number within the range of float32, got '1'"),
        ({"scale": True}, "scale must be a finite number within the range of float32, got True"),
    ],
)
def test_wrong_router_options_are_refused_with_their_value(changes: dict[str, Any], words):
    with pytest.raises(InputError, match=words):
        Router(**changes)


def test_placement_orders_slots_by_rank_and_id():
    p = Placement([2, 0, 2, 0, 5], experts=5, world=6)
    assert p.held == [2, 0, 2, 0, 0, 1]
    assert [p.mine(r) for r in range(6)] == [[1, 3], [], [0, 2], [], [], [4]]
    assert p.slot_of.tolist() == [2, 0, 3, 1, 4]
    assert p.start.tolist() == [0, 2, 2, 4, 4, 4, 5]


@pytest.mark.parametrize(("experts", "world"), [(8, 2), (7, 3), (2, 5), (1, 1), (5, 4)])
def test_default_placement_is_contiguous_and_even(experts, world):
    p = Placement(None, experts, world)
    assert sum(p.held) == experts
    assert max(p.held) - min(p.held) <= 1
    assert [e for r in range(world) for e in p.mine(r)] == list(range(experts))


class Unwilling:
    """An object that cannot be converted to an array or to text."""

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise RuntimeError("no array")

    def __repr__(self) -> str:
        raise RuntimeError("no text")


VALUES = {"large": 10**5000, "small": -(10**5000), "unwilling": Unwilling(), "long": "x" * 10**6}


@pytest.mark.parametrize("which", VALUES)
def test_any_value_is_refused_in_a_short_message(which):
    """Messages quote every value in a few characters. Python refuses to print integers of more than 4,300 digits."""
    value = VALUES[which]
    for build in (
        *(
            lambda key=key: MoEConfig(**{**GOOD, key: value})
            for key in ("hidden", "top_k", "activation", "gated", "limit")
        ),
        lambda: Router(scale=value),
        lambda: Router(capacity_factor=value),
        lambda: Router(groups=value),
        lambda: Placement(value, 4, 2),
        lambda: Placement([value] * 4, 4, 2),
        lambda: Placement([[0], [value], 1, 1], 4, 2),
        lambda: Placement(None, 4, 2).mine(value),
    ):
        with pytest.raises(InputError) as caught:
            build()
        assert len(str(caught.value)) < 1000


def python(code: str) -> str:
    """The output of a new process."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_does_no_work():
    """Importing the package loads no MPI and no Numba, compiles nothing, and starts no device or thread."""
    heavy = ["mpi4py.MPI", "numba", "llvmlite", "h5py", "matplotlib", "pandas", "rich", "cupy", "torch"]
    code = f"""
import sys, threading
import aristos
from aristos import AristosError, MoEConfig, Router
MoEConfig(hidden=8, ffn=8, experts=2, router=Router(scale=2.0))
print([m for m in {heavy} if m in sys.modules], threading.active_count())
"""
    assert python(code) == "[] 1"


def test_names_load_when_used():
    assert python("import aristos; print(aristos.MoE.__name__, aristos.Exchange.__name__)") == "MoE Exchange"
    assert python("import aristos; print(aristos.reference.__name__)") == "aristos.reference"
    assert python("import sys, aristos; aristos.MoE; print('mpi4py.MPI' in sys.modules)") == "False"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        aristos.nothing  # noqa: B018
    for name in aristos.__all__:
        assert getattr(aristos, name) is not None

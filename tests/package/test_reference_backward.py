"""The float64 gradients, compared with finite differences of `reference.moe` along random directions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aristos import MoEConfig, Router, reference
from aristos.config import ACTIVATIONS, SCORES
from aristos.errors import InputError

SMALL = MoEConfig(hidden=5, ffn=4, experts=6, top_k=2, max_tokens=64, activation="silu")
STEP = 1e-6
GROUPS = Router("sigmoid", groups=3, topk_groups=2, group_score="sum_top2")

CASES: dict[str, MoEConfig] = {
    **{
        f"activation {name}": replace(SMALL, activation=name, gated=rule.gate_only)
        for name, rule in ACTIVATIONS.items()
    },
    **{
        f"score {name} {renormalize}": replace(SMALL, router=Router(name, renormalize=renormalize, scale=1.5))
        for name in SCORES
        for renormalize in (False, True)
    },
    "gated": replace(SMALL, gated=True, activation="gelu"),
    "biases": replace(SMALL, gated=True, bias=True),
    "limit": replace(SMALL, gated=True, limit=0.3, activation="swiglu_oai", bias=True),
    "limit after": replace(SMALL, gated=True, limit=0.3, limit_after=True),
    "groups": replace(SMALL, router=GROUPS),
    "capacity": replace(SMALL, router=Router("sigmoid", capacity=3)),
    "weights on the input": replace(SMALL, top_k=1, router=Router("sigmoid", renormalize=False, weight_on="input")),
    "identity experts": replace(SMALL, identity_experts=3, router=Router("softmax", renormalize=False)),
    "shared expert": replace(SMALL, shared_ffn=3, shared_sigmoid=True, bias=True, gated=True),
}


def problem(cfg: MoEConfig, tokens: int = 9) -> tuple[dict[str, Any], np.ndarray]:
    """Float64 arguments of `reference.moe` for a configuration, and dy."""
    rng = np.random.default_rng(5)
    given: dict[str, Any] = {name: np.float64(array) for name, array in reference.weights(cfg, 3).items()}
    given["router_bias"] = 0.1 * rng.standard_normal(cfg.columns)
    return given | {"x": rng.standard_normal((tokens, cfg.hidden))}, rng.standard_normal((tokens, cfg.hidden))


def check(
    cfg: MoEConfig, given: dict[str, Any], dy: np.ndarray, dlogits: Any = 0.0, fixed: tuple[str, ...] = ()
) -> None:
    """Compare every gradient with a central difference along a random direction of its array."""

    def loss(arguments: dict[str, Any]) -> float:
        rest = dict(arguments)
        x = rest.pop("x")
        value = float((dy * reference.moe(cfg, x, **rest)).sum())
        if "router" not in rest:
            return value
        logits = reference.scores_of(cfg, rest.get("router_x", x), rest["router"], rest["router_bias"])
        return value + (0.0 if dlogits is None else float((dlogits * logits).sum()))

    rest = dict(given)
    found = reference.backward(
        cfg, rest.pop("x"), dy, **rest, **({} if np.ndim(dlogits) == 0 else {"dlogits": dlogits})
    )
    assert set(found) == set(given) - set(fixed)
    rng = np.random.default_rng(8)
    for name, gradient in found.items():
        direction = rng.standard_normal(np.shape(given[name]))
        ahead, behind = ({**given, name: given[name] + sign * STEP * direction} for sign in (1, -1))
        difference = (loss(ahead) - loss(behind)) / (2 * STEP)
        assert float((gradient * direction).sum()) == pytest.approx(difference, rel=1e-6, abs=1e-7), name


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_finite_differences(name):
    cfg = CASES[name]
    given, dy = problem(cfg)
    dlogits = np.random.default_rng(9).standard_normal((len(dy), cfg.columns))
    check(cfg, given, dy, dlogits)


def test_a_bias_for_choosing_has_no_gradient_and_changes_the_choice():
    given, dy = problem(CASES["groups"])
    plain = reference.backward(CASES["groups"], dy=dy, **given)
    given["select_bias"] = np.linspace(0, 1, SMALL.columns)
    check(CASES["groups"], given, dy, fixed=("select_bias",))
    assert np.abs(reference.backward(CASES["groups"], dy=dy, **given)["up"] - plain["up"]).max() > 0


def test_the_router_may_read_other_rows():
    given, dy = problem(SMALL)
    check(SMALL, given | {"router_x": np.random.default_rng(4).standard_normal(dy.shape)}, dy)


def test_routed_from_outside_the_weights_have_a_gradient():
    given, dy = problem(SMALL)
    del given["router"], given["router_bias"]
    rng = np.random.default_rng(2)
    ids = np.array([rng.permutation(SMALL.experts)[:3] for _ in dy])
    ids[0] = -1  # a token without experts
    ids[1, 1] = -1
    cfg = replace(SMALL, bias=True)
    given |= {name: np.float64(a) for name, a in reference.weights(cfg, 1).items() if name != "router"}
    given |= {"ids": ids, "weights": rng.standard_normal(ids.shape)}
    check(cfg, given, dy, fixed=("ids",))
    assert reference.backward(cfg, dy=dy, **given)["weights"][1, 1] == 0


def test_shapes_are_checked():
    given, dy = problem(SMALL)
    with pytest.raises(InputError, match=r"x and dy must have shape \[S, 5\]"):
        reference.backward(SMALL, given.pop("x"), dy[:3], **given)

"""`bench/gpu/torch_layer.py`, the rival's arithmetic: PyTorch on CPUs against the float64 reference."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest
from gpu_rivals import captured, torch_or_skip, unfused

from aristos import reference
from aristos.bench.gpu import torch_layer
from aristos.config import MoEConfig, Router
from aristos.errors import EnvironmentProblem
from aristos.row_types import ROW_TYPES

pytestmark = pytest.mark.parallel

SHAPE = {"hidden": 16, "ffn": 24, "experts": 8, "top_k": 2}
TOKENS = 37


@pytest.fixture(scope="module")
def torch():
    return torch_or_skip()


def sample(cfg):
    """(weights, x: [TOKENS, H])."""
    return reference.weights(cfg, 0), np.random.default_rng(0).standard_normal((TOKENS, cfg.hidden), np.float32)


def computed(torch, cfg, way="loop", given=()):
    """(y of the chain, y of the reference) [S, H]."""
    weights, x = sample(cfg)
    dtype = torch_layer.dtype_of(torch, cfg)
    held = torch.from_numpy(x).to(dtype)
    x, router = held.double().numpy(), weights.pop("router")
    if cfg.dtype != "float32":
        router = torch.from_numpy(router).to(dtype).float().numpy()
    part = torch_layer.Part(torch, cfg, router, weights, torch.device("cpu"), unfused)
    ids, combine = given if given else reference.route(cfg, x, router)
    want = reference.moe(cfg, x, ids=ids, weights=combine, **weights)
    y = torch.full_like(held, float("nan"))
    rows = np.bincount(ids[ids >= 0], minlength=cfg.experts)
    outside = tuple(map(torch.from_numpy, given)) if given else ()
    torch_layer.Chain(part, way, held, y, rows, outside)()
    return y.float().numpy(), want


ROUTERS = {
    "softmax": Router(),
    "softmax of all": Router(renormalize=False, scale=2.5),
    "top-k": Router("softmax_topk"),
    "sigmoid": Router("sigmoid"),
    "sqrtsoftplus": Router("sqrtsoftplus", renormalize=False),
    "groups": Router(groups=4, topk_groups=2),
    "sums of groups": Router("sigmoid", scale=2.5, groups=4, topk_groups=2, group_score="sum_top2"),
}


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("way", torch_layer.WAYS)
def test_the_chain_routes_as_the_reference(torch, router, way):
    y, want = computed(torch, MoEConfig(**SHAPE, router=ROUTERS[router]), way)
    assert reference.error(y, want) < ROW_TYPES["float32"].error


def test_a_score_or_activation_that_the_chain_lacks_is_refused(torch):
    """Otherwise the chain would compute another score or activation, and its outputs would be wrong."""
    cfg = MoEConfig(**SHAPE, router=Router("sparsemixer"))
    weights = reference.weights(cfg, 0)
    with pytest.raises(EnvironmentProblem, match=r"computes the scores softmax, sigmoid, .*, got 'sparsemixer'"):
        torch_layer.Part(torch, cfg, weights.pop("router"), weights, torch.device("cpu"), unfused)
    with pytest.raises(EnvironmentProblem, match=r"computes the activations relu, .*, got 'mish'"):
        torch_layer.activation(torch, SimpleNamespace(activation="mish"))


@pytest.mark.parametrize(
    ("activation", "gated", "limit", "after"),
    [
        *((name, False, None, False) for name in ("relu", "gelu", "gelu_tanh", "silu", "relu2")),
        *((name, True, None, False) for name in ("relu", "gelu", "gelu_tanh", "silu", "swiglu_oai", "relu2")),
        ("swiglu_oai", True, 0.7, False),
        ("silu", True, 0.3, True),
    ],
)
def test_activations_with_biases(torch, activation, gated, limit, after):
    cfg = MoEConfig(**SHAPE, activation=activation, gated=gated, limit=limit, limit_after=after, bias=True)
    y, want = computed(torch, cfg)
    assert reference.error(y, want) < ROW_TYPES["float32"].error


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("way", torch_layer.WAYS)
def test_rows_of_16_bits(torch, dtype, way):
    cfg = MoEConfig(**SHAPE, activation="silu", gated=True, bias=True, dtype=dtype)
    y, want = computed(torch, cfg, way)
    assert reference.error(y, want) < ROW_TYPES[dtype].error


def test_weights_on_the_input(torch):
    cfg = MoEConfig(
        **SHAPE | {"top_k": 1},
        activation="silu",
        gated=True,
        router=Router("sigmoid", renormalize=False, weight_on="input"),
    )
    y, want = computed(torch, cfg)
    assert reference.error(y, want) < ROW_TYPES["float32"].error


@pytest.mark.parametrize("way", torch_layer.WAYS)
@pytest.mark.parametrize("taken", ["all", "some", "one expert", "none"])
def test_ids_and_weights_from_outside(torch, way, taken):
    """Choices not taken (-1) add nothing, even if no token has a choice."""
    rng = np.random.default_rng(1)
    ids = np.argsort(rng.random((TOKENS, SHAPE["experts"])), axis=1)[:, :2].astype(np.int64)
    if taken == "some":
        ids[rng.random(ids.shape) < 0.3] = -1
    if taken == "one expert":
        ids[:] = 5, -1
    if taken == "none":
        ids[:] = -1
    given = ids, rng.random(ids.shape, np.float32)
    y, want = computed(torch, MoEConfig(**SHAPE, bias=True), way, given)
    assert reference.error(y, want) < ROW_TYPES["float32"].error


@pytest.mark.parametrize("way", torch_layer.WAYS)
@pytest.mark.parametrize("placement", [[0, 0, 0, 1, 1, 1, 1, 1], [0] * 8])
def test_rows_of_two_ranks_travel_to_their_experts_and_back(torch, way, placement):
    """One placement gives rank 1 no expert. Outputs are also right when captured graphs of the parts are replayed."""
    cfg = MoEConfig(**SHAPE, activation="silu", gated=True, bias=True)
    weights, _ = sample(cfg)
    router, where = weights.pop("router"), np.array(placement)
    xs = [np.random.default_rng(rank).standard_normal((TOKENS - 9 * rank, cfg.hidden), np.float32) for rank in (0, 1)]
    routed = [reference.route(cfg, x, router)[0] for x in xs]
    counts = np.array([np.bincount(ids.reshape(-1), minlength=cfg.experts) for ids in routed])
    chains, sent = [], {}

    def exchange(me):
        def move(to, source, sends, gets):
            sent[me] = source, sends, to, gets

        return move

    for me, x in enumerate(xs):
        mine = {name: array[where == me] for name, array in weights.items()}
        part = torch_layer.Part(torch, cfg, router, mine, torch.device("cpu"), unfused)
        held = torch.from_numpy(x)
        y = torch.full_like(held, float("nan"))
        chains.append(torch_layer.RankChain(part, way, held, y, counts, me, where, exchange(me)))

    def swap():
        for me, (source, sends, _, _) in sent.items():
            for peer, (_, _, to, gets) in sent.items():
                assert sends[peer] == gets[me]
                first, at = int(sends[:peer].sum()), int(gets[:me].sum())
                ctypes.memmove(to + at, source + first, int(sends[peer]))

    wanted = [reference.moe(cfg, x, router=router, **weights) for x in xs]

    def check(graphs=({}, {})):
        for step in ("pack", "there", "compute", "return_rows", "combine"):
            for chain, graph in zip(chains, graphs):
                for one in graph.get(step, [getattr(chain, step)]):
                    one()
            if step in ("there", "return_rows"):
                swap()
        for want, chain in zip(wanted, chains):
            assert reference.error(chain.y.numpy(), want) < ROW_TYPES["float32"].error

    check()
    parts = "pack", "compute", "combine"
    graphs = [{part: captured(torch, getattr(chain, part)) for part in parts} for chain in chains]
    for chain in chains:
        for each in (chain.y, chain.landed, chain.back):
            each.fill_(float("nan"))
    check(graphs)


def test_the_sum_to_compile_equals_that_by_a_bag(torch):
    rng = np.random.default_rng(3)
    rows, weights = (torch.from_numpy(rng.random(shape, np.float32)) for shape in ((20, 8), (10, 2)))
    position, ys = torch.from_numpy(rng.permutation(20).reshape(10, 2)), torch.empty((2, 10, 8))
    torch_layer.combine(rows, position, weights, ys[0])
    torch_layer.combine_by_bag(torch, rows, position, weights, ys[1])
    torch.testing.assert_close(ys[0], ys[1])


@pytest.mark.parametrize("name", ["silu", "swiglu_oai"])
def test_what_is_compiled_can_be_traced_as_one_graph(torch, name):
    """torch.compile traces activation, bias and combine without a graph break. Only a GPU can make code for CUDA."""
    cfg = MoEConfig(**SHAPE, activation=name, gated=True, limit=1.0, bias=True)
    function = torch_layer.biased(torch_layer.activation(torch, cfg))
    h, bias, expert = torch.randn(9, 48).bfloat16(), torch.randn(9, 48), torch.arange(9) % 8
    traced = torch.compile(function, fullgraph=True, backend="eager")
    torch.testing.assert_close(traced(h, bias, expert), function(h, bias, expert))
    y = torch.empty(3, 48)
    traced = torch.compile(torch_layer.combine, fullgraph=True, backend="eager")
    traced(h.float(), torch.arange(6).reshape(3, 2), torch.ones(3, 2), y)
    torch.testing.assert_close(y, h.float()[:6].reshape(3, 2, 48).sum(1))
    assert function(h, bias, expert).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("dtype", "capability", "version", "hidden", "want"),
    [
        ("bfloat16", (9, 0), "2.11.0+cu130", 16, torch_layer.WAYS),
        ("float16", (9, 0), "2.11.0", 16, ("loop",)),
        ("bfloat16", (8, 0), "2.11.0", 16, ("loop",)),
        ("bfloat16", (10, 0), "2.11.0", 16, ("loop",)),
        ("bfloat16", (10, 0), "2.13.0", 16, torch_layer.WAYS),
        ("bfloat16", (12, 0), "2.13.0", 16, ("loop",)),
        ("bfloat16", (9, 0), "2.11.0", 12, ("loop",)),
    ],
)
def test_products_are_grouped_where_pytorch_has_a_kernel(dtype, capability, version, hidden, want):
    class Torch:
        __version__, _grouped_mm = version, None

    cfg = MoEConfig(**SHAPE | {"hidden": hidden}, dtype=dtype)
    assert torch_layer.ways(Torch, cfg, capability) == want

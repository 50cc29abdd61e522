"""Two levels between nodes: a token crosses once to a node, and outputs keep the bits that they have with one level."""

from __future__ import annotations

from dataclasses import replace
from math import comb
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import ROOT, SKEWS, Exchange, MoE, rings_of, routing, same, tokens

import aristos
from aristos import reference
from aristos.engine import words
from aristos.engine.layout import rank_bytes, return_stride
from aristos.errors import AristosError, EnvironmentProblem, InputError, MemoryProblem, PeerInputError
from aristos.host.nodes import Nodes
from aristos.layer import making
from aristos.layer.node_first import NodeFirst
from aristos.transport import capacity, two_levels

CFG = aristos.MoEConfig(hidden=24, ffn=32, experts=12, top_k=4, gated=True, max_tokens=48)
KINDS = {
    "float32": CFG,
    "bfloat16": replace(CFG, dtype="bfloat16", activation="silu"),
    "shared": replace(CFG, shared_ffn=16, shared_sigmoid=True),
    "capacity": replace(CFG, router=aristos.Router(capacity_factor=0.7)),
}


def crossings(ranks: np.ndarray, ids: np.ndarray, nodes: Nodes, me: int) -> int:
    """How many (token, node) pairs there are with a choice on another node. ranks: of each expert."""
    node = np.append(np.array(nodes.node_of)[ranks], -1)[ids]
    return sum(int((node == n).any(axis=1).sum()) for n in set(nodes.node_of) - {nodes.node_of[me]})


def checked_layers(comm: Any, per_node: int, kinds: list[str], placement: list[int] | None = None) -> None:
    """Calls with both levels: equal bits, and as many rows between nodes as there are (token, node) pairs."""
    nodes = Nodes.split(comm.size, per_node)
    for name in kinds:
        cfg, w = KINDS[name], reference.weights(KINDS[name])
        calls = []
        for n, skew in enumerate(SKEWS[1:]):
            x = tokens(cfg, 48 - 11 * ((comm.rank + n) % 3), seed=comm.rank + n)
            x = x.astype(ml_dtypes.bfloat16) if cfg.dtype == "bfloat16" else x
            calls.append((x, {} if name == "capacity" else routing(cfg, len(x), skew, seed=comm.rank + n)))
        wanted = []
        for levels in (1, 2):
            options: dict[str, Any] = {"ranks_per_node": per_node, "placement": placement, "threads": levels}
            part = comm.Dup()
            with rings_of(7 if levels == 2 else None, 3), MoE(replace(cfg, levels=levels), part, **options) as moe:
                moe.load(**w)
                runtime = moe.runtime
                assert runtime.group.nodes.levels == levels
                assert runtime._memory.nbytes == rank_bytes(runtime.shape, runtime.group.nodes, comm.rank)
                for n, (x, call) in enumerate(calls):
                    y, stats = moe(x, return_stats=True, **call)
                    if levels == 1:
                        wanted.append(y)
                        continue
                    assert same(y, wanted[n]), (name, n)
                    if not call:
                        continue
                    remote = nodes.remote(comm.rank)
                    nbytes = sum(stats.moved_bytes_to_peer[p] for p in remote)
                    width = x.dtype.itemsize * cfg.hidden
                    assert nbytes == width * crossings(moe.placement.ranks, call["ids"], nodes, comm.rank), (name, n)
            part.Free()


@pytest.mark.ranks(2)
def test_two_nodes_of_one_rank(comm):
    checked_layers(comm, 1, ["float32"])


@pytest.mark.core
@pytest.mark.ranks(4)
def test_two_nodes_of_two_ranks(comm):
    checked_layers(comm, 2, list(KINDS))
    checked_layers(comm, 2, ["float32"], [0, 0, 3, 3, 3, 3, 3, 3, 1, 1, 1, 0])  # rank 2 has no expert


@pytest.mark.ranks(3)
def test_uneven_nodes_and_nodes_of_one_rank(comm):
    checked_layers(comm, 2, ["float32", "shared"])
    checked_layers(comm, 1, ["float32"])


@pytest.mark.slow
@pytest.mark.ranks(6)
def test_two_nodes_of_three_ranks(comm):
    checked_layers(comm, 3, ["float32", "bfloat16"])


@pytest.mark.core
@pytest.mark.ranks(4)
def test_training_and_exchanges(comm):
    """Gradients keep their bits, with tapes for the rows of some owners only. An exchange returns its rows."""
    cfg = replace(CFG, activation="silu")
    w, found = reference.weights(cfg), []
    x, dy = (tokens(cfg, 40 - 5 * comm.rank, seed=comm.rank + n) for n in (0, 9))
    for levels in (1, 2):
        part = comm.Dup()
        options: dict[str, Any] = {"ranks_per_node": 2, "train": True, "tape_bytes": 6000 * comm.rank}
        with MoE(replace(cfg, levels=levels), part, **options) as moe:
            moe.load(**w)
            y, tape = moe.forward(x)
            dx = moe.backward(dy, tape)
            moe.reduce_grads()
            found.append([y, dx, *(moe.grads()[key] for key in sorted(moe.grads()))])
            shape = {"hidden": 24, "experts": 12, "top_k": 4, "max_tokens": 48}
            with Exchange(part, **shape, ranks_per_node=2) as exchange:
                call = routing(cfg, len(x), "uniform", seed=comm.rank)
                rows, handle = exchange.dispatch(x, call["ids"])
                back = exchange.combine(rows, handle, call["weights"])
                assert np.allclose(back, x * call["weights"].sum(axis=1, keepdims=True), atol=1e-5)
        part.Free()
    for one, two in zip(*found):
        assert one.tobytes() == two.tobytes()


def checked_bulk(comm: Any, per_node: int, placement: list[int] | None = None) -> None:
    """Bulk calls with both levels have equal bits, also with tokens on few ranks, of few experts, and refused ones.

    So have their backward calls.
    """
    cfg = replace(KINDS["shared"], activation="silu")
    w = reference.weights(cfg)
    options: dict[str, Any] = {"ranks_per_node": per_node, "placement": placement, "schedule": "bulk", "train": True}
    one, two = comm.Dup(), comm.Dup()
    with MoE(cfg, one, **options) as flat, MoE(replace(cfg, levels=2), two, **options) as moe:
        assert isinstance(moe._backend.bulk._all_to_all, NodeFirst)
        assert isinstance(moe._training._calls._all_to_all, NodeFirst)
        for layer in (flat, moe):
            layer.load(**w)
        for n, skew in enumerate(SKEWS):
            x = tokens(cfg, 0 if comm.rank == n else 48 - 11 * ((comm.rank + n) % 3), seed=comm.rank + n)
            call = routing(cfg, len(x), skew, seed=comm.rank + n)
            assert same(moe(x, **call), flat(x, **call)), skew
            found = []
            for layer in (flat, moe):
                _, tape = layer.forward(x, **call)
                found.append(layer.backward(np.cos(x), tape))
            for one_level, two_levels in zip(*found) if call else [found]:
                assert same(one_level, two_levels), skew
        for layer in (flat, moe):
            layer.reduce_grads()
        assert all(same(flat.grads()[name], each) for name, each in moe.grads().items())
        with pytest.raises(InputError if comm.rank == 1 else PeerInputError):
            moe(x[:, : cfg.hidden - (comm.rank == 1)], **call)
        assert same(moe(x, **call), flat(x, **call))
    one.Free()
    two.Free()


@pytest.mark.core
@pytest.mark.ranks(4)
def test_bulk_on_two_nodes_of_two_ranks(comm):
    checked_bulk(comm, 2)
    checked_bulk(comm, 2, [0, 0, 3, 3, 3, 3, 3, 3, 1, 1, 1, 0])
    checked_bulk(comm, 3)  # a node of three ranks, and one of one


@pytest.mark.ranks(3)
def test_bulk_on_uneven_nodes_and_nodes_of_one_rank(comm):
    checked_bulk(comm, 2)
    checked_bulk(comm, 1)


@pytest.mark.slow
@pytest.mark.ranks(6)
def test_bulk_on_six_ranks(comm):
    checked_bulk(comm, 3)
    checked_bulk(comm, 4)


@pytest.mark.ranks(4)
def test_the_messages_of_bulk(comm):
    """A rank sends rows to ranks of other nodes only if they have its place in their node."""
    asked: dict[str, np.ndarray] = {}
    with MoE(replace(CFG, levels=2), comm.Dup(), ranks_per_node=2, schedule="bulk") as moe:
        moe.load(**reference.weights(CFG))
        bulk = moe._backend.bulk
        real = bulk._blocking

        def blocking(job: Any, st: Any, what: str, call: Any, nbytes: np.ndarray) -> None:
            asked[what] = nbytes.copy()
            real(job, st, what, call, nbytes)

        bulk._blocking = blocking
        moe(tokens(CFG, 48, seed=comm.rank))
    within = np.flatnonzero(asked["MPI_Alltoallw of rows within the node"])
    assert set(within) <= {2 * (comm.rank // 2), 2 * (comm.rank // 2) + 1}
    assert list(np.flatnonzero(asked["messages of rows between nodes"])) == [(comm.rank + 2) % 4]


@pytest.mark.ranks(2)
def test_levels_that_do_not_work(comm, monkeypatch):
    """If the probe fails, "auto" means one level, and levels=2 is an error on every rank."""
    monkeypatch.setattr(two_levels, "lacking", lambda group: "it is forbidden here")
    part = comm.Dup()
    with MoE(replace(CFG, levels="auto"), part, ranks_per_node=1) as moe:
        assert moe.runtime.group.nodes.levels == 1
        with pytest.raises(InputError, match="levels must be 'auto', as for the other objects"):
            MoE(replace(CFG, levels=1), part, ranks_per_node=1)
    with pytest.raises(EnvironmentProblem, match="levels=2 does not work here: it is forbidden here"):
        MoE(replace(CFG, levels=2), comm, ranks_per_node=1)
    part.Free()


@pytest.mark.ranks(2)
def test_full_shared_memory_is_found_before_the_probe(comm, monkeypatch):
    """Open MPI cannot make the probe's window if /dev/shm is full. Later the same communicator gets a layer."""
    part = comm.Dup()
    for levels in (2, "auto"):
        with monkeypatch.context() as patch:
            patch.setattr(capacity, "free_shared_memory", lambda: 1 << 16)
            patch.setattr(two_levels, "_probe", lambda *_: pytest.fail("the probe has run"))
            with pytest.raises(MemoryProblem, match="of shared memory in /dev/shm, but only"):
                MoE(replace(CFG, levels=levels), part, ranks_per_node=1)
    with MoE(replace(CFG, levels=2), part, ranks_per_node=1) as moe:
        assert moe.runtime.group.nodes.levels == 2
    part.Free()


def checked_sums(comm: Any, per_node: int, dtype: str = "float32", ring: int | None = 9) -> None:
    """With sums, results are those of the float64 oracle within the rows' type, and equal in a second call.

    ring: rows of a stream; few, so that a call needs several rounds.
    """
    cfg = replace(CFG, levels=2, combine="sums", dtype=dtype)
    w, nodes, part = reference.weights(cfg), Nodes.split(comm.size, per_node), comm.Dup()
    with rings_of(ring, 5), MoE(cfg, part, ranks_per_node=per_node, threads=1 + comm.rank % 2) as moe:
        moe.load(**w)
        for n, skew in enumerate(SKEWS):
            x = tokens(cfg, 48 - 11 * ((comm.rank + n) % 3), seed=comm.rank + n)
            x = x if dtype == "float32" else x.astype(ml_dtypes.bfloat16)
            call = routing(cfg, len(x), skew, seed=comm.rank + n)
            given = call or {"router": w["router"]}
            y, stats = moe(x, return_stats=True, **call)
            again = moe(x, **call)
            assert same(y, again)
            wanted = reference.moe(cfg, x, **{k: v for k, v in w.items() if k != "router"}, **given)
            assert not len(x) or reference.error(y, wanted) < (1e-5 if dtype == "float32" else 0.02), skew
            if not call:
                continue
            out = crossings(moe.placement.ranks, call["ids"], nodes, comm.rank) * x.dtype.itemsize * cfg.hidden
            assert sum(stats.moved_bytes_to_peer[p] for p in nodes.remote(comm.rank)) == out
    part.Free()


@pytest.mark.ranks(4)
def test_each_token_comes_back_once_from_a_node(comm):
    """All bytes between nodes: with sums there are fewer rows back, one for each (token, node) pair, and links more.

    In large rings a bundle holds all pairs for a node. So both calls have the same bundles and records.
    """
    x, nodes, found = tokens(CFG, 48, seed=comm.rank), Nodes.split(comm.size, 2), []
    call = routing(CFG, len(x), "zipf", seed=comm.rank)
    for combine in ("rows", "sums"):
        part = comm.Dup()
        with MoE(replace(CFG, levels=2, combine=combine), part, ranks_per_node=2) as moe:
            moe.load(**reference.weights(CFG))
            moe(x, **call)
            found.append(sum(m.bytes for m in moe.summary().messages if m.transport == "rma"))
            ranks = moe.placement.ranks
        part.Free()
    once = comm.allreduce(crossings(ranks, call["ids"], nodes, comm.rank))
    far = np.array(nodes.node_of)[ranks][call["ids"]] != nodes.node_of[comm.rank]
    pairs = comm.allreduce(int(far.sum()))
    assert pairs > 1.3 * once
    assert found[0] - found[1] == (pairs - once) * return_stride(4 * CFG.hidden, 0) - 8 * pairs


@pytest.mark.ranks(4)
def test_an_output_that_is_alone_keeps_its_bits(comm):
    """With sums, an output that is the only one of its token on a node is not rounded with its weight before it comes
    back. So the call has the bits of combine="rows" if no token has two choices on another node.
    """
    cfg, found = replace(KINDS["bfloat16"], levels=2), []
    x = tokens(cfg, 48, seed=comm.rank).astype(ml_dtypes.bfloat16)
    rng, own = np.random.default_rng(comm.rank), 6 * (comm.rank // 2)
    drawn = [own + rng.permutation(6)[:2] for _ in x]
    ids = np.array([[a, (a + 6) % 12, b, -1] for a, b in drawn])
    weights = rng.random(ids.shape, np.float32)
    for combine in ("rows", "sums"):
        part = comm.Dup()
        with rings_of(9, 5), MoE(replace(cfg, combine=combine), part, ranks_per_node=2) as moe:
            moe.load(**reference.weights(cfg))
            found.append(moe(x, ids=ids, weights=weights))
        part.Free()
    assert same(*found)


@pytest.mark.ranks(4)
def test_failed_calls_with_sums(comm):
    """Each rank in turn refuses its input, or has no weights and skips others. Then calls are right again."""
    cfg = replace(CFG, levels=2, combine="sums")
    w, part = reference.weights(cfg), comm.Dup()
    with rings_of(9, 5), MoE(cfg, part, ranks_per_node=2, threads=1 + comm.rank % 2) as moe:
        moe.load(**w)
        x = tokens(cfg, 40, seed=comm.rank)
        wanted = moe(x)
        for refuses in range(comm.size):
            with pytest.raises(InputError if comm.rank == refuses else PeerInputError):
                moe(x[:, : cfg.hidden - (comm.rank == refuses)])
            assert same(moe(x), wanted), refuses
            if comm.rank == refuses:
                moe.unload(0)
            with pytest.raises(AristosError, match="load"):
                moe(x)
            moe.load(**w)
            assert same(moe(x), wanted), refuses
    part.Free()


@pytest.mark.core
@pytest.mark.ranks(4)
def test_sums_on_two_nodes_of_two_ranks(comm):
    checked_sums(comm, 2)
    checked_sums(comm, 2, "bfloat16", None)


@pytest.mark.ranks(3)
def test_sums_on_uneven_nodes_and_nodes_of_one_rank(comm):
    checked_sums(comm, 2)
    checked_sums(comm, 1)


@pytest.mark.slow
@pytest.mark.ranks(6)
def test_sums_on_two_nodes_of_three_ranks(comm):
    checked_sums(comm, 3)


def test_refused_sums():
    with pytest.raises(InputError, match=r"combine must be 'rows' or 'sums', got 'sum'"):
        replace(CFG, levels=2, combine="sum")
    for levels in (1, "auto"):
        with pytest.raises(InputError, match="combine='sums' needs levels=2, got "):
            replace(CFG, levels=levels, combine="sums")
    cfg = replace(CFG, levels=2, combine="sums")
    with pytest.raises(InputError, match="combine='sums' needs schedule='fused', got schedule='bulk'"):
        MoE(cfg, schedule="bulk")
    with pytest.raises(InputError, match="train=True requires combine='rows', got combine='sums'"):
        MoE(replace(cfg, activation="silu"), train=True)


def test_on_one_node_nothing_is_added_up():
    cfg = replace(CFG, levels=2, combine="sums")
    with MoE(cfg) as moe:
        moe.load(**reference.weights(cfg))
        moe(tokens(cfg, 5, 0))
        (job,) = moe._backend._jobs.made
        assert job[words.SUMS] == 0


def test_refused_levels():
    with pytest.raises(InputError, match=r"levels must be 1, 2 or 'auto', got 3"):
        replace(CFG, levels=3)
    with pytest.raises(InputError, match=r"levels=2 needs backend='cpu', got backend='cuda': use levels=1 or 'auto'"):
        making._levels(replace(CFG, levels=2), SimpleNamespace(name="cuda"))
    with MoE(replace(CFG, levels="auto"), schedule="bulk") as moe:
        assert moe.runtime.group.nodes.levels == 1


def test_the_table_of_the_page():
    """The page's rows and bytes follow from its formula, and so does what drawn ids give."""
    page = (ROOT / "docs" / "two_levels.md").read_text()
    models = {
        "OLMoE-1B-7B": (64, 8, 2048),
        "gpt-oss-120b": (128, 4, 2880),
        "Qwen3-30B-A3B": (128, 8, 2048),
        "DeepSeek-V3": (256, 8, 7168),
    }
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    lines = [cells for cells in lines if cells[0] in models and len(cells) == 8]
    assert {cells[0] for cells in lines} == set(models)
    for name, nodes_text, *figures in lines:
        (experts, k, hidden), nodes = models[name], int(nodes_text)
        held = [1 - comb(experts - experts // parts, k) / comb(experts, k) for parts in (8 * nodes, nodes)]
        one, two, back = 8 * (nodes - 1) * held[0], (nodes - 1) * held[1], k * (nodes - 1) / nodes
        right = one, two, back, hidden / 512 * (one + back), hidden / 512 * (two + back), (one + back) / (two + back)
        assert [float(figure) for figure in figures] == [pytest.approx(value, abs=0.051) for value in right]
        drawn = np.random.default_rng(0).random((4000, experts)).argsort(axis=1)[:, :k]
        ranks = np.arange(experts) // (experts // nodes)
        assert crossings(ranks, drawn, Nodes.split(nodes, 1), 0) == pytest.approx(4000 * two, rel=0.03)


@pytest.mark.parametrize("node_of", [(0, 0, 0, 1, 1), (0, 1, 1, 1, 1, 2, 2), (0, 1, 2), (3, 3, 0, 0, 0, 1)])
def test_bulk_carries_rows_by_rails(node_of):
    """The carrier of rows has the target's place in its node, also where nodes have different sizes."""
    nodes, world = Nodes(node_of).with_streams(), len(node_of)
    for me in range(world):
        found = NodeFirst(SimpleNamespace(nodes=nodes, rank=me, world=world))
        assert found._own == [q for q in range(world) if nodes.rail(q, me) == me and (q == me or q in nodes.remote(me))]
        assert found._sources == {nodes.rail(me, p): nodes.members(p) for p in nodes.remote(me)}
        assert sorted(q for taken in found._taken for q in taken) == sorted([*nodes.members(me), *nodes.remote(me)])


def test_rails():
    """Uneven nodes share rails; the ranks of a node must be consecutive."""
    nodes = Nodes((0, 0, 0, 1, 1)).with_streams()
    assert [nodes.rail(p, 3) for p in range(5)] == [3, 4, 3, 3, 3]
    assert [list(nodes.stream(2, p)) for p in range(5)] == [[0], [1], [2], [3, 4], []]
    assert list(nodes.readers(4)) == [3, 4]
    assert not Nodes((0, 1, 0)).consecutive
    assert two_levels.lacking(SimpleNamespace(nodes=Nodes((0, 1, 0)))) == "the ranks of a node are not consecutive"

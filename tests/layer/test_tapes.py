"""What owners keep for backward calls: equal bits whatever they keep, reserves that are too small, freed memory."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from cases import MoE, tokens
from mpi import ranks_each

from aristos import MoEConfig, Router, reference
from aristos.errors import InputError, PeerInputError
from aristos.layer.tapes import Reserve, place_bytes

GATED = MoEConfig(
    hidden=36,
    ffn=600,
    experts=6,
    top_k=2,
    activation="swiglu_oai",
    gated=True,
    bias=True,
    limit=0.5,
    max_tokens=64,
    shared_ffn=9,
)
PLAIN = MoEConfig(
    hidden=20,
    ffn=33,
    experts=6,
    top_k=2,
    activation="gelu",
    max_tokens=64,
    identity_experts=2,
    router=Router("sigmoid", renormalize=False),
)
ON_INPUT = replace(PLAIN, top_k=1, identity_experts=0, router=Router("sigmoid", renormalize=False, weight_on="input"))
CASES = {
    "gated": GATED,
    "plain": PLAIN,
    "bfloat16": replace(GATED, dtype="bfloat16"),
    "weights on the input": replace(ON_INPUT, dtype="bfloat16"),
}


def asked(cfg: MoEConfig) -> list[tuple[str, int]]:
    """[(save, tape_bytes)]. Reserves hold all that `save` asks, the rows of some sources, or a part of each row."""
    row, most = place_bytes(cfg, "rows"), place_bytes(cfg, "hidden")
    return [("nothing", 10**7), ("rows", 10**7), ("rows", 30 * row), ("hidden", 10**7), ("hidden", 40 * most)]


@ranks_each(2, 4)
def test_equal_bits_whatever_is_kept(comm, world):
    """Ranks have reserves of different sizes, and rank 1 has no tokens. Four ranks are on two nodes."""
    seen = set()
    for name, cfg in CASES.items() if world == 2 else [("plain", PLAIN)]:
        kind = np.float32 if cfg.dtype == "float32" else ml_dtypes.bfloat16
        x, dy = (tokens(cfg, 40 - 40 * (comm.rank == 1), seed=seed + comm.rank).astype(kind) for seed in (3, 9))
        first: dict[str, bytes] = {}
        for save, tape_bytes in asked(cfg):
            own = tape_bytes if comm.rank % 2 == 0 else 2 * tape_bytes  # ranks may have different budgets
            nodes = {"ranks_per_node": 2} if world == 4 else {}
            with MoE(cfg, comm, threads=1 + comm.rank % 2, train=True, tape_bytes=own, **nodes) as moe:
                moe.load(**reference.weights(cfg))
                y, tape = moe.forward(x, save=save)
                other = moe.forward(x[::-1], save=save)[1]
                seen |= {(save, kept) for each in (tape, other) for kept in each.kept}
                found = {"y": y, "second": moe.backward(dy, other), "dx": moe.backward(dy, tape)}
                moe.reduce_grads()
                assert moe.tape_bytes_taken == 0
                found |= {key: gradient.copy() for key, gradient in moe.grads().items()}
                bits = {key: array.tobytes() for key, array in found.items()}
            first = first or bits
            for key, value in bits.items():
                assert value == first[key], (name, save, tape_bytes, key)
    every = comm.allgather(seen)
    assert set().union(*every) >= {("rows", "rows"), ("rows", "nothing"), ("hidden", "hidden"), ("hidden", "rows")}


@pytest.mark.ranks(2)
@pytest.mark.parametrize("copies", [False, True])
def test_tapes_of_several_layers_are_used_in_any_order(comm, copies):
    """Two layers of one object have the bits of an object for each layer, also with copies of experts.

    In one call of each layer rank 1 has no tokens.
    """
    cfg, places = GATED, [[0, 1], 1, [1, 0], 0, 1, 0] if copies else None
    weights = [reference.weights(cfg, seed) for seed in range(2)]
    mine = [tokens(cfg, 40 * (comm.rank == 0) + 7 * number, seed=2 * comm.rank + number) for number in range(2)]

    def bits(moe, layer):
        return {key: gradient.tobytes() for key, gradient in moe.grads(layer).items()}

    alone, dx = [], []
    for layer in range(2):
        with MoE(cfg, comm, threads=1, train=True, placement=places, tape_bytes=0) as moe:
            moe.load(**weights[layer])
            dx += [moe.backward(-x, moe.forward(x, save="nothing")[1]).tobytes() for x in mine]
            moe.reduce_grads()
            alone.append(bits(moe, 0))
    for save in ("rows", "hidden"):
        with MoE(cfg, comm, layers=2, threads=1, train=True, placement=places, tape_bytes=10**7) as moe:
            for layer in range(2):
                moe.load(layer=layer, **weights[layer])
            tapes = [moe.forward(x, layer=layer, save=save)[1] for layer in range(2) for x in mine]
            found = {}
            for number in (2, 0, 3, 1):  # each layer's calls stay in order, because gradients are sums in order
                found[number] = moe.backward(-mine[number % 2], tapes[number]).tobytes()
            moe.reduce_grads()
            assert [found[number] for number in range(4)] == dx
            assert [bits(moe, layer) for layer in range(2)] == alone
            assert moe.tape_bytes_taken == 0


@pytest.mark.ranks(2)
def test_discard_gives_the_memory_back(comm):
    cfg = replace(GATED, shared_ffn=0)
    x = tokens(cfg, 40, seed=comm.rank)
    with MoE(cfg, comm, threads=1, train=True, tape_bytes=80 * place_bytes(cfg, "hidden")) as moe:
        moe.load(**reference.weights(cfg))
        _, first = moe.forward(x, save="hidden")
        taken = moe.tape_bytes_taken
        assert taken > 0
        moe.forward(x, save="nothing")[1].discard()
        assert moe.tape_bytes_taken == taken
        _, full = moe.forward(x, save="hidden")  # the reserve holds one call's rows
        assert "hidden" not in full.kept
        first.discard()
        full.discard()
        assert moe.tape_bytes_taken == 0
        _, again = moe.forward(x, save="hidden")
        assert moe.tape_bytes_taken == taken
        assert "hidden" in again.kept
        again.discard()


@pytest.mark.ranks(2)
def test_a_refused_call_leaves_open_tapes_as_they_are(comm):
    """The engine refuses NaN on rank 1; Python refuses a wrong `save` there. Rank 0 gets a PeerInputError."""
    cfg = replace(GATED, max_tokens=20)
    x = tokens(cfg, 20, seed=comm.rank)
    expected, nan = (InputError if comm.rank else PeerInputError), np.where(comm.rank, np.nan, x).astype(np.float32)
    gradients = []
    for refusals in (0, 1):
        with MoE(cfg, comm, threads=1, train=True, tape_bytes=10**7) as moe:
            moe.load(**reference.weights(cfg))
            _, tape = moe.forward(x, save="hidden")
            taken = moe.tape_bytes_taken
            if refusals:
                with pytest.raises(expected, match="got nan in token 0" if comm.rank else "rank 1 refused its input"):
                    moe.forward(nan, save="hidden")
                why = "save must be one of nothing, rows, hidden, got 'all'"
                with pytest.raises(expected, match=why if comm.rank else "rank 1 refused its input"):
                    moe.forward(x, save="all" if comm.rank else "hidden")
            assert moe.tape_bytes_taken == taken
            moe.backward(x, tape)
            gradients.append({name: gradient.tobytes() for name, gradient in moe.grads().items()})
    assert gradients[0] == gradients[1]


def test_what_a_tape_hands_out_is_not_what_backward_reads():
    """A loss may change the tape's routing in place, even to ids out of range. A new placement has no effect either."""
    cfg = replace(PLAIN, identity_experts=0, router=Router("sigmoid", capacity=9))
    x, dy = (tokens(cfg, 40, seed=seed) for seed in (3, 9))
    with MoE(cfg, threads=1, train=True) as moe:
        moe.load(**reference.weights(cfg))
        found = []
        for touched in (False, True):
            moe.zero_grads()
            tape = moe.forward(x)[1]
            if touched:
                for name in ("ids", "chosen", "weights", "logits", "counts"):
                    getattr(tape.routing, name)[...] = 10**8
                for name in ("ranks", "start", "slot_of"):
                    getattr(moe.placement, name)[...] = 10**8
                moe.placement.copies.clear()
                moe.placement.held[0] = 10**8
            found.append([moe.backward(dy, tape)])
            moe.reduce_grads()
            found[-1] += [gradient.copy() for _, gradient in sorted(moe.grads().items())]
    for before, after in zip(*found, strict=True):
        assert before.tobytes() == after.tobytes()


def test_parts_of_a_reserve():
    reserve = Reserve(1000)  # 960 of its bytes are whole cache lines
    offers = [reserve.offer(2, 1)]
    parts = [reserve.take_part(offers[0], offers[0].first + 256)]
    for nbytes in (128, 256):
        offers.append(reserve.offer(2, 1))
        assert offers[-1].first == offers[-2].first + (parts[-1][1] - parts[-1][0])
        parts.append(reserve.take_part(offers[-1], offers[-1].first + nbytes))
    reserve.free(parts[1])
    assert reserve.offer(2, 1).end - reserve.offer(2, 1).first == 320  # what is free behind the last part
    reserve.free(parts[0])
    assert (reserve.taken, reserve.offer(2, 1).first) == (256, offers[0].first)
    for part in parts:
        reserve.free(part)
    assert (reserve.taken, reserve.offer(2, 1).end - offers[0].first) == (0, 960)


def test_memory_counts_the_reserve():
    cfg = replace(PLAIN, router=Router())
    with pytest.raises(InputError, match="tape_bytes applies only to train=True"):
        MoE.memory(cfg, 4, tape_bytes=4096)
    least = MoE.memory(cfg, 4, train=True, tape_bytes=0)
    assert MoE.memory(cfg, 4, train=True, tape_bytes=4096) == least + 4096
    assert MoE.memory(cfg, 4, train=True) == least + 64 * 2 * 128  # rows of 80 bytes take 128 each
    assert MoE.memory(cfg, 1, train=True) == MoE.memory(cfg, 1, train=True, tape_bytes=0)


@pytest.mark.parametrize(
    ("options", "save", "message"),
    [
        ({"tape_bytes": -1, "train": True}, "rows", "tape_bytes must be None"),
        ({"tape_bytes": 64}, "rows", "tape_bytes applies only to train=True"),
        ({"train": True}, "all", "save must be one of nothing, rows, hidden"),
    ],
)
def test_wrong_options_of_tapes_are_refused(options, save, message):
    def call():
        with MoE(GATED, threads=1, **options) as moe:
            moe.load(**reference.weights(GATED))
            moe.forward(tokens(GATED, 2, seed=1), save=save)

    with pytest.raises(InputError, match=message):
        call()

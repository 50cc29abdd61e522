"""A case: the sizes of an engine and the calls of every rank, drawn from a seed within the options given."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..engine.layout import LINE, EngineShape, lines, local_peers, most_announced, return_stride
from ..host.nodes import Nodes
from ..layer.node_weights import most_foreign
from ..placement import Placement
from .regions import WORD

STARTS = (
    0,
    0,
    2**31 - 3,
    2**32 - 3,
    2**53 - 3,
    2**62,
    -3,
    -20,
)  # first values of counters; -3 is 2**64 - 3
# how one rank's call differs from the others' calls: the rank refuses its input, calls another layer, uses another
# object, or refuses its input in the second phase. Half of the calls drawn as "layer" have another placement instead
KINDS = ("refused", "layer", "object", "combine")
GPU_KINDS = ("refused", "layer")  # kinds of calls on GPUs, where layers have no exchanges
HOW = ("gpu", "host", "copy")  # what fails: the kernel, the host's calling thread, or copies to the GPU
Ids = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Call:
    """One call of one rank. ids: [S][k], -1 where a choice is not taken.

    If layer, refuses, exchange or misplaced differ between ranks, the call is broken and its outputs mean nothing.
    """

    ids: Ids
    layer: int = 0
    refuses: bool = False
    exchange: bool = False  # the call is an exchange, in two phases
    refuses_combine: bool = False  # the rank refuses its input in the second phase
    broken: bool = False
    ends_early: bool = False  # the exchange fails in its first phase, so it has no second phase
    misplaced: bool = False  # the rank believes in another placement
    other_tape: bool = False  # in a backward call the rank has a tape that differs from the others' tapes


@dataclass(frozen=True)
class RankFault:
    """A rank's failure. epoch, slice: the call and the slice in which it fails.

    dies: steps until the rank's process ends, -1 if it lives on."""

    rank: int
    epoch: int
    slice: int
    raises: bool = True
    dies: int = -1
    how: str = "gpu"  # what fails if ranks are on GPUs: see HOW


@dataclass(frozen=True)
class Case:
    """Sizes, placement and calls of one run."""

    ranks: int = 2
    rows: int = 4  # rows of a ring
    local_rows: int = 0  # rows of the ring of a local peer, 0: the same
    placement: tuple[int, ...] = (0, 1)
    top_k: int = 1
    max_tokens: int = 3
    workers: int = 1
    runs: int = 1  # the most column-split runs at the same time
    all_split: bool = False  # every run is column-split, as on GPUs
    tile: int = 2
    run: int = 4  # RUN_ROWS: more rows of an expert than this are cut into several runs
    group: int = 6  # GROUP of engine/experts.py: run sizes are rounded up to it; with 1 a run can end in a tile
    merge: int = 0  # MERGE_ROWS: a run with fewer rows than this waits for announced rows
    stay: int = 0  # STAY_ROWS: this many rows or more for a foreign expert stay at their rank; 0: all travel
    busiest_decides: bool = False  # BUSIEST_DECIDES: the busiest rank's work also decides which rows stay
    scalars: bool = False  # every second call has a scalar beside each row
    backward: bool = False  # every second call of a layer is a backward call
    save: int = 0  # which arrays forward calls keep for their backward calls, see primitives/taped.py
    reserve: int = 0  # words that a rank reserves for these arrays
    words: int = 1  # words of a row
    node_of: tuple[int, ...] = (0, 0)
    bundle: int = 9  # the most pairs of a bundle
    once: int = 0  # ONCE_ROWS: tokens cross once to a local owner that gets at least this many rows; 0: never
    once_share: int = 0  # ONCE_SHARE: tokens cross once only if those rows are at least this percentage of the tokens
    sums: bool = False  # a node's outputs of a token come back as one row
    levels: int = 1  # levels of the wire between nodes
    start: int = 0  # where counters begin
    proxy: bool = False  # ranks are on GPUs: a proxy calls MPI, workers do not
    attention: bool = False  # puts land only at ranks that call into MPI
    delays: bool = False  # loads may see old values
    meets: bool = False  # all ranks meet between the phases of an exchange
    fault: RankFault | None = None
    calls: tuple[tuple[Call, ...], ...] = ()  # [ranks][calls]

    @property
    def nodes(self) -> Nodes:
        return Nodes(self.node_of, self.levels)

    @property
    def shape(self) -> EngineShape:
        """The shape of the engine."""
        placement = Placement(self.placement, len(self.placement), self.ranks)
        return EngineShape(
            world=self.ranks,
            ring_rows=max(self.rows, self.top_k) if self.once or not self.nodes.single else self.rows,
            stride=max(
                return_stride(WORD * self.words, int(self.scalars or self.backward)),
                lines(WORD * self.words * (2 if self.backward else 1)),
            ),
            return_rows=self.max_tokens * self.top_k,
            places=int(self.levels == 2 and not self.nodes.single),
            local_peers=local_peers(self.nodes),
            local_rows=max(self.local_rows, self.top_k) if self.local_rows else 0,
            max_held=max(1, *placement.held),
            announced=most_announced(placement.held, self.nodes),
            top_k=self.top_k,
            experts=len(self.placement),
            max_tokens=self.max_tokens,
            foreign=most_foreign(placement, self.nodes) if self.stay else 0,
        )

    def is_backward(self, epoch: int) -> bool:
        """Whether a layer's call number `epoch` is a backward call."""
        return self.backward and epoch % 2 == 0

    def tape_of(self, rounds: Sequence[Sequence[Call]]) -> bool:
        """Whether the last of these rounds, [calls][ranks], leaves a tape."""
        return bool(self.save and rounds) and not any(call.broken or call.exchange for call in rounds[-1])

    def computes(self, source: int, owner: int, rows: int) -> int:
        """The rank that computes `rows` rows for one expert of `owner`: the source or the owner.

        If either may compute them, the source is returned.
        """
        stays = self.stay and (self.busiest_decides or rows >= self.stay) and owner in self.nodes.local(source)
        return source if stays else owner

    def describe(self) -> str:
        """The case for people: a line with its sizes, and a line for each rank's calls."""
        words = [
            f"{self.ranks} ranks on nodes {list(self.node_of)}" + ", two levels" * (self.levels == 2),
            f"{self.workers} worker{'s'[: self.workers > 1]} each, {self.runs} column-split runs"
            + (" and no others" if self.all_split else ""),
            f"experts at {list(self.placement)}",
            f"rings of {self.rows}" + f" and {self.local_rows} in a node" * (self.local_rows > 0),
            f"tiles of {self.tile}",
            f"top-{self.top_k}",
        ]
        if self.stay:
            words.append(f"{self.stay} rows of an expert stay" + ", busiest rank decides" * self.busiest_decides)
        if self.once:
            words.append(
                f"tokens cross once from {self.once} rows and {self.once_share} % of the tokens on,"
                f" bundles of {self.bundle}"
            )
        if self.save:
            words.append(f"tapes keep {self.save} in {self.reserve} words")
        if self.start:
            words.append(f"counters from {self.start}")
        if self.fault is not None:
            words.append(str(self.fault))
        for name in ("sums", "proxy", "scalars", "backward", "attention", "delays", "meets"):
            if getattr(self, name):
                words.append(name)
        lines = [", ".join(words)]
        for r, mine in enumerate(self.calls):
            made = []
            for call in mine:
                flags = [n for n in ("exchange", "refuses", "refuses_combine") if getattr(call, n)]
                made.append(f"{[list(t) for t in call.ids]}{' ' if flags else ''}{' '.join(flags)}")
            lines.append(f"  rank {r} calls with ids {'; '.join(made)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Asked:
    """The options given for a case. Options that are None are drawn from the seed."""

    ranks: int = 2
    rows: int | None = 4
    calls: int | None = 2
    transport: str = "shm"
    faults: bool | None = None
    plain: bool = False  # only calls of layers, without refusals
    kind: str | None = None  # the kind of every call: see KINDS
    fixed: tuple[tuple[str, Any], ...] = ()  # fields of the case that are not drawn


def nodes_of(asked: Asked, rng: random.Random) -> tuple[int, ...]:
    """A node number for each rank."""
    if asked.transport == "shm":
        return (0,) * asked.ranks
    if asked.transport == "levels" and asked.ranks > 2:
        half = asked.ranks // 2
        return rng.choice(((0,) * half + (1,) * (asked.ranks - half), (0,) + (1,) * (asked.ranks - 1)))
    if asked.transport in ("rma", "levels") or (
        asked.transport == "proxy" and (asked.ranks == 2 or rng.random() < 0.5)
    ):
        return tuple(range(asked.ranks))
    return tuple(r // 2 for r in range(asked.ranks)) if rng.random() < 0.5 else (0, *(1 for _ in range(1, asked.ranks)))


def draw(seed: int, asked: Asked) -> Case:
    """Draw a case within the options given."""
    rng = random.Random(seed)
    world = asked.ranks
    experts = rng.choice((world, world, world + 1, 2 * world))
    placement = tuple(range(world)) + tuple(rng.randrange(world) for _ in range(experts - world))
    if rng.random() < 0.2:
        placement = tuple(rng.randrange(world) for _ in range(experts))
    tokens = rng.choice((1, 3, 3, 4, 6))
    case = Case(
        ranks=world,
        rows=asked.rows or rng.choice((1, 2, 3, 4)),
        placement=placement,
        top_k=rng.choice((1, 1, min(2, experts))),
        max_tokens=tokens,
        workers=rng.choice((1, 1, 1, 2)),
        tile=rng.choice((1, 2, 2, 3)),
        run=rng.choice((2, 4, 8)),
        group=rng.choice((1, 1, 6)),
        merge=rng.choice((0, 0, 3, 8)),
        words=rng.choice((1, 2)),
        node_of=nodes_of(asked, rng),
        bundle=rng.choice((1, 3, 40)),
        levels=2 if asked.transport == "levels" else 1,
        start=rng.choice(STARTS),
        attention=rng.random() < 0.5,
        delays=rng.random() < 0.5,
        meets=rng.random() < 0.5,
    )
    more = random.Random(f"{seed} shared runs")
    workers = case.workers if case.workers == 1 else more.choice((2, 2, 3, 4))
    case = replace(case, workers=workers, runs=more.choice((1, 2, 3)), all_split=more.random() < 0.4)
    if asked.transport == "proxy":
        case = replace(case, proxy=True, workers=more.choice((1, 2, 3, 4)), all_split=more.random() < 0.8)
    case = replace(case, stay=random.Random(f"{seed} experts in place").choice((0, 0, 0, 1, 2)))
    case = replace(case, busiest_decides=case.stay > 0 and random.Random(f"{seed} balanced").random() < 0.67)
    more_scalars = random.Random(f"{seed} scalars")
    if more_scalars.random() < 0.3:  # sometimes a row fills its cache lines, so that a scalar needs another
        case = replace(case, scalars=True, words=more_scalars.choice((case.words, case.words, LINE // WORD)))
    more_backward = random.Random(f"{seed} backward")
    if more_backward.random() < 0.3 and not case.proxy:  # a GPU has no backward call
        case = replace(case, backward=True, stay=0)
    tapes = random.Random(f"{seed} tapes")
    if case.backward:
        case = replace(case, save=tapes.choice((0, 1, 3, 3)), reserve=tapes.choice((0, 3, 7, 20, 1000)))
    once = random.Random(f"{seed} once")
    if not case.proxy:  # on GPUs tokens never cross once within a node
        case = replace(case, once=once.choice((0, 0, 1, 2, 3)), once_share=once.choice((0, 0, 100, 150)))
    if case.levels == 2:
        case = replace(case, local_rows=random.Random(f"{seed} local rings").choice((0, 1, 2)))
        case = replace(case, sums=not (case.backward or case.scalars) and random.Random(f"{seed} sums").random() < 0.4)
    case = replace(case, **dict(asked.fixed))
    if case.backward or case.scalars:
        case = replace(case, sums=False)
    if case.backward:
        case = replace(case, stay=0)
    count = asked.calls or rng.randint(1, 5)
    rounds = [_round(case, rng, asked) for _ in range(count)]
    if case.backward and world > 1 and (asked.kind == "tape" or not (asked.plain or asked.kind)):
        rounds = [_other_tapes(case, n, made, asked, more_backward) for n, made in enumerate(rounds, 1)]
    if case.save:
        rounds = of_tapes(case, rounds)
    case = replace(case, calls=tuple(zip(*rounds)))
    faulty = rng.random() < 0.12 if asked.faults is None else asked.faults
    if faulty and world > 1:
        fault = _fault(case, rng)
        case = replace(case, fault=replace(fault, how=more.choice(HOW)) if case.proxy and fault.raises else fault)
    # With a fault no rows stay: a rank that waits for its peers before it loads weights reads no poison.
    return replace(case, stay=0) if case.proxy or case.fault is not None else case


def _fault(case: Case, rng: random.Random) -> RankFault:
    raises = rng.random() < 0.7
    dies = rng.randint(0, 12) if not raises or rng.random() < 0.5 else -1
    return RankFault(rng.randrange(case.ranks), rng.randint(1, len(case.calls[0])), rng.randint(0, 3), raises, dies)


def _round(case: Case, rng: random.Random, asked: Asked) -> tuple[Call, ...]:
    """A call of every rank."""
    plain = asked.plain
    kinds = GPU_KINDS if case.proxy else KINDS
    kind = asked.kind or ("fine" if plain or rng.random() < 0.7 else rng.choice(kinds))
    exchange = not plain and rng.random() < 0.25 and not case.proxy
    odd, world = rng.randrange(case.ranks), case.ranks
    late = kind == "combine" and exchange
    style = rng.choice(("any", "any", "one", "some", "none"))
    layer, hot = rng.randrange(3), rng.randrange(len(case.placement))
    misplaced = kind == "placement" or (kind == "layer" and asked.kind is None and (odd + layer) % 2 == 1)
    other_layer = kind == "layer" and not misplaced and not exchange
    early = kind == "refused" or (world > 1 and (kind == "object" or misplaced or other_layer))
    made = []
    for r in range(world):
        it = r == odd
        made.append(
            Call(
                ids=_ids(case, rng, style, hot),
                layer=layer + (other_layer and it),
                refuses=kind == "refused" and it,
                exchange=exchange != (kind == "object" and it),
                refuses_combine=late and it,
                broken=early or late,
                ends_early=early,
                misplaced=misplaced and it,
            )
        )
    return tuple(made)


def _other_tapes(case: Case, epoch: int, made: tuple[Call, ...], asked: Asked, rng: random.Random) -> tuple[Call, ...]:
    """The calls of a round. Sometimes one rank has another tape in a backward call."""
    fine = case.is_backward(epoch) and not any(call.broken or call.exchange for call in made)
    if not fine or (asked.kind != "tape" and rng.random() < 0.8):
        return made
    odd = rng.randrange(case.ranks)
    return tuple(replace(call, other_tape=r == odd, broken=True) for r, call in enumerate(made))


def of_tapes(case: Case, rounds: list[tuple[Call, ...]]) -> list[tuple[Call, ...]]:
    """The rounds, changed so that a backward call has the layer and ids of the forward call before it, if that call
    left a tape."""
    made: list[tuple[Call, ...]] = []
    for epoch, each in enumerate(rounds, 1):
        if case.is_backward(epoch) and case.tape_of(made):
            # how far the number of each rank's layer is above the lowest number of the round
            other = [call.layer - min(c.layer for c in each) for call in each]
            each = tuple(
                call if call.exchange else replace(call, ids=before.ids, layer=before.layer + more)
                for call, before, more in zip(each, made[-1], other)
            )
        made.append(each)
    return made


def _ids(case: Case, rng: random.Random, style: str, hot: int) -> Ids:
    """[S][k] ids of one rank's call. By `style`: any experts, only the expert `hot`, some not taken, or none taken."""
    count = rng.choice((case.max_tokens, case.max_tokens, rng.randint(0, case.max_tokens), 0))
    rows = []
    for _ in range(count):
        row = rng.sample(range(len(case.placement)), case.top_k)
        if style == "one":
            row = [hot] + [-1] * (case.top_k - 1)
        elif style == "some":
            row = [e if rng.random() < 0.5 else -1 for e in row]
        elif style == "none":
            row = [-1] * case.top_k
        rows.append(tuple(row))
    return tuple(rows)

"""Makes a layer object: each rank checks its options, then the object joins the runtime of its ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import MOST_EXPERTS, MoEConfig, boolean, whole
from ..engine.layout import lines, rank_bytes
from ..errors import AristosError, InputError
from ..host.nodes import Nodes
from ..placement import Placement
from .arguments import DEFAULT_TIMEOUT, check_common, refusal
from .backend import Backend, Settings
from .collective import Membership, Needs, Request, shape_of, widths
from .differences import fields_of_layers
from .holders import holders_of
from .node_weights import most_foreign
from .options import Options, backend_class, check_moves, check_training, checked_options
from .tapes import Reserve, checked_bytes


@dataclass(frozen=True)
class Checked:
    """Options that this rank accepts. holders: see `holders_of`. reserve: memory for tapes; None without train=True."""

    settings: Settings
    request: Request
    holders: list[list[int]]
    reserve: Reserve | None


def join(options: Options, placement: Any, kind: type[Backend], member: Membership) -> Checked:
    """Check the options, and join the runtime with what they need. If one rank refuses its options, all ranks raise.

    placement: the placement in this rank's group. kind: the class of the backend.
    """
    request: Request | AristosError
    try:
        found = checked(options, placement, kind, member)
        request = found.request
    except Exception as error:
        request = refusal(error)
    member.join(request, options.threads)
    return found


def checked(options: Options, placement: Any, kind: type[Backend], member: Membership) -> Checked:
    """The checked options. Raises InputError for an option that this rank refuses."""
    cfgs = checked_options(options.cfg, options.layers, options.schedule, options.backend)
    for cfg in dict.fromkeys(cfgs):
        kind.check(cfg, options.schedule, options.threads, options.sms)
    check_common(options.threads, options.timeout, options.ranks_per_node, options.absent_timeout)
    check_moves(options.moves, kind, options.schedule)
    places = Placement(placement, cfgs[0].experts, member.world)
    nbytes, train = _reserve_bytes(options, cfgs, kind, member.world), options.train
    reserve = Reserve(nbytes) if train else None
    holders = holders_of(places, options.plan)
    settings = Settings(
        cfgs=cfgs,
        schedule=options.schedule,
        limits=options.limits,
        sms=options.sms,
        moves="tokens" if train else options.moves,
        train=train,
        copied=frozenset(expert for expert, ranks in enumerate(holders) if train and len(ranks) > 1),
    )
    return Checked(settings, _request(settings, kind, member, places), holders, reserve)


def _request(settings: Settings, kind: type[Backend], member: Membership, places: Placement) -> Request:
    """What the layers need of their runtime, and what must be equal on all ranks."""
    cfgs, schedule, moves, train = settings.cfgs, settings.schedule, settings.moves, settings.train
    alike = {"object": "MoE", **fields_of_layers(cfgs), "schedule": schedule, "moves": moves}
    alike |= {"placement": str(places), "train": str(train)}
    shape = widths(*cfgs) | {"train": train}
    if kind.reads_peers and schedule == "fused" and moves != "tokens":
        shape["foreign"] = most_foreign(places, member.runtime.group.nodes)
    needs = Needs.most(kind.needs(cfg, member.runtime, settings.sms, train) for cfg in dict.fromkeys(cfgs))
    return Request(alike, places, shape, needs, _levels(cfgs[0], kind))


def _levels(cfg: MoEConfig, kind: type[Backend]) -> int | str:
    """The levels to ask for; raises InputError if this backend does not have them."""
    if kind.name == "cpu":
        return cfg.levels
    if cfg.levels == 2:
        raise InputError(f"levels=2 needs backend='cpu', got backend={kind.name!r}: use levels=1 or 'auto'")
    return 1


def _reserve_bytes(options: Options, cfgs: tuple[MoEConfig, ...], kind: type[Backend], world: int) -> int:
    """Bytes of the reserve for tapes; 0 without train=True. Raises InputError for a layer that cannot be trained."""
    if boolean("train", options.train):
        check_training(cfgs[0], kind, options.moves)
        return checked_bytes(options.tape_bytes, cfgs, world, options.schedule)
    if options.tape_bytes is not None:
        raise InputError(f"tape_bytes applies only to train=True, got {options.tape_bytes!r}")
    return 0


def rank_memory(options: Options, world: Any) -> int:
    """Bytes that a layer with these options needs on the rank that needs most, see `MoE.memory`."""
    world = whole("world", world, MOST_EXPERTS, f"a positive int of at most {MOST_EXPERTS}")
    check_common(options.threads, DEFAULT_TIMEOUT, options.ranks_per_node)
    cfgs = checked_options(options.cfg, options.layers, options.schedule, options.backend)
    kind, kinds = backend_class(options.backend_name), dict.fromkeys(cfgs)
    for cfg in kinds:
        kind.check(cfg, options.schedule, options.threads)
    places = Placement(options.placement, cfgs[0].experts, world)
    reserve = _reserve_bytes(options, cfgs, kind, world)
    nodes = Nodes.split(world, options.ranks_per_node)
    if _levels(cfgs[0], kind) != 1 and not nodes.single:
        nodes = nodes.with_streams()
    shape = shape_of(world, places, **widths(*cfgs), train=options.train, nodes=nodes)
    total = reserve + rank_bytes(shape, nodes, world - 1)
    if options.threads is not None:
        needs = Needs.most(kind.needs(cfg, None, train=options.train) for cfg in kinds)
        total += int(options.threads) * lines(needs.scratch_bytes) + needs.shared_bytes
    copied = None
    if options.train:
        copied = max(sum(len(places.copies[e]) > 1 for e in places.mine(rank)) for rank in range(world))
    weights = {cfg: kind.packed_bytes(cfg, max(places.held), copied) for cfg in kinds}
    return total + sum(weights[cfg] for cfg in cfgs)

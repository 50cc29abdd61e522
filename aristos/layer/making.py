"""The making of a layer object: its options are checked on each rank before the object joins its ranks' runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import boolean
from ..errors import AristosError, InputError
from ..placement import Placement
from .arguments import check_common, refusal
from .backend import Backend, Settings
from .collective import Membership, Needs, Request, widths
from .differences import fields_of_layers
from .holders import holders_of
from .node_weights import most_foreign
from .options import Options, check_moves, check_training, checked_options
from .tapes import Reserve, checked_bytes


@dataclass(frozen=True)
class Checked:
    """Options that this rank accepts. holders: see `holders_of`. reserve: of tapes, with train=True."""

    settings: Settings
    request: Request
    holders: list[list[int]]
    reserve: Reserve | None


def join(options: Options, placement: Any, kind: type[Backend], member: Membership) -> Checked:
    """Check the options, and join the runtime with what they need. Raises on every rank if one refuses its own.

    placement: that of this rank's group. kind: the class of the backend.
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
    """Raises InputError for an option that this rank refuses."""
    cfgs = checked_options(options.cfg, options.layers, options.schedule, options.backend)
    for cfg in dict.fromkeys(cfgs):
        kind.check(cfg, options.schedule, options.threads, options.sms)
    check_common(options.threads, options.timeout, options.ranks_per_node, options.absent_timeout)
    check_moves(options.moves, kind, options.schedule)
    places = Placement(placement, cfgs[0].experts, member.world)
    train, reserve = boolean("train", options.train), None
    if train:
        check_training(cfgs[0], kind, options.moves)
        reserve = Reserve(checked_bytes(options.tape_bytes, cfgs, member.world, options.schedule))
    elif options.tape_bytes is not None:
        raise InputError(f"tape_bytes applies only to train=True, got {options.tape_bytes!r}")
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
    return Request(alike, places, shape, needs)

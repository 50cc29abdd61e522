"""Suite `signal`: the round-trip time between two ranks, and the message rate of one sender.

    round trip     One rank puts a payload and a signal. The other rank puts the received payload and a signal back.
                   Payloads have up to 64 KiB; with 0 bytes there is only a signal.
    message rate   One rank sends small messages through a ring of 256 slots with tail and credit, like the engine's
                   inbox.

Between nodes (transport rma) a signal is a word that MPI puts after a flush; up to 64 messages share one signal. Each
transport has its own tables. A sample is 100 round trips, fewer if they are slow. The check fails if a payload comes
back changed, or if the sum of a stream's message numbers is wrong.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import numpy as np

from ...results import Table
from ..context import CHECK, VERDICTS, Column, Context, Result, Sheet
from ..disturbance import PAIR_SHARE, mark_pairs
from ..pairs import CREDIT, PING, PONG, TAIL, Pairs, Side, add_transports, bytes_text, deadline, medians, slot_bytes
from ..registry import suite

SIZES = (0, 8, 64, 256, 1024, 4096, 16384, 65536)
REPEATS = 100
PROBE_TRIPS = 10
SAMPLES = 100
MESSAGE_SIZES = (8, 64, 512, 4096)
RING = 256
MESSAGES = 2000  # messages per sample

TRIPS = (
    Column("size_text", "payload"),
    Column("round_trip_us", "there and\nback us", ".3f"),
    Column("p99_us", "p99\nus", ".3f"),
    Column("fastest_pair_us", "fastest\npair us", ".3f"),
    Column("slowest_pair_us", "slowest\npair us", ".3f"),
    CHECK,
)
RATES = (
    Column("size_text", "payload"),
    Column("million_per_s", "million\nmessages/s", ".2f"),
    Column("slowest_pair_million_per_s", "slowest\npair", ".2f"),
    Column("bandwidth_gbs", "GB/s", ".2f"),
    CHECK,
)


@suite(
    "signal",
    "put and signal there and back, and message rate, for every pair",
    order=20,
    ranks=2,
    share=1.0,
    kernels=False,
)
def run(ctx: Context) -> Result:
    world = ctx.world
    with Pairs(world, slot_bytes(world, RING * MESSAGE_SIZES[-1])) as pairs:
        pairs.compile("ping", "pong", "stream_send", "stream_receive")
        sizes = [n for n in SIZES if n <= pairs.capacity]
        messages = [n for n in MESSAGE_SIZES if RING * max(64, n) <= pairs.capacity]
        most = ctx.options.iters or SAMPLES
        trips = np.full((world.size, len(sizes), most), np.nan)
        rates = np.full((world.size, len(messages), most), np.nan)
        core = np.full((world.size, 2, len(sizes) + len(messages)), np.nan)  # [target, end of the pair, size]
        right = np.ones((2, max(len(sizes), len(messages))), bool)
        each = 0.8 * ctx.budget / (len(pairs.rounds) * (len(sizes) + len(messages)))
        for number, side in pairs.sides():
            ctx.report(f"round {number + 1} of {len(pairs.rounds)}", number / len(pairs.rounds))
            if side is None:
                continue
            for j, size in enumerate(sizes):
                repeats = _repeats(side, size, each)
                (taken, fine), shares = side.samples(
                    partial(_trips, side, size, repeats), each, most, ctx.options.iters
                )
                right[0, j] &= fine
                if side.first:
                    trips[side.target, j, : taken.size] = taken * 1e-9 / repeats
                    core[side.target, :, j] = shares
            for j, size in enumerate(messages):
                (taken, fine), shares = side.samples(partial(_stream, side, size), each, most, ctx.options.iters)
                right[1, j] &= fine
                if side.first:
                    rates[side.target, j, : taken.size] = taken * 1e-9 / MESSAGES
                    core[side.target, :, len(sizes) + j] = shares
        transports = pairs.transports()
    all_right = np.logical_and.reduce(world.allgather(right))
    times = np.stack(world.allgather(trips)), np.stack(world.allgather(rates))
    both = np.split(np.stack(world.allgather(core)), [len(sizes)], axis=-1)
    there_and_back, streamed = (Sent(*each) for each in zip((sizes, messages), times, both, all_right))
    return _result(ctx, there_and_back, streamed, transports)


def _repeats(side: Side, size: int, seconds: float) -> int:
    """Round trips per sample: REPEATS, or fewer if trips are slow, for example if ranks share a core."""
    taken, _ = _trips(side, size, PROBE_TRIPS, 1)
    return side.agree(int(max(1, min(REPEATS, seconds / 20 / (taken[0] * 1e-9 / PROBE_TRIPS)))))


def _trips(side: Side, size: int, repeats: int, samples: int) -> tuple[np.ndarray, bool]:
    """(ns of each sample of `repeats` round trips, whether payloads came back unchanged), valid at the origin."""
    turns = samples * repeats
    base = side.advance(PING, turns)
    there, here = side.slots(side.peer), side.slots(side.rank)
    asked, answered = side.word(side.target, PING), side.word(side.origin, PONG)
    out, fine = np.ones(samples, np.int64), True
    if side.first:
        source = side.payload(size)
        places = there, here, source.ctypes.data, size, asked, answered
        done = side.run("ping", places, base, repeats, samples, deadline(), out)
        fine = done > 0 and np.array_equal(side.landed(size), source[:size])
    else:
        done = side.run("pong", (there, here, size, answered, asked), base, turns, deadline())
    side.bounded(done)
    return out, fine


def _stream(side: Side, size: int, samples: int) -> tuple[np.ndarray, bool]:
    """(at the origin ns of each sample of MESSAGES messages, at the target whether the messages' numbers add up)."""
    ring, stride = side.slots(side.target), max(64, size)
    tail, credit = side.word(side.target, TAIL), side.word(side.origin, CREDIT)
    total = np.zeros(1, np.int64)
    payload = np.zeros(RING * stride if side.remote else stride, np.uint8)
    out, fine = np.empty(samples, np.int64), True
    for s in range(samples):
        base = side.advance(TAIL, MESSAGES)
        if side.first:
            start = time.monotonic_ns()
            places = ring, RING, stride, payload.ctypes.data, size, tail, credit
            done = side.run("stream_send", places, base, MESSAGES, deadline())
            out[s] = time.monotonic_ns() - start
        else:
            done = side.run("stream_receive", (ring, RING, stride, tail, credit), base, MESSAGES, deadline(), total)
            fine &= int(total[0]) == sum(range(base, base + MESSAGES))
        side.bounded(done)
    return out, fine


@dataclass(frozen=True)
class Sent:
    """Round trips or messages of all ordered pairs of ranks.

    seconds: [origin, target, size, sample], of one round trip or message. core: [origin, target, end, size] the share
    of its core that each end of a pair had. right: for each size whether the payloads arrived, then unused entries.
    """

    sizes: list[int]
    seconds: np.ndarray
    core: np.ndarray
    right: np.ndarray


def _result(ctx: Context, trips: Sent, messages: Sent, transports: dict[str, np.ndarray]) -> Result:
    sheets = []
    for name, pairs in transports.items():
        sheets += [_trip_sheet(ctx, name, trips, pairs), _rate_sheet(name, messages, pairs)]
    ranks = np.arange(ctx.world.size)
    table = Table("signal", attributes={"most_repeats": REPEATS, "messages": MESSAGES, "ring_slots": RING})
    table.dim("origin", ranks).dim("target", ranks).dim("iteration", np.arange(trips.seconds.shape[-1]))
    over = ("origin", "target", "size", "iteration")
    table.dim("size", trips.sizes, "B", "payload of a round trip")
    table.dim("message_size", messages.sizes, "B", "payload of a message")
    table.add("round_trip", over, trips.seconds, "s", "there and back, mean of a sample")
    over = ("origin", "target", "message_size", "iteration")
    table.add("message_time", over, messages.seconds, "s", "time of a message")
    table.dim("end", ["origin", "target"])
    for name, kept, of in (("trip", trips.core, "size"), ("message", messages.core, "message_size")):
        table.add(f"{name}_core_share", ("origin", "target", "end", of), kept, "1", PAIR_SHARE)
    add_transports(table, transports)
    return Result(bool(trips.right.all() and messages.right.all()), sheets, [table])


def _trip_sheet(ctx: Context, transport: str, found: Sent, pairs: np.ndarray) -> Sheet:
    """The sheet of round trips. pairs: [W, W] bool, the pairs that use the transport."""
    trips = found.seconds[pairs]
    trip, usual = medians(trips)
    title = f"signal by {transport}: round trips, {len(trip)} ordered pairs of {ctx.world.size} ranks"
    sheet = Sheet(title, TRIPS)
    for j, size in enumerate(found.sizes):
        sheet.records.append(
            {
                "transport": transport,
                "size_bytes": size,
                "size_text": bytes_text(size) if size else "signal only",
                "round_trip_us": float(usual[j]) * 1e6,
                "p99_us": float(np.nanquantile(trips[:, j], 0.99)) * 1e6,
                "fastest_pair_us": float(trip[:, j].min()) * 1e6,
                "slowest_pair_us": float(trip[:, j].max()) * 1e6,
                "check": VERDICTS[bool(found.right[j])],
                **mark_pairs(found.core[..., j], pairs),
            }
        )
    return sheet


def _rate_sheet(transport: str, found: Sent, pairs: np.ndarray) -> Sheet:
    """The sheet of message rates. pairs: see `_trip_sheet`."""
    rate, usual = medians(found.seconds[pairs])
    sheet = Sheet(f"signal by {transport}: message rate of one sender, ring of {RING} slots", RATES)
    for j, size in enumerate(found.sizes):
        typical = float(usual[j])
        sheet.records.append(
            {
                "transport": transport,
                "size_bytes": size,
                "size_text": bytes_text(size),
                "million_per_s": 1e-6 / typical,
                "slowest_pair_million_per_s": 1e-6 / float(rate[:, j].max()),
                "bandwidth_gbs": size / typical / 1e9,
                "check": VERDICTS[bool(found.right[j])],
                **mark_pairs(found.core[..., j], pairs),
            }
        )
    return sheet

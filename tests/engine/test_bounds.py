"""A peer's word is out of its bounds: the rank that reads it fails, names the word, and keeps its tables valid.

Rank 0 reads what rank 1 has written into rank 0's window. Each rank has two experts. In the call rank 0 gets four rows
and has sent three. Each case changes one word.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from aristos.engine import bounds, bundles, codes, dispatch, experts, scalars, steps, sums, words
from aristos.engine import job as jobs
from aristos.engine.layout import (
    EngineShape,
    PairLayout,
    StateLayout,
    announcement_from,
    index_from,
    link_from,
    mark_from,
    record_from,
    return_record_from,
    word_from,
)
from aristos.engine.poison import poison_word
from aristos.errors import CorruptionError
from aristos.placement import Placement
from aristos.primitives.buffers import aligned
from aristos.substrate.failure import bad_word

pytestmark = pytest.mark.uncompiled

EPOCH, RING, MOST, FIRST = 7, 8, 16, 3
SENT, TILES = 20, 5  # rows and tiles of earlier calls, in both directions
HUGE = 1 << 40


def call():
    """Rank 0 in a call in which rank 1 has announced 4 rows, 3 of them for expert 1, and has put them as two tiles.

    Rank 0 has sent rank 1 three rows as one tile, which has come back.
    """
    placement = Placement([0, 0, 1, 1], 4, 2)
    shape = EngineShape(2, RING, 64, MOST, 2, 1, 4, MOST)
    tables = StateLayout(shape, 1, RING)
    job = np.zeros(jobs.size(4, 2), np.int64)
    st, window, outbox = (aligned((n,), np.int64) for n in (tables.words, 1000, 1000))
    for array in (st, window, outbox):
        array[:] = 0
    jobs.fill_placement(job, placement.slot_of.tolist(), placement.start.tolist())
    jobs.fill_layout(job, shape, tables)
    lock = np.zeros(1, np.int64)
    jobs.update(
        job, rank=0, world=2, held=2, computed=2, epoch=EPOCH, loaded=1, lock=lock.ctypes.data, tile=RING, batch=RING,
        workers=1, row_bytes=64, top_k=1, state=st.ctypes.data, return_stride=64, bundle_pairs=RING,
        node_first=0, node_end=1,
    )  # fmt: skip
    st[words.PHASE] = codes.PHASE_RUN
    st[words.UNREAD] = 1
    st[words.region_from(job, 1)] = st[words.stream_from(job, 1)] = st[words.line_from(job, 1)] = window.ctypes.data
    for p in range(2):
        st[words.stream_first(job, p)], st[words.stream_end(job, p)] = p, p + 1
    st[words.region_to(job, 1)] = st[words.out_ring(job, 1)] = outbox.ctypes.data
    assert PairLayout.from_shape(shape).nbytes <= window.nbytes
    for table, value in (
        (words.sent_rows, SENT + 3),
        (words.read_rows, SENT),
        (words.freed_rows, SENT),
        (words.sent_tiles, TILES + 1),
        (words.due_tiles, TILES + 1),
        (words.seen_tiles, TILES),
        (words.read_tiles, TILES),
        (words.free_tiles, TILES),
        (words.returned, TILES),
    ):
        st[table(job, 1)] = value
    st[words.offset(job, 2) : words.offset(job, 5)] = FIRST, FIRST + 3, FIRST + 4  # packed rows of its two experts
    st[words.cursor(job, 1)], st[words.UNSENT] = FIRST + 3, 1  # one row is not sent
    a = announcement_from(job, st, 1, EPOCH)
    at = {
        "announced": word_from(job, st, 1, words.ANNOUNCED),
        "tail": word_from(job, st, 1, words.TAIL),
        "credit": word_from(job, st, 1, words.CREDIT),
        "return_tail": word_from(job, st, 1, words.RETURN_TAIL),
        "poison": word_from(job, st, 1, words.POISON),
        "row_bytes": words.announced_row_bytes(a),
        "top_k": words.announced_top_k(a),
        "rows": words.announced_rows(a),
        "first": words.announced_first(a),
        "tokens": words.announced_tokens(a),
        "status": words.announced_status(a),
        "once": words.announced_once(a),
        "count_0": words.announced_count(a, 0),
        "count_1": words.announced_count(a, 1),
    }
    for name, tile in (("record", TILES), ("second", TILES + 1)):
        r = record_from(job, st, 1, tile)
        at[f"{name}_expert"], at[f"{name}_rows"] = words.record_expert(r), words.record_rows(r)
        at[f"{name}_packed"], at[f"{name}_bundle"] = words.record_packed(r), words.record_bundle(r)
        at[f"{name}_owner"] = words.record_owner(r)
    r = return_record_from(job, st, 1, TILES)
    at["returned_rows"], at["returned_packed"] = words.returned_rows(r), words.returned_packed(r)
    at["returned_status"], at["returned_kept"] = words.returned_status(r), words.returned_kept(r)
    for i in range(4):
        at[f"place_{i}"] = index_from(job, st, 1, SENT + i)

    def write(**values):
        for name, value in values.items():
            window[(at[name] - window.ctypes.data) // 8] = value

    write(
        announced=EPOCH, row_bytes=64, top_k=1, rows=4, first=5, tokens=4, count_0=1, count_1=3,
        tail=TILES + 2, credit=SENT, record_expert=0, record_rows=1, record_packed=5, record_bundle=1,
        second_expert=1, second_rows=3, second_packed=6, second_bundle=3,
        return_tail=TILES + 1, returned_rows=3, returned_packed=FIRST,
    )  # fmt: skip
    return SimpleNamespace(job=job, st=st, write=write, keep=(window, outbox, lock))


def step(found):
    """Rank 0 decides once: it reads everything that has come, and looks for a tile to send."""
    return steps.next_command(found.job, found.st, 0)


def failed(found, word, value):
    """Check that rank 0 has failed because of this word of rank 1, and that its error says so."""
    st = found.st
    assert st[words.FAILED] == codes.CAUSE_OUT_OF_BOUNDS
    assert (st[words.BAD_WORD], st[words.BAD_PEER], st[words.BAD_VALUE]) == (word, 1, value)
    assert step(found) == codes.FAIL
    error = bad_word(0, EPOCH, st)
    assert isinstance(error, CorruptionError)
    assert f" from rank 1 as {bounds.NAMES[word]}, got {value}: " in str(error)


def test_right_words_are_read():
    found = call()
    assert step(found) == codes.DISPATCH
    assert not found.st[words.FAILED]
    assert not found.st[words.BAD_WORD]
    assert [found.st[words.expert_pending(found.job, e)] for e in range(2)] == [1, 3]
    assert found.st[words.command_backs(words.command(found.job, 0))] == 1


WRONG = [
    ("announced", bounds.ANNOUNCED, (EPOCH + 2, HUGE)),
    ("status", bounds.ANNOUNCED_STATUS, (-1, HUGE)),
    ("rows", bounds.ANNOUNCED_ROWS, (-1, MOST + 1, HUGE)),
    ("first", bounds.ANNOUNCED_FIRST, (-1, MOST - 3, HUGE)),
    ("tokens", bounds.ANNOUNCED_TOKENS, (-1, MOST + 1, HUGE)),
    ("once", bounds.ANNOUNCED_ONCE, (-1, 2)),
    ("count_0", bounds.ANNOUNCED_COUNT, (-1, 5, HUGE)),
    ("count_1", bounds.ANNOUNCED_COUNT, (-1, 4, HUGE)),
    ("tail", bounds.TAIL, (TILES - 1, TILES + RING + 1, HUGE, -HUGE)),
    ("record_expert", bounds.RECORD_EXPERT, (-1, 2, HUGE)),
    ("record_rows", bounds.RECORD_ROWS, (-1, 0, 2, 5, HUGE)),
    ("record_packed", bounds.RECORD_PACKED, (-1, 4, 9, HUGE)),
    ("record_bundle", bounds.RECORD_BUNDLE, (-1, RING + 1, HUGE)),
    ("record_owner", bounds.RECORD_OWNER, (-1, 1, HUGE)),
    ("second_rows", bounds.RECORD_ROWS, (-1, 0, 4, HUGE)),
    ("second_packed", bounds.RECORD_PACKED, (7, HUGE)),
    ("credit", bounds.CREDIT, (SENT - RING + 2, SENT + 4, HUGE, -HUGE)),
    ("return_tail", bounds.RETURN_TAIL, (TILES - 1, TILES + 3, HUGE, -HUGE)),
    ("returned_rows", bounds.RETURNED_ROWS, (-1, MOST + 1, HUGE)),
    ("returned_packed", bounds.RETURNED_PACKED, (-1, FIRST - 1, FIRST + 2, HUGE)),
    ("returned_status", bounds.RETURNED_STATUS, (-1, HUGE)),
    ("returned_kept", bounds.RETURNED_KEPT, (-1, 4)),
]


@pytest.mark.parametrize(("name", "word", "values"), WRONG, ids=[name for name, _, _ in WRONG])
def test_a_word_out_of_its_bounds_fails_the_call(name, word, values):
    for value in values:
        found = call()
        found.write(**{name: value})
        step(found)
        failed(found, word, value)
        st, job = found.st, found.job
        assert 0 <= st[words.rows_left(job, 1)] <= MOST
        assert all(0 <= st[words.expert_pending(job, e)] <= 4 for e in range(2))


def test_counts_that_do_not_add_up_fail_the_call():
    found = call()
    found.write(count_1=2)
    step(found)
    failed(found, bounds.ANNOUNCED_SUM, 3)


def test_a_place_outside_of_the_ring_fails_the_call():
    found = call()
    found.write(once=1, place_1=RING, record_bundle=0)
    step(found)
    job, st = found.job, found.st
    assert st[words.once_from(job, 1)] == 1
    experts.gather(job, st, words.command(job, 0), 1, RING)
    experts.list_rows(job, st, words.command(job, 0))
    failed(found, bounds.PLACE, RING)
    rows = st[words.row_list(words.command(job, 0)) :][:3]
    ring = st[words.region_from(job, 1)] + job[words.P_RING]
    assert ((rows >= ring) & (rows < ring + 64 * RING)).all()


def test_credit_of_a_bundle_out_of_its_bounds_fails_the_call():
    for value in (SENT - RING + 2, SENT + 4, HUGE):
        found = call()
        found.st[words.once_to(found.job, 1)] = 1
        found.write(credit=value)
        assert not bundles.claim(found.job, found.st, 0, 1)
        failed(found, bounds.CREDIT, value)


def test_credit_is_not_read_where_nothing_is_to_be_sent():
    found = call()
    found.st[words.UNSENT] = 0
    found.write(credit=HUGE)
    assert dispatch.claim(found.job, found.st, 0) == codes.IDLE
    assert not found.st[words.FAILED]


@pytest.mark.parametrize(
    ("origin", "cause", "word"),
    [(1, 0, bounds.POISON_CAUSE), (1, 9, bounds.POISON_CAUSE), (2, codes.CAUSE_ERROR, bounds.POISON_ORIGIN)],
)
def test_a_damaged_poison_word_is_named(origin, cause, word):
    found = call()
    found.write(poison=poison_word(EPOCH, origin, cause), return_tail=TILES, tail=TILES)
    found.st[words.UNSENT] = 0
    found.st[words.IDLE_SWEEPS] = 31
    found.st[words.OWED] = 1
    step(found)  # reads the announcement
    found.st[words.IDLE_SWEEPS] = 31
    step(found)
    failed(found, word, origin if word == bounds.POISON_ORIGIN else cause)


def test_undamaged_poison_keeps_its_cause():
    found = call()
    found.write(poison=poison_word(EPOCH, 1, codes.CAUSE_ERROR), return_tail=TILES, tail=TILES)
    found.st[words.UNSENT] = 0
    found.st[words.OWED] = 1
    step(found)
    found.st[words.IDLE_SWEEPS] = 31
    assert step(found) == codes.FAIL
    assert found.st[words.FAILED] == codes.CAUSE_ERROR


def bundle_of_node(monkeypatch):
    """Rank 0, on a node with rank 1, has read a bundle of four pairs of rank 2. Pairs 1 and 3 are one token's."""
    shape = EngineShape(3, RING, 64, MOST, 2, 2, 6, MOST, places=1, local_peers=1)
    tables = StateLayout(shape, 1, RING)
    job = np.zeros(jobs.size(6, 3), np.int64)
    st, stream, window, staged = (aligned((n,), np.int64) for n in (tables.words, 1000, 1000, 8 * RING))
    scratch, outbox, lock = aligned((64,), np.int64), aligned((1000,), np.int64), aligned((8,), np.int64)
    for array in (st, stream, window, staged, scratch, outbox, lock):
        array[:] = 0
    jobs.fill_layout(job, shape, tables)
    jobs.update(
        job,
        rank=0,
        world=3,
        top_k=2,
        epoch=EPOCH,
        return_stride=64,
        return_bytes=64,
        node_first=0,
        node_end=2,
        state=st.ctypes.data,
        lock=lock.ctypes.data,
        scratch=scratch.ctypes.data,
        scratch_step=256,
        sums=1,
    )
    st[words.region_from(job, 1)], st[words.stream_from(job, 2)] = window.ctypes.data, stream.ctypes.data
    st[words.staged(job, 2)], st[words.region_to(job, 2)] = staged.ctypes.data, outbox.ctypes.data
    st[words.freed_rows(job, 2)], st[words.read_rows(job, 2)] = SENT, SENT + 4
    c = words.command(job, 0)
    st[words.command_tile(c)], st[words.command_rows(c)] = TILES, 4
    st[words.command_source(c)], st[words.command_tiles(c)] = 2, 1
    tile = words.landed(job, 2, TILES)
    st[words.landed_row(tile)], st[words.landed_rows(tile)], st[words.landed_left(tile)] = SENT, 4, codes.UNSUMMED_TILE
    for pair, before in ((1, 3), (3, 1)):
        stream[(link_from(job, st, 2, SENT + pair) - stream.ctypes.data) // 8] = SENT + before
        stream[(index_from(job, st, 2, SENT + pair) - stream.ctypes.data) // 8] = scalars.entry(0, pair)
    added = []
    monkeypatch.setattr(sums.arithmetic, "combine_token", lambda kernels, call: added.append(call))
    keep = (staged, scratch, outbox, lock)
    return SimpleNamespace(job=job, st=st, stream=stream, window=window, added=added, keep=keep)


def test_a_staged_word_out_of_its_bounds_fails_the_call(monkeypatch):
    found = bundle_of_node(monkeypatch)
    at = (mark_from(found.job, found.st, 1, 2) - found.window.ctypes.data) // 8
    for value, all_staged in ((SENT, False), (SENT + 3, False), (SENT + 4, True), (SENT + RING, True)):
        found.window[at] = value
        assert sums.all_staged(found.job, found.st, 2, SENT + 4) == all_staged
        assert not found.st[words.FAILED]
    for value in (SENT + 3 - RING, SENT + RING + 1, HUGE, -HUGE):
        found = bundle_of_node(monkeypatch)
        found.window[at] = value
        assert not sums.all_staged(found.job, found.st, 2, SENT + 4)
        assert found.st[words.FAILED] == codes.CAUSE_OUT_OF_BOUNDS
        assert (found.st[words.BAD_WORD], found.st[words.BAD_PEER], found.st[words.BAD_VALUE]) == (
            bounds.STAGED,
            1,
            value,
        )


def test_a_link_out_of_its_bundle_fails_the_call(monkeypatch):
    found = bundle_of_node(monkeypatch)
    sums.add_up(found.job, found.st, 0, 2, SENT + 3)
    assert len(found.added) == 1
    assert not found.st[words.FAILED]
    for value in (SENT - 1, SENT + 4, -1, HUGE):
        found = bundle_of_node(monkeypatch)
        found.stream[(link_from(found.job, found.st, 2, SENT + 3) - found.stream.ctypes.data) // 8] = value
        sums.add_up(found.job, found.st, 0, 2, SENT + 3)
        assert found.st[words.FAILED] == codes.CAUSE_OUT_OF_BOUNDS
        assert (found.st[words.BAD_WORD], found.st[words.BAD_PEER], found.st[words.BAD_VALUE]) == (
            bounds.LINK,
            2,
            value,
        )


def test_links_that_do_not_lead_back_fail_the_call(monkeypatch):
    """Pairs 0 and 2 are another token's. Links may lead there, or, from the last of k pairs, out of the bundle."""
    for damaged, value in ((1, 2), (3, 0), (1, 1), (1, 99)):
        found = bundle_of_node(monkeypatch)
        for pair, before in ((0, 2), (2, 0), (damaged, value)):
            found.stream[(link_from(found.job, found.st, 2, SENT + pair) - found.stream.ctypes.data) // 8] = (
                SENT + before
            )
        sums.add_up(found.job, found.st, 0, 2, SENT + 3)
        assert found.st[words.FAILED] == codes.CAUSE_OUT_OF_BOUNDS
        assert found.st[words.BAD_WORD] == bounds.LINK


def test_a_rank_that_has_failed_returns_nothing(monkeypatch):
    """What a step has computed before it finds a damaged word, or after that, may be wrong."""
    for fails in (False, True):
        found = bundle_of_node(monkeypatch)
        if fails:
            found.stream[(link_from(found.job, found.st, 2, SENT + 3) - found.stream.ctypes.data) // 8] = HUGE
        sums.add_up(found.job, found.st, 0, 2, SENT + 3)
        steps.publish(found.job, found.st, 0, codes.SUM)
        assert found.st[words.returned(found.job, 2)] == (not fails)
        assert steps.next_command(found.job, found.st, 0) == codes.FAIL or not fails


def test_every_checked_word_has_a_name_and_a_test():
    tested = {word for _, word, _ in WRONG} | {
        bounds.ANNOUNCED_SUM,
        bounds.PLACE,
        bounds.POISON_CAUSE,
        bounds.POISON_ORIGIN,
        bounds.ENDED,  # tested in tests/substrate/test_waits.py
        bounds.STAGED,
        bounds.LINK,
    }
    assert set(range(1, len(bounds.NAMES))) == tested

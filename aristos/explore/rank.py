"""One rank: its job and state, and the stages of its calls. Hashes take the place of kernels.

Job and state are filled as the substrate fills them.

A stage is the part of `CpuRuntime.run_call`, of `Exchange` or of a worker's thread between two points where no step is
under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ..engine import arrivals, bells, codes, column_runs, combine, outbox, packing, schema, steps, store, words
from ..engine import exchange as halves
from ..engine import job as jobs
from ..engine.layout import StateLayout, mark_to, return_stride, word_from, word_to
from ..errors import WaitTimeout
from ..layer.node_weights import foreign_slots
from ..placement import Placement
from ..primitives import arithmetic, memory, taped, wire
from ..substrate.cpu import loop
from ..substrate.failure import Patience, bad_word
from ..substrate.windows import readers
from ..transport.limits import Limits
from . import experts, places
from .cases import Call
from .places import private
from .regions import WORD
from .scheduler import Actor, Slice
from .state import State
from .surroundings import Surroundings
from .violation import OutOfBounds, WrongResult
from .watched_state import Watched

BATCH = 6  # the most rows of a run, column-split or not
MERGE_POLLS = 3  # number of idle polls for which a short run waits for more rows
SCRATCH_STEP = 4096  # bytes of scratch memory of a worker: weights, a sum, and what `combine_token` needs
TIMEOUT = 120.0
GATE_OPEN, GATE_DONE = 0, 8  # words for workers: the number of the open call, and how often workers have left a call
GATE_HALF = 16  # word: the last call whose first phase has ended on this rank. Used if ranks meet between the phases
# the tables of a state that count rows and tiles from call to call
COUNTERS = (words.T_SENT_ROWS, words.T_SENT_TILES, words.T_DUE_TILES, words.T_SEEN_TILES, words.T_SEEN_CREDIT,
            words.T_READ_TILES, words.T_READ_ROWS, words.T_FREE_TILES, words.T_FREED_ROWS, words.T_STAGED_TILES,
            words.T_STAGED_ROWS, words.T_PUT_ROWS, words.T_PUT_TILES, words.T_PUT_RETURNED, words.T_PUT_CREDIT,
            words.T_OPEN_ROWS, words.T_OPEN_TILES, words.T_OPEN_RETURNED, words.T_OPEN_CREDIT,
            words.T_RETURNED)  # fmt: skip


class Rank:
    """One rank of a cluster."""

    worker = "worker"  # the word for a worker in the names of actors
    sides: tuple[list[int], ...] = ()  # the jobs and states with which its proxy works, if it has a proxy

    def __init__(self, cluster: Surroundings[Rank], me: int) -> None:
        case = cluster.case
        self.cluster, self.case, self.me, self.calls = cluster, case, me, case.calls[me]
        self.placement = Placement(case.placement, len(case.placement), case.ranks)
        self.tables = StateLayout(case.shape, case.workers, BATCH, case.runs)
        at = private(me, places.STATE)
        alone = case.workers == 1
        self.st = State(self.tables.words, at) if alone else Watched(self.tables, at, cluster.memory, me)
        self.st.times = range(self.tables.starts[words.T_PEER_WAIT], words.peer_wait(self.tables.starts, case.ranks))
        self.foreign = foreign_slots(self.placement, case.nodes, me) if case.stay else []
        self.job: list[int] = [0] * jobs.size(len(case.placement), case.ranks, len(self.foreign))
        self._fill_places()
        self._fill_job()
        self._fill_counters()
        self.epoch = 0
        self.version = 0  # the version of its weights
        self.stage = "open"
        self.cause, self.origin = 0, me  # why this rank has failed, and the rank that failed first
        self.joined = [0] * case.workers  # the last call that each worker has joined
        self.call = Call(())
        self.output: dict[int, list[int]] = {}
        self.outputs: list[dict[int, list[int]]] = []
        self.slices = 0
        self.patience: Any = None
        self.counts: Any = None
        self.caller = 0  # the number of worker 0's actor
        self.print = 0  # a hash of the state that the workers decided from last
        self.left = 0  # how often other workers have left a call
        self.split_rows: dict[int, list[int]] = {}  # rows of column-split runs, by the address of their activations
        self.progress_thread: Actor | None = None
        self.alone: set[int] = set()  # words that only one of its actors uses
        peers = [p for p in range(case.ranks) if p != me]
        self.poison_words = [word_from(self.job, self.st, p, words.POISON) for p in peers]
        commands = [words.command(self.job, worker) for worker in range(case.workers)]
        fields = words.command_kind, words.command_peer, words.command_run, words.command_shares, words.command_opened
        self._skipped = [words.IDLE_SWEEPS, words.HEARTBEAT, *(field(c) for c in commands for field in fields)]
        self._counted = self.job[words.T_COUNTERS]

    def add_actors(self) -> None:
        sched = self.cluster.sched
        for worker in range(self.case.workers):
            name = f"rank {self.me}" if self.case.workers == 1 else f"rank {self.me} {self.worker} {worker}"
            segment = partial(self.help, worker) if worker else self.step
            actor = sched.add(name, self.me, segment, daemon=worker > 0)
            if worker == 0:
                self.caller = actor.number
        if self.case.attention and not self.case.nodes.single:
            self.progress_thread = sched.add(
                f"rank {self.me} progress thread", self.me, self.run_progress_thread, daemon=True
            )

    # ---- job and state, filled as the substrate fills them

    def _fill_places(self) -> None:
        """Fill the places of memory as `CpuRuntime._allocate` does."""
        places.fill(
            self.case.shape, self.case.nodes, self.me, self.st, self.tables.starts, private(self.me, places.WIRE)
        )

    def _fill_job(self) -> None:
        """Fill the job as `CpuRuntime.fill` and `Collective._new_job` do."""
        job, case, me, cluster = self.job, self.case, self.me, self.cluster
        hidden, ffn = experts.columns_of(case.words)
        remote = len(case.nodes.remote(me))
        jobs.fill_placement(job, self.placement.slot_of.tolist(), self.placement.start.tolist(), self.foreign)
        jobs.fill_engine(
            job, schema.CPU, case.shape, self.tables, rank=me, world=case.ranks, all_workers=case.workers, spins=0,
            yields=0, layout=0, return_stride=case.shape.stride, merge_polls=MERGE_POLLS, pause_ns=cluster.pause_ns,
            remote=remote, bundle_pairs=case.bundle, once_rows=case.once, once_share=case.once_share,
            **readers(case.nodes, me),
            scratch=private(me, places.SCRATCH), lock=private(me, places.LOCK),
            wire=private(me, places.WIRE) if remote else 0, state=private(me, places.STATE),
        )  # fmt: skip
        jobs.fill(
            job, schema.TILE, schema.CPU, workers=case.workers, tile=case.tile, batch=BATCH, run_rows=case.run,
            merge_rows=case.merge, runs=case.runs, split_rows=BATCH, up_shares=experts.SHARES, down_shares=case.words,
            shared_shares=0,
            all_split=case.all_split, scratch_step=SCRATCH_STEP, run_step=WORD * experts.SHARES * BATCH, run_pitch=0,
        )  # fmt: skip
        jobs.fill_some(
            job,
            schema.OBJECT,
            schema.CPU,
            held=self.placement.held[me],
            computed=self.placement.held[me] + len(self.foreign),
            experts=len(case.placement),
            top_k=case.top_k,
            choices=case.top_k,
            hidden=hidden,
            ffn=ffn,
            object=1,
            row_bytes=WORD * case.words,
            return_bytes=WORD * case.words,
            stay_rows=case.stay,
            sums=case.sums,
            reading_rows=case.stay,
            busiest_decides=case.busiest_decides,
        )
        jobs.leave_out(job, schema.CPU, schema.LANDING, schema.EVENTS)
        for i, (slot, owner) in enumerate(self.foreign):
            home = places.address(owner, places.HOME, WORD * slot)
            job[words.foreign_up(words.foreign(job, job[words.HELD] + i))] = home
            self.cluster.memory.value[home] = 0

    def _fill_counters(self) -> None:
        """Let all counters begin at the case's first value, as if many calls had been made.

        The words through which this rank and its peers exchange counters get the same value.
        """
        start, st, job = self.case.start, self.st, self.job
        if not start:
            return
        value = self.cluster.memory.value
        for p in range(self.case.ranks):
            if p == self.me:
                continue
            for table in COUNTERS:
                st[job[table] + p] = start
            if self.case.levels == 2 and p in self.case.nodes.local(self.me):  # else regions have no marks
                value |= {mark_to(job, st, p, source): start for source in self.case.nodes.remote(self.me)}
            for word in (words.TAIL, words.CREDIT, words.RETURN_TAIL):
                value[word_to(job, st, p, word)] = start
                value[word_from(job, st, p, word)] = start
                if st[words.remote(job, p)]:
                    value[word_from(job, st, p, words.POSTED)] = 2 * start
                    coded = self._put_into(p, word) + 16 * word
                    value[coded], value[coded + WORD] = start, ~start
            if st[words.remote(job, p)] and st[words.BELLS]:
                of_line, of_stream = 2 * start % bells.MODULUS, start % bells.MODULUS
                for at, bell in (
                    (st[words.BELLS] + p, of_line),
                    (st[words.ANSWERED] + p, of_line),
                    (st[words.stream_bell(job, p)], of_stream),
                    (st[words.stream_answered(job, p)], of_stream),
                ):
                    word, shift = at - at % WORD, 8 * (at % WORD)
                    value[word] = value.get(word, 0) & ~(255 << shift) | bell << shift

    def _put_into(self, peer: int, word: int) -> int:
        """The address of the region into which a remote peer puts a word."""
        return self.table(words.T_REGION_FROM if word < words.ANNOUNCED else words.T_STREAM_FROM, peer)

    def table(self, table: int, peer: int) -> int:
        return self.st[self.job[table] + peer]

    def fingerprint(self) -> int:
        """A hash of the state that workers decide from."""
        st = self.st[: self._counted]
        for i in self._skipped:
            st[i] = 0
        return hash(tuple(st))

    def looked_everywhere(self, actor: Actor) -> bool:
        """Whether the actor's last poll checked every peer for poison. Not every poll does so."""
        return self.st[words.IDLE_SWEEPS] > MERGE_POLLS and all(at in actor.seen for at in self.poison_words)

    # ---- rows and weights

    def row(self, epoch: int, token: int) -> list[int]:
        row = experts.row_of(self.me, epoch, token, self.case.words)
        if not self._backward(epoch):
            return row
        return experts.wide_row(row, self.row(epoch - 1, token) if self._has_tape(epoch) else ())

    def _has_tape(self, epoch: int) -> bool:
        """Whether the call before the backward call `epoch` has left a tape."""
        return self.case.tape_of([[rank.calls[epoch - 2] for rank in self.cluster.ranks]])

    def _backward(self, epoch: int) -> bool:
        return self.case.is_backward(epoch) and not self.calls[epoch - 1].exchange

    def weights_of(self, expert: int, layer: int) -> int:
        return experts.weights_address(int(self.placement.slot_of[expert]), layer)

    def reference(self, epoch: int, call: Call) -> dict[int, list[int]]:
        """The combined tokens that a call must give."""
        made = {}
        for t, ids in enumerate(call.ids):
            row, chosen = self.row(epoch, t), {j: self.weights_of(e, call.layer) for j, e in enumerate(ids) if e >= 0}
            parts = {j: (experts.weight(t, j, self.case.top_k), experts.computed(w, row)) for j, w in chosen.items()}
            if self.case.sums and not call.exchange:
                self._add_up(t, parts, ids)
            made[t] = experts.combined([parts[j] for j in sorted(parts)], self.case.words)
        return made

    def _add_up(self, t: int, parts: dict[int, tuple[int, list[int]]], ids: Sequence[int]) -> None:
        """Replace the parts of a token from each remote node by their sum, if there are several, in the order of slots.

        The sum gets the number of one of the choices that it replaces.
        """
        node, slot_of = self.case.node_of, self.placement.slot_of
        for n in set(node) - {node[self.me]}:
            there = sorted((int(slot_of[ids[j]]), j) for j in parts if node[self.placement.ranks[ids[j]]] == n)
            if len(there) > 1:
                added = experts.combined([parts[j] for _, j in there], self.case.words)
                for _, j in there:
                    del parts[j]
                parts[there[t % len(there)][1]] = combine.ONE, added

    # ---- instead of kernels

    def _at(self, weights: int) -> int:
        """The number that stands for weights in hashes. It contains the version that a local peer has stored."""
        if weights < places.FIRST:
            return weights
        _, _, offset = places.where(weights)
        return experts.weights_address(offset // WORD, self.cluster.memory.load(weights))

    def expert_rows(self, call: arithmetic.ExpertRows) -> None:
        mem, weights = self.cluster.memory, self._at(int(call.weights.up))
        for i in range(call.rows):
            row = self._row_at(mem.load(call.x + WORD * i))
            for share in range(experts.SHARES):
                self._keep_hidden(call.kept, i, weights, row, share)
            self.cluster.checks.count(weights, row, -1)
            target = mem.load(call.y + WORD * i)
            if self.job[words.SCALARS]:
                at = call.x + WORD * (words.scalar_list(self.job, 0) - words.row_list(0)) + WORD * i
                mem.store(at, experts.scalar_back(weights, row, mem.load(at)))
            for w, word in enumerate(experts.computed(weights, row)):
                mem.store(target + WORD * w, word)

    def _row_at(self, at: int, width: int = 0) -> list[int]:
        mem = self.cluster.memory
        return [mem.load(at + WORD * w) for w in range(width or self.case.words)]

    def _keep_hidden(self, kept: int, i: int, weights: int, row: list[int], share: int) -> None:
        """Keep a share of a row's hidden activations, if the row's entry in `kept` says so."""
        entry = self.cluster.memory.load(kept + WORD * i) if kept else 0
        if taped.kept_of(entry) & taped.HIDDEN:
            at = taped.place_of(entry) + WORD * share
            self.cluster.memory.store(at, experts.activation(weights, row, share))

    def _from_tape(self, at: int, entry: int, weights: int) -> list[int]:
        """A row of a backward call. Its x lies on the tape or beside the row's dy, as `entry` says.

        If hidden activations were kept, they must be the row's. They are not checked if the backward call of this rank
        is of another layer than the forward call: such a call has no result.
        """
        kept, place, mem, width = taped.kept_of(entry), taped.place_of(entry), self.cluster.memory, self.case.words
        if not kept & taped.X:
            row = self._row_at(at, 2 * width)
        else:
            x = place + (WORD * experts.SHARES if kept & taped.HIDDEN else 0)
            row = [*self._row_at(at, width), *self._row_at(x, width)]
        same = self.call.layer == self.calls[self.epoch - 2].layer
        for share in range(experts.SHARES) if same and kept & taped.HIDDEN else ():
            found, right = mem.load(place + WORD * share), experts.activation(weights, row[width:], share)
            if found != right:
                raise WrongResult(
                    f"rank {self.me} in call {self.epoch} takes hidden activation {found} from its tape, not {right}"
                )
        return row

    def backward_rows(self, call: arithmetic.BackwardRows) -> None:
        mem, job, kept, scalars = self.cluster.memory, self.job, call.kept, call.scalars
        weights = job[words.UP] + call.weights // arithmetic.BACKWARD_WEIGHTS_BYTES
        end = job[words.STORE] + job[words.STORE_STEP] * job[words.STORE_ROWS]
        for i in range(call.rows):
            row = self._from_tape(mem.load(call.x + WORD * i), mem.load(kept + WORD * i) if kept else 0, weights)
            self.cluster.checks.count(weights, row, -1)
            place, scalar = mem.load(call.places + WORD * i), mem.load(scalars + WORD * i)
            if place >= end:
                raise WrongResult(f"rank {self.me} in call {self.epoch} keeps a row beyond the end of its store")
            for w, word in enumerate([*row, scalar]):
                mem.store(place + WORD * w, word)
            mem.store(scalars + WORD * i, experts.scalar_back(weights, row, scalar))
            target = mem.load(call.y + WORD * i)
            for w, word in enumerate(experts.computed(weights, row)[: self.case.words]):
                mem.store(target + WORD * w, word)

    def up_columns(self, call: arithmetic.UpColumns) -> None:
        mem, weights = self.cluster.memory, self._at(int(call.weights.up))
        share = call.first // column_runs.COLUMNS
        for i in range(call.rows):
            row, at = self._row_at(mem.load(call.x + WORD * i)), call.activations + WORD * experts.SHARES * i
            self.cluster.checks.count(weights, row, share)
            self._keep_hidden(call.kept, i, weights, row, share)
            mem.store(at + WORD * share, experts.activation(weights, row, share))
            if share == 0:
                self.split_rows[at] = row

    def down_columns(self, call: arithmetic.DownColumns) -> None:
        mem, weights = self.cluster.memory, self._at(int(call.weights.up))
        share = call.first // column_runs.COLUMNS
        for i in range(call.rows):
            at = call.activations + WORD * experts.SHARES * i
            made = [mem.load(at + WORD * s) for s in range(experts.SHARES)]
            if at not in self.split_rows:
                raise WrongResult(f"rank {self.me} runs the second phase of an expert on a row that had no first phase")
            self.cluster.checks.count(weights, self.split_rows[at], experts.SHARES + share)
            mem.store(mem.load(call.y + WORD * i) + WORD * share, experts.output(made, share))

    def combine_token(self, call: arithmetic.CombineToken) -> None:
        mem, row_words = self.cluster.memory, range(self.case.words)
        weights, rows = mem.floats(call.weights, call.k), [mem.load(call.rows + WORD * j) for j in range(call.k)]
        if private(self.me, places.SCRATCH) <= call.y < private(self.me, places.SCRATCH + 1):
            # memory.load and memory.store are used, because an exhaustive search records their values
            parts = [(weight, [memory.load(row + WORD * w) for w in row_words]) for weight, row in zip(weights, rows)]
            for w, word in enumerate(experts.combined(parts, self.case.words)):
                memory.store(call.y + WORD * w, word)
            return
        if self.call.broken:
            return
        token = (call.y - self.job[words.Y]) // self.job[words.RETURN_BYTES]
        if token in self.output:
            raise WrongResult(f"rank {self.me} combines token {token} of call {self.epoch} twice")
        parts = [
            (weight, [mem.fresh_return(row + WORD * w) for w in row_words])
            for weight, row in zip(weights, rows)
            if row != 0
        ]
        self.output[token] = experts.combined(parts, self.case.words)

    # ---- the stages of a call, by the calling thread

    def step(self) -> bool:
        """Run the next stage. Returns False if there is none."""
        if self.stage == "open":
            if self.epoch == len(self.calls):
                self.stage = "out"
                return False
            self._open(self.calls[self.epoch])
        elif self.stage == "load":
            self.load_weights(self.calls[self.epoch].layer)
            self._tend(True)
            self.stage = "work"
        elif self.stage in ("work", "notified"):
            self._work()
        elif self.stage == "close":
            self._close()
        return self.stage not in ("failed", "gone")

    def _open(self, call: Call) -> None:
        cluster, job, count = self.cluster, self.job, len(call.ids)
        if self.case.stay and not call.exchange and call.layer != self.version:
            self.load_weights(call.layer)
        self.epoch += 1
        cluster.checks.epoch(self)
        self.call, self.output, self.slices, self.patience = call, {}, 0, None
        value, me, k = cluster.memory.value, self.me, self.case.top_k
        backward = self._backward(self.epoch)
        width = self.case.words * (2 if backward else 1)
        for t, ids in enumerate(call.ids):
            for w, word in enumerate(self.row(self.epoch, t)):
                value[private(me, places.X, WORD * (width * t + w))] = word
            for j, expert in enumerate(ids):
                value[private(me, places.IDS, WORD * (k * t + j))] = expert
                value[private(me, places.WEIGHTS, 4 * (k * t + j))] = experts.weight(t, j, k)
                value[private(me, places.SCALARS_OUT, WORD * (k * t + j))] = experts.scalar(me, self.epoch, t, j)
        self._fill_call(call, backward, 0 if call.refuses else count)
        jobs.start(job, schema.CPU, 0, self.epoch)
        cluster.memory.forget_returns(me)
        packing.begin(job, self.st)
        within = self._loads_within()
        # while the rank loads weights, none of its workers runs steps, so the progress thread makes MPI progress.
        # Outside the explorer the thread of the started exchange does so
        self._tend(not within)
        if job[words.WORKERS] > 1:
            memory.store_release(private(me, places.GATE, GATE_OPEN), self.epoch)
        self.stage = "load" if within else "work"

    def _fill_call(self, call: Call, backward: bool, count: int) -> None:
        """Fill the call's words as `CpuBackend` and `FusedBackward` do.

        Successive calls may be those of different objects, so each call writes the words in which objects differ.
        """
        job, me, width = self.job, self.me, WORD * self.case.words
        jobs.renew_call(job)
        jobs.renew(job, schema.KIND, schema.WEIGHTS, schema.TAPE, schema.BACKWARD)
        mode = codes.MODE_BACKWARD if backward else codes.MODE_DISPATCH if call.exchange else codes.MODE_LAYER
        jobs.fill(job, schema.KIND, schema.CPU, layer=0 if call.exchange else call.layer, mode=mode)
        travels = 2 * width if backward else width
        jobs.fill_some(
            job,
            schema.CALL,
            schema.CPU,
            status_in=codes.REFUSED if call.refuses else codes.OK,
            tokens=count,
            x=private(me, places.X),
            x_stride=travels,
            y=private(me, places.Y),
            routed=1,
            ids=private(me, places.IDS),
            weights=private(me, places.WEIGHTS),
        )
        jobs.fill_some(
            job,
            schema.WEIGHTS,
            schema.CPU,
            loaded=1,
            version=experts.weights_version(me, self.epoch),
            up_step=1,
            up=experts.weights_address(int(self.placement.start[me]), call.layer),
        )
        self._open_store(call, backward)
        self._open_tape(call, backward)
        scalars = int(backward or (self.case.scalars and not call.exchange and self.epoch % 2))
        jobs.update(
            job,
            placement=self.placement.version + call.misplaced,
            scalars=scalars,
            row_bytes=travels,
            return_bytes=width,
            return_stride=return_stride(width, scalars),
            computed=job[words.HELD] + (0 if call.exchange else len(self.foreign)),
            workers=1 if call.exchange else self.case.workers,
        )

    def _loads_within(self) -> bool:
        """Whether the rank loads the weights of its next call while an exchange runs. An exchange reads no weights.

        If some rank makes another call instead of the exchange, the rank loads nothing. The other call may compute rows
        in place, and would read weights that change.
        """
        if not self.case.stay or not self.call.exchange or self.call.broken or self.epoch == len(self.calls):
            return False
        following = self.calls[self.epoch]
        return not following.exchange and following.layer != self.version

    def _open_store(self, call: Call, backward: bool) -> None:
        """Make places, as `FusedBackward` does, for the rows that this rank's experts got in the forward call."""
        job, rows = self.job, 0
        if backward and not call.refuses:
            taken = [e for rank in self.cluster.ranks for ids in rank.calls[self.epoch - 1].ids for e in ids if e >= 0]
            rows = sum(int(self.placement.ranks[e]) == self.me for e in taken)
        jobs.fill(
            job,
            schema.BACKWARD,
            schema.CPU,
            tape=backward * (self.epoch + call.other_tape),
            store_rows=rows,
            store=private(self.me, places.STORE),
            store_step=WORD * (2 * self.case.words + 1),
            scalars_out=private(self.me, places.SCALARS_OUT),
            scalars_back=private(self.me, places.SCALARS_BACK),
            backward_weights=0,  # so the address of an expert's weights is the expert's number times the step
        )

    def _open_tape(self, call: Call, backward: bool) -> None:
        """Open a tape as `MoE.forward` and `FusedBackward` do: a backward call gets the table of its forward call."""
        job, case, me = self.job, self.case, self.me
        has = self._has_tape(self.epoch) if backward else bool(case.save) and not call.exchange
        jobs.fill(
            job,
            schema.TAPE,
            schema.CPU,
            taped=private(me, places.TAPED) if has and not call.refuses else 0,
            save=case.save,
            tape_at=private(me, places.TAPE),
            tape_end=private(me, places.TAPE, WORD * case.reserve),
            tape_x=WORD * case.words,
            tape_hidden=WORD * experts.SHARES,
        )
        for word in range(0 if backward else words.TAPED_WORDS * case.ranks):
            self.cluster.memory.value[private(me, places.TAPED, WORD * word)] = 0

    def load_weights(self, version: int) -> None:
        """Load weights as `MoE.load` does if local peers read weights in place."""
        self.await_readers()
        for slot in range(self.placement.start[self.me], self.placement.start[self.me + 1]):
            memory.store(places.address(self.me, places.HOME, WORD * int(slot)), version)
        self.version = version

    def await_readers(self) -> None:
        """Wait, like `CpuRuntime.await_readers`, until the last call that ended here has ended on every local peer."""
        last = self.epoch - (self.stage == "load")
        for peer in self.case.nodes.local(self.me):
            while memory.load_acquire(word_from(self.job, self.st, peer, words.ENDED)) < last:
                memory.yield_core()

    def _tend(self, yes: bool) -> None:
        """Set whether workers make MPI progress, like `CpuRuntime.progressing`. If not, the progress thread does."""
        if self.job[words.REMOTE]:
            memory.store_release(self.job[words.WIRE] + WORD * wire.IN_CALL, int(yes))
            if self.progress_thread is not None:
                self.cluster.sched.wake(self.progress_thread)

    def _work(self) -> None:
        """Run a slice of work and act on its outcome."""
        fault, job, st = self.case.fault, self.job, self.st
        self.slices += 1
        if self._fails_now():
            self._fault()
            return
        code = self._slice(0)
        if code == codes.PAUSED:
            if fault is not None:
                self._check_patience()
        elif code == codes.POISONED:
            self._fail(*self._read_poison())
        elif code == codes.ALL_ANNOUNCED:
            self.counts = Counts(max(1, job[words.HELD]), self.case.ranks)
            halves.set_targets(job, st, self.counts)
            jobs.renew(job, schema.LANDING)
            jobs.fill(job, schema.LANDING, schema.CPU, out_rows=private(self.me, places.LANDED))
        elif code == codes.RAN:
            self._gather()
            steps.end(job, st)
            self._tend(False)
            self.stage = "close"
            if self.call.exchange and job[words.MODE] == codes.MODE_DISPATCH:
                self._halfway()

    def _slice(self, worker: int) -> int:
        """Run steps for a while. Returns the loop's result."""
        actor = self.cluster.sched.me
        actor.sweeping = True
        try:
            return loop.work(self.job, self.st, worker)
        except Slice:
            return codes.PAUSED
        finally:
            actor.sweeping = False

    def _gather(self) -> None:
        """Wait until every worker has left the call, like `Workers.gather`."""
        if self.job[words.WORKERS] == 1:
            return
        done = private(self.me, places.GATE, GATE_DONE)
        left = self.left + self.case.workers - 1
        while memory.load_acquire(done) < left:
            memory.yield_core()
        self.left = left

    def _halfway(self) -> None:
        """Begin the second phase of an exchange like `Exchange.combine`. Hashes take the place of the user's
        experts."""
        call, job, st, me, value = self.call, self.job, self.st, self.me, self.cluster.memory.value
        if call.ends_early:
            self._check_statuses(True)
            return
        self._check_statuses(False)
        if self.case.meets and self.case.fault is None:
            self._meet()
        landed, out = private(me, places.LANDED), private(me, places.OUT)
        for local in range(job[words.HELD]):
            weights = experts.weights_address(int(self.placement.start[me]) + local, call.layer)
            for _ in range(sum(self.counts[local, source] for source in range(self.case.ranks))):
                row = [value.get(landed + WORD * w, 0) for w in range(self.case.words)]
                for w, word in enumerate(experts.computed(weights, row)):
                    memory.store(out + WORD * w, word)
                landed, out = landed + WORD * self.case.words, out + WORD * self.case.words
        jobs.renew(job, schema.KIND)
        jobs.fill(job, schema.KIND, schema.CPU, layer=0, mode=codes.MODE_COMBINE)
        halves.expect_back(job, st)
        refuses = call.refuses_combine
        out = 0 if refuses else private(me, places.OUT)
        for source in range(self.case.ranks):
            halves.give_back(job, st, self.counts, source, out, codes.REFUSED if refuses else codes.OK)
        self._tend(True)
        self.stage = "work"

    def _meet(self) -> None:
        """Wait for the first phases of the other ranks, like a user who calls a collective between the phases."""
        memory.store_release(private(self.me, places.GATE, GATE_HALF), self.epoch)
        for p in range(self.case.ranks):
            while memory.load_acquire(private(p, places.GATE, GATE_HALF)) < self.epoch:
                memory.yield_core()

    def _check_statuses(self, broken: bool) -> None:
        """Check that this rank knows the statuses that the other ranks announced in this call, and none of a later
        call."""
        start = self.job[words.T_PEER_STATUS]
        statuses = self.st[start : start + self.case.ranks]
        if not self.call.refuses and not self.call.refuses_combine and any(statuses) != broken:
            raise WrongResult(f"rank {self.me} in call {self.epoch} has statuses {statuses}, which do not fit the case")
        calls = [rank.calls[self.epoch - 1] for rank in self.cluster.ranks]
        if any(call.misplaced for call in calls) and any(set(statuses) - {codes.OK, codes.MISPLACED}):
            raise WrongResult(f"call {self.epoch}: rank {self.me} has statuses {statuses}, but only placements differ")
        for p in range(self.case.ranks):
            if self.table(words.T_VERSION_OF, p) != experts.weights_version(p, self.epoch):
                raise WrongResult(f"rank {self.me} in call {self.epoch} has read a wrong version of rank {p}'s weights")

    def _close(self) -> None:
        if not self.call.ends_early or not self.call.exchange:
            self._check_statuses(self.call.broken and self.case.ranks > 1)
        self._check_scalars()
        self._check_store()
        if not self.job[words.TAPE_AT] <= self.st[words.TAPE_NEXT] <= self.job[words.TAPE_END]:
            raise WrongResult(f"rank {self.me} in call {self.epoch} keeps rows outside its tape")
        self.cluster.checks.closed(self)
        self.outputs.append(self.output)
        self.stage = "open"

    def _check_scalars(self) -> None:
        """Check the scalar that came back for each pair. The expert makes it from the row and from the scalar sent."""
        if not self.job[words.SCALARS] or self.call.broken:
            return
        for t, ids in enumerate(self.call.ids):
            row = self.row(self.epoch, t)
            for j, expert in enumerate(ids):
                out = experts.scalar(self.me, self.epoch, t, j)
                made = experts.scalar_back(self.weights_of(expert, self.call.layer), row, out) if expert >= 0 else 0
                came = memory.load(private(self.me, places.SCALARS_BACK, WORD * (self.case.top_k * t + j)))
                if came != made:
                    raise WrongResult(
                        f"call {self.epoch} of rank {self.me}: scalar {came} for token {t}, choice {j}, not {made}"
                    )

    def _check_store(self) -> None:
        """Check this rank's store: each expert's rows lie in global token order, each with its scalar."""
        job, epoch = self.job, self.epoch
        if job[words.MODE] != codes.MODE_BACKWARD or self.call.broken:
            return
        counts, width = Counts(self.case.ranks, max(1, job[words.HELD])), 2 * self.case.words + 1
        store.count_rows(job, self.st, counts)
        for local, expert in enumerate(self.placement.mine(self.me)):
            for p, source in enumerate(self.cluster.ranks):
                first = self.table(words.T_STORE_AT, p) + sum(counts[p, e] for e in range(local))
                numbers = range(first, first + counts[p, local])
                found = [self._row_at(job[words.STORE] + job[words.STORE_STEP] * n, width) for n in numbers]
                ids = source.calls[epoch - 1].ids
                right = [
                    [*source.row(epoch, t), experts.scalar(p, epoch, t, j)]
                    for t, chosen in enumerate(ids)
                    for j, e in enumerate(chosen)
                    if e == expert
                ]
                if found != right:
                    what = f"the rows {found} of rank {p} for expert {expert}, not {right}"
                    raise WrongResult(f"call {epoch}: rank {self.me} keeps {what}")

    # ---- failures

    @property
    def lost(self) -> bool:
        """Whether the rank has failed or its process has ended."""
        return self.stage in ("failing", "failed", "gone")

    @property
    def poisons(self) -> set[tuple[int, int]]:
        """The (epoch, origin) that this rank's poison may name."""
        return {(self.epoch, self.origin)}

    @property
    def causes(self) -> set[int]:
        """The causes that this rank's poison may name."""
        return {self.cause}

    def _fails_now(self) -> bool:
        fault = self.case.fault
        return fault is not None and (fault.rank, fault.epoch) == (self.me, self.epoch) and self.slices > fault.slice

    def _fault(self) -> None:
        """Let the case's fault happen: the call fails, or the rank waits until it is killed."""
        fault = self.case.fault
        assert fault is not None
        if fault.dies >= 0:
            self.cluster.doom(self.me, fault.dies)
        if fault.raises:
            self._fail(codes.CAUSE_INTERRUPT, self.me)
        else:
            while True:
                self.cluster.sched.switch("die")

    def _check_patience(self) -> None:
        """Check timeouts as `CpuRuntime.go_on` does, and with the same class."""
        if self.patience is None:
            job: Any = self.job
            self.patience = Patience(self.me, self.epoch, job, self.st, Limits.from_seconds(TIMEOUT))  # type: ignore[arg-type]
        try:
            self.patience.check()
        except WaitTimeout:
            self._fail(codes.CAUSE_TIMEOUT, self.me)

    def _read_poison(self) -> tuple[int, int]:
        """Read the first cause and the rank that failed first, like `CpuRuntime._raise_poison`.

        In the explorer no rank writes words that are out of bounds, so such a word is a violation.
        """
        if self.st[words.BAD_WORD] != 0:
            raise OutOfBounds(str(bad_word(self.me, self.epoch, self.st)))  # type: ignore[arg-type]
        peer = arrivals.poisoned(self.job, self.st)
        if peer < 0:
            return codes.CAUSE_ERROR, self.me
        epoch, origin, cause = arrivals.read_poison(self.job, self.st, peer)
        self.cluster.checks.poison_read(self, self._forwarder(peer), epoch, origin, cause)
        return cause, origin

    def _forwarder(self, peer: int) -> int:
        """The rank that wrote the poison that lies in the words from `peer`."""
        return peer

    def _fail(self, cause: int, origin: int) -> None:
        """Fail and notify the peers, like `CpuRuntime._notify_peers`."""
        job, st = self.job, self.st
        self.stage, self.cause, self.origin = "failing", cause, origin
        steps.poison(job, st, origin, cause)
        self.cluster.look(self)
        if job[words.REMOTE]:
            self._put_poison_words()
        self._gather()
        self.stage = "failed"

    def _put_poison_words(self) -> None:
        job, st = self.job, self.st
        while not wire.try_lock(job[words.WIRE]):
            memory.yield_core()
        outbox.put_poison_words(job, st)
        outbox.receive(job, st)
        wire.unlock(job[words.WIRE])
        self._tend(False)

    # ---- the other threads of the rank

    def help(self, worker: int) -> bool:
        """Run a worker beside the calling thread: it is parked until a call opens, and then takes part in the call."""
        opened = memory.load_acquire(private(self.me, places.GATE, GATE_OPEN))
        if opened <= self.joined[worker]:
            memory.yield_core()
            return True
        code = codes.PAUSED
        while code == codes.PAUSED:
            code = self._slice(worker)
        self.joined[worker] = opened
        memory.fetch_add(private(self.me, places.GATE, GATE_DONE), 1)
        return True

    def run_progress_thread(self) -> bool:
        """Run the progress thread."""
        wire.run_progress_thread(private(self.me, places.WIRE))
        return False


class Counts(dict[Any, Any]):
    """A table [rows, columns] of counts, which are 0 at first."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__({(i, j): 0 for i in range(rows) for j in range(columns)})

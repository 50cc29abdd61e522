"""Train a byte-level decoder with MoE layers on Python's own standard library, on any number of ranks.

    mpirun -n 2 python examples/train_lm.py --out run                # 16 experts, 2 a token
    mpirun -n 2 python examples/train_lm.py --out dense --dense      # one expert of the same active FLOPs
    python examples/train_lm.py --draw curves.png run dense          # both curves
    aristos run -n 2 --restarts 3 -- python examples/train_lm.py --out run    # goes on after a lost rank

Nothing is downloaded. A step takes --pieces pieces of 4 sequences. A rank has whole pieces, and all gradients are added
piece by piece in one fixed order. So losses and weights have equal bits on 1, 2 and 4 ranks, and after --resume or a
restart. At the end DIR/model is a model directory that `aristos.Checkpoint` and examples/generate.py can read.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a core for each rank, and one order of sums

import numpy as np
from lm import corpus, export, picture
from lm.decoder import Decoder, Params, Shape, first_params
from lm.progress import Progress

import aristos

SEQUENCES = 4  # sequences of a piece
BALANCE = 1e-2  # coefficient of the balance loss
WARM_UP = 50  # steps
VALIDATED = 16  # sequences


class Trainer:
    """A decoder, its MoE layers and their optimizer on the ranks of comm. pieces: those of a step, over all ranks."""

    def __init__(self, shape: Shape, comm: Any, pieces: int, lr: float, seed: int) -> None:
        rank, world = (comm.rank, comm.size) if comm is not None else (0, 1)
        if pieces % world:
            raise SystemExit(f"--pieces must be a multiple of the {world} ranks, got {pieces}")
        self.shape, self.comm, self.seed, self.lr = shape, comm, seed, lr
        self.pieces = pieces
        self.mine = slice(rank * pieces // world, (rank + 1) * pieces // world)
        self.params = first_params(shape, seed)
        self.decoder = Decoder(shape, self.params)
        here = pieces // world * SEQUENCES
        cfg = aristos.MoEConfig(
            hidden=shape.hidden,
            ffn=shape.ffn,
            experts=shape.experts,
            top_k=shape.top_k,
            max_tokens=max(here, -(-VALIDATED // world)) * shape.length,
            activation="silu",
            gated=True,
            router=aristos.Router(score="softmax", renormalize=True),
        )
        self.moe = aristos.MoE(cfg, comm, layers=shape.layers, train=True, backend="cpu")
        for layer in range(shape.layers):
            self.moe.load(layer, **first_experts(shape, seed, layer))
        self.opt = aristos.train.Adam(self.moe, lr=lr, betas=(0.9, 0.95), weight_decay=0.1, clip=1.0, dense=self.params)

    def step(self, text: corpus.Bytes, number: int, steps: int) -> tuple[float, np.ndarray]:
        """Make a step. Returns (mean loss of the step's tokens, [layers, E] rows by expert). Collective."""
        shape = self.shape
        windows = corpus.batch(text, self.pieces * SEQUENCES, shape.length, self.seed, number)
        windows = windows.reshape(self.pieces, SEQUENCES, -1)[self.mine]
        tokens = self.pieces * SEQUENCES * shape.length
        grads = [{name: np.zeros_like(value) for name, value in self.params.items()} for _ in windows]
        losses = np.zeros((len(windows), 1))
        self.moe.zero_grads()
        states = [self.decoder.embed(sequence[:-1]) for piece in windows for sequence in piece]
        kept, tapes = [], []
        for layer in range(shape.layers):
            attended = [self.decoder.attend(layer, x) for x in states]
            y, tape = self.moe.forward(np.concatenate([rows for _, rows, _ in attended]), layer=layer)
            kept.append([saved for *_, saved in attended])
            tapes.append(tape)
            states = [x + part for (x, *_), part in zip(attended, np.split(y, len(states)))]
        dxs = []
        for i, x in enumerate(states):
            piece, s = divmod(i, SEQUENCES)
            loss, dx = self.decoder.head(x, windows[piece, s, 1:], tokens, grads[piece])
            losses[piece] += loss
            dxs.append(dx)
        loads = np.zeros((shape.layers, shape.experts), np.int64)
        for layer in reversed(range(shape.layers)):
            tape, dlogits = tapes[layer], None
            loads[layer] = tape.routing.counts
            if shape.experts > 1:
                _, dlogits = aristos.losses.switch(tape.routing, BALANCE, self.comm)
            drows = self.moe.backward(np.concatenate(dxs), tape, dlogits=dlogits, pieces=len(windows))
            for i, part in enumerate(np.split(drows, len(dxs))):
                dxs[i] = self.decoder.attend_backward(layer, dxs[i], part, kept[layer][i], grads[i // SEQUENCES])
        for i, dx in enumerate(dxs):
            piece, s = divmod(i, SEQUENCES)
            self.decoder.embed_backward(windows[piece, s, :-1], dx, grads[piece])
        self.opt.lr = self.lr * learning_rate(number, steps)
        self.opt.step(self._reduced(grads))
        if self.comm is not None:
            self.comm.Allreduce(loads.copy(), loads)
        return float(aristos.reproducible_sum(self.comm, losses)[0]) / tokens, loads

    def _reduced(self, grads: list[Params]) -> Params:
        """The sums of gradients over the pieces of all ranks. Collective."""
        flat = [np.concatenate([g.ravel() for g in piece.values()]) for piece in grads]
        total = aristos.reproducible_sum(self.comm, flat)
        ends = np.cumsum([value.size for value in self.params.values()])[:-1]
        parts = zip(self.params.items(), np.split(total, ends))
        return {name: part.reshape(value.shape) for (name, value), part in parts}

    def validate(self, text: corpus.Bytes) -> float:
        """The mean loss of fixed windows of `text`, the same on any number of ranks. Collective."""
        windows = corpus.batch(text, VALIDATED, self.shape.length, self.seed)
        rank, world = (self.comm.rank, self.comm.size) if self.comm is not None else (0, 1)
        mine = windows[rank::world]
        states = [self.decoder.embed(sequence[:-1]) for sequence in mine]
        for layer in range(self.shape.layers):
            attended = [self.decoder.attend(layer, x) for x in states]
            y = self.moe(np.concatenate([rows for _, rows, _ in attended]), layer=layer)
            states = [x + part for (x, *_), part in zip(attended, np.split(y, len(states)))]
        found = [(self.decoder.head(x, s[1:], 1, None)[0]) for x, s in zip(states, mine)]
        every = [found] if self.comm is None else self.comm.allgather(found)
        ordered = [every[i % world][i // world] for i in range(VALIDATED)]
        return sum(ordered) / (VALIDATED * self.shape.length)


def first_experts(shape: Shape, seed: int, layer: int) -> dict[str, np.ndarray]:
    """Random weights of a layer's experts and router, as `MoE.load` takes them."""
    rng = np.random.default_rng([seed, 2, layer])
    e, h, f = shape.experts, shape.hidden, shape.ffn
    wide, out = h**-0.5, (2 * shape.layers * f) ** -0.5
    scales = {"up": ((e, h, f), wide), "gate": ((e, h, f), wide), "down": ((e, f, h), out), "router": ((h, e), wide)}
    return {name: rng.standard_normal(dims, np.float32) * np.float32(scale) for name, (dims, scale) in scales.items()}


def learning_rate(step: int, steps: int) -> float:
    """The share of --lr that a step uses. It rises for WARM_UP steps, then falls to a tenth along a cosine."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(1, steps - WARM_UP)
    return 0.1 + 0.45 * (1 + float(np.cos(np.pi * min(1.0, done))))


def train(asked: argparse.Namespace, comm: Any) -> None:
    """Train for all steps, from the beginning or from the last checkpoint. Collective."""
    shape = Shape(hidden=asked.hidden, layers=asked.layers, ffn=asked.ffn, experts=asked.experts, length=asked.length)
    if asked.dense:
        shape = replace(shape, ffn=asked.ffn * shape.top_k, experts=1, top_k=1)
    training, validation = corpus.load()
    trainer = Trainer(shape, comm, asked.pieces, asked.lr, asked.seed)
    lead = comm is None or comm.rank == 0
    out: Path = asked.out
    if lead:
        out.mkdir(parents=True, exist_ok=True)
    curves = export.Curves(shape, asked.steps)
    first = 0
    saved = (out / "checkpoint" / "saved.json").exists()
    restarted = int(os.environ.get("ARISTOS_RESTART", "0")) > 0 and saved
    if saved and not asked.resume and not restarted:
        raise SystemExit(f"{out} holds a checkpoint: --resume goes on from it, another --out starts from the beginning")
    if asked.resume or restarted:
        trainer.moe.restore(out / "checkpoint", trainer.opt)
        first = trainer.opt.steps
        curves.read(out / "curves.npz", first)
    with Progress(lead, shape, first, asked.steps) as progress:
        for number in range(first, asked.steps):
            start = time.perf_counter()
            loss, loads = trainer.step(training, number, asked.steps)
            tokens = asked.pieces * SEQUENCES * shape.length
            curves.add(number, loss, loads, tokens / (time.perf_counter() - start))
            last = number + 1 == asked.steps
            if (number + 1) % asked.validate == 0 or last:
                curves.validated(number, trainer.validate(validation))
            if (number + 1) % asked.save == 0 or last:
                if lead:  # curves come before the checkpoint, because a resumed run reads its steps from them
                    curves.write(out / "curves.npz")
                trainer.moe.save(out / "checkpoint", trainer.opt)
            progress.show(curves, number)
    export.write(out / "model", shape, trainer.params, trainer.moe, comm)
    if lead:
        picture.draw([out], out / "curves.png")
        print(f"model {out / 'model'}, curves {out / 'curves.png'}, last validation loss {curves.last_validated():.4f}")
    trainer.moe.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="*", help="with --draw: folders of runs")
    parser.add_argument("--draw", type=Path, metavar="FILE.png", help="only draw the curves of runs")
    parser.add_argument("--out", type=Path, default=Path("lm-run"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--dense", action="store_true", help="one expert with the FLOPs of the two that a token uses")
    parser.add_argument("--resume", action="store_true", help="go on from DIR's last checkpoint")
    for name, value, text in (
        ("steps", 1000, "in all"),
        ("pieces", 4, f"pieces of {SEQUENCES} sequences in a step"),
        ("validate", 50, "steps between validations"),
        ("save", 100, "steps between checkpoints"),
        ("hidden", 128, "width of a token"),
        ("ffn", 256, "width inside an expert"),
        ("experts", 16, "experts of a layer"),
        ("layers", 4, "layers of the model"),
        ("length", 256, "tokens of a sequence"),
        ("seed", 0, "seed of weights and batches"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, metavar="N", help=f"{text} (%(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="highest learning rate (%(default)s)")
    asked = parser.parse_args()
    if asked.draw is not None:
        picture.draw(asked.runs, asked.draw)
        return
    from mpi4py import MPI

    train(asked, MPI.COMM_WORLD)


if __name__ == "__main__":
    main()

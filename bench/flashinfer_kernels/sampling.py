"""Cases of FlashInfer's top-k, softmax and sampling: see registry.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from device import Tensor, empty
from registry import Results, case

TOPK = ("topk",)
SAMPLING = ("sampling.cu", "renorm.cu", "flashinfer_sampling_binding.cu")
STATE_BYTES = 1 << 20  # of the histograms that blocks of one row share


def scores(rows: int, size: int, seed: int = 1) -> np.ndarray:
    """Rows of different numbers in random order."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(size) for _ in range(rows)]).astype(np.float32) / size


def ranked(x: np.ndarray, k: int) -> np.ndarray:
    """The indices of the k largest numbers of each row, the largest first."""
    return np.argsort(-x, axis=-1, kind="stable")[:, :k].astype(np.int32)


def states() -> Tensor:
    """Zeroed memory that the blocks of a row share."""
    return Tensor(np.zeros(STATE_BYTES, np.uint8))


def topk(module: Any, rows: int, size: int, k: int, deterministic: bool, ordered: bool) -> Results:
    """The results of radix_topk."""
    x, places, values = scores(rows, size), empty((rows, k), np.int32), empty((rows, k), np.float32)
    module.radix_topk(Tensor(x), places, values, states(), k, ordered, deterministic, 0, False)
    found, want = places.read(), ranked(x, k)
    if not ordered:
        found, want = np.sort(found), np.sort(want)
    return {"indices": (found, want, 0), "values": (values, np.take_along_axis(x, places.values, 1), 0)}


@case(*TOPK)
def topk_filtered(module: Any) -> Results:
    return topk(module, 2, 4096, 64, False, False)


@case(*TOPK)
def topk_filtered_deterministic(module: Any) -> Results:
    return topk(module, 2, 4096, 64, True, True)


@case(*TOPK)
def topk_radix(module: Any) -> Results:
    return topk(module, 2, 4096, 2500, False, False)


@case(*TOPK)
def topk_radix_deterministic(module: Any) -> Results:
    return topk(module, 2, 4096, 2500, True, False)


@case(*TOPK)
def topk_radix_blocks(module: Any) -> Results:
    return topk(module, 1, 131072, 64, False, False)


@case(*TOPK)
def topk_radix_blocks_deterministic(module: Any) -> Results:
    return topk(module, 1, 131072, 64, True, False)


@case(*TOPK)
def topk_ragged(module: Any) -> Results:
    x, places = scores(2, 4096), empty((2, 64), np.int32)
    offsets, lengths = np.array([0, 10000], np.int32), np.array([4096, 1000], np.int32)
    module.radix_topk_ragged_transform(
        Tensor(x), places, Tensor(offsets), Tensor(lengths), states(), 64, False, 0, False, None
    )
    want = np.concatenate([ranked(x[at : at + 1, :length], 64) for at, length in enumerate(lengths)])
    return {"indices": (np.sort(places.read()), np.sort(want + offsets[:, None]), 0)}


@case(*TOPK)
def topk_of_pages(module: Any) -> Results:
    x, places = scores(2, 4096), empty((2, 64), np.int32)
    table = np.random.default_rng(3).permutation(8192).reshape(2, 4096).astype(np.int32)
    lengths = Tensor(np.array([4096, 1000], np.int32))
    module.radix_topk_page_table_transform(
        Tensor(x), places, Tensor(table), None, lengths, states(), 64, False, 0, 1, False, None, None, None
    )
    want = [table[at, ranked(x[at : at + 1, :length], 64)[0]] for at, length in enumerate((4096, 1000))]
    return {"pages": (np.sort(places.read()), np.sort(want), 0)}


def chances(rows: int, size: int) -> np.ndarray:
    """Rows of different probabilities."""
    made = scores(rows, size) ** 8
    return (made / made.sum(-1, keepdims=True)).astype(np.float32)


def kept(probabilities: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The probabilities of a subset of the indices, which add up to 1."""
    some = np.where(keep, probabilities.astype(np.float64), 0)
    return some / some.sum(-1, keepdims=True)


def of_top_k(x: np.ndarray, k: int) -> np.ndarray:
    """Whether each number is one of the k largest of its row."""
    made = np.zeros(x.shape, bool)
    np.put_along_axis(made, ranked(x, k), True, -1)
    return made


def of_top_p(x: np.ndarray, p: float) -> np.ndarray:
    """Whether each number is one of the largest ones that together reach p."""
    order = np.argsort(-x, axis=-1)
    before = np.cumsum(np.take_along_axis(x.astype(np.float64), order, -1), -1) - np.take_along_axis(x, order, -1)
    made = np.zeros(x.shape, bool)
    np.put_along_axis(made, order, before < p, -1)
    return made


def softmaxed(module: Any, rows: int, size: int) -> Results:
    """The results of softmax at a temperature of 0.5."""
    x, out = 4 * scores(rows, size), empty((rows, size), np.float32)
    module.softmax(Tensor(np.zeros(1 << 16, np.uint8)), Tensor(x), out, None, 0.5, False)
    weight = np.exp(2 * (x.astype(np.float64) - x.max(-1, keepdims=True)))
    return {"out": (out, weight / weight.sum(-1, keepdims=True), 1e-6)}


@case(*SAMPLING)
def softmax(module: Any) -> Results:
    return softmaxed(module, 3, 2000)


@case(*SAMPLING)
def softmax_of_slices(module: Any) -> Results:
    return softmaxed(module, 1, 32768)


@case(*SAMPLING)
def top_p_renorm_probs(module: Any) -> Results:
    x, out = chances(2, 1000), empty((2, 1000), np.float32)
    module.top_p_renorm_probs(Tensor(x), out, None, 0.3, False, states())
    return {"out": (out, kept(x, of_top_p(x, 0.3)), 1e-5)}


@case(*SAMPLING)
def top_p_renorm_probs_by_radix(module: Any) -> Results:
    x, out = chances(2, 4096), empty((2, 4096), np.float32)
    module.top_p_renorm_probs(Tensor(x), out, None, 0.3, False, Tensor(np.zeros(1 << 22, np.uint8)))
    return {"out": (out, kept(x, of_top_p(x, 0.3)), 1e-5)}


@case(*SAMPLING)
def top_k_renorm_probs(module: Any) -> Results:
    x, out = chances(2, 4096), empty((2, 4096), np.float32)
    module.top_k_renorm_probs(Tensor(x), out, None, 50, False, states())
    return {"out": (out, kept(x, of_top_k(x, 50)), 1e-5)}


@case(*SAMPLING)
def top_k_mask_logits(module: Any) -> Results:
    x, out = scores(2, 4096), empty((2, 4096), np.float32)
    module.top_k_mask_logits(Tensor(x), out, None, 50, states())
    found = np.where(np.isneginf(out.read()), -1, out.values)
    return {"out": (found, np.where(of_top_k(x, 50), x, -1), 0)}


def sampled(
    call: Callable[..., None], allowed: np.ndarray, x: np.ndarray, *options: Any, valid: bool = True
) -> Results:
    """Of 64 samples of the same row x: how many are not allowed, and how far the frequencies are from the expected."""
    rows = np.repeat(x, 64, 0)
    out, flags = empty(64, np.int32), empty(64, bool)
    call(Tensor(rows), out, *([flags] if valid else []), None, *options, True, None, 1234, None, 0)
    found = out.read()
    frequencies = np.bincount(found, minlength=x.size)[: x.size] / 64
    expected = kept(x, allowed)[0]
    results: Results = {
        "samples that are not allowed": (np.array((~allowed[0, found]).sum()), np.array(0), 0),
        "frequencies": (frequencies, expected, 0.2),
    }
    if valid:
        results["valid"] = (flags, np.ones(64), 0)
    return results


ROW = np.zeros((1, 1024), np.float32)
ROW[0, [3, 100, 512, 1023]] = 0.4, 0.1, 0.2, 0.3


@case(*SAMPLING)
def sampling_from_probs(module: Any) -> Results:
    return sampled(module.sampling_from_probs, ROW > 0, ROW)


@case(*SAMPLING)
def sampling_from_logits(module: Any) -> Results:
    logits = np.where(ROW > 0, np.log(np.maximum(ROW, 1e-9)), -30).astype(np.float32)
    return sampled(
        lambda rows, *rest: module.sampling_from_logits(Tensor(np.repeat(logits, 64, 0)), *rest),
        ROW > 0,
        ROW,
        valid=False,
    )


@case(*SAMPLING)
def top_k_sampling_from_probs(module: Any) -> Results:
    return sampled(module.top_k_sampling_from_probs, of_top_k(ROW, 2), ROW, None, 2)


@case(*SAMPLING)
def top_p_sampling_from_probs(module: Any) -> Results:
    return sampled(module.top_p_sampling_from_probs, of_top_p(ROW, 0.6), ROW, None, 0.6)


@case(*SAMPLING)
def min_p_sampling_from_probs(module: Any) -> Results:
    return sampled(module.min_p_sampling_from_probs, ROW >= 0.6 * 0.4, ROW, None, 0.6)


@case(*SAMPLING)
def top_k_top_p_sampling_from_probs(module: Any) -> Results:
    both = of_top_k(ROW, 3) & of_top_p(ROW, 0.6)
    return sampled(module.top_k_top_p_sampling_from_probs, both, ROW, None, 3.0, None, 0.6)


@case(*SAMPLING)
def chain_speculative_sampling(module: Any) -> Results:
    drafts = np.array([[3, 512, 100], [1023, 3, 3]], np.int32)
    draft, target = (np.broadcast_to(ROW, (2, count, 1024)) for count in (3, 4))
    target = target.copy()
    target[1, 1] = np.eye(1024, dtype=np.float32)[7]  # here the second draft is refused, and 7 is the only choice
    target[0, 3] = np.eye(1024, dtype=np.float32)[9]  # all drafts of the first row are accepted, and 9 follows
    out = empty((2, 4), np.int32)
    accepted, emitted = Tensor(np.zeros(2, np.int32)), Tensor(np.zeros(2, np.int32))
    module.chain_speculative_sampling(
        Tensor(draft), Tensor(drafts), Tensor(target), out, accepted, emitted, True, None, 1234, None, 0
    )
    want = np.array([[3, 512, 100, 9], [1023, 7, -1, -1]])
    return {"tokens": (out, want, 0), "emitted": (emitted, np.array([3, 1]), 0)}

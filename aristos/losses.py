"""Losses on a call's routing: they keep experts evenly loaded and router scores small.

Each function takes the `Routing` of a call with `return_routing=True` and returns (loss, dlogits). loss: the loss over
all ranks of `comm`, the same float on each rank. dlogits: the gradient of the loss with respect to this rank's logits,
float32, in the shape of the logits. Loads are counts and have no gradient.

With comm, calls are collective; comm=None means this process alone. E is the number of columns of the logits, T the
number of tokens of all ranks, and p the softmax of the logits. Terms of sums over tokens are rounded to multiples of
about 2^-52 times the largest term, and then added exactly. So loss and gradient have the same bits however the tokens
are shared among ranks, except for `gshard`, whose groups are the ranks. The functions are plain NumPy and change no
layer: give dlogits to `MoE.backward` to train with the loss. `bias_step` balances loads without a loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _reference_parts as parts
from ._first_refusal import raise_first
from ._reference_backward import VALUES, by_softmax
from ._reference_parts import softmax
from .config import BIASED, ValuedScore, real
from .errors import AristosError, InputError
from .routing import Routing

FIXED = 52  # bits of a fixed-point term
HALF = 26  # bits of a term's low part, so that sums of 2^37 terms fit 64 bits
Floats = np.ndarray
Result = tuple[float, np.ndarray]


def switch(routing: Routing, coefficient: float, comm: Any = None) -> Result:
    """The load-balancing loss of Switch Transformers: coefficient * E * sum over e of f_e P_e.

    f_e is the share of all choices that name expert e, choices beyond the capacity included. P_e is the mean of p_e
    over all tokens. With even loads the loss is `coefficient`, for any k.

    Parameters
    ----------
    routing : Routing
        The routing of a call whose router computed scores.
    coefficient : float
        The factor of the loss.
    comm : communicator or None, default None
        The ranks over whose tokens the loss is computed. None: this process alone.

    Returns
    -------
    loss : float
        The loss over all ranks, the same float on each.
    dlogits : array, float32
        The gradient of the loss with respect to this rank's logits, in the shape of the logits.

    Raises
    ------
    InputError
        The routing has no logits.
    PeerInputError
        Another rank's routing has no logits.

    Source
    ------
    arXiv:2101.03961, equations 4 to 6.

    Examples
    --------
    >>> import numpy as np
    >>> import aristos
    >>> cfg = aristos.MoEConfig(hidden=16, ffn=32, experts=4)
    >>> with aristos.MoE(cfg) as moe:
    ...     moe.load(**aristos.reference.weights(cfg))
    ...     y, routing = moe(np.ones((8, 16), np.float32), return_routing=True)
    >>> loss, dlogits = aristos.losses.switch(routing, 0.01)
    >>> loss > 0.01, dlogits.shape
    (True, (8, 4))
    """
    logits = _meet(routing, comm)
    p = softmax(logits)
    counts = _sum(np.concatenate([[len(logits)], routing.counts]), comm)
    experts, share = logits.shape[1], counts[1:] / max(1.0, counts[1:].sum())
    each = coefficient * experts * share / max(1.0, counts[0])
    return float(each @ _fixed_sum(p, comm)), _back(routing, by_softmax(p, np.broadcast_to(each, p.shape)))


def gshard(routing: Routing, coefficient: float, comm: Any = None) -> Result:
    """The load-balancing loss of GShard: coefficient / E * sum over e of (c_e / S) m_e, a mean over ranks with tokens.

    c_e says how many of a rank's S tokens have e as first choice, and m_e is the mean of p_e over the rank's tokens.
    Each rank's tokens are a group.

    Parameters
    ----------
    routing : Routing
        The routing of a call whose router computed scores.
    coefficient : float
        The factor of the loss.
    comm : communicator or None, default None
        The ranks over whose tokens the loss is computed. None: this process alone.

    Returns
    -------
    loss : float
        The loss over all ranks, the same float on each.
    dlogits : array, float32
        The gradient of the loss with respect to this rank's logits, in the shape of the logits.

    Raises
    ------
    InputError
        The routing has no logits.
    PeerInputError
        Another rank's routing has no logits.

    Source
    ------
    arXiv:2006.16668, algorithm 1, line 13.
    """
    logits = _meet(routing, comm)
    p, (count, experts) = softmax(logits), logits.shape
    first = _choices(routing)[:, 0]
    c = np.bincount(first[first >= 0], minlength=experts)
    groups = max(1.0, _sum(np.array([float(count > 0)]), comm)[0])
    each = coefficient / experts * c / max(1, count) / max(1, count) / groups
    loss = _sum(np.array([each @ p.sum(axis=0)]), comm)[0]
    return float(loss), _back(routing, by_softmax(p, np.broadcast_to(each, p.shape)))


def sequence(
    routing: Routing,
    coefficient: float,
    comm: Any = None,
    *,
    score: ValuedScore = "sigmoid",
    lengths: Sequence[int] | None = None,
) -> Result:
    """The balance loss of DeepSeek-V3: the mean over all sequences of coefficient * sum over e of f_e P_e.

    In a sequence of T tokens, f_e is E / (k T) times the number of choices of expert e. P_e is the mean over tokens of
    s_e / (sum over all experts of s), where s_e is the token's value of the router's score for expert e.

    Parameters
    ----------
    routing : Routing
        The routing of a call whose router computed scores.
    coefficient : float
        The factor of the loss.
    comm : communicator or None, default None
        The ranks over whose tokens the loss is computed. None: this process alone.
    score : str, default "sigmoid"
        The router's score: "softmax", "sigmoid" or "sqrtsoftplus".
    lengths : sequence of int, or None, default None
        For logits [S, E], the lengths of the sequences, which follow one another; their sum is S. None: each logits[i]
        of logits [B, T, E] is a sequence, or all logits [S, E] are one.

    Returns
    -------
    loss : float
        The loss over all ranks, the same float on each.
    dlogits : array, float32
        The gradient of the loss with respect to this rank's logits, in the shape of the logits.

    Raises
    ------
    InputError
        The routing has no logits, `score` is unknown, or `lengths` has another sum or an entry below 1.
    PeerInputError
        Another rank raised InputError.

    Source
    ------
    arXiv:2412.19437, equations 17 to 20.
    """
    problem: AristosError | None = None
    ends = np.zeros(0, np.int64)
    try:
        ends = _ends(routing, score, lengths)
    except AristosError as error:
        problem = error
    logits = _meet(routing, comm, problem)
    experts, chosen = logits.shape[1], _choices(routing)
    k = chosen.shape[1]
    s = parts.VALUES[score](logits)
    total = s.sum(axis=1, keepdims=True) + 1e-300
    shares = s / total
    back = np.zeros_like(s)
    each = np.zeros((len(ends), 1))  # the loss of each sequence
    for number, (first, end) in enumerate(zip([0, *ends], ends)):
        ids = chosen[first:end].ravel()
        f = np.bincount(ids[ids >= 0], minlength=experts) * experts / (k * (end - first))
        back[first:end] = coefficient * f / (end - first)
        each[number] = coefficient * (f @ shares[first:end].mean(axis=0))
    loss, sequences = _fixed_sum(each, comm)[0], _sum(np.array([len(ends)]), comm)[0]
    back /= max(1.0, sequences)
    by_s = (back - (back * shares).sum(axis=1, keepdims=True)) / total
    return float(loss / max(1.0, sequences)), _back(routing, VALUES[score](logits, by_s))


def z(routing: Routing, coefficient: float, comm: Any = None) -> Result:
    """The z-loss of ST-MoE: coefficient / T * sum over tokens of (log of the sum of e^logits)^2.

    Parameters
    ----------
    routing : Routing
        The routing of a call whose router computed scores.
    coefficient : float
        The factor of the loss.
    comm : communicator or None, default None
        The ranks over whose tokens the loss is computed. None: this process alone.

    Returns
    -------
    loss : float
        The loss over all ranks, the same float on each.
    dlogits : array, float32
        The gradient of the loss with respect to this rank's logits, in the shape of the logits.

    Raises
    ------
    InputError
        The routing has no logits.
    PeerInputError
        Another rank's routing has no logits.

    Source
    ------
    arXiv:2202.08906, equation 5.
    """
    logits = _meet(routing, comm)
    largest = logits.max(axis=1, keepdims=True, initial=-np.inf)
    logs = largest[:, 0] + np.log(np.exp(logits - largest).sum(axis=1))
    squares = _fixed_sum((logs * logs)[:, None], comm)[0]
    factor = coefficient / max(1.0, _sum(np.array([len(logits)]), comm)[0])
    return float(factor * squares), _back(routing, 2 * factor * logs[:, None] * softmax(logits))


def bias_step(select_bias: ArrayLike, counts: ArrayLike, rate: float, comm: Any = None) -> np.ndarray:
    """A router's select_bias after one step towards even loads: no loss, no gradient.

    An expert's bias goes up by `rate` if it got fewer choices than the mean, and down if it got more. With comm the
    call is collective.

    Parameters
    ----------
    select_bias : array [E]
        The bias for choosing, equal on all ranks.
    counts : array [E], integers
        The sum of this rank's `Routing.counts` over all calls of the step.
    rate : float
        The size of the step, in 0..1e9.
    comm : communicator or None, default None
        The ranks whose counts are added. None: this process alone.

    Returns
    -------
    array [E], float32
        The new bias, equal on all ranks, for `load_router(layer, select_bias=...)`.

    Raises
    ------
    InputError
        An array has another shape or type, or `rate` is out of its range.
    PeerInputError
        Another rank raised InputError.

    Source
    ------
    arXiv:2408.15664, algorithm 1; DeepSeek-V3, arXiv:2412.19437, section 2.1.2.

    Examples
    --------
    >>> import numpy as np
    >>> import aristos
    >>> aristos.losses.bias_step(np.zeros(3, np.float32), np.array([5, 1, 3]), 0.5)
    array([-0.5,  0.5,  0. ], dtype=float32)
    """
    bias, load = np.asarray(select_bias, np.float32), np.asarray(counts)
    problem: AristosError | None = None
    if bias.ndim != 1 or load.shape != bias.shape or load.dtype.kind not in "iu":
        got = f"{list(bias.shape)} and {load.dtype} {list(load.shape)}"
        problem = InputError(f"select_bias and counts must have shape [E], and counts must be integers, got {got}")
    elif not 0 <= real(rate) < 1e9:
        problem = InputError(f"rate must be a number in 0..1e9, got {rate!r}")
    _agree(problem, comm)
    total = load.astype(np.int64) if comm is None else np.sum(comm.allgather(load.astype(np.int64)), axis=0)
    below = np.sign(total.sum() - len(total) * total)  # whole numbers: the mean itself would be rounded
    return (bias + np.float32(rate) * below.astype(np.float32)).astype(np.float32)


def _agree(problem: AristosError | None, comm: Any) -> None:
    """Raise on every rank if one has a problem."""
    text = None if problem is None else str(problem)
    raise_first(problem, [text] if comm is None else comm.allgather(text), "refused its arguments")


def _meet(routing: Routing, comm: Any, problem: AristosError | None = None) -> Floats:
    """The logits as [S, E] float64. Raises on every rank if one cannot compute the loss."""
    if problem is None and routing.logits is None:
        problem = InputError(
            "a loss needs the logits of the routing, got none: the call got ids, so no router computed scores"
        )
    _agree(problem, comm)
    assert routing.logits is not None
    return np.asarray(routing.logits, np.float64).reshape(-1, routing.logits.shape[-1])


def _choices(routing: Routing) -> np.ndarray:
    """[S, k] the chosen ids, with choices beyond the capacity."""
    return routing.chosen.reshape(-1, routing.chosen.shape[-1])


def _ends(routing: Routing, score: Any, lengths: Sequence[int] | None) -> np.ndarray:
    """Where each sequence ends among this rank's tokens."""
    if score not in BIASED:
        raise InputError(f"score must be one of {', '.join(BIASED)}, got {score!r}")
    if routing.logits is None:
        return np.zeros(0, np.int64)
    shape = routing.logits.shape
    count = int(np.prod(shape[:-1], dtype=np.int64))
    if lengths is None:
        each = shape[-2] if len(shape) > 2 else count
        return np.arange(each, count + 1, each) if count else np.zeros(0, np.int64)
    try:
        given = np.asarray(lengths)
    except ValueError:  # lists of different lengths are refused below
        given = np.empty((0, 0), np.int64)
    if len(shape) != 2 or given.ndim != 1 or given.dtype.kind not in "iu" or (given < 1).any() or given.sum() != count:
        raise InputError(
            f"lengths must be positive ints whose sum is {count}, the tokens of the logits [S, E], got {lengths!r}"
        )
    return np.cumsum(given)


def _back(routing: Routing, by_logits: Floats) -> np.ndarray:
    assert routing.logits is not None
    return by_logits.astype(np.float32).reshape(routing.logits.shape)


def _sum(values: Floats, comm: Any) -> Floats:
    """The sum over ranks, in rank order, so that all ranks have the same bits."""
    if comm is None:
        return values
    return np.sum(comm.allgather(values), axis=0)


def _fixed_sum(values: Floats, comm: Any) -> Floats:
    """[m] float64: the sum of the rows of all ranks, values [n, m], with equal bits however ranks share the rows.

    Every term is rounded to 2^-52 of the largest term, up to a factor of two; then whole numbers are added.
    """
    largest = float(np.abs(values).max(initial=0.0))
    if comm is not None:
        largest = float(np.max(comm.allgather(largest)))  # NaN if a rank's largest is NaN
    if not 0.0 < largest < np.inf:
        return np.full(values.shape[1], largest)
    shift = FIXED - int(np.frexp(largest)[1])
    terms = np.rint(np.ldexp(values, shift)).astype(np.int64)
    halves = np.stack([(terms >> HALF).sum(axis=0), (terms & (1 << HALF) - 1).sum(axis=0)])
    if comm is not None:
        halves = np.sum(comm.allgather(halves), axis=0)
    return np.array([np.ldexp(float((int(high) << HALF) + int(low)), -shift) for high, low in halves.T])

"""Checks of what a user passes to a layer or an exchange: options, ids, combine weights. Needs no runtime."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..config import LARGEST, MOST_THREADS, MoEConfig, real, whole
from ..engine import codes
from ..errors import AristosError, EnvironmentProblem, InputError, NotLoaded
from ..host import launch_environment
from ..primitives.arrays import view
from ..transport.limits import DEFAULT, Limits
from .weights import ROUTER

DEFAULT_TIMEOUT = DEFAULT.timeout  # seconds


class CallArguments(NamedTuple):
    """The arguments of a call of `MoE` as the caller passed them, without `layer`."""

    x: Any
    ids: Any = None
    weights: Any = None
    out: Any = None
    stream: Any = None
    router_x: Any = None
    return_routing: bool = False


def form_of(given: CallArguments) -> tuple[Any, ...] | None:
    """Types, shapes and strides of a call's x, ids, weights and out.

    None if one of these is not a NumPy array, `out` is read-only, or stream, router_x or return_routing was given. If
    the arrays of an earlier call with the same form were used without a copy, only addresses must be checked.
    """
    x, ids, weights, out, stream, router_x, return_routing = given
    if stream is not None or router_x is not None or return_routing is not False:
        return None
    if not (type(x) is type(ids) is type(weights) is np.ndarray):
        return None
    form = (
        x.dtype,
        x.shape,
        x.strides,
        ids.dtype,
        ids.shape,
        ids.strides,
        weights.dtype,
        weights.shape,
        weights.strides,
    )
    if out is None:
        return form
    return (*form, out.dtype, out.shape, out.strides) if type(out) is np.ndarray and out.flags.writeable else None


def choices(cfg: MoEConfig) -> int:
    """How many experts compute a token: those that the router chooses, and the shared one."""
    return cfg.top_k + bool(cfg.shared_ffn)


def on_input(cfg: MoEConfig) -> bool:
    """Whether tokens are multiplied by their weights before the experts, not after."""
    return cfg.router.weight_on == "input"


def capacity(cfg: MoEConfig, count: int) -> int:
    """The most choices of one expert by a rank's `count` tokens that are computed; 0: no limit."""
    factor = cfg.router.capacity_factor
    if cfg.router.capacity is not None:
        return cfg.router.capacity
    return 0 if factor is None else math.ceil(factor * count * cfg.top_k / cfg.experts)


def refusal(error: Exception) -> AristosError:
    """Returns `error` if it is one of this package's errors, else an InputError that quotes it."""
    return error if isinstance(error, AristosError) else InputError(f"{type(error).__name__}: {error}")


def check_common(threads: Any, timeout: Any, ranks_per_node: Any = None, absent_timeout: Any = None) -> None:
    """Raise InputError for a value that these options cannot have."""
    if threads is not None:
        whole("threads", threads, MOST_THREADS, f"None or an int in 1..{MOST_THREADS}")
    for name, seconds in (("timeout", timeout), ("absent_timeout", absent_timeout)):
        if not 0 < real(seconds) < 1e9 and not (seconds is None and name == "absent_timeout"):
            raise InputError(f"{name} must be a positive number of seconds below 1e9, got {seconds!r}")
    if ranks_per_node is not None:
        whole("ranks_per_node", ranks_per_node, LARGEST, "None or a positive int")


def usable_limits(timeout: Any, absent_timeout: Any = None) -> Limits:
    """The limits of waits; the defaults if a value is invalid, so that the ranks can meet and refuse it together."""
    try:
        check_common(None, timeout, absent_timeout=absent_timeout)
    except InputError:
        return DEFAULT
    return Limits.from_seconds(float(timeout), None if absent_timeout is None else float(absent_timeout))


def usable_nodes(ranks_per_node: Any) -> int | None:
    """`ranks_per_node`; None if it is invalid, so that the ranks can meet and refuse it together."""
    try:
        check_common(None, DEFAULT_TIMEOUT, ranks_per_node)
    except InputError:
        return None
    return None if ranks_per_node is None else int(ranks_per_node)


def check_comm(comm: Any) -> None:
    """Raise InputError unless `comm` is None or an mpi4py intracommunicator.

    Raises EnvironmentProblem if the launcher started several tasks, but MPI gives each of them a world of its own. Each
    task would then compute the whole layer alone.
    """
    if comm is None:
        return
    from mpi4py import MPI

    if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
        what = "MPI_COMM_NULL" if isinstance(comm, MPI.Comm) and comm == MPI.COMM_NULL else repr(comm)
        raise InputError(f"comm must be an mpi4py intracommunicator or None, got {what}")
    if MPI.COMM_WORLD.Get_size() == 1 and MPI.Comm.Get_parent() == MPI.COMM_NULL:
        wrong = launch_environment.mismatch(1)
        if wrong is not None:
            raise EnvironmentProblem(wrong)


def routed_outside(given: CallArguments, layer: int, has_router: bool) -> bool:
    """Whether a call brings its own routing.

    Raises InputError if only one of ids and weights was given, or both and router_x. Raises NotLoaded if neither was
    given and the layer has no router.
    """
    routed = given.ids is not None
    if routed != (given.weights is not None):
        raise InputError(
            "ids and weights must be given together, got only one: give both, or give neither if the layer has a router"
        )
    if not routed and not has_router:
        raise NotLoaded(f"layer {layer} was loaded without a router: give ids and weights", ROUTER)
    if routed and given.router_x is not None:
        raise InputError(
            "router_x applies only to calls that use the layer's router: give either router_x, or ids and weights"
        )
    return routed


def routing_arrays(ids: Any, shape: tuple[int, ...], copy: bool = False) -> np.ndarray:
    """ids as a contiguous int64 array. Raises InputError for another shape. copy: copy the array in any case."""
    chosen = view("ids", ids)
    if chosen.shape != shape or chosen.dtype.kind not in "iu":
        raise InputError(f"ids must be integers of shape {list(shape)}, got {chosen.dtype} {list(chosen.shape)}")
    if chosen.dtype == np.uint64 and chosen.size and chosen.max() > np.iinfo(np.int64).max:
        raise InputError(f"ids must be expert numbers or -1, got {chosen.max()}")
    return _in_order(chosen, np.int64, copy)


def weight_arrays(weights: Any, shape: tuple[int, ...], copy: bool = False) -> np.ndarray:
    """weights as a contiguous float32 array. Raises InputError for another shape. copy: copy the array in any case."""
    scale = view("weights", weights)
    if scale.shape != shape or scale.dtype.kind != "f":
        raise InputError(f"weights must be floats of shape {list(shape)}, got {scale.dtype} {list(scale.shape)}")
    with np.errstate(over="ignore"):  # a value too large for float32 becomes infinite, which is refused later
        return _in_order(scale, np.float32, copy)


def _in_order(array: np.ndarray, dtype: Any, copy: bool) -> np.ndarray:
    """`array` as a contiguous, aligned array of a dtype, copied only if necessary or requested."""
    return np.array(array, dtype, order="C", copy=True if copy or not array.flags.aligned else None)


def not_finite(weights: np.ndarray, taken: np.ndarray) -> str | None:
    """A message that names the first token with a weight of NaN or infinity; None if there is none.

    weights: [S, k]. taken: [S, k], True for the choices whose weights are used.
    """
    bad = (~np.isfinite(weights) & taken).any(1)
    if not bad.any():
        return None
    token = int(np.argmax(bad))
    return f"weights must be finite, got {weights[token].tolist()} at token {token}"


def explain_ids(ids: np.ndarray, experts: int) -> str:
    """Why the engine has refused these ids. ids: [S, k]."""
    for t, row in enumerate(ids):
        taken = row[row >= 0]
        if (row < -1).any() or (row >= experts).any():
            return f"ids of token {t} must be in -1..{experts - 1}, got {row.tolist()}"
        if len(set(taken.tolist())) < len(taken):
            return f"ids of token {t} must name each expert once at most, got {row.tolist()}"
    return "ids are out of range or repeated"


def routing_problem(ids: np.ndarray, weights: np.ndarray, cfg: MoEConfig, status: int) -> str:
    """What is wrong with the ids and weights of a call, which the engine has refused with this status."""
    chosen = ids.reshape(-1, cfg.top_k)
    if status == codes.BAD_IDS:
        return explain_ids(chosen, cfg.columns)
    return not_finite(weights.reshape(chosen.shape), chosen >= 0) or (
        "x times shared_sigmoid must be finite, got NaN or infinity: check both arrays for NaN and for large values"
    )

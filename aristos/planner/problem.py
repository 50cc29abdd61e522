"""The sharding problem: devices, links and one MoE layer's costs; how a file says it, and what a wrong file is told.

Every refusal names the field. It refuses to know any solver.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

if TYPE_CHECKING:
    from .tree import Tree

OBJECTIVES = ("work_conserving", "literal")
LARGEST, SMALLEST = 1e30, 1e-30  # numbers, and positive ones: products of a few stay finite
MOST_EXPERTS = 1 << 16
Matrix = NDArray[np.float64]


class ProblemError(InputError):
    """A problem's field has the wrong value or shape; `field` is its name."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(f"{field} {text}")
        self.field = field


class Infeasible(InputError):
    """No partition has room: memory of `missing` experts' size is missing, over all devices."""

    def __init__(self, missing: int, text: str) -> None:
        super().__init__(text)
        self.missing = missing


@dataclass(frozen=True)
class Device:
    """rate: cost units per us. memory: experts of one layer that fit (all layers' copies included)."""

    rate: float
    memory: int
    name: str = ""


@dataclass(frozen=True, eq=False)
class Problem:
    """One cluster and one layer, all that Equations 1 and 2 need.

    rate: [n] cost units per us. memory: [n] experts. alpha_us, beta_us_per_mib: [n, n] symmetric, zero diagonals.
    layer_cost: of one stage and one device's tokens, in cost units. payload_mib: a device sends in one crossing.
    crossings: of a stage. stages: MoE stages of a step over all devices, kappa = stages / n. gradient_mib: what groups
    reduce among them. loads: [experts] tokens an expert gets, or None: all the same. tree: a
    cluster in compressed form, whose matrices are never made: alpha_us and beta_us_per_mib are [0, 0] then.
    """

    experts: int
    layer_cost: float
    payload_mib: float
    crossings: float
    stages: float
    gradient_mib: float
    rate: NDArray[np.float64]
    memory: NDArray[np.int64]
    alpha_us: Matrix
    beta_us_per_mib: Matrix
    objective: str = "work_conserving"
    names: tuple[str, ...] = ()
    loads: NDArray[np.float64] | None = None
    tree: Tree | None = None

    @property
    def n(self) -> int:
        """Devices."""
        return len(self.rate)

    @property
    def kappa(self) -> float:
        """MoE stages each device runs in a step."""
        return self.stages / self.n

    def device(self, i: int) -> str:
        """How messages name a device: its index, and its name where it has one."""
        return f"device {i} ({self.names[i]})" if self.names and self.names[i] else f"device {i}"

    def check_feasible(self) -> None:
        """Raise Infeasible where not even one group of all devices holds every expert."""
        total = int(self.memory.sum())
        if total < self.experts:
            missing = self.experts - total
            text = f"all devices together hold {total} experts of {self.experts}: memory for {missing} more is missing"
            raise Infeasible(missing, text)


def number(where: str, value: Any, *, positive: bool = False) -> float:
    """A finite number that is not negative and at most LARGEST, or a ProblemError."""
    want = f"a number from {SMALLEST:g} to {LARGEST:g}" if positive else f"a number from 0 to {LARGEST:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ProblemError(where, f"must be {want}, got {value!r}")
    if isinstance(value, int) and value.bit_length() > 128:
        raise ProblemError(where, f"must be {want}, got an integer of {value.bit_length()} bits")
    if not (SMALLEST if positive else 0) <= value <= LARGEST:
        raise ProblemError(where, f"must be {want}, got {value!r}")
    return float(value)


def count(where: str, value: Any, least: int = 0) -> int:
    """An integer of at least `least` and under 2**48, or a ProblemError."""
    whole = isinstance(value, float) and value.is_integer()
    if isinstance(value, bool) or not (isinstance(value, int) or whole) or not least <= value < 1 << 48:
        raise ProblemError(where, f"must be an integer of at least {least} and under 2**48, got {value!r}"[:200])
    return int(value)


def _matrix(name: str, value: Any, n: int) -> Matrix:
    """[n, n], symmetric, finite, not negative, zero diagonal; or a ProblemError that names the first wrong entry."""
    if not isinstance(value, list):
        raise ProblemError(name, f"must be {n} lists of {n} numbers, got {type(value).__name__}")
    if len(value) != n:
        raise ProblemError(name, f"must have {n} rows, one for each device, got {len(value)}")
    for i, row in enumerate(value):
        if not isinstance(row, list) or len(row) != n:
            got = f"{len(row)}" if isinstance(row, list) else type(row).__name__
            raise ProblemError(f"{name}[{i}]", f"must be a list of {n} numbers, got {got}")
        if not all(type(x) is float or type(x) is int for x in row):
            j = next(j for j, x in enumerate(row) if type(x) is not float and type(x) is not int)
            raise ProblemError(f"{name}[{i}][{j}]", f"must be a number, got {row[j]!r}")
    try:
        matrix = np.array(value, np.float64).reshape(n, n)
    except OverflowError:
        raise ProblemError(name, "holds an integer that is too large") from None
    for wrong, want in (
        (~np.isfinite(matrix), "must be finite"),
        (matrix < 0, "must not be negative"),
        (matrix > LARGEST, f"must be at most {LARGEST:g}"),
        (np.eye(n, dtype=bool) & (matrix != 0), "must be 0: a device's link to itself"),
        (matrix != matrix.T, "must be symmetric"),
    ):
        if wrong.any():
            i, j = (int(x) for x in np.argwhere(wrong)[0])
            other = f", and [{j}][{i}] is {matrix[j, i]}" if want.endswith("symmetric") else ""
            raise ProblemError(f"{name}[{i}][{j}]", f"{want}, got {matrix[i, j]}{other}")
    return matrix


def _devices(value: Any) -> list[Device]:
    if not isinstance(value, list) or not value:
        raise ProblemError("devices", f"must be a list of at least one device, got {value!r}"[:200])
    devices = []
    for i, each in enumerate(value):
        where = f"devices[{i}]"
        if not isinstance(each, dict):
            raise ProblemError(where, f"must be an object with rate and memory, got {each!r}")
        for key in ("rate", "memory"):
            if key not in each:
                raise ProblemError(f"{where}.{key}", "is missing")
        name = each.get("name", "")
        if not isinstance(name, str):
            raise ProblemError(f"{where}.name", f"must be a string, got {name!r}")
        rate = number(f"{where}.rate", each["rate"], positive=True)
        devices.append(Device(rate, count(f"{where}.memory", each["memory"]), name))
    return devices


def scalars(data: dict[str, Any]) -> dict[str, Any]:
    """What both forms of a file share, checked: keyword arguments of a Problem."""
    for key in ("experts", "layer_cost", "payload_mib", "crossings", "stages", "gradient_mib"):
        if key not in data:
            raise ProblemError(key, "is missing")
    objective = data.get("model", OBJECTIVES[0])
    if objective not in OBJECTIVES:
        raise ProblemError("model", f"must be one of {', '.join(OBJECTIVES)}, got {objective!r}")
    checked: dict[str, Any] = {"experts": count("experts", data["experts"], 1), "objective": objective}
    if checked["experts"] > MOST_EXPERTS:
        raise ProblemError("experts", f"must be at most {MOST_EXPERTS}, got {checked['experts']}")
    for key in ("layer_cost", "payload_mib", "crossings", "stages", "gradient_mib"):
        checked[key] = number(key, data[key])
    loads = data.get("loads")
    if loads is not None:
        if not isinstance(loads, list) or len(loads) != checked["experts"]:
            got = f"{len(loads)}" if isinstance(loads, list) else repr(loads)
            raise ProblemError("loads", f"must be {checked['experts']} numbers, one for each expert, got {got}")
        checked["loads"] = np.array([number(f"loads[{i}]", x) for i, x in enumerate(loads)])
    return checked


def parse(data: Any) -> Problem:
    """A problem from what JSON held. Raises ProblemError, which names the field that is wrong."""
    if not isinstance(data, dict):
        raise ProblemError("problem", f"must be a JSON object, got {type(data).__name__}")
    checked = scalars(data)
    if "cluster" in data:
        from . import tree

        laid = tree.parse(data["cluster"])
        none = np.zeros((0, 0))
        return Problem(**checked, rate=laid.rate, memory=laid.memory, alpha_us=none, beta_us_per_mib=none, tree=laid)
    for key in ("devices", "alpha_us", "beta_us_per_mib"):
        if key not in data:
            raise ProblemError(key, "is missing (or cluster, for the compressed form)")
    devices = _devices(data["devices"])
    return Problem(
        **checked,
        rate=np.array([d.rate for d in devices]),
        memory=np.array([d.memory for d in devices], np.int64),
        alpha_us=_matrix("alpha_us", data["alpha_us"], len(devices)),
        beta_us_per_mib=_matrix("beta_us_per_mib", data["beta_us_per_mib"], len(devices)),
        names=tuple(d.name for d in devices),
    )


def load(path: str | Path) -> Problem:
    """A problem from a file. Raises ProblemError for what is not one, OSError for what cannot be read."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as why:
        raise ProblemError("problem", f"is no JSON: {why}") from why
    return parse(data)

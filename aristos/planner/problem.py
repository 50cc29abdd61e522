"""The planning problem (devices, links and one MoE layer's costs), and its form in a file.

Each error about a file names the field. This module knows no solver.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernel_cache.errors import quoted
from kernel_cache.texts import plain

from ..errors import InputError
from . import tree as compressed
from .tree import Tree
from .values import IDLE, LARGEST, ProblemError, count, number, parse_file, require

OBJECTIVES = ("work_conserving", "literal")
MOST_EXPERTS = 1 << 16  # fewer than a layer may have (config.py): Python code visits each expert for every group
Matrix = NDArray[np.float64]


class Infeasible(InputError):
    """No partition fits into the devices' memory.

    Attributes
    ----------
    missing : int
        How many experts the memory of all devices together lacks.
    """

    def __init__(self, missing: int, text: str) -> None:
        super().__init__(text)
        self.missing = missing


@dataclass(frozen=True)
class Device:
    """A device of a problem.

    Attributes
    ----------
    rate : float
        Cost units per us.
    memory : int
        How many experts of one layer fit, if as many of every other layer fit too.
    name : str
        For messages; may be empty.
    """

    rate: float
    memory: int
    name: str = ""


@dataclass(frozen=True, eq=False)
class Problem:
    """One cluster and one layer: the input of Equations 1 and 2.

    Parameters
    ----------
    experts : int
        E, the number of experts of the layer.
    layer_cost : float
        Cost units of one stage for one device's tokens.
    payload_mib : float
        MiB that a device sends in one crossing.
    crossings : float
        Crossings of a stage.
    stages : float
        MoE stages of a step over all devices: kappa = stages / n.
    gradient_mib : float or None
        MiB that the groups all-reduce. None: they all-reduce nothing (inference).
    rate : array [n], float64
        Cost units per us of each device. A device without memory computes nothing; its rate is nearly 0.
    memory : array [n], int64
        Experts that fit into each device.
    alpha_us : array [n, n], float64
        Latency of each link in us: symmetric, with a zero diagonal. With `tree` it has shape [0, 0].
    beta_us_per_mib : array [n, n], float64
        Time of each link in us per MiB: symmetric, with a zero diagonal. With `tree` it has shape [0, 0].
    objective : str, default "work_conserving"
        "work_conserving": every device brings its tokens. "literal": Equation 1 as the poster has it.
    names : tuple of n str, default ()
        Names of the devices, for messages. Empty: no names.
    loads : array [experts], float64, or None, default None
        Tokens of each expert. None: all are equal.
    expert_gb : float or None, default None
        GB of one expert in all layers, for messages. None: unknown.
    tree : Tree or None, default None
        A cluster in compressed form, whose matrices are never built.
    """

    experts: int
    layer_cost: float
    payload_mib: float
    crossings: float
    stages: float
    gradient_mib: float | None
    rate: NDArray[np.float64]
    memory: NDArray[np.int64]
    alpha_us: Matrix
    beta_us_per_mib: Matrix
    objective: str = "work_conserving"
    names: tuple[str, ...] = ()
    loads: NDArray[np.float64] | None = None
    expert_gb: float | None = None
    tree: Tree | None = None

    def __post_init__(self) -> None:
        idle = self.memory == 0
        if idle.any() and not idle.all():
            rate = np.where(idle, np.minimum(self.rate, self.rate[~idle].min() * IDLE), self.rate)
            object.__setattr__(self, "rate", rate)

    @property
    def n(self) -> int:
        """Number of devices."""
        return len(self.rate)

    @property
    def kappa(self) -> float:
        """The MoE stages that each device runs in a step."""
        return self.stages / self.n

    def device(self, i: int) -> str:
        """How a message shows a device: by its index, and by its name if it has one.

        Parameters
        ----------
        i : int
            The device's index.

        Returns
        -------
        str
            Such as "device 3 (node1 GPU0)".
        """
        return f"device {i} ({self.names[i]})" if self.names and self.names[i] else f"device {i}"

    def check_feasible(self) -> None:
        """Raise an error if the devices' memory is too small for any partition.

        Raises
        ------
        Infeasible
            Even one group of all devices cannot hold every expert.
        """
        total = int(self.memory.sum())
        if total < self.experts:
            missing = self.experts - total
            text = f"all devices together hold {total} experts of {self.experts}: memory for {missing} more is missing"
            if self.expert_gb is not None:
                text += f", {missing * self.expert_gb:.3g} GB (an expert takes {self.expert_gb:.3g} GB)"
            raise Infeasible(missing, text)


def _matrix(name: str, value: Any, n: int) -> Matrix:
    """Check that a matrix is [n, n], symmetric, finite and not negative, with a zero diagonal.

    Raises ProblemError for the first wrong entry."""
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
            raise ProblemError(f"{name}[{i}][{j}]", f"must be a number, got {quoted(row[j])}")
    try:
        matrix = np.array(value, np.float64).reshape(n, n)
    except OverflowError:
        raise ProblemError(name, "holds an integer that is too large") from None
    for wrong, want in (
        (~np.isfinite(matrix), "must be finite"),
        (matrix < 0, "must not be negative"),
        (matrix > LARGEST, f"must be at most {LARGEST:g}"),
        (np.eye(n, dtype=bool) & (matrix != 0), "must be 0 for a device's link to itself"),
        (matrix != matrix.T, "must be symmetric"),
    ):
        if wrong.any():
            i, j = (int(x) for x in np.argwhere(wrong)[0])
            other = f", and [{j}][{i}] is {matrix[j, i]}" if want.endswith("symmetric") else ""
            raise ProblemError(f"{name}[{i}][{j}]", f"{want}, got {matrix[i, j]}{other}")
    return matrix


def _devices(value: Any) -> list[Device]:
    if not isinstance(value, list) or not value:
        raise ProblemError("devices", f"must be a list of at least one device, got {quoted(value)}")
    devices = []
    for i, each in enumerate(value):
        where = f"devices[{i}]"
        if not isinstance(each, dict):
            raise ProblemError(where, f"must be an object with rate and memory, got {quoted(each)}")
        require(each, "rate", "memory", where=f"{where}.")
        name = each.get("name", "")
        if not isinstance(name, str):
            raise ProblemError(f"{where}.name", f"must be a string, got {quoted(name)}")
        if not plain(name):
            raise ProblemError(f"{where}.name", f"must have no control characters, got {quoted(name)}")
        rate = number(f"{where}.rate", each["rate"], positive=True)
        devices.append(Device(rate, count(f"{where}.memory", each["memory"]), name))
    return devices


def scalars(data: dict[str, Any]) -> dict[str, Any]:
    """Check the fields that both forms of a file share. Returns them as keyword arguments of a Problem."""
    require(data, "experts", "layer_cost", "payload_mib", "crossings", "stages", "gradient_mib")
    objective = data.get("model", OBJECTIVES[0])
    if objective not in OBJECTIVES:
        raise ProblemError("model", f"must be one of {', '.join(OBJECTIVES)}, got {quoted(objective)}")
    checked: dict[str, Any] = {"experts": count("experts", data["experts"], 1), "objective": objective}
    if checked["experts"] > MOST_EXPERTS:
        raise ProblemError("experts", f"must be at most {MOST_EXPERTS}, got {checked['experts']}")
    for key in ("layer_cost", "payload_mib", "crossings", "stages"):
        checked[key] = number(key, data[key])
    checked["gradient_mib"] = None if data["gradient_mib"] is None else number("gradient_mib", data["gradient_mib"])
    if data.get("expert_gb") is not None:
        checked["expert_gb"] = number("expert_gb", data["expert_gb"], positive=True)
    loads = data.get("loads")
    if loads is not None:
        if not isinstance(loads, list) or len(loads) != checked["experts"]:
            got = f"{len(loads)}" if isinstance(loads, list) else quoted(loads)
            raise ProblemError("loads", f"must be {checked['experts']} numbers, one for each expert, got {got}")
        checked["loads"] = np.array([number(f"loads[{i}]", x) for i, x in enumerate(loads)])
    return checked


def _machine(data: dict[str, Any]) -> str:
    """The option of `aristos plan` for this file if it describes a machine without a model; else ""."""
    if "classes" in data and "hosts" in data:  # a file of `aristos topo --measure`
        return "--topology"
    return "--cluster" if "children" in data or list(data) == ["cluster"] else ""


def parse(data: Any) -> Problem:
    """A problem from parsed JSON, in the form that docs/planner.md describes.

    Parameters
    ----------
    data : object
        The object that `json.loads` made of a problem's text.

    Returns
    -------
    Problem
        The problem, every field checked.

    Raises
    ------
    ProblemError
        A field is missing or wrong; the message names it.
    """
    if not isinstance(data, dict):
        raise ProblemError("problem", f"must be a JSON object, got {type(data).__name__}")
    if "experts" not in data and (option := _machine(data)):
        raise ProblemError(
            "experts", f"is missing: this file describes only a machine, so give --model NAME {option} FILE"
        )
    checked = scalars(data)
    if "cluster" in data:
        laid = compressed.parse(data["cluster"])
        none = np.zeros((0, 0))
        return Problem(**checked, rate=laid.rate, memory=laid.memory, alpha_us=none, beta_us_per_mib=none, tree=laid)
    hint = " (a problem without it needs cluster, the compressed form)"
    require(data, "devices", "alpha_us", "beta_us_per_mib", hint=hint)
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
    """A problem from a file.

    Parameters
    ----------
    path : path
        A JSON file, in the form that docs/planner.md describes.

    Returns
    -------
    Problem
        The problem, every field checked.

    Raises
    ------
    ProblemError
        The file holds no problem; the message names file and field.
    OSError
        The file cannot be read.
    """
    return parse_file(path, "problem", parse)

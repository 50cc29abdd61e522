"""The links file: alpha and beta of each pair of ranks of a job, and the rate and memory of each device.

JSON, schema `aristos-links/1`. `aristos topo --measure` writes it, the planner reads it. A matrix is a list of n rows
for n ranks, a row an origin and a column a target; null means unknown:

    schema            "aristos-links/1"
    source            "measured", "table", or "mixed": some pairs measured, the others from the table of defaults
    hosts             n host names, by rank
    devices           n of {"name", "label", "cpus", "rate_gflops", "rate_from", "memory_bytes", "memory_from"}
                      label: "GPU0", or "" for cores; rate: of the expert kernel, float32 on cores, bfloat16 on GPUs
    classes           of links: "self", "NV4", "PIX", "PXB", "PHB", "NODE", "SYS", "NET", "NET3" (3 switches apart)
    alpha_us, beta_us_per_mib
                      of large puts (from 64 KiB on), symmetric (the slower direction), zeros on the diagonal; the
                      planner's problem has fields of the same names and values
    small             {"alpha_us", "beta_us_per_mib"} of small puts, each direction
    large             the same of large puts, each direction
    contended         the same of large puts while other pairs of ranks send too; null where not measured
    residual          root mean square of (fitted - measured) / measured over both ranges, each direction
    from              "measured" or "table" for each pair
    faults            sentences
    notes             sentences about these figures
    measured_utc, seconds, command
                      when the links were measured, how many seconds that took, and the command

`aristos/bench/links.py` measures these figures.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kernel_cache import regular
from kernel_cache.texts import plain

from ..errors import InputError
from ..primitives import aside

SCHEMA = "aristos-links/1"
MIB = 1 << 20
SLOW = 2.0  # a link that takes this many times its class's median is measured twice; if still slow, it is a fault
SHARE = 0.9  # the share of a device's memory that parameters may take
LARGEST = 1e30  # the most FLOP or bytes, so that products are finite
PAYLOAD = MIB  # bytes of the put whose time is compared between the links of a class
Rows = list[list[float | None]]


@dataclass(frozen=True)
class Span:
    """Times alpha + beta * MiB over a range of sizes, in microseconds. alpha, beta: [n, n], a row for each origin;
    microseconds, and microseconds a MiB."""

    alpha_us: Rows
    beta_us_per_mib: Rows


@dataclass(frozen=True)
class RankDevice:
    """A rank's device. label: for example GPU0, or '' for cores. rate_from, memory_from: the sources of rate and
    memory."""

    name: str
    label: str = ""
    cpus: str = ""
    rate_gflops: float | None = None
    rate_from: str = ""
    memory_bytes: int | None = None
    memory_from: str = ""


@dataclass(frozen=True)
class Links:
    """The file's fields, which the module's docstring explains. origin: the field `from`."""

    hosts: list[str]
    devices: list[RankDevice]
    classes: list[list[str]]
    small: Span
    large: Span
    residual: Rows
    origin: list[list[str]]
    contended: Span | None = None
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    measured_utc: str = ""
    seconds: float = 0.0
    command: str = ""

    @property
    def n(self) -> int:
        return len(self.hosts)

    @property
    def source(self) -> str:
        found = {self.origin[a][b] for a in range(self.n) for b in range(self.n) if a != b} or {"measured"}
        return found.pop() if len(found) == 1 else "mixed"

    def to_json(self) -> dict[str, Any]:
        found = {"schema": SCHEMA, "source": self.source, **asdict(self)}
        found["from"] = found.pop("origin")
        for name in ("alpha_us", "beta_us_per_mib"):
            found[name] = symmetric(getattr(self.large, name))
        return found


def symmetric(rows: Rows) -> Rows:
    """For each pair, the time of the slower direction, or of the only direction that is known. Zeros on the
    diagonal."""
    n = len(rows)

    def slower(a: int, b: int) -> float | None:
        known = [x for x in (rows[a][b], rows[b][a]) if x is not None]
        return max(known, default=None)

    return [[0.0 if a == b else slower(a, b) for b in range(n)] for a in range(n)]


def save(links: Links, path: Path) -> None:
    """Write the file atomically. Raises OSError."""
    aside.write_text(path, json.dumps(links.to_json(), indent=1) + "\n")


def load(path: Path) -> Links:
    """Read the file. Raises OSError, or InputError that names the wrong field."""
    try:
        found = json.loads(regular.text(path))
    except (ValueError, RecursionError) as why:
        raise InputError(f"{path} is not JSON: {why}") from None
    try:
        return from_json(found)
    except InputError as why:
        raise InputError(f"{path}: {why}") from None


def from_json(found: Any) -> Links:
    """Links from parsed JSON. Raises InputError that names the wrong field."""
    if not isinstance(found, Mapping) or found.get("schema") != SCHEMA:
        got = found.get("schema") if isinstance(found, Mapping) else type(found).__name__
        raise InputError(f"schema must be {SCHEMA!r}, got {got!r}: `aristos topo --measure` writes such a file")
    hosts, devices = found.get("hosts"), found.get("devices")
    if not isinstance(hosts, list) or not hosts or not all(isinstance(h, str) and plain(h) for h in hosts):
        raise InputError(f"hosts must be a list of names without control characters, got {hosts!r}"[:200])
    n = len(hosts)
    if not isinstance(devices, list) or len(devices) != n:
        raise InputError(f"devices must be a list of {n} objects, one for each entry of hosts")
    contended = found.get("contended")
    return Links(
        hosts=hosts,
        devices=[_device(f"devices[{i}]", each) for i, each in enumerate(devices)],
        classes=_rows("classes", found.get("classes"), n, str),
        small=_span("small", found.get("small"), n),
        large=_span("large", found.get("large"), n),
        residual=_rows("residual", found.get("residual"), n, float),
        origin=_rows("from", found.get("from"), n, str),
        contended=None if contended is None else _span("contended", contended, n),
        faults=_sentences("faults", found.get("faults", [])),
        notes=_sentences("notes", found.get("notes", [])),
        measured_utc=_text("measured_utc", found.get("measured_utc", "")),
        seconds=float(_number("seconds", found.get("seconds", 0.0))),
        command=_text("command", found.get("command", "")),
    )


def _device(where: str, each: Any) -> RankDevice:
    if not isinstance(each, Mapping) or not isinstance(each.get("name"), str):
        raise InputError(f"{where} must be an object with a name, got {each!r}"[:200])
    found: dict[str, Any] = {}
    for key in RankDevice.__dataclass_fields__:
        if key in ("rate_gflops", "memory_bytes"):
            value = each.get(key)
            if value is not None and not _number(f"{where}.{key}", value) > 0:
                raise InputError(f"{where}.{key} must be a positive number, or null, got {value!r}")
            found[key] = value
        else:
            found[key] = _text(f"{where}.{key}", each.get(key, ""))
    return RankDevice(**found)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not plain(value):
        raise InputError(f"{name} must be a string without control characters, got {value!r}"[:200])
    return value


def _sentences(name: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise InputError(f"{name} must be a list of sentences, got {value!r}"[:200])
    return [_text(f"{name}[{i}]", each) for i, each in enumerate(value)]


def _number(name: str, value: Any, null: str = "") -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST:
        raise InputError(f"{name} must be a number of at least 0 and at most {LARGEST:g}{null}, got {value!r}"[:200])
    return value


def _span(name: str, found: Any, n: int) -> Span:
    if not isinstance(found, Mapping):
        raise InputError(f"{name} must be an object with alpha_us and beta_us_per_mib, got {found!r}"[:200])
    alpha, beta = (_rows(f"{name}.{key}", found.get(key), n, float) for key in ("alpha_us", "beta_us_per_mib"))
    return Span(alpha, beta)


def _rows(name: str, rows: Any, n: int, kind: type) -> list[list[Any]]:
    """Check n rows of n texts, or of numbers and null."""
    if not isinstance(rows, list) or len(rows) != n or not all(isinstance(r, list) and len(r) == n for r in rows):
        raise InputError(f"{name} must be a list of {n} rows, each of {n} entries")
    for a, row in enumerate(rows):
        for b, value in enumerate(row):
            if kind is str:
                _text(f"{name}[{a}][{b}]", value)
            elif value is not None:
                _number(f"{name}[{a}][{b}]", value, ", or null")
    return rows


def put_us(span: Span, a: int, b: int, nbytes: int) -> float | None:
    """Microseconds of a put from rank a to rank b, or None if unknown."""
    alpha, beta = span.alpha_us[a][b], span.beta_us_per_mib[a][b]
    return None if alpha is None or beta is None else alpha + beta * nbytes / MIB


def slow(classes: Sequence[Sequence[str]], span: Span, times: float = SLOW) -> list[tuple[int, int, float]]:
    """Links slower than `times` the median of their class: (origin, target, ratio to the median)."""
    by_class: dict[str, list[tuple[int, int, float]]] = {}
    for a, row in enumerate(classes):
        for b, name in enumerate(row):
            took = put_us(span, a, b, PAYLOAD)
            if a != b and took is not None:
                by_class.setdefault(name, []).append((a, b, took))
    found = []
    for pairs in by_class.values():
        middle = sorted(took for _, _, took in pairs)[(len(pairs) - 1) // 2]
        found += [(a, b, took / middle) for a, b, took in pairs if middle > 0 and took > times * middle]
    return sorted(found)


def problem(links: Links, expert_bytes: int, other_bytes: int = 0) -> dict[str, Any]:
    """The fields of the planner's problem that depend on the machine: devices, alpha_us, beta_us_per_mib.

    The rate is in MFLOP a microsecond, so that costs are in MFLOP. The memory is the number of experts of
    `expert_bytes` that fit into SHARE of a device's memory minus `other_bytes`. Raises InputError if a rate, a memory
    or a link is unknown.
    """
    devices = []
    for i, each in enumerate(links.devices):
        if each.rate_gflops is None or each.memory_bytes is None:
            missing = "rate" if each.rate_gflops is None else "memory"
            raise InputError(f"the {missing} of device {i} ({each.name}) is unknown: write it into the file")
        fits = max(0, int(each.memory_bytes * SHARE) - other_bytes) // expert_bytes
        devices.append({"name": f"{links.hosts[i]}:{each.label or i}", "rate": each.rate_gflops / 1e3, "memory": fits})
    found: dict[str, Any] = {"devices": devices}
    for name in ("alpha_us", "beta_us_per_mib"):
        rows = symmetric(getattr(links.large, name))
        if any(x is None for row in rows for x in row):
            raise InputError(f"{name} is unknown for some pairs: measure again on all ranks")
        found[name] = rows
    return found


def cache_path(hosts: Sequence[str], seats: Sequence[str], library: str, env: Mapping[str, str]) -> Path:
    """The cache file for the links of a job with these hosts. seats: each rank's node, GPU and cores.

    library: MPI's version.
    """
    home = env.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    place = Path(env.get("ARISTOS_CACHE") or os.path.join(home, "aristos"))
    folder = place.parent.resolve() / place.name  # symbolic links above the folder are followed, as for compiled code
    key = json.dumps([SCHEMA, list(hosts), list(seats), library])
    return folder / "links" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"

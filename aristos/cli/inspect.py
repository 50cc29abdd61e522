"""`aristos inspect MODEL_DIR`: which layers of a model directory run here, and the bytes that each of N ranks needs.

Exit codes: 0 all layers are supported and complete, 1 some are not, 2 usage or an unknown model, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any, TypeVar

from kernel_cache.texts import ranges

from ..bench.arguments import positive
from ..bench.context import counted
from ..host import launch_environment
from ..row_types import ON_CPUS
from ..weight_types import PACKED_ROWS, WEIGHT_TYPES, WeightType
from ._listing import wrapped

SUMMARY = "which layers of a model directory run, and the bytes a rank needs: aristos inspect MODEL_DIR"
PROBLEMS, USAGE = 1, 2
T = TypeVar("T")
RANKS = (1, 2, 4, 8, 16, 32, 64)


def options(argv: list[str]) -> argparse.Namespace:
    parser = launch_environment.OneRankParser(
        prog="aristos inspect",
        description="Read config.json and the headers of a model directory: layers, experts, recipe, and the bytes of "
        "windows and packed weights on each of N ranks. No weights are read.",
    )
    parser.add_argument("path", metavar="MODEL_DIR", help="folder with config.json and *.safetensors")
    parser.add_argument(
        "--ranks",
        type=positive,
        nargs="+",
        metavar="N",
        help="numbers of ranks (1, 2, 4 and so on, up to the number of experts)",
    )
    parser.add_argument("--tokens", type=positive, default=4096, help="tokens of one rank in one call (%(default)s)")
    parser.add_argument(
        "--dtype", choices=list(ON_CPUS), default="bfloat16", help="type of rows and experts (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    asked = options(argv)
    if not launch_environment.prints():
        return 0
    from ..errors import AristosError

    try:
        found = examine(asked)
        print(json.dumps(found, indent=1) if asked.json else wrapped("\n".join(lines(found, asked))))
    except AristosError as error:
        print(f"aristos inspect: {error}", file=sys.stderr)
        return USAGE
    return PROBLEMS if found["problems"] or found["missing"] else 0


def examine(asked: argparse.Namespace) -> dict[str, Any]:
    """The report as a dict: layers, configurations, bytes. Its `problems` say why a layer cannot be loaded."""
    from ..checkpoint import Checkpoint
    from ..errors import AristosError

    checkpoint = Checkpoint(asked.path)
    problems, notes, configs, packed = {}, {}, {}, {}
    for number in checkpoint.layers:
        if note := checkpoint.note(number):
            notes[number] = note
        problem = checkpoint.problem(number)
        if not problem:
            configs[number] = checkpoint.layer_config(number, max_tokens=asked.tokens, dtype=asked.dtype)
            try:
                checkpoint.check(number)
            except AristosError as error:
                problem = str(error)
            else:
                packed[number], why = stored(checkpoint, number)
                if why:
                    notes[number] = "; ".join(filter(None, [note, f"its experts cannot stay packed: {why}"]))
        if problem:
            problems[number] = problem
    kinds = grouped(configs)
    return {
        "path": str(checkpoint.path),
        "model_type": checkpoint.model_type,
        "quantisation": checkpoint.quantisation or None,
        "layers": list(checkpoint.layers),
        "missing": list(checkpoint.missing),
        "problems": problems,
        "notes": notes,
        "kinds": [{"layers": numbers, "config": chosen(cfg)} for cfg, numbers in kinds.items()],
        "bytes": memory(kinds, asked.ranks),
        "weights": weights(configs, packed, asked.ranks),
    }


def stored(checkpoint: Any, number: int) -> tuple[WeightType | None, str]:
    """(the packed type of a layer's experts in the files, or None; why they cannot stay packed, or '')."""
    from ..errors import CheckpointError

    try:
        return checkpoint.weight_type(number), ""
    except CheckpointError as error:
        return None, str(error)


def weights(configs: dict[int, Any], packed: dict[int, Any], ranks: list[int] | None) -> dict[str, Any] | None:
    """Bytes of all experts' matrices, in the files and expanded, and the bytes of `memory` with packed weights.

    None if no layer's experts are packed.
    """
    if not any(packed.values()):
        return None
    types = grouped({number: str(kind or WEIGHT_TYPES[configs[number].dtype]) for number, kind in packed.items()})
    found: dict[str, Any] = {"types": types, "packed": 0, "expanded": 0, "bytes": {}}
    kinds: dict[int, Any] = {}
    for number, kind in packed.items():
        cfg = configs[number]
        plain = WEIGHT_TYPES[cfg.dtype]
        for key, each in (("packed", kind or plain), ("expanded", plain)):
            wide = each.nbytes(cfg.hidden, cfg.ffn) * (2 if cfg.gated else 1)
            found[key] += cfg.experts * (wide + each.nbytes(cfg.ffn, cfg.hidden))
        if cfg.dtype in PACKED_ROWS:
            kinds[number] = replace(cfg, weight_dtype=kind)
    found["bytes"] = memory(grouped(kinds), ranks)
    return found


def memory(kinds: dict[Any, list[int]], ranks: list[int] | None) -> dict[int, int]:
    """Number of ranks -> bytes of the rank that needs most: one set of windows, and all layers' weights."""
    from ..layer.moe import MoE

    if not kinds:
        return {}
    experts = min(cfg.experts for cfg in kinds)
    found = {}
    for n in ranks or [r for r in RANKS if r <= experts]:
        needs = [(MoE.memory(cfg, n), MoE.memory(cfg, n, layers=2), len(numbers)) for cfg, numbers in kinds.items()]
        windows = max(2 * one - two for one, two, _ in needs)
        found[n] = windows + sum((two - one) * count for one, two, count in needs)
    return found


def chosen(cfg: Any) -> str:
    """A configuration as the call that makes it, without fields that have their defaults. top_k is always there."""
    words = []
    for field in fields(cfg):
        value = getattr(cfg, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if value != default or field.name == "top_k":
            words.append(f"{field.name}={chosen(value) if is_dataclass(value) else repr(value)}")
    return f"{type(cfg).__name__}({', '.join(words)})"


def lines(found: dict[str, Any], asked: argparse.Namespace) -> list[str]:
    """The report as text."""
    quantised = f", quantised: {found['quantisation']}" if found["quantisation"] else ""
    out = [f"{found['path']}: {found['model_type']}{quantised}, {counted(len(found['layers']), 'MoE layer')}"]
    for kind in found["kinds"]:
        out.append(f"layers {ranges(kind['layers'], ' ')}: {kind['config']}")
    for what in ("notes", "problems"):
        for text, numbers in grouped(found[what]).items():
            word = "note" if what == "notes" else "NOT SUPPORTED"
            out.append(f"layers {ranges(numbers, ' ')}: {word}: {text}")
    if found["missing"]:
        out.append(
            f"layers {ranges(found['missing'], ' ')}: MISSING: config.json names these layers, but none of their"
            " tensors is here"
        )
    if found["bytes"]:
        out.append(f"GiB of the rank that needs most, {asked.dtype}, {asked.tokens} tokens a call:")
        out.append("  ranks " + " ".join(f"{n:>9d}" for n in found["bytes"]))
        out.append("  GiB   " + gib(found["bytes"].values()))
    if held := found["weights"]:
        if held["bytes"]:
            out.append("  packed" + gib(held["bytes"].values()))
        for kind, numbers in held["types"].items():
            out.append(f"layers {ranges(numbers, ' ')}: experts of {kind}")
        sizes = (
            f"{held['packed'] / 2**30:.3f} as in the files, {held['expanded'] / 2**30:.3f} expanded to {asked.dtype}"
        )
        out.append(f"GiB of all experts' matrices: {sizes}")
    return out


def gib(sizes: Iterable[int]) -> str:
    """Cells of the table, in GiB."""
    return " ".join(f"{size / 2**30:9.3f}" for size in sizes)


def grouped(values: dict[int, T]) -> dict[T, list[int]]:
    """For each value, the layers that have it."""
    groups: dict[T, list[int]] = {}
    for number, value in values.items():
        groups.setdefault(value, []).append(number)
    return groups

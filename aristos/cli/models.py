"""`aristos models [NAME]`: the table of published models, with sizes, router, whether they run here, and sources.

For a model directory, the command prints and returns the same as `aristos inspect`. Other exit codes: 0 printed,
2 usage.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from kernel_cache.texts import aligned

from ..host import launch_environment
from . import inspect
from ._listing import unknown, wrapped

if TYPE_CHECKING:
    from ..model_table import Model

SUMMARY = "the table of published models, and which of them run: aristos models"
USAGE = 2


def options(argv: list[str]) -> argparse.Namespace:
    from ..model_table import MODELS

    parser = launch_environment.OneRankParser(
        prog="aristos models",
        description="Published MoE models: sizes of a layer, router, and whether Aristos runs them. For a model"
        " directory this command does what `aristos inspect` does.",
    )
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="a model, to print all that is known of it; or a model directory"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    asked = parser.parse_args(argv)
    if asked.name is not None and asked.name not in MODELS and not os.path.isdir(asked.name):
        parser.error(f"{unknown(asked.name, MODELS, '`aristos models`')}; and there is no folder of this name")
    return asked


def main(argv: list[str]) -> int:
    from ..model_table import MODELS

    asked = options(argv)
    if asked.name is not None and asked.name not in MODELS:
        return inspect.main([asked.name, *(["--json"] if asked.json else [])])
    if not launch_environment.prints():
        return 0
    chosen = MODELS if asked.name is None else {asked.name: MODELS[asked.name]}
    if asked.json:
        print(json.dumps({name: record(m) for name, m in chosen.items()}, indent=1))
    elif asked.name is not None:
        for key, value in record(chosen[asked.name]).items():
            print(f"{key:12s}{'-' if value is None else value}")
    else:
        print("\n".join(lines(chosen)))
    return 0


def verdict(m: Model) -> str:
    """Whether a model runs here, in a few words."""
    if not m.lacking:
        return "runs"
    return "ids from outside" if m.outside else "no"


def record(m: Model) -> dict[str, Any]:
    """A model's line, for JSON."""
    return {
        "hidden": m.hidden,
        "ffn": m.ffn,
        "experts": m.experts,
        "top_k": m.top_k,
        "moe_layers": m.moe_layers or None,
        "layers": m.layers or None,
        "shared": m.shared,
        "dense_ffn": m.dense_ffn,
        "gated": m.gated,
        "router": dict(m.router),
        "options": dict(m.options),
        "family": m.family or None,
        "runs": verdict(m),
        "lacking": m.lacking or None,
        "source": m.source,
    }


def router(m: Model) -> str:
    """The router's options in a few words."""
    r = dict(m.router)
    words = [str(r.pop("score"))]
    if r.pop("renormalize", False):
        words.append("renormalised")
    if (scale := r.pop("scale", 1.0)) != 1.0:
        words.append(f"x{scale:g}")
    if "groups" in r:
        words.append(f"{r.pop('topk_groups')} of {r.pop('groups')} groups")
    r.pop("group_score", None)
    return " ".join(words + [f"{key}={value}" for key, value in r.items()])


def lines(chosen: dict[str, Model]) -> list[str]:
    """The table: a line for each model, with the columns that fit a terminal. `record` has recipe and source too."""
    head = ("model", "H", "F", "E", "k", "shared", "layers", "router", "here")
    rows = [
        (
            name,
            *map(str, (m.hidden, m.ffn, m.experts, m.top_k, m.shared or "-")),
            f"{m.moe_layers}/{m.layers}" if m.layers else "-",
            router(m),
            verdict(m),
        )
        for name, m in chosen.items()
    ]
    lacking = [wrapped(f"{name}: {m.lacking}") for name, m in chosen.items() if m.lacking]
    more = "`aristos models NAME` also prints a model's recipe and source"
    return [*aligned([head, *rows]), "", *lacking, f"{len(rows)} models; layers: MoE layers / all layers. {more}"]

"""Runs on the ranks of a job: opens the directories that models.py wrote, and compares every MoE layer with its block.

`mpiexec -n 2 python tests/hf/compare.py FOLDER [FAMILY ...]`. Each rank has half of a block's tokens. The
relative error is the largest difference divided by the largest output. Exit code: 1 if a family is wrong.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

import aristos

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import published_routers

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "generate.py"
MOST = 1e-5  # relative error in float32
TOKENS = 40  # of a block
GIVEN = ("x", "y", "dense", "tokens")
REFUSED = {  # family -> words of the refusal that must come
    "zaya": "its router is a network",
    "doge": "product keys",
}


def block_name(name: str) -> tuple[str, int]:
    """("encoder", "decoder" or "", number) of a block's module name."""
    parts = name.split(".")
    number = next(int(part) for part in parts if part.isdigit())
    return next((part for part in parts if part in ("encoder", "decoder")), ""), number


def compare_layer(
    checkpoint: Any, number: int, moe: Any, layer: int, given: dict[str, np.ndarray], comm: Any
) -> tuple[list[str], float]:
    """(what is wrong, relative error) of a layer on this rank's tokens.

    given: x, y and maybe dense and tokens of its block.
    """
    x, y = given["x"], given["y"]
    mine = slice(comm.rank * len(x) // comm.size, (comm.rank + 1) * len(x) // comm.size)
    if (
        moe.layer_config(layer).router.capacity is not None
    ):  # a capacity counts a rank's tokens, but the block counts all: rank 0 gets all
        mine = slice(0, len(x) if comm.rank == 0 else 0)
    rows = np.ascontiguousarray(x[mine])
    chosen = {}
    if "tokens" in given:
        chosen = dict(zip(("ids", "weights"), checkpoint.route(number, rows, given["tokens"][mine])))
    got, routing = moe(rows, layer=layer, return_routing=True, **chosen)
    found, other = [], np.zeros(len(got), bool)
    if "dense" in given:
        wanted = given["dense"][mine]
        dense = np.zeros_like(wanted)
        np.put_along_axis(dense, np.asarray(routing.ids), np.asarray(routing.weights), axis=1)
        other = ((dense != 0) != (wanted != 0)).any(axis=1)
        far = np.abs(dense - wanted).max(axis=1) > MOST * np.abs(wanted).max()
        if (far & ~other).any():
            found.append(f"weights differ by {np.abs(dense - wanted)[~other].max():.2g}")
        if other.sum() > 1:
            found.append(f"{other.sum()} tokens have other experts")
    error = float(np.abs(got - y[mine])[~other].max(initial=0.0) / np.abs(y).max())
    if not error < MOST:
        found.append(f"relative error {error:.2g}")
    return found, error


def compare(folder: Path, family: str, comm: Any) -> str:
    """How a family's layers differ from its blocks, as text. It is empty if they agree."""
    arrays = np.load(folder / f"{family}.npz")
    if "failed" in arrays:
        return f"there is no model: {str(arrays['failed'])[:200]}"
    checkpoint = aristos.Checkpoint(folder / family, comm)
    blocks = {block_name(name): name for name in map(str, arrays["names"])}
    if not blocks:
        return "no block was recorded"
    found, worst = [], 0.0
    stacks = {stack for stack, _ in blocks} - {""}  # an encoder and a decoder
    cfgs = checkpoint.configs(max_tokens=TOKENS)
    half = checkpoint.options.get("num_layers") or checkpoint.options.get("encoder_layers")
    with aristos.MoE(cfgs, comm, threads=1, timeout=60) as moe:
        for layer, number in enumerate(checkpoint.layers):
            checkpoint.load(moe, layer=layer, number=number)
        for layer, number in enumerate(checkpoint.layers):
            key = ("", number)
            if stacks:
                key = ("encoder", number) if number < half else ("decoder", number - half)
            if key not in blocks:
                return f"the model has no block {number}, but the recipe says it has"
            name = blocks.pop(key)
            given = {what: arrays[f"{name}.{what}"] for what in GIVEN if f"{name}.{what}" in arrays}
            why, error = compare_layer(checkpoint, number, moe, layer, given, comm)
            worst = max(worst, error)
            found += [f"layer {number}: {each}" for each in why]
    if blocks:
        found.append(f"the recipe does not know the blocks {sorted(blocks.values())}")
    if "sparsemixer.x" in arrays:
        found += compare_sparsemixer(arrays, comm)
    if "generated" in arrays:
        found += compare_generated(folder / family, json.loads(str(arrays["generated"])), comm)
    if comm.rank == 0 and not found:
        print(f"{family:24s} {len(checkpoint.layers)} layers, relative error {worst:.1e}", flush=True)
    return "; ".join(found)


def compare_sparsemixer(arrays: Any, comm: Any) -> list[str]:
    """How the router and the tests' reference router differ from models/phimoe's own, on the same scores."""
    x, ids, weights = (arrays[f"sparsemixer.{key}"] for key in ("x", "ids", "weights"))
    experts = x.shape[1]
    cfg = aristos.MoEConfig(
        experts,
        1,
        experts,
        2,
        "silu",
        True,
        max_tokens=len(x),
        router=aristos.Router(score="sparsemixer", renormalize=False),
    )
    nothing = np.zeros((experts, experts, 1), np.float32)
    with aristos.MoE(cfg, comm, threads=1, timeout=60) as moe:
        moe.load(up=nothing, gate=nothing, down=nothing.swapaxes(1, 2), router=np.eye(experts, dtype=np.float32))
        routing = moe(x, return_routing=True)[1]
    found = []
    oracle = published_routers.phimoe(x.astype(np.float64))
    for name, (chosen, shares) in {"router": (routing.ids, routing.weights), "published_routers": oracle}.items():
        if not np.array_equal(chosen, ids):
            found.append(f"sparsemixer: the {name} chooses other experts in {(chosen != ids).any(axis=1).sum()} rows")
        elif (error := np.abs(shares - weights).max()) > MOST:
            found.append(f"sparsemixer: the {name} has weights off by {error:.2g}")
    return found


def compare_generated(path: Path, wanted: dict[str, Any], comm: Any) -> list[str]:
    """How the tokens of examples/generate.py differ from those of the model's own code."""
    spec = importlib.util.spec_from_file_location("generate", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module
    spec.loader.exec_module(module)
    return [
        f"sequence {s.number}: {s.tokens} instead of {wanted['tokens'][s.number]}"
        for s in module.generate(path, wanted["prompts"], wanted["new"], comm)
        if s.tokens != wanted["tokens"][s.number]
    ]


def main(argv: list[str]) -> int:
    from mpi4py import MPI

    comm, folder = MPI.COMM_WORLD, Path(argv[0])
    names = argv[1:] or sorted(path.stem for path in folder.glob("*.npz"))
    wrong = 0
    for family in names:
        try:
            why = compare(folder, family, comm)
        except aristos.AristosError as error:
            why = f"{type(error).__name__}: {error}"
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        expected = REFUSED.get(family)
        reasons = [r for r in comm.allgather(why) if r]
        if expected:
            good = bool(reasons) and all(expected in reason for reason in reasons)
            if comm.rank == 0:
                print(
                    f"{family:24s} {'refused, as it must be' if good else f'WRONG: must be refused, got {reasons}'}",
                    flush=True,
                )
            wrong += not good
        elif reasons:
            wrong += 1
            if comm.rank == 0:
                print(f"{family:24s} WRONG: {reasons[0]}", flush=True)
    if comm.rank == 0:
        print(f"{len(names) - wrong} of {len(names)} families are right", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Targets whose input is several files or words: sysfs, a model directory, the parts of an HDF5 file, command lines.

An input of several files is a JSON object from paths to contents, so that mutations change what the files hold.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from aristos.bench import command_line
from aristos.bench.disturbance import CORE_SHARE
from aristos.bench.options import UsageError
from aristos.checkpoint import Checkpoint
from aristos.cli import __main__ as cli
from aristos.cli import inspect
from aristos.cli._ending import exit_code
from aristos.errors import AristosError, InputError
from aristos.launcher import seats
from aristos.report import compared_part, page, run_part
from aristos.report.compared import compare
from aristos.report.sides import Side
from aristos.results import hdf5
from aristos.topology import pci
from aristos.topology.discover import node_here
from aristos.topology.visible import VisibleDevice


class Undocumented(Exception):
    """An error that a command should have caught and reported."""


def parsed(data: bytes) -> Any:
    """The JSON object of an input; {} if it is none."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def inside(folder: Path, name: str) -> Path | None:
    """The path of a file below a folder; None for a name that leads out of it or that no file can have."""
    if "\0" in name or name.startswith("/") or not name or len(name) > 500 or ".." in name.split("/"):
        return None
    return folder / name


@contextlib.contextmanager
def fresh(name: str) -> Any:
    """An empty folder within the folder of the run."""
    folder = Path(name).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def fill(folder: Path, files: dict[str, Any], content: Callable[[Any], bytes]) -> None:
    """Write files; a text `-> PATH` is a link to a place in the folder. What cannot be written is left out."""
    for name, value in files.items():
        path = inside(folder, name)
        with contextlib.suppress(OSError, UnicodeEncodeError, ValueError):
            if path is None:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(value, str) and value.startswith("-> "):
                if target := inside(folder, value[3:]):
                    path.symlink_to(target)
            else:
                path.write_bytes(content(value))


# ---- sysfs


def machine(data: bytes) -> None:
    """Read a machine's files below /sys and /proc: the node, its devices, and seats on it."""
    with fresh("root") as root:
        fill(root, parsed(data), lambda value: str(value).encode(errors="surrogateescape"))
        node, _ = node_here("host", root, lambda words: None, lambda: None)
        seats.seats(node, 3, [VisibleDevice(device) for device in node.devices], smt=True)
        seats.default_ranks(node, ())
        for at in sorted((root / "sys/bus/pci/devices").glob("*"))[:4]:
            pci.affinity(root, at.name)
            pci.link(root, at.name, "0000:03:00.0")


def sysfs() -> bytes:
    """Two domains of two CPUs, two GPUs behind a switch and an adapter."""
    files = {"sys/devices/system/cpu/online": "0-3", "proc/meminfo": "MemTotal: 64 kB"}
    for cpu in range(4):
        at = f"sys/devices/system/cpu/cpu{cpu}"
        files[f"{at}/topology/core_cpus_list"] = f"{cpu % 2},{cpu % 2 + 2}"
        for name, value in (("level", 3), ("type", "Unified"), ("size", "36M"), ("shared_cpu_list", "0-3")):
            files[f"{at}/cache/index0/{name}"] = str(value)
    for domain in range(2):
        at = f"sys/devices/system/node/node{domain}"
        files |= {f"{at}/cpulist": f"{domain},{domain + 2}", f"{at}/distance": "10 21"}
        files[f"{at}/meminfo"] = f"Node {domain} MemTotal: 65536 kB"
    switch = "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0"
    for number, vendor, kind in ((3, "0x10de", "0x030200"), (4, "0x10de", "0x030200"), (5, "0x15b3", "0x020700")):
        address = f"0000:{number:02d}:00.0"
        at = f"{switch}/0000:02:{number:02d}.0/{address}"
        for name, value in (("vendor", vendor), ("class", kind), ("numa_node", "0"), ("local_cpulist", "0,2")):
            files[f"{at}/{name}"] = value
        files[f"sys/bus/pci/devices/{address}"] = f"-> {at}"
    files["sys/class/infiniband/mlx5_0/device"] = "-> sys/bus/pci/devices/0000:05:00.0"
    return json.dumps(files).encode()


# ---- model directories


def model(data: bytes) -> None:
    """Read config.json, the index and the headers of shards, as `aristos inspect` and loading do."""
    with fresh("model") as folder:
        fill(folder, parsed(data), in_model)
        found = Checkpoint(folder)
        for number in found.layers[:3]:
            found.note(number)
            if found.problem(number):
                continue
            with contextlib.suppress(AristosError):
                found.check(number)
                found.arrays(number, 0)
        inspect.examine(argparse.Namespace(path=str(folder), tokens=16, dtype="bfloat16", ranks=[1, 2]))


def in_model(value: Any) -> bytes:
    """A file of a model directory: JSON, or with the key "header" the header of a safetensors file with its data.

    zeros: the number of bytes of data. byte: their value, 0 by default.
    """
    if isinstance(value, dict) and "header" in value:
        text = json.dumps(value["header"]).encode(errors="surrogatepass")
        zeros, byte = value.get("zeros"), value.get("byte", 0)
        count = zeros if isinstance(zeros, int) and 0 <= zeros < 1e6 else 0
        each = bytes([byte % 256 if isinstance(byte, int) else 0])
        return struct.pack("<Q", len(text)) + text + each * count
    return json.dumps(value).encode(errors="surrogatepass") if not isinstance(value, str) else value.encode()


def header(shapes: dict[str, list[int]], kind: str = "F32", size: int = 4) -> dict[str, Any]:
    """A safetensors file of zeros."""
    found, at = {}, 0
    for name, shape in shapes.items():
        end = at + size * int(np.prod(shape))
        found[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, end]}
        at = end
    return {"header": found, "zeros": at}


def models() -> tuple[bytes, ...]:
    """An OLMoE in one file, the same in two shards with an index, and configurations of other families."""
    config = {
        "model_type": "olmoe",
        "hidden_size": 8,
        "intermediate_size": 6,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 1,
        "hidden_act": "silu",
        "norm_topk_prob": False,
    }
    p = "model.layers.0.mlp."
    shapes = {p + "gate.weight": [2, 8]}
    for e in range(2):
        each = {"gate": [6, 8], "up": [6, 8], "down": [8, 6]}
        shapes |= {f"{p}experts.{e}.{name}_proj.weight": shape for name, shape in each.items()}
    names = sorted(shapes)
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    halves = [header({name: shapes[name] for name in part}, "BF16", 2) for part in (names[:3], names[3:])]
    index = {"metadata": {}, "weight_map": {name: files[at >= 3] for at, name in enumerate(names)}}
    shards = {"config.json": config, **dict(zip(files, halves))}
    fp8 = {**config, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    deep = {
        "model_type": "deepseek_v3",
        "hidden_size": 8,
        "moe_intermediate_size": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "first_k_dense_replace": 1,
        "n_group": 2,
        "topk_group": 1,
        "n_shared_experts": 1,
        "hidden_act": "silu",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    }
    oss = {
        "model_type": "gpt_oss",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 1,
        "hidden_act": "silu",
        "swiglu_limit": 7.0,
        "quantization_config": {"quant_method": "mxfp4"},
    }
    switch = {
        "model_type": "switch_transformers",
        "d_model": 8,
        "d_ff": 8,
        "num_experts": 4,
        "num_layers": 2,
        "num_sparse_encoder_layers": 1,
        "num_decoder_layers": 2,
        "num_sparse_decoder_layers": 1,
    }
    found = [
        {"config.json": config, "model.safetensors": header(shapes)},
        {**shards, "model.safetensors.index.json": index},
        shards,
        {"config.json": fp8, "model.safetensors": header(shapes, "F8_E4M3", 1)},
        {"config.json": {"model_type": "x", "text_config": deep}, "model.safetensors": header(shapes)},
        {"config.json": oss, "model.safetensors": header(shapes)},
        {"config.json": switch, "model.safetensors": header(shapes)},
    ]
    return tuple(json.dumps(each).encode() for each in found)


# ---- results, made of parts


def parts(data: bytes) -> None:
    """Make a valid HDF5 file of groups, datasets and attributes; read it, show it on a page, compare it with itself."""
    path = Path("parts.h5")
    path.unlink(missing_ok=True)
    with h5py.File(path, "w") as file:
        put(file, parsed(data))
    for run in hdf5.read(path).runs:
        figures = page.Figures()
        run_part.part(run, "parts.h5", figures.add, "run")
        with contextlib.suppress(InputError):  # nothing to compare
            sides = (Side("parts.h5", (run,)), Side("parts.h5", (replace(run, name="again"),)))
            compared_part.part(compare(*sides), figures.add, "changed")
        figures.scripts()


def put(place: Any, node: dict[str, Any]) -> None:
    """Put members into a group.

    An object is a group, or a dataset if it has values under "="; "@NAME" is an attribute.
    """
    for name, value in node.items():
        with contextlib.suppress(TypeError, ValueError, OSError, OverflowError, LookupError, RuntimeError):
            if name.startswith("@"):
                place.attrs[name[1:]] = value
            elif isinstance(value, dict) and "=" in value:
                made = place.create_dataset(name, data=value["="])
                if value.get("scale"):
                    made.make_scale(str(value["scale"]))
                for at, scale in enumerate(value.get("dims", ())):
                    made.dims[at].attach_scale(place[scale])
                put(made, {key: each for key, each in value.items() if key.startswith("@")})
            elif isinstance(value, dict):
                put(place.create_group(name), value)


def results() -> bytes:
    """A run with a table."""
    table = {
        "rank": {"=": [0, 1], "scale": "rank"},
        "word": {"=": ["a", "b"], "scale": "word"},
        "seconds": {"=": [[1.0, 2.0], [3.0, 4.0]], "dims": ["rank", "word"], "@units": "s", "@long_name": "time"},
        "@suite": "put",
        "@dims": ["rank", "word"],
        "@n": 1,
    }
    calls = {
        "tokens": {"=": [16, 0, 4096], "scale": "tokens", "@units": "B"},
        "rank": {"=": [0, 1], "scale": "rank"},
        "iteration": {"=": [0, 1, 2, 3, 4, 5, 6], "scale": "iteration"},
        "call_time": {"=": [[[1e-3] * 7] * 2] * 3, "dims": ["tokens", "rank", "iteration"], "@units": "s"},
        "core_share": {
            "=": [[[1.0] * 7, [0.5] * 7]] * 3,
            "dims": ["tokens", "rank", "iteration"],
            "@long_name": CORE_SHARE,
        },
        "@suite": "layer",
        "@dims": ["tokens", "rank", "iteration"],
        "@disturbed": "rank 1",
    }
    facts = {"@ranks": 2, "@hosts": ["a"], "@cores_of_rank": ["0", "1"], "@node_of_rank": [0, 0], "@finished": False}
    facts |= {"@suite_seconds.layer": 1.5, "@crowded": "", "@cpu": "x", "@isa": "avx2", "@mpi_library": "y"}
    run = {"put": table, "layer": calls, **facts, "@command": "bench", "@argv": ["-m"], "@versions.numpy": "2"}
    return json.dumps({"@schema": hdf5.SCHEMA, "runs": {"20260101T000000Z-abcdef": run}}).encode()


# ---- command lines

# With the options below these commands end soon and write no files. A model's plan takes long without compilation.
HARMLESS = {"models", "inspect", "plan", "topo", "run"}


def commands(data: bytes) -> None:
    """Read the words of a command line, one on each line. Options are parsed; harmless commands run."""
    name, *words = data.decode(errors="surrogateescape").replace("\0", "").split("\n")
    out = io.TextIOWrapper(io.BytesIO(), errors="backslashreplace")
    stdin, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO())
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = command(name, words)
    except SystemExit as ended:
        code = ended.code
    except UsageError:
        code = 2
    finally:
        sys.stdin = stdin
    if code not in (0, 1, 2, 3):
        raise Undocumented(f"exit code {code!r}")


def command(name: str, words: list[str]) -> Any:
    """A command's exit code. It is 0 if the options were only parsed."""
    if name not in cli.commands():
        return cli.main([name])
    if name == "bench":
        command_line.parse(words)
        return 0
    module = importlib.import_module("ptxsim.command" if name == "simt" else f"aristos.cli.{name}")
    asked = module.options(words)
    asked = asked[0] if isinstance(asked, tuple) else asked
    away = [getattr(asked, key, None) for key in ("plot", "discover", "measure", "model")]
    reads = {
        "topo": getattr(asked, "nvidia_smi", None) or getattr(asked, "slurm_topology", None),
        "run": getattr(asked, "dry_run", False) and getattr(asked, "nvidia_smi", None),
    }
    if name in HARMLESS and not any(away) and reads.get(name, True):
        return exit_code(name, lambda: module.main(words))
    return 0


LINES = (
    "bench put layer --preset mixtral-8x7b --tokens 8,16 --hidden 8 --threads 2 --alpha 2us,1ms --rate 25,1GB/s",
    "bench layer --experts 4 --out none --json --backend cuda --dtype bfloat16 --seconds 3 --moves auto",
    "compare r.h5 s.h5 --run 2026 --run 2027 --out d --no-plots",
    "doctor --json --timeout 5",
    "explore --ranks 2 --rows 0 --calls 3 --transport rma --stay 1 --schedules 3 --seed 4 --mutation all",
    "inspect olmoe --ranks 1 2 --tokens 16 --dtype float32 --json",
    "models --json mixtral-8x7b",
    "plan p.json --deadline 1 --seed 2 --objective max --allreduce any --json",
    "plan --model mixtral-8x7b --cluster c.json --tokens 64 --bytes 2 --inference --deadline 1",
    "plan --model mixtral-8x7b --topology l.json --deadline 1",
    "plot r.h5 --run 2026 --format svg --out d",
    "run -n 2 --smt --launcher mpirun --restarts 2 --restart-ranks 2,1 --dry-run --nvidia-smi smi.txt -- python x.py",
    "simt check --launch k<<<1,2>>>(3) --seeds 2 --sm-count 2 --arch sm_90 --limit 99 k.ptx",
    "simt profile --json --no-check --seed 1 --devices 2 x.py a",
    "soak --minutes 2 --objects 3 --seed 1 --first 2 --largest 8",
    "topo --nvidia-smi smi.txt --slurm-topology s.conf --json",
    "topo --measure --out o.json --again --nvidia-smi smi.txt",
    "--version",
    "--help",
)


def lines() -> tuple[bytes, ...]:
    return tuple(line.replace(" ", "\n").encode() for line in LINES)


def commands_files(folder: Path, files: dict[str, bytes]) -> None:
    """The files that command lines name."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "olmoe").mkdir()
    fill(folder / "olmoe", json.loads(models()[0]), in_model)

"""The targets of fuzzing: every reader of text or files that may come from anywhere. A target takes bytes.

A target ends in a value or in one of the package's errors. Any other exception, a crash, 10 s of processor time or much
memory is a find. `seeds` are valid inputs of each target, to be changed by `mutate.py` or atheris.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import folders
import h5py
import numpy as np
import packed_models
import topo_text

from aristos import MoEConfig, Router
from aristos.bench import routing
from aristos.bench.plots import timeline
from aristos.checkpoint import Checkpoint
from aristos.checkpoint.directory import INDEX as INDEX_NAME
from aristos.checkpoint.directory import Directory
from aristos.checkpoint.safetensors import SafetensorsFile
from aristos.errors import AristosError
from aristos.host import launch_environment, mpi_library, slurm_variables, workarounds
from aristos.launcher import commands as launch_commands
from aristos.launcher import take_seat
from aristos.layer import on_disk, saving
from aristos.models import MODELS
from aristos.placement import Placement
from aristos.planner import load as load_problem
from aristos.planner import machine, published
from aristos.primitives import isa
from aristos.report import gantt, page, timeline_part
from aristos.results import Run, Table, append, guarded, hdf5
from aristos.simulate import machines
from aristos.topology import (
    cpusets,
    hostlist,
    links,
    matrix,
    slurm_job,
    slurm_network,
    texts,
    visible,
)
from aristos.topology.model import Gpu, Mig
from ptxsim import PtxsimError, check, host_code, launch_arguments, launch_text, suppress

DOCUMENTED = (AristosError, PtxsimError, OSError)


@dataclass(frozen=True)
class Target:
    """read: what is called with an input. seeds: valid inputs. words: bytes put into inputs, besides the usual ones.

    memory: bytes of address space that are left to the process.
    """

    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()
    memory: int = 4 << 30


def decoded(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: read(texts.decoded(data))


def environment(data: bytes) -> dict[str, str]:
    """Variables from lines NAME=VALUE."""
    lines = data.decode(errors="surrogateescape").replace("\0", "").split("\n")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def in_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """A target that writes its input to a file, which `read` reads."""

    def call(data: bytes) -> object:
        path = Path(name)  # a file in the folder of the run
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return read(path)

    return call


def hosts(text: str) -> None:
    hostlist.fold(hostlist.expand(text))


def variables(data: bytes) -> None:
    env = environment(data)
    launch_environment.started_as(env)
    slurm_variables.step_nodes(env), slurm_variables.wanted_tasks(env), slurm_variables.counted(env)
    take_seat.slurm_tasks(env)
    take_seat.from_json(env.get("ARISTOS_SEATS", ""), 2)
    with contextlib.suppress(take_seat.NoRank):
        take_seat.local_rank(env)
    with undocumented(OSError):
        places(env)
    slurm_job.read(env)


def places(env: dict[str, str]) -> None:
    """The MPI library, the GPUs and the instruction set that variables ask for."""
    visible.visible(env, GPUS)
    list(itertools.islice(mpi_library.candidates(env), 100))
    facts = workarounds.this_machine(env)
    for kind in ("MPICH", "Open MPI", "Intel MPI"):
        library = mpi_library.Library(kind, "", wheel=True)
        workarounds.workarounds(env, library, facts)
        launch_environment.stranger(env, library), launch_environment.mismatch(3, env, library)
    links.cache_path(["h"], ["s"], "MPI", env)
    with contextlib.suppress(AristosError):
        isa.choose(list(isa.NEEDS), env.get("ARISTOS_ISA"), "")
    with contextlib.suppress(AristosError):
        launch_commands.allocation(env), launch_commands.cpus_per_node(env)


@contextlib.contextmanager
def undocumented(*kinds: type[Exception]) -> Iterator[None]:
    """In the `with` block these errors are finds, although other readers may raise them."""
    try:
        yield
    except kinds as error:
        raise folders.Undocumented(f"{type(error).__name__}: {error}") from error


def cpu_list(text: str) -> None:
    try:
        cpusets.show(cpusets.parse(text))
    except ValueError as error:
        if "a list of CPUs must look like" not in str(error):
            raise


def addresses(text: str) -> None:
    slurm_network.from_addresses([tuple((line + " ").split(" ", 1)) for line in text.split("\n")])


def links_file(path: Path) -> None:
    links.problem(links.load(path), 10**6)


def options(data: bytes) -> None:
    """Options from JSON: {"config": {...}, "router": {...}, "placement": [ranks, experts, world]}."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(found, dict):
        return
    known = {**MoEConfig.__dataclass_fields__, **Router.__dataclass_fields__}
    for kind, build in (("config", MoEConfig), ("router", Router)):
        given = found.get(kind)
        if isinstance(given, dict) and set(given) <= set(known) & set(build.__dataclass_fields__):
            try:
                build(**given)
            except TypeError as error:
                if "required positional" not in str(error):
                    raise
            except AristosError:
                pass
    if isinstance(given := found.get("placement"), list) and len(given) == 3:
        sizes = [n for n in given[1:] if isinstance(n, int) and n > 10_000]
        if not sizes:  # a placement of more experts is meant to take much memory
            Placement(*given)


def tensors(path: Path) -> None:
    file = SafetensorsFile(path)
    for name in file.entries:
        file.array(name).tobytes()


def shards(path: Path) -> None:
    """Read an index that lies beside config.json and a file with one tensor, `w`."""
    path.with_name("config.json").write_text(json.dumps(CONFIG))
    path.with_name("a.safetensors").write_bytes(safetensors())
    directory = Directory(path.parent)
    for name in directory.names("")[:9]:
        with contextlib.suppress(AristosError):
            directory.array(name)


def saved(path: Path) -> None:
    """Read a training object's directory as the next save and a restore do."""
    with contextlib.suppress(ValueError, RecursionError, AttributeError, KeyError):
        given = json.loads(path.read_bytes())
        del given["digest"]  # a wrong digest would hide all that is read after it
        path.write_text(json.dumps(given | {"digest": saving.digest_of(saving.canonical(given))}))
    about = saving.read_manifest(path.parent)
    saving.undo(path.parent, saving.begin(path.parent, {about.id}))
    on_disk.check_layers(path.parent, about.layers, saving.described([LAYER]))


def timeline_file(path: Path) -> None:
    _, spans, facts = timeline.read(str(path))
    timeline._title(facts, spans)
    figures = page.Figures()
    timeline_part.part(gantt.read(str(path)), figures.add, "call")
    figures.scripts()


def cluster(path: Path) -> None:
    machine.size(found := machine.load(path))
    published.build(MODELS["mixtral-8x7b"], 64, found, inference=True)


def simulated_machine(path: Path) -> None:
    machines.load(path).links.routes(3)


class Memory:
    """The memory of a simulated device."""

    number = 0

    def array(self, values: np.ndarray, name: str) -> np.ndarray:
        return values

    def empty(self, shape: tuple[int, ...], dtype: np.dtype, name: str) -> None:
        return None

    def symmetric(self, shape: tuple[int, ...], dtype: np.dtype, name: str) -> list[np.ndarray]:
        return []


def launches(text: str) -> None:
    """Read launches in the comments of a kernel's file, and their arguments: arrays of up to 16 MiB."""
    launch_arguments.MOST_BYTES = 1 << 24
    host_code.without_host_code(text), check.parameter_names(text, "add")
    for each in launch_text.in_comments(text)[:8]:
        make = launch_arguments.Arguments(Memory(), Path.cwd())
        if array := launch_text.read_each(each):
            make.each(array, Memory())
            continue
        symbol = launch_text.read_symbol(each)
        if symbol:
            make.make(symbol.value, symbol.name)
            continue
        found = launch_text.read(each)
        for at, argument in enumerate(found.arguments):
            make.make(argument, str(at))


def known_reports(text: str) -> None:
    """Read a file of known reports."""
    suppress.rules_in(text, "known")


def array_file(path: Path) -> None:
    """Read an array that lies beside a kernel's file."""
    launch_arguments.Arguments(Memory(), path.parent).make(path.name, "a")


def model(path: Path) -> None:
    Checkpoint(path.parent)


def ptx(text: str) -> None:
    from ptxsim.lower import lower
    from ptxsim.parser import parse

    lower(parse(text))


# ---- seeds


def npz() -> tuple[bytes, ...]:
    found = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        ids = np.array([[[0, 1]], [[2, 0]], [[1, 2]]], np.uint16)
        save(file, expert_ids=ids, gate_weight_1e4=np.full(ids.shape, 5000, np.uint16), seq_lens=np.array([2, 1]))
        found.append(file.getvalue())
    file = io.BytesIO()
    np.savez(file, counts=np.array([[[2, 2, 0]]]), tokens=np.array([2]))
    return (*found, file.getvalue())


def npy() -> tuple[bytes, ...]:
    found = []
    for array in (np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((), np.int64)):
        file = io.BytesIO()
        np.save(file, array)
        found.append(file.getvalue())
    return tuple(found)


def results(folder: Path) -> tuple[bytes, ...]:
    table = Table("put", attributes={"n": 1}).dim("rank", range(2)).dim("word", ["a", "b"])
    table.add("seconds", ("rank", "word"), [[1.0, 2.0], [3.0, 4.0]], "s", "time")
    path = append(folder / "seed.h5", Run("x", {"command": "bench", "argv": ["-m"], "mixed": [1, "a"]}, [table]))
    big = folder / "big.h5"
    with h5py.File(path) as one, h5py.File(big, "w", libver="latest") as other:
        for key, value in one.attrs.items():
            other.attrs[key] = value
        one.copy("runs", other)
    return path.read_bytes(), big.read_bytes()


def measured() -> bytes:
    n = 2
    rows = [[0.0 if a == b else 5.0 for b in range(n)] for a in range(n)]
    span = links.Span(rows, rows)
    device = links.RankDevice("H100", "GPU0", "0-3", 100.0, "table", 1 << 30, "sysfs")
    kinds = [["self", "NV4"], ["NV4", "self"]]
    made = links.Links(["h", "h"], [device] * n, kinds, span, span, rows, [["measured"] * n] * n, span, ["f"], ["n"])
    return json.dumps(made.to_json()).encode()


def drawn() -> tuple[bytes, ...]:
    rng = random.Random(0)
    return tuple(topo_text.printed(topo_text.machine(rng)).encode() for _ in range(6))


PROBLEM = {
    "experts": 4,
    "layer_cost": 1.0,
    "payload_mib": 1.0,
    "crossings": 2,
    "stages": 2,
    "gradient_mib": 1.0,
    "devices": [{"rate": 1, "memory": 4, "name": "a"}, {"rate": 1, "memory": 4}],
    "alpha_us": [[0, 1], [1, 0]],
    "beta_us_per_mib": [[0, 1], [1, 0]],
    "loads": [1, 2, 3, 4],
}
OPTIONS = {
    "config": {"hidden": 8, "ffn": 16, "experts": 4, "top_k": 2, "gated": True, "limit": 7.0},
    "router": {"score": "sigmoid", "groups": 2, "topk_groups": 1, "scale": 2.5},
    "placement": [[0, [1, 0], 1, 0], 4, 2],
}
CONFIG = {
    "model_type": "olmoe",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 1,
    "hidden_act": "silu",
    "norm_topk_prob": False,
}
TENSORS = json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, "__metadata__": {"a": "b"}})
TREE = b"SwitchName=s0 Nodes=n[1-2]\nSwitchName=s1 Nodes=n[3-4]\nSwitchName=top Switches=s[0-1]\n"
BLOCK = b"BlockName=b1 Nodes=n[1-2]\nBlockName=b2 Nodes=n[3-4]\nBlockSizes=2,4\n"
MACHINES = (
    b"links: {latency: 2.0, rate: 25.0}\ncosts: {put: 300}\nkernel: {call: 0, rates: {1: 8, 48: 250}}\n",
    b"network: {fat-tree: {down: [2, 3], up: [1, 2], cables: [1, 2]}, rate: [25, 50], latency: 1, hop: 0.1}\n",
    b"network: {dragonfly: {groups: 2, switches: 3, nodes_each: 2, between: 2}, rate: 25}\n",
    b"network: {torus: [4, 3], rate: 5}\n",
    b"network: {slurm: m.yaml, rate: 5, nodes: 'n[1-4]'}\n",
    b"network: {file: m.yaml}\n",
)
YAML = b"- topology: t\n  cluster_default: true\n  tree:\n    switches:\n    - switch: s0\n      nodes: n[1-4]\n"
JOB = (
    b"SLURM_JOB_ID=7\nSLURM_JOB_NODELIST=n[1-2]\nSLURM_STEP_ID=0\nSLURM_STEP_NODELIST=n[1-2]\nSLURM_LOCALID=1\n"
    b"SLURM_STEP_TASKS_PER_NODE=2(x2)\nSLURM_NODEID=1\nSLURM_STEP_NUM_NODES=2\nSLURM_PROCID=1\nSLURM_NTASKS=4\n"
    b"SLURM_JOB_GPUS=0-3\nSLURM_HET_SIZE=1\nPMI_RANK=1\nPMI_SIZE=4\nMPI_LOCALRANKID=1\nMPI_LOCALNRANKS=2\n"
)
OWN = (
    b"CUDA_VISIBLE_DEVICES=1,GPU-a1,MIG-b2\nCUDA_DEVICE_ORDER=PCI_BUS_ID\nLD_LIBRARY_PATH=/opt/mpi/lib:/x\n"
    b"MPI4PY_LIBMPI=libmpi.so\nLD_PRELOAD=/x/libmpi.so.12\nARISTOS_ISA=avx2\nARISTOS_CACHE=/tmp/c\nSLURM_MPI_TYPE=pmix\n"
    b"OMPI_COMM_WORLD_LOCAL_RANK=1\nOMPI_COMM_WORLD_SIZE=4\nOMPI_COMM_WORLD_RANK=2\nPMIX_RANK=1\nSLURM_STEP_ID=0\n"
    b"SLURM_JOB_ID=7\nSLURM_JOB_CPUS_PER_NODE=2(x2),4\nSLURM_JOB_NODELIST=n[1-3]\nSLURMD_NODENAME=n1\nXDG_CACHE_HOME=/c"
)
GPUS = (
    Gpu(0, uuid="GPU-a1", name="A", mig=(Mig(0, "MIG-b2", "1g"), Mig(1, "MIG-GPU-a1/1/0", "1g"))),
    Gpu(1, uuid="GPU-c3", name="B"),
)
LAYER = MoEConfig(hidden=8, ffn=16, experts=4)
SAVED = {"schema": saving.FIRST, "folder": "saved-3", "layers": [repr(LAYER)], "optimizer": ["Adam", 7]}
SAVED_LAST = SAVED | {
    "schema": saving.SCHEMA,
    "id": "a1",
    "layers": saving.described([LAYER]),
    "extra": {"step": 7, "b": [1.5, None]},
    "files": {"layer-0-common.npz": [7, "b2"], "dense.npz": [0, ""]},
    "digest": "",
}
INDEX = {"metadata": {"total_size": 16}, "weight_map": {"w": "a.safetensors", "v": "a.safetensors"}}
CLUSTER = {
    "alpha_us": 15,
    "beta_us_per_mib": 47.7,
    "children": [
        {"count": 4, "alpha_us": 3, "beta_us_per_mib": 4.5, "children": [{"count": 4, "tflops": 312, "memory_gb": 80}]}
    ],
}
TIMELINE = {
    "otherData": {"layer": "x", "schedule": "fused", "moves": "auto"},
    "traceEvents": [
        {"ph": "M", "name": "thread_name", "pid": 0, "tid": 1, "args": {"name": "worker 1"}},
        {"ph": "X", "name": "expert", "cat": "expert", "pid": 0, "tid": 1, "ts": 1.5, "dur": 2.0},
    ],
}
LAUNCHES = (
    b'#include <x>\n__global__ void add(const float* a, int n) { /* } */ }\nint main() { add<<<1, 2>>>("}", 3); }\n'
    b"// simt: add<<<8, 128>>>(a:float32[10]=seed:1, float32[10], 1000, a)\n"
    b"  // simt: n::k<int><<<(2,1), dim3(32, 1), 64>>>(int32[9]=seed:7<10, int8[2]=range, bool[4]=true, 0x1f, -2.5f);\n"
)
PTX = b""".version 8.0
.target sm_90
.address_size 64
.global .align 4 .b8 g[8] = {1, 2, 3, 4};
.func (.param .b32 r) f(.param .b32 a) { .reg .b32 %r<3>; ld.param.u32 %r1, [a]; st.param.b32 [r], %r1; ret; }
.visible .entry k(.param .u64 p, .param .u32 n) .maxntid 32,1,1
{
.reg .pred %p<2>; .reg .b32 %r<9>; .reg .b64 %rd<5>; .reg .f32 %f<3>;
.shared .align 8 .b8 s[64];
ld.param.u64 %rd1, [p]; ld.param.u32 %r1, [n]; mov.u32 %r2, %tid.x; setp.ge.u32 %p1, %r2, %r1;
@%p1 bra DONE;
mul.wide.u32 %rd2, %r2, 4; add.s64 %rd3, %rd1, %rd2; ld.global.f32 %f1, [%rd3+0]; fma.rn.f32 %f2, %f1, 0f3F800000, %f1;
st.global.f32 [%rd3], %f2; bar.sync 0; atom.global.add.u32 %r3, [%rd1], 1; shfl.sync.bfly.b32 %r4, %r3, 1, 31, -1;
DONE: ret;
}
"""


SWITCHES = (
    b"SwitchName=",
    b"Nodes=",
    b"Switches=",
    b"BlockName=",
    b"BlockSizes=",
    b"n[0-131071]",
    b"\\\n",
    b"*a",
    b"&a ",
)
JSON = (b"null", b"1e999", b"NaN", b"true", b"[]")
C = (b"<<<", b">>>", b"/*", b'"', b"{", b"}", b"__global__ ", b"namespace ", b"float32[", b"=seed:", b"(((")
HDF5_WORDS = (b"TREE", b"SNOD", b"HEAP", b"GCOL", b"OHDR")


def safetensors() -> bytes:
    return len(TENSORS).to_bytes(8, "little") + TENSORS.encode() + bytes(16)


def targets(folder: Path) -> dict[str, Target]:
    """All targets by name. folder: for the files that seeds are made of, and those that command lines name."""
    folders.commands_files(
        folder,
        {
            "p.json": json.dumps(PROBLEM).encode(),
            "c.json": json.dumps(CLUSTER).encode(),
            "l.json": measured(),
            "smi.txt": drawn()[0],
            "s.conf": TREE,
        },
    )
    return {
        "matrix": Target(decoded(matrix.parse), drawn(), (b"NV11", b"GPU0", b"\t", b"PIX", b" X ", b"\x1b[4m", b"N/A")),
        "hostlist": Target(decoded(hosts), (b"n[1-3,05]-ib[0-1],login", b"a,b[7]"), (b"[0-131071]", b"[", b"]", b",")),
        "cpus": Target(decoded(cpu_list), (b"0-3,8,10-11",), (b"-", b",")),
        "slurm_network": Target(decoded(slurm_network.parse), (TREE, BLOCK, YAML, b"RingName=r Nodes=a,b,c"), SWITCHES),
        "slurm_addresses": Target(decoded(addresses), (b"s[1-2].leaf.n3 switch.switch.node\n..n4 ",), (b"[0-9]", b".")),
        "environment": Target(variables, (JOB,), (b"SLURM_TOPOLOGY_ADDR=a.b\n", b"(x9)", b"HET_GROUP_0=n\n")),
        "variables": Target(variables, (OWN,), (b"(x9)", b"GPU-", b"MIG-", b":", b"A" * 300)),
        "sysfs": Target(folders.machine, (folders.sysfs(),), JSON),
        "commands": Target(folders.commands, folders.lines(), (b"\n--", b"\n--json", b"\n-", b"nan", b"1,2")),
        "links": Target(in_file("l.json", links_file), (measured(),), JSON),
        "problem": Target(in_file("p.json", load_problem), (json.dumps(PROBLEM).encode(),), JSON),
        "cluster": Target(in_file("c.json", cluster), (json.dumps(CLUSTER).encode(),), JSON),
        "machine": Target(
            in_file("m.yaml", simulated_machine), MACHINES, (b"rate: ", b"[4, 2]", b"&a ", b"*a", b"m.yaml")
        ),
        "machine_file": Target(
            in_file("m.json", simulated_machine),
            (measured(), json.dumps(CLUSTER).encode(), json.dumps(PROBLEM).encode()),
            JSON,
        ),
        "options": Target(options, (json.dumps(OPTIONS).encode(),), JSON),
        "trace": Target(in_file("t.npz", lambda path: routing.load(str(path))), npz(), (b"'<m8'", b"'|O'", b"shape")),
        "results": Target(in_file("r.h5", hdf5.read), results(folder), HDF5_WORDS, 2 * guarded.SPARE),
        "parts": Target(folders.parts, (folders.results(),), JSON),
        "timeline": Target(in_file("t.json", timeline_file), (json.dumps(TIMELINE).encode(),), JSON),
        "saved": Target(
            in_file("saved/saved.json", saved), tuple(json.dumps(each).encode() for each in (SAVED, SAVED_LAST)), JSON
        ),
        "index": Target(in_file(f"shards/{INDEX_NAME}", shards), (json.dumps(INDEX).encode(),), JSON),
        "model": Target(folders.model, folders.models(), JSON),
        **{f"packed_{name}": Target(packed_models.model, seeds, JSON) for name, seeds in packed_models.seeds().items()},
        "safetensors": Target(in_file("s.safetensors", tensors), (safetensors(),), (b'"BF16"', b'"F4"', b"[0, 0]")),
        "config": Target(in_file("model/config.json", model), (json.dumps(CONFIG).encode(),), (b'"mixtral"', b"null")),
        "ptx": Target(decoded(ptx), (PTX,), (b"{", b"}", b".reg .b32 %x<9>;", b"call f, ();", b"[%rd1+8]")),
        "launches": Target(decoded(launches), (LAUNCHES,), C),
        "known": Target(decoded(known_reports), (b"# known\n\nrace k.cu:41 both write it\nmisuse a.cu why\n",)),
        "array": Target(in_file("a.npy", array_file), npy(), (b"'<m8'", b"'|O'", b"shape", b"(", b"9")),
    }

"""The peers of the comparison: layers and matrix products.

Every layer does the same job: tokens with ids and weights routed from outside, expert-parallel over the ranks of its
team, without drops, on one thread per rank. A peer keeps its weights and buffers between calls, and converts inputs to
its dtype before the clock starts. rounds.py times and checks all peers alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from jobs import Floats


class Absent(Exception):
    """The peer cannot run on this machine; the message gives the reason and is shown on the page."""


class Peer(Protocol):
    """One layer or product. Made by factory(comm, job, **options) on all ranks together."""

    def __call__(self, i: int) -> float | None:
        """Compute input i, on all ranks together. Returns the seconds if the peer measures them itself."""

    def output(self) -> Floats:
        """The result of the last call: [S, H], in any floating dtype that float32 holds."""

    def arrays(self) -> Iterable[Any]:
        """What the last call has read and written: rows, weights, outputs; each has a dtype."""

    def close(self) -> None:
        """Free the peer's resources. Collective."""


def ran(peer: Any) -> dict[str, str]:
    """The types of a peer's last call: the "dtype" of all its arrays, and what the peer itself reports.

    Aristos reports "precision" and "isa". Peers with weights of codes report "weights", the type of the codes.
    """
    names = dict.fromkeys(str(each.dtype).removeprefix("torch.") for each in peer.arrays() if each is not None)
    return {"dtype": " and ".join(names), **getattr(peer, "kernels", dict)()}


BOUNDS = {"float32": 1e-5, "bfloat16": 3e-2}
HIGH = 2e-5  # bound for float32 with precision="high"
INT8_ROWS = 5e-2  # bound for peers that round rows to codes of 8 bits


@dataclass(frozen=True)
class Entry:
    """A peer: its name on the command line, its title in tables, its environment, and the factory that makes it.

    weights: "int8" or "int4" if it reads codes of this type, and runs only on jobs with such weights. int8_rows:
    whether it rounds rows to codes of 8 bits. checked: whether its output can be seen. ours: whether it is Aristos. Its
    output is wrong if its error, relative to float64, exceeds the bound of its dtype and precision.
    """

    name: str
    title: str
    environment: str
    factory: str
    dtype: str = "float32"
    options: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    int8_rows: bool = False
    checked: bool = True

    @property
    def ours(self) -> bool:
        return self.environment == "aristos" or self.options.get("way") == "aristos"

    @property
    def bound(self) -> float:
        if self.int8_rows:
            return INT8_ROWS
        high = self.options.get("config", {}).get("precision") == "high"
        return HIGH if high else BOUNDS[self.dtype]


def _aristos(name: str, title: str, dtype: str = "float32", schedule: str = "fused", **config: Any) -> Entry:
    options = {"schedule": schedule, "dtype": dtype, "config": config}
    return Entry(name, f"Aristos {title}", "aristos", "peers.aristos_layer:AristosLayer", dtype, options)


def _torch(name: str, title: str, dtype: str, exchange: str, experts: str) -> Entry:
    options = {"dtype": dtype, "exchange": exchange, "experts": experts}
    return Entry(name, f"torch {title}", "torch", "peers.torch_layer:TorchLayer", dtype, options)


def _other(name: str, title: str, environment: str, factory: str, dtype: str = "float32") -> Entry:
    return Entry(name, title, environment, factory, dtype, {"dtype": dtype})


LAYERS = {
    entry.name: entry
    for entry in (
        _aristos("fused", "fused"),
        _aristos("bulk", "bulk", schedule="bulk"),
        _aristos("high", "fused, high precision", precision="high"),
        Entry("numpy", "Alltoallv + NumPy", "numpy", "peers.alltoallv_numpy:AlltoallvNumPy"),
        _torch("torch-packed", "MPI, oneDNN packed", "float32", "mpi", "packed"),
        _torch("torch-loop", "MPI, loop of mm", "float32", "mpi", "loop"),
        _torch("torch-grouped", "gloo, grouped_mm", "float32", "gloo", "grouped"),
        _other("deepspeed", "DeepSpeed, gloo", "deepspeed", "peers.deepspeed_layer:DeepSpeedLayer"),
        _other("jax", "JAX, gloo", "jax", "peers.jax_layer:JaxLayer"),
        _aristos("bf16", "fused", "bfloat16"),
        _aristos("bf16-bulk", "bulk", "bfloat16", "bulk"),
        _torch("torch-bf16-packed", "MPI, oneDNN packed", "bfloat16", "mpi", "packed"),
        _torch("torch-bf16-loop", "MPI, loop of mm", "bfloat16", "mpi", "loop"),
        _torch("torch-bf16-grouped", "gloo, grouped_mm", "bfloat16", "gloo", "grouped"),
        _other("deepspeed-bf16", "DeepSpeed, gloo", "deepspeed", "peers.deepspeed_layer:DeepSpeedLayer", "bfloat16"),
    )
}


def _step(name: str, title: str, dtype: str, environment: str, **options: Any) -> Entry:
    options["dtype"] = dtype
    return Entry(name, title, environment, f"peers.{environment}_step:{environment.capitalize()}Step", dtype, options)


STEPS = {
    entry.name: entry
    for entry in (
        _step("step", "Aristos", "float32", "aristos", save="hidden"),
        _step("step-rows", 'Aristos, save="rows"', "float32", "aristos", save="rows"),
        _step("torch-step-loop", "torch autograd, gloo, loop of mm", "float32", "torch", experts="loop"),
        _step("torch-step-grouped", "torch autograd, gloo, grouped_mm", "float32", "torch", experts="grouped"),
        _step("bf16-step", "Aristos", "bfloat16", "aristos", save="hidden"),
        _step("bf16-step-rows", 'Aristos, save="rows"', "bfloat16", "aristos", save="rows"),
        _step("torch-bf16-step-loop", "torch autograd, gloo, loop of mm", "bfloat16", "torch", experts="loop"),
        _step("torch-bf16-step-grouped", "torch autograd, gloo, grouped_mm", "bfloat16", "torch", experts="grouped"),
    )
}

_KT = "kt-kernel", "peers.kt_kernel_layer:KtKernelLayer"

UNPADDED = {name: entry for name, entry in LAYERS.items() if entry.environment not in ("deepspeed", "jax")}


def _alone(name: str, title: str) -> Entry:
    """A torch layer on one rank, which exchanges nothing."""
    return replace(LAYERS[name], title=f"torch, {title}")


ONE_RANK = {
    entry.name: entry
    for entry in (
        LAYERS["fused"],
        _alone("torch-packed", "oneDNN packed"),
        LAYERS["bf16"],
        _alone("torch-bf16-packed", "oneDNN packed"),
        _alone("torch-bf16-loop", "loop of mm"),
        _alone("torch-bf16-grouped", "grouped_mm"),
        Entry("kt-kernel", "kt-kernel", *_KT, "bfloat16"),
    )
}


def _codes(weights: str) -> tuple[Entry, ...]:
    """Peers with weights of codes. Except those with int8_rows, all have 16-bit rows."""
    ours = _aristos(weights, weights, "bfloat16", weight_dtype=weights)
    torch = _torch(f"torch-{weights}", weights, "bfloat16", "mpi", weights)
    kt = Entry(f"kt-{weights}", f"kt-kernel {weights}", *_KT, "bfloat16", {"weights": weights}, weights, int8_rows=True)
    raw = replace(kt, name="kt-raw-int4", title="kt-kernel raw int4", options={"weights": "raw int4"}, int8_rows=False)
    return (
        replace(ours, weights=weights),
        replace(torch, factory="peers.torch_codes:TorchCodes", weights=weights),
        *([raw] if weights == "int4" else []),
        kt,
        replace(
            kt,
            name=f"llama-{weights}",
            title=f"llama.cpp {weights}",
            environment="xllamacpp",
            factory="peers.llama_layer:LlamaLayer",
            checked=False,
        ),
    )


_PLAIN = replace(LAYERS["bf16"], title="Aristos, weights of 16 bits")  # what peers with codes are compared with
CODES = {entry.name: entry for entry in (*_codes("int8"), *_codes("int4"), _PLAIN)}
CODES_MPI = {name: entry for name, entry in CODES.items() if entry.environment in ("aristos", "torch")}


_WAYS = {"eager": "eager", "batched_mm": "batched_mm", "grouped_mm": "grouped_mm", "all_to_all": "all_to_all, gloo"}


def _transformers(way: str, dtype: str) -> Entry:
    """A way to compute an experts module of transformers, by its own code or by Aristos."""
    title = f"transformers, {_WAYS[way]}" if way in _WAYS else "Aristos in transformers"
    name = "hf" + ("-bf16" if dtype == "bfloat16" else "") + (f"-{way}" if way in _WAYS else "")
    options = {"dtype": dtype, "way": way}
    return Entry(name, title, "transformers", "peers.transformers_layer:TransformersLayer", dtype, options)


def _ways(layers: tuple[str, ...], ways: tuple[str, ...]) -> dict[str, Entry]:
    made = [_transformers(way, dtype) for dtype in ("float32", "bfloat16") for way in ("aristos", *ways)]
    return {entry.name: entry for entry in (*made, *(LAYERS[name] for name in layers))}


TRANSFORMERS = _ways(("fused", "bf16"), ("eager", "batched_mm", "grouped_mm"))
TRANSFORMERS_MPI = _ways(("fused", "bf16"), ("all_to_all",))


def with_weights(entries: dict[str, Entry], weights: str) -> dict[str, Entry]:
    """The peers that run on a job with such weights: all except those that read codes of another type."""
    return {name: entry for name, entry in entries.items() if entry.weights in ("", weights)}


def _product(name: str, title: str, environment: str, factory: str, dtype: str, **options: Any) -> Entry:
    if environment != "numpy":
        options["dtype"] = dtype
    return Entry(name, title, environment, f"peers.products:{factory}", dtype, options)


PRODUCTS = {
    entry.name: entry
    for entry in (
        _product("product", "Aristos", "aristos", "AristosProduct", "float32"),
        _product("numpy-product", "NumPy", "numpy", "NumPyProduct", "float32"),
        _product("torch-product", "torch mm", "torch", "TorchProduct", "float32", packed=False),
        _product("torch-product-packed", "torch, oneDNN packed", "torch", "TorchProduct", "float32", packed=True),
        _product("product-bf16", "Aristos", "aristos", "AristosProduct", "bfloat16"),
        _product("torch-product-bf16-packed", "torch, oneDNN packed", "torch", "TorchProduct", "bfloat16", packed=True),
    )
}

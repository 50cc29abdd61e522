"""Measures whole models of transformers: the time of `generate`, and the memory that loading and training take.

    PYTHONPATH=. PEERS/bin/python bench/transformers_models.py generate
    PYTHONPATH=. PEERS/bin/mpiexec -n 2 PEERS/bin/python bench/transformers_models.py generate
    PYTHONPATH=. PEERS/bin/python bench/transformers_models.py memory
    PYTHONPATH=. PEERS/bin/python bench/transformers_models.py training

PEERS is .venv/peers/transformers, which `make test-hf` makes. The model is Qwen3-MoE with random weights: 4 layers of H
2048, F 768, 32 experts, k 8; for training 2 layers of 8 experts. Every way to run the model has one turn in each round;
each rank has one thread. On several ranks transformers' own expert parallelism has two ways: with fsdp each rank has a
prompt of its own, as with Aristos; with tp every rank has all prompts.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded
import torch
from mpi4py import MPI
from transformers import AutoConfig, AutoModelForCausalLM

import aristos
from aristos.integrations import transformers as ours
from aristos.integrations.training import layers_of

SIZES = {
    "hidden_size": 2048,
    "moe_intermediate_size": 768,
    "intermediate_size": 768,
    "num_experts": 32,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 4096,
}
TRAINED = SIZES | {"num_hidden_layers": 2, "num_experts": 8}
TINY = TRAINED | {
    "hidden_size": 64,
    "moe_intermediate_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "head_dim": 16,
}
PROMPT = 32
TOKENS = 256  # tokens of a step of training
POLL_SECONDS = 0.002
MIB = 1 << 20
comm = MPI.COMM_WORLD


def directory(folder: Path, dtype: torch.dtype, sizes: dict[str, int] = SIZES) -> Path:
    """Let rank 0 make a directory with a model. Returns the directory."""
    path = folder / f"{dtype}-{sizes['hidden_size']}"
    if comm.rank == 0:
        torch.manual_seed(0)
        config = AutoConfig.for_model("qwen3_moe", **sizes)
        AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(path)
    comm.Barrier()
    return path


def opened(way: str, path: Path, dtype: torch.dtype) -> Any:
    """The model, opened for one way: Aristos, an experts_implementation, or transformers' own expert parallelism."""
    if way == "Aristos":
        return ours.from_pretrained(path, dtype=dtype).eval()
    if comm.size == 1:
        return AutoModelForCausalLM.from_pretrained(path, experts_implementation=way, dtype=dtype).eval()
    from transformers.distributed import DistributedConfig

    parted = DistributedConfig(**{f"{way}_size": comm.size}, ep_size=comm.size)
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, distributed_config=parted).eval()


def prompts(way: str) -> torch.Tensor:
    """This rank's prompt as token ids, [1, PROMPT]; for "tp", whose ranks have the same tokens, all ranks' prompts."""
    of = range(comm.size) if way == "tp" else [comm.rank]
    vocabulary = SIZES["vocab_size"]
    drawn = [torch.randint(0, vocabulary, (1, PROMPT), generator=torch.Generator().manual_seed(rank)) for rank in of]
    return torch.cat(drawn)


def seconds(model: Any, way: str, new: int) -> float:
    """How long one `generate` of `new` tokens takes the slowest rank."""
    ids = prompts(way)
    comm.Barrier()
    begun = time.perf_counter()
    model.generate(ids, max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=None)
    return float(comm.allreduce(time.perf_counter() - begun, MPI.MAX))


def generate(folder: Path, asked: argparse.Namespace) -> None:
    """Print the time of `generate` by each way, and its ratio to Aristos's in the same round."""
    ours.options(threads=1)
    ways = ["Aristos", *(("eager", "grouped_mm") if comm.size == 1 else ("fsdp", "tp"))]
    for dtype in (getattr(torch, name) for name in asked.dtypes.split(",")):
        path = directory(folder, dtype)
        models = {way: opened(way, path, dtype) for way in ways}
        for way, model in models.items():
            seconds(model, way, 2)  # this makes the layers
        turns: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(asked.rounds):
            for way, model in models.items():
                turns[way].append(seconds(model, way, asked.new))
            if comm.rank == 0:
                took = ", ".join(f"{way} {turns[way][-1]:.2f} s" for way in ways)
                print(f"round {number + 1} of {asked.rounds}: {took}", file=sys.stderr, flush=True)
        ours.close(models["Aristos"])
        for way in ways if comm.rank == 0 else ():
            over = sorted(theirs / mine for theirs, mine in zip(turns[way], turns["Aristos"], strict=True))
            print(
                f"{str(dtype)[6:]:9s} {comm.size} ranks  {way:10s} {statistics.median(turns[way]):6.2f} s"
                f"  {over[len(over) // 2]:5.2f} ({over[0]:.2f} - {over[-1]:.2f}) times Aristos's",
                flush=True,
            )


def resident() -> int:
    """Bytes of this process's own and shared memory, without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon", "RssShmem")))


class Peak:
    """The most memory that was resident since this object was made."""

    def __init__(self) -> None:
        self.most, self._ended = resident(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            self.most = max(self.most, resident())

    def end(self) -> int:
        self._ended.set()
        self._thread.join()
        return self.most


def loaded(path: Path, dtype: torch.dtype, load: Callable[..., Any] = ours.from_pretrained) -> tuple[Any, int, int]:
    """Load a model and call it once. Returns (the model, bytes that it took at its peak, bytes that it takes now)."""
    before, peak = resident(), Peak()
    model = load(path, dtype=dtype).eval()
    with torch.no_grad():
        model(torch.zeros(1, 4, dtype=torch.int64))
    return model, peak.end() - before, resident() - before


def memory(folder: Path, _: argparse.Namespace) -> None:
    """Print what loading a model in bfloat16 takes: at its peak and after the first call, beside the rank's experts."""
    dtype = torch.bfloat16
    path = directory(folder, dtype)
    each = 3 * SIZES["hidden_size"] * SIZES["moe_intermediate_size"] * dtype.itemsize
    share = SIZES["num_hidden_layers"] * SIZES["num_experts"] * each // comm.size
    ours.options(threads=1)
    warm, *_ = loaded(path, dtype)  # this imports modules and loads compiled code
    ours.close(warm)
    del warm
    model, most, after = loaded(path, dtype)
    for rank in range(comm.size):
        comm.Barrier()
        if rank == comm.rank:
            print(
                f"rank {rank}: {share / MIB:.0f} MiB of experts; resident memory, with windows but without mapped"
                f" files: {after / share:.2f} times as much, at its peak {most / share:.2f} times",
                flush=True,
            )
    ours.close(model)


def step(path: Path, dtype: torch.dtype) -> tuple[Any, Peak]:
    """Load a model and make the gradients of one batch. Returns (the model, the memory since it was loaded)."""
    model = AutoModelForCausalLM.from_pretrained(path, experts_implementation="aristos", dtype=dtype).train()
    peak = Peak()
    ids = torch.randint(0, SIZES["vocab_size"], (1, TOKENS), generator=torch.Generator().manual_seed(comm.rank))
    model(ids, labels=ids).loss.backward()
    return model, peak


def training(folder: Path, _: argparse.Namespace) -> None:
    """Print what a step of training takes at its peak and after it, beside the sum of what it must hold."""
    ours.options(threads=1, max_tokens=TOKENS)
    for dtype in (torch.float32, torch.bfloat16):
        warm, peak = step(directory(folder, dtype, TINY), dtype)  # this imports modules and loads compiled code
        peak.end()
        ours.close(warm)
        del warm
        path = directory(folder, dtype, TRAINED)
        gc.collect()
        before = resident()
        model, peak = step(path, dtype)
        most, after = peak.end() - before, resident() - before
        layers = [experts.moe for experts in layers_of(model).values()]
        cfg = layers[0].cfg
        parts = {
            "parameters": sum(each.nbytes for each in model.parameters()),
            "their gradients": sum(each.grad.nbytes for each in model.parameters() if each.grad is not None),
            "layers": aristos.MoE.memory(cfg, comm.size, layers=len(layers), threads=1, train=True),
            "tapes": len(layers) * TOKENS * (dtype.itemsize * cfg.hidden + 20 * cfg.top_k),
        }
        expected = sum(parts.values())
        listed = ", ".join(f"{name} {nbytes / MIB:.0f}" for name, nbytes in parts.items())
        for rank in range(comm.size):
            comm.Barrier()
            if rank == comm.rank:
                print(
                    f"{str(dtype)[6:]}, rank {rank}: {expected / MIB:.0f} MiB ({listed}); resident after a step"
                    f" {after / expected:.2f} times as much, at its peak, with torch's activations,"
                    f" {most / expected:.2f}",
                    flush=True,
                )
        ours.close(model)
        del model, layers
        gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("generate", "memory", "training"))
    parser.add_argument("--new", type=int, default=32, help="tokens that a turn of generate makes (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of generate (%(default)s)")
    parser.add_argument(
        "--dtypes", default="float32,bfloat16", help="dtypes of generate, separated by commas (%(default)s)"
    )
    asked = parser.parse_args()
    folder = Path(comm.bcast(tempfile.mkdtemp(prefix="aristos-models-") if comm.rank == 0 else None))
    try:
        {"generate": generate, "memory": memory, "training": training}[asked.what](folder, asked)
    finally:
        if comm.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

"""Mistakes in training on ranks. Each is refused or causes a warning, with advice on what to do instead."""

from __future__ import annotations

import contextlib
import warnings

import pytest
from cases import PATIENCE
from hf_models import batch, on_ranks, opened, small

import aristos
from aristos.errors import InputError, MismatchError

torch = pytest.importorskip("torch")
pytest.importorskip("torch.distributed.fsdp")
pytest.importorskip("transformers")


def step(model, rank: int, *, clip=None, average=None) -> None:
    """Take a step of SGD, after clip(parameters, norm) and average(model) if they are given."""
    ids = batch(rank)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(ids, labels=ids).loss.backward()
    if average is not None:
        average(model)
    if clip is not None:
        clip(model.parameters(), 0.01)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.ranks(2, timeout=120)
def test_data_parallel_models(comm, tmp_path):
    from aristos.integrations.torch import Experts

    ours, folder = on_ranks(comm, tmp_path, "mixtral")
    model = opened(folder, "aristos").train()
    cfg = aristos.MoEConfig(hidden=24, ffn=40, experts=4, top_k=2, activation="silu", gated=True, max_tokens=7)
    with contextlib.closing(Experts(cfg, comm, threads=1, timeout=PATIENCE, train=True)) as experts:
        for module in (model, experts, torch.nn.Sequential(experts)):
            with pytest.raises(InputError, match=r"average gradients of different experts: leave it out"):
                torch.nn.parallel.DistributedDataParallel(module)
    ours.close(model)


@pytest.mark.ranks(2, timeout=120)
def test_gradients_that_torch_has_clipped(comm, tmp_path):
    """Each rank has clipped its gradients by another norm, since it has other experts."""
    ours, folder = on_ranks(comm, tmp_path, "mixtral")
    model = opened(folder, "aristos").train()
    step(model, comm.rank, clip=torch.nn.utils.clip_grad_norm_, average=ours.average_dense_grads)
    with pytest.raises(
        MismatchError, match=r"different values on rank . and on rank .*: steps must be equal.*clip_grad"
    ):
        step(model, comm.rank, average=ours.average_dense_grads)
    ours.close(model)


@pytest.mark.ranks(2, timeout=120)
def test_steps_without_an_average(comm, tmp_path):
    from aristos.integrations import masters

    ours, folder = on_ranks(comm, tmp_path, "mixtral")
    model = opened(folder, "aristos").train()
    masters._say_apart.cache_clear()
    with warnings.catch_warnings(action="error"):
        step(model, comm.rank, average=ours.average_dense_grads)
    with pytest.warns(UserWarning, match=r"this rank's tokens alone: call average_dense_grads\(model\)"):
        step(model, comm.rank)
    ours.close(model)


def test_steps_in_one_process_need_no_average(ours, tmp_path):
    model = opened(small("mixtral", tmp_path), "aristos").train()
    with warnings.catch_warnings(action="error"):
        step(model, 0)
    ours.close(model)


def fsdp1(model):
    """FSDP as it was before `fully_shard`. Its constructor warns that it is deprecated."""
    with warnings.catch_warnings(action="ignore"):
        return torch.distributed.fsdp.FullyShardedDataParallel(model, device_id=torch.device("cpu"))


@pytest.mark.ranks(2, timeout=120)
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("cut", [torch.distributed.fsdp.fully_shard, fsdp1])
def test_experts_that_fsdp_has_cut(comm, tmp_path, first, cut):
    """FSDP cuts the experts before the first call or after it."""
    ours, folder = on_ranks(comm, tmp_path, "mixtral")
    model = opened(folder, "aristos").train()
    if first:
        step(model, comm.rank, average=ours.average_dense_grads)
    store = torch.distributed.FileStore(str(folder / "store"), comm.size)
    torch.distributed.init_process_group("gloo", store=store, rank=comm.rank, world_size=comm.size)
    try:
        with pytest.raises(InputError, match=r"MixtralExperts: FSDP has split its experts, .* leave FSDP out, or"):
            step(cut(model), comm.rank)
    finally:
        torch.distributed.destroy_process_group()
        ours.close(model)

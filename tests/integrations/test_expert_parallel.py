"""transformers' own expert parallelism with ep_implementation="aristos", on the ranks of a mesh."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from cases import PATIENCE, ROOT, clean_environment
from hf_models import GENERATE, batch, experts_of, on_ranks, opened, relative, small, steps

from aristos.errors import EnvironmentProblem, InputError
from aristos.host import mpi_library

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.distributed.expert_parallel")

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@contextlib.contextmanager
def split_among_ranks(comm, folder, kind: str, ranks_per_node: int | None = None, **sizes):
    """(module, eager model, model whose experts transformers has split). The process group ends with the block."""
    from transformers.distributed import DistributedConfig

    ours, folder = on_ranks(comm, folder, kind)
    ours.options(max_tokens=8, threads=1, comm=comm, timeout=PATIENCE, ranks_per_node=ranks_per_node)
    before = {name: os.environ.pop(name, None) for name in VARIABLES}
    try:
        config = DistributedConfig(**sizes, ep_implementation="aristos")
        model = opened(folder, "grouped_mm", distributed_config=config)
        yield ours, opened(folder, "eager"), model
        ours.close(model)
        torch.distributed.destroy_process_group()
    finally:
        for name in VARIABLES:
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in before.items() if value is not None})


def held(model) -> int:
    """Bytes that torch has of this rank's parts of the experts' matrices."""
    matrices = [p for module in experts_of(model) for n, p in module.named_parameters() if not n.endswith("bias")]
    return sum(p.to_local().untyped_storage().nbytes() for p in matrices)


def copies(model) -> int:
    """How many tensors have the shape of this rank's part of a first matrix, or its size if flat. FSDP has some too."""
    gc.collect()
    cfg = vars(experts_of(model)[0])["_aristos"].moe.cfg
    n, wide, hidden = cfg.experts // 2, 2 * cfg.ffn, cfg.hidden
    shapes = {(n, wide, hidden), (n, hidden, wide), (n * wide * hidden,)}
    plain = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
    return sum(tuple(each.shape) in shapes and each.untyped_storage().nbytes() > 4 for each in plain)


def compared(model, theirs) -> None:
    """Check that the weights of both models are equal."""
    for (name, one), other in zip(model.named_parameters(), theirs.parameters(), strict=True):
        whole = one.full_tensor() if hasattr(one, "full_tensor") else one
        assert relative(whole, other) < 1e-5, name


@pytest.mark.ranks(2, timeout=120)
@pytest.mark.parametrize(
    ("kind", "sizes"), [("qwen3_moe", {"tp_size": 2}), ("qwen3_moe", {"fsdp_size": 2}), ("gpt_oss", {"tp_size": 2})]
)
def test_a_mesh_of_two_ranks(comm, tmp_path, kind, sizes):
    with split_among_ranks(comm, tmp_path, kind, **sizes, ep_size=2) as (_, theirs, model):
        rank = comm.rank if "fsdp_size" in sizes else 0  # ranks of a tensor parallel group have the same tokens
        for count in (1, 9 + 6 * rank):
            ids = torch.randint(0, 128, (2, count), generator=torch.Generator().manual_seed(rank))
            with torch.no_grad():
                assert relative(model(ids).logits, theirs(ids).logits) < 1e-5
        assert (model.generate(ids, **GENERATE) == theirs.generate(ids, **GENERATE)).all()
        assert held(model) < 1000
        assert copies(model) == 0
        layers = [vars(module)["_aristos"].moe for module in experts_of(model)]
        assert all(len(moe.placement.mine(comm.rank)) == moe.cfg.experts // 2 for moe in layers)
        with pytest.raises(InputError, match=r"a gradient is asked for, .*: call under torch\.no_grad"):
            model(ids)


@pytest.mark.ranks(2, timeout=120)
@pytest.mark.parametrize("sizes", [{"tp_size": 2}, {"fsdp_size": 2}])
@pytest.mark.parametrize("ranks_per_node", [None, 1])
def test_a_mesh_of_two_ranks_trains_as_one_process(comm, tmp_path, sizes, ranks_per_node):
    """The ranks are on one node, or on two."""
    with split_among_ranks(comm, tmp_path, "qwen3_moe", ranks_per_node, **sizes, ep_size=2) as (ours, theirs, model):
        batches = [batch(rank) for rank in range(sizes.get("fsdp_size", 1))]
        wanted = steps(theirs.train(), batches)
        found = steps(model.train(), [batches[comm.rank % len(batches)]])
        assert vars(experts_of(model)[0])["_aristos"].moe.runtime.group.nodes.single == (ranks_per_node is None)
        if len(batches) == 1:
            assert found == pytest.approx(wanted, rel=1e-5)
        compared(model, theirs)
        with pytest.raises(InputError, match=r"transformers has split this model among ranks: .*save_pretrained"):
            ours.whole_state_dict(model)


@pytest.mark.ranks(2, timeout=120)
def test_ranks_of_a_mesh_stop_at_different_times(comm, tmp_path):
    """transformers makes the ranks continue together (`synced_gpus`)."""
    with split_among_ranks(comm, tmp_path, "qwen3_moe", fsdp_size=2, ep_size=2) as (_, theirs, model):
        ids = torch.randint(0, 128, (1, 3 + 9 * comm.rank), generator=torch.Generator().manual_seed(comm.rank))
        for counts in ((2, 7), (5, 1)):
            fields = GENERATE | {"max_new_tokens": counts[comm.rank]}
            assert (model.generate(ids, **fields) == theirs.generate(ids, **fields)).all()


@pytest.mark.ranks(4, timeout=120)
@pytest.mark.parametrize("sizes", [{"dp_replicate_size": 2, "fsdp_size": 2}, {"fsdp_size": 2, "tp_size": 2}])
def test_a_mesh_of_four_ranks_trains_as_one_process(comm, tmp_path, sizes):
    """Pairs of ranks share the experts, or all four ranks share them and pairs have the same tokens."""
    ep_size, same = (2, 1) if "dp_replicate_size" in sizes else (4, 2)
    with split_among_ranks(comm, tmp_path, "qwen3_moe", **sizes, ep_size=ep_size) as (_, theirs, model):
        batches = [batch(each) for each in range(comm.size // same)]
        steps(theirs.train(), batches)
        steps(model.train(), [batches[comm.rank // same]])
        assert vars(experts_of(model)[0])["_aristos"].moe.world == ep_size
        compared(model, theirs)


@pytest.mark.ranks(2, timeout=120)
@pytest.mark.parametrize("sizes", [{"tp_size": 2}, {"fsdp_size": 2}])
def test_values_are_compared_only_after_changes(comm, tmp_path, sizes):
    """torch counts neither the changes of an optimizer's foreach functions nor writes through `.data`."""
    with split_among_ranks(comm, tmp_path, "qwen3_moe", **sizes, ep_size=2) as (ours, _, model):
        ids = batch(0)[0]
        theirs = [each for module in experts_of(model.train()) for each in module.parameters()]
        optimizer = torch.optim.AdamW(theirs, lr=0.1, foreach=True)  # foreach cannot mix DTensors with other tensors
        model(ids, labels=ids).loss.backward()
        first = next(experts_of(model)[0].parameters())

        def logits(compared: bool = False):
            with torch.no_grad(), mock.patch.object(torch, "equal", wraps=torch.equal) as equal:
                found = model(ids).logits
            assert equal.called == compared
            return found

        before = logits(compared=True)  # the first call, which made the layer, saw other tensors
        assert relative(logits(), before) == 0
        for change in (optimizer.step, lambda: first.mul_(2), lambda: first.to_local().mul_(2)):
            with torch.no_grad():
                change()
            after = logits(compared=True)
            assert relative(after, before) > 1e-3
            assert relative(logits(), after) == 0
            before = after
        first.to_local().data.mul_(2)
        ours.changed(model)
        assert relative(logits(compared=True), before) > 1e-3


NODES = """
import sys, torch
from aristos.integrations import transformers as ours
from hf_models import GENERATE, experts_of, opened, relative
from mpi4py import MPI
from transformers.distributed import DistributedConfig

rank = MPI.COMM_WORLD.rank
ours.options(max_tokens=8, threads=1)
for name in ("tp_size", "fsdp_size"):
    parted = DistributedConfig(**{name: 2}, ep_size=2, ep_implementation="aristos")
    theirs, model = opened("model", "eager"), opened("model", "grouped_mm", distributed_config=parted)
    generator = torch.Generator().manual_seed(rank if name == "fsdp_size" else 0)
    ids = torch.randint(0, 128, (2, 9), generator=generator)
    with torch.no_grad():
        assert relative(model(ids).logits, theirs(ids).logits) < 1e-5
    assert (model.generate(ids, **GENERATE) == theirs.generate(ids, **GENERATE)).all()
    assert not vars(experts_of(model)[0])["_aristos"].moe.runtime.group.nodes.single
    ours.close(model)
    print(f"rank {rank}, {name}: equal", flush=True)
torch.distributed.destroy_process_group()
"""
SLURM_PATH = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("slurmctld", path=SLURM_PATH), reason="no Slurm on this machine")
def test_a_mesh_of_two_nodes_of_slurm(tmp_path):
    small("qwen3_moe", tmp_path / "model")
    (tmp_path / "program.py").write_text(NODES)
    library = mpi_library.find()
    srun = ["srun", f"--mpi={(library and library.pmi) or 'pmi2'}", "-N", "2", "-n", "2"]
    done = subprocess.run(
        [ROOT / "launch" / "virtual_slurm", "run", "--nodes", "2", "--", *srun, sys.executable, "program.py"],
        cwd=tmp_path,
        env=clean_environment() | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}", "PATH": SLURM_PATH},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    wanted = [f"rank {rank}, {name}: equal" for rank in range(2) for name in ("fsdp_size", "tp_size")]
    assert sorted(done.stdout.splitlines()) == wanted


def test_experts_that_fsdp_would_cut_are_refused():
    importlib.import_module("aristos.integrations.transformers")
    from transformers.distributed import DistributedConfig

    config = DistributedConfig(fsdp_size=4, ep_size=2, ep_implementation="aristos")
    for given in (config, config.to_dict()):
        with pytest.raises(InputError, match=r"FSDP would split each expert into 2 parts, .*; set ep_size=4"):
            transformers.PreTrainedModel.prepare_distribute_model(given)


def test_processes_that_mpi_does_not_know_are_refused():
    from aristos.integrations import process_groups

    def gather(found, mine, group):
        found[:] = [mine, mine]

    distributed = mock.patch.multiple("torch.distributed", get_world_size=lambda group: 2, all_gather_object=gather)
    with distributed, pytest.raises(EnvironmentProblem, match="must be different ranks of MPI, got ranks 0, 0: start"):
        process_groups.communicator_of(None)

"""The memory of a model while it is loaded and after its first call, on one rank and on two."""

from __future__ import annotations

import json

import pytest
from cases import ROOT, run_job
from mpi import find_mpiexec

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH"), pytest.mark.slow]
LAYERS, EXPERTS, HIDDEN, FFN = 4, 32, 1024, 512
BYTES = LAYERS * EXPERTS * 3 * HIDDEN * FFN * 2  # all experts in bfloat16: 403 MB
SIZES = {
    "hidden_size": HIDDEN,
    "moe_intermediate_size": FFN,
    "num_experts": EXPERTS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "head_dim": 64,
    "vocab_size": 512,
}
PROGRAM = r"""
    from functools import partial
    from pathlib import Path
    import gc, json, re, torch, transformers_models as bench

    theirs = partial(bench.AutoModelForCausalLM.from_pretrained, experts_implementation="aristos")
    load = {"ours": bench.ours.from_pretrained, "theirs": theirs}[WHOSE]

    def held():
        comm.Barrier()
        found = re.findall(r"Pss_(?:Anon|Shmem): +(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
        return sum(map(int, found)) << 10

    bench.ours.options(threads=1, max_tokens=16)
    small, large = (bench.directory(Path(), torch.bfloat16, sizes) for sizes in (bench.TINY, bench.SIZES | SIZES))
    warm, *_ = bench.loaded(small, torch.bfloat16, load)  # imports and compiled code
    bench.ours.close(warm)
    del warm
    gc.collect()
    before = held()
    model, most, _ = bench.loaded(large, torch.bfloat16, load)
    after = held() - before
    dense = sum(p.nbytes for name, p in model.named_parameters() if ".experts." not in name)
    say(json.dumps([most, after, dense]))
    bench.ours.close(model)
"""


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_a_rank_holds_its_own_experts_once(tmp_path, ranks, whose):
    """transformers' own from_pretrained reads all experts. Their memory is given back layer by layer.

    A page that both ranks read counts half on each. Mapped files do not count.
    """
    given = f"\n    sys.path.insert(0, {str(ROOT / 'bench')!r})\n    SIZES, WHOSE = {SIZES}, {whose!r}"
    job = run_job(tmp_path, ranks, given + PROGRAM, timeout=240)
    assert job.code == 0, job.out
    share = BYTES / ranks
    at_once = 1.25 * share if whose == "ours" else 1.1 * (BYTES + share / LAYERS)
    for rank in range(ranks):
        most, after, dense = json.loads(job.lines(rank)[-1])
        assert 0.9 * share <= after <= 1.1 * share
        assert most <= at_once + dense

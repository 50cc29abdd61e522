"""`rival.TorchGpu`: what the page says if PyTorch, its grouped product, its compiler, cuBLAS or a GPU is missing."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest

from aristos.bench.gpu import rival, torch_layer
from aristos.config import MoEConfig
from aristos.errors import EnvironmentProblem

pytestmark = pytest.mark.parallel

CFG = MoEConfig(hidden=16, ffn=24, experts=8, top_k=2, dtype="bfloat16")
GPU = SimpleNamespace(device=SimpleNamespace(ordinal=0, driver="13.0"), stream=7)
BLAS = "cuBLAS 13.1.0 (/lib/libcublas.so.13)"


class Torch:
    """PyTorch as far as `TorchGpu` calls it.

    grouped: whether it has the grouped product. product, compiler: the exception of each, None: it works.
    """

    __version__, __path__ = "2.11.0", ["/site/torch"]

    def __init__(self, cuda="13.0", available=True, grouped=True, product=None, compiler=None, capability=(9, 0)):
        self.version, self._product, self._compiler = SimpleNamespace(cuda=cuda), product, compiler
        self.cuda = SimpleNamespace(
            is_available=lambda: available,
            ExternalStream=lambda stream, device: stream,
            graph_pool_handle=lambda: 1,
            synchronize=lambda device: None,
            stream=contextlib.nullcontext,
            get_device_capability=lambda device: capability,
        )
        self.nn = SimpleNamespace(functional=SimpleNamespace(**{"grouped_mm": None} if grouped else {}))
        self.device, self.ones = lambda kind, number: (kind, number), lambda shape, device: shape

    def mm(self, a, b):
        if self._product is not None:
            raise self._product

    def compile(self, function, fullgraph):
        def compiled(*given):
            if self._compiler is not None:
                raise self._compiler
            return "compiled"

        return compiled


@pytest.fixture
def place(monkeypatch):
    """A function that makes a TorchGpu. torch: a Torch, or its import's exception. blas: whether cuBLAS is found."""

    def made(torch, blas=True):
        def imported():
            if isinstance(torch, Exception):
                raise torch
            return torch

        def library(driver):
            if not blas:
                raise EnvironmentProblem("no cuBLAS")

        monkeypatch.setattr(torch_layer, "imported", imported)
        monkeypatch.setattr(rival, "library", library)
        monkeypatch.setattr(rival, "described", lambda found: BLAS)
        return rival.TorchGpu(GPU)

    return made


@pytest.mark.parametrize(
    ("torch", "why"),
    [
        (
            ModuleNotFoundError("No module named 'torch'"),
            "PyTorch is not compared, because it cannot be imported (No module named 'torch'): pip install torch",
        ),
        (
            OSError("libcudart.so.13: cannot open"),
            "PyTorch is not compared, because it cannot be imported (libcudart.so.13: cannot open)",
        ),
        (Torch(cuda=None), "PyTorch 2.11.0 is not compared, because it finds no GPU that it can use"),
        (Torch(available=False), "PyTorch 2.11.0 is not compared, because it finds no GPU that it can use"),
        (
            Torch(product=RuntimeError("no kernel image\nmore")),
            "PyTorch 2.11.0 is not compared: PyTorch failed with RuntimeError: no kernel image",
        ),
    ],
    ids=["missing", "broken", "for CPUs", "no GPU", "no kernel"],
)
def test_the_error_says_why_pytorch_cannot_be_used(place, torch, why):
    with pytest.raises(EnvironmentProblem) as said:
        place(torch)
    assert why in str(said.value)


def test_the_libraries_in_use_are_named(place):
    assert place(Torch()).used == f"PyTorch 2.11.0 (/site/torch), {BLAS}"
    assert place(Torch(), blas=False).used.endswith(", its cuBLAS was not found as a file")


@pytest.mark.parametrize(
    ("torch", "cfg", "why"),
    [
        (Torch(), CFG, ""),
        (Torch(grouped=False), CFG, "PyTorch 2.11.0 has no grouped product"),
        (Torch(capability=(8, 0)), CFG, "PyTorch 2.11.0 has no grouped product for compute capability 8.0"),
        (
            Torch(),
            MoEConfig(hidden=16, ffn=24, experts=8, top_k=2),
            "PyTorch's grouped product needs bfloat16 and rows of a multiple of 16 bytes",
        ),
    ],
    ids=["there", "older", "other GPU", "other type"],
)
def test_without_a_grouped_product_the_chain_loops_and_the_page_says_why(place, torch, cfg, why):
    found = place(torch)
    assert found.ways(cfg) == ((torch_layer.LOOP,) if why else torch_layer.WAYS)
    work = SimpleNamespace(cfg=cfg, world=SimpleNamespace(size=1))
    notes = rival.Rival(GPU, work, found, None).notes
    assert notes == [found.used, *([f"PyTorch multiplies expert by expert: {why}"] if why else [])]


@pytest.mark.parametrize("fails", [False, True])
def test_without_a_compiler_pytorchs_own_kernels_are_used_and_the_page_says_why(place, monkeypatch, fails):
    found = place(Torch(compiler=SyntaxError("no C compiler\nmore") if fails else None))
    fused = found.fuse(None, lambda *given: "its own")
    assert [fused(1), fused(2)] == ["its own" if fails else "compiled"] * 2
    assert found.uncompiled == ("PyTorch failed with SyntaxError: no C compiler" if fails else "")
    work = SimpleNamespace(cfg=CFG, world=SimpleNamespace(size=1, every=bool, largest=float), passes=lambda error: True)
    made = rival.Rival(SimpleNamespace(seconds=lambda call: 1.0), work, found, None)
    monkeypatch.setattr(made, "_prepared", lambda played, exchange: (None, None))
    monkeypatch.setattr(made, "_graphs", lambda *given: (None, "one graph"))
    (chain,) = made.chains(SimpleNamespace(count=6, error=lambda call, out: 0.0)).values()
    assert chain.used == f"PyTorch 2.11.0, grouped, {'not compiled' if fails else 'compiled'}, one graph"
    why = "torch.compile failed, so the chain is not compiled: PyTorch failed with SyntaxError: no C compiler"
    assert (why in made.notes) == fails

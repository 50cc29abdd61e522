"""FP8 experts modules of transformers: a layer takes their codes unchanged."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from cases import PATIENCE
from hf_models import held_by_torch, relative

from aristos.errors import InputError

torch = pytest.importorskip("torch")
fp8 = pytest.importorskip("transformers.integrations.finegrained_fp8")


def made(ffn: int, block: tuple[int, int] | None, scale_fmt: str = "float", gated: bool = True):
    """An experts module with random codes and scales, as transformers makes it."""
    from transformers.integrations.moe import use_experts_implementation

    plain = type("FP8Experts", (fp8.FP8Experts,), {})  # the decorator changes the class that it gets
    kind = use_experts_implementation(plain, experts_interface=fp8.ALL_FP8_EXPERTS_FUNCTIONS, has_gate=gated)
    config = SimpleNamespace(
        hidden_size=160, moe_intermediate_size=ffn, num_experts=4, hidden_act="silu", _experts_implementation="aristos"
    )
    module = kind(config, block_size=block, scale_fmt=scale_fmt, has_gate=gated)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        value = torch.randn(parameter.shape, generator=generator)
        value = torch.exp2(value.round() - 5) if name.endswith("scale_inv") else value.clamp(-3, 3)
        parameter.data = value.to(parameter.dtype)
    return module.eval()


def dequantised(module):
    """The module with its weights dequantised to float32 by transformers' code. It computes with "eager"."""
    names = [name.removesuffix("_scale_inv") for name, _ in module.named_parameters() if name.endswith("_scale_inv")]
    for name in names:
        weight, scales = getattr(module, name).detach(), getattr(module, f"{name}_scale_inv").detach().float()
        if module.block_size is None:  # each of the matrices in one array has a scale
            whole = weight.float() * scales.repeat_interleave(weight.shape[1] // scales.shape[1], dim=1)
        else:
            whole = fp8._dequantize_fp8_weight(weight, scales, module.block_size, torch.float32)
        setattr(module, name, torch.nn.Parameter(whole))
    module.config._experts_implementation = "eager"
    return module


@pytest.mark.parametrize(
    ("ffn", "block", "scale_fmt", "gated"),
    [
        (256, (128, 128), "float", True),
        (128, (128, 128), "ue8m0", True),
        (96, None, "float", True),
        (96, (128, 128), "float", False),
    ],
)
def test_codes_stay_codes(ours, ffn, block, scale_fmt, gated):
    ids = torch.stack([torch.randperm(4, generator=torch.Generator().manual_seed(i))[:2] for i in range(20)])
    x, weights = torch.randn(20, 160, generator=torch.Generator().manual_seed(1)), torch.full((20, 2), 0.5)
    module = made(ffn, block, scale_fmt, gated)
    with torch.no_grad():
        wanted = dequantised(made(ffn, block, scale_fmt, gated))(x, ids, weights)
        assert relative(module(x, ids, weights), wanted) < 1e-5
    assert vars(module)["_aristos"].moe.cfg.packed.name == "fp8"
    matrices = [parameter for name, parameter in module.named_parameters() if name.endswith("proj")]
    assert all(parameter.untyped_storage().nbytes() == 1 for parameter in matrices)
    assert held_by_torch(module) < 1000  # scales
    ours.close(module)


def test_codes_can_be_quantised_again_to_another_weight_type(ours):
    ours.options(max_tokens=16, threads=1, timeout=PATIENCE, weight_dtype="int8")
    module, x = made(128, (128, 128)), torch.ones(1, 160)
    ids, weights = torch.tensor([[0, 1]]), torch.full((1, 2), 0.5)
    with torch.no_grad():
        assert relative(module(x, ids, weights), dequantised(made(128, (128, 128)))(x, ids, weights)) < 0.05
    assert vars(module)["_aristos"].moe.cfg.packed.name == "int8"
    ours.close(module)


@pytest.mark.parametrize(
    ("ffn", "block", "why"),
    [
        (96, (128, 128), "must be a multiple of 128, so that no block has outputs of both gate and up, got 96"),
        (128, (64, 64), "block_size must be"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(ours, ffn, block, why):
    module = made(ffn, block)
    with torch.no_grad(), pytest.raises(InputError, match=f"FP8Experts.*{why}"):
        module(torch.ones(1, 160), torch.tensor([[0, 1]]), torch.full((1, 2), 0.5))

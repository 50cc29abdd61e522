"""The files that FlashInfer makes from its templates for attention: half precision, heads of 128 numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

NUMBERS = ("logits_soft_cap", "sm_scale", "rope_rcp_scale", "rope_rcp_theta")
MASKS = ("MaskMode::kNone", "MaskMode::kCausal", "MaskMode::kCustom", "MaskMode::kMultiItemScoring")
TYPES = {"dtype_q": "half", "dtype_kv": "half", "dtype_o": "half", "dtype_idx": "int32_t", "idtype": "int32_t"}


def options(tensors: dict[str, str], masked: str) -> dict[str, Any]:
    """What the templates need. tensors: the optional arrays of a kernel and their types; masked: has it a mask?"""
    everything = {**{name: f"{kind}*" for name, kind in tensors.items()}, **dict.fromkeys(NUMBERS, "double")}
    declared = "".join(f"{kind} {name};\n" for name, kind in everything.items())
    taken = "".join(f", Optional<ffi::Tensor> {name}" for name in tensors)
    given = [
        f"params.{name} = {name} ? static_cast<{kind}*>({name}.value().data_ptr()) : nullptr;"
        for name, kind in tensors.items()
    ]
    return {
        **TYPES,
        "head_dim_qk": 128,
        "head_dim_vo": 128,
        "additional_params_decl": declared,
        "additional_func_params": taken + "".join(f", double {name}" for name in NUMBERS),
        "additional_params_setter": " \\\n".join([*given, *(f"params.{name} = {name};" for name in NUMBERS)]),
        "variant_decl": "#include <flashinfer/attention/variants.cuh>",
        "variant_name": f"DefaultAttention<{masked}, false, false, false>",
        "pos_encoding_mode": "PosEncodingMode::kNone",
        "use_sliding_window": "false",
        "use_logits_soft_cap": "false",
        "use_fp16_qk_reduction": "false",
        "use_token_head_sf": "false",
        "require_fp4_kv_cache": False,
        "paged_kv_stride_mode": "runtime",
        "same_kv_strides_values": ["true", "false"],
    }


DECODE = options({"maybe_alibi_slopes": "float"}, "false")
SCALES = {"maybe_k_cache_sf": "uint8_t", "maybe_v_cache_sf": "uint8_t"}
PREFILL = options({"maybe_custom_mask": "uint8_t", "maybe_alibi_slopes": "float", **SCALES}, "use_custom_mask")
BATCH = options(
    {"maybe_custom_mask": "uint8_t", "maybe_mask_indptr": "int32_t", "maybe_alibi_slopes": "float"}, "use_custom_mask"
)
MLA = {**TYPES, "head_dim_ckv": 512, "head_dim_kpe": 64}
# of each family: its options, the template of its settings, those of its kernels, and files that are taken as they are
FAMILIES: dict[str, tuple[dict[str, Any], str, tuple[str, ...], tuple[str, ...]]] = {
    "single_decode": (
        DECODE,
        "single_decode_customize_config",
        ("single_decode_kernel_inst",),
        ("single_decode.cu", "single_decode_jit_binding.cu"),
    ),
    "single_prefill": (
        PREFILL,
        "single_prefill_customize_config",
        ("single_prefill_kernel_inst",),
        ("single_prefill.cu", "single_prefill_jit_binding.cu"),
    ),
    "batch_decode": (
        DECODE,
        "batch_decode_customize_config",
        ("batch_decode_kernel_inst",),
        ("batch_decode.cu", "batch_decode_jit_binding.cu"),
    ),
    "batch_prefill": (
        BATCH,
        "batch_prefill_customize_config",
        ("batch_prefill_paged_kernel_inst", "batch_prefill_ragged_kernel_inst"),
        ("batch_prefill.cu", "batch_prefill_jit_binding.cu"),
    ),
    "batch_mla": (
        MLA,
        "batch_mla_config",
        (),
        ("batch_mla_plan.cu", "batch_mla_run.cu", "batch_mla_binding.cu"),
    ),
}
# FlashInfer exports these functions with others of a file that takes ten minutes to compile
TOPK = ("radix_topk", "radix_topk_ragged_transform", "radix_topk_page_table_transform")


def written(family: str, csrc: Path, folder: Path) -> list[Path]:
    """Write the files of a family to the folder. Returns those to compile."""
    if family == "topk":
        exports = [f"TVM_FFI_DLL_EXPORT_TYPED_FUNC({name}, {name});" for name in TOPK]
        (folder / "exports.cu").write_text("\n".join(['#include "topk.cu"', *exports, ""]))
        return [folder / "exports.cu"]
    given, settings, kernels, plain = FAMILIES[family]

    def rendered(template: str, **more: str) -> str:
        return jinja2.Template((csrc / f"{template}.jinja").read_text()).render(**given, **more)

    (folder / f"{family}_config.inc").write_text(rendered(settings))
    sources = [csrc / name for name in plain]
    for template in kernels:
        for at, mask in enumerate(MASKS if "prefill" in family else MASKS[:1]):
            sources.append(folder / f"{template}_{at}.cu")
            sources[-1].write_text(rendered(template, mask_mode=mask))
    return sources

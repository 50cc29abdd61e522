"""Compiles Triton kernels to PTX, without a GPU: python compiled.py FILE FOLDER ARCH ...

FILE is a Python file with some of the functions that KERNELS names; only scaled.py is part of Aristos. FOLDER gets
NAME.ARCH.ptx, and index.json: for each file its kernel, bytes of shared memory and of scratch for a block, or why
Triton does not compile it. Triton's own Python runs this file.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

H, F, N, P = "*fp16", "*fp32", "i32", "*i32"
TILES = {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 32}
MATMUL = {**TILES, "GROUP_SIZE_M": 4, "stride_ak": 1, "stride_bn": 1, "stride_cn": 1}
BIG = {"BLOCK_SIZE_M": 128, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 64}
DOT = {"BM": 64, "BN": 64, "BK": 64}
TYPES = {"e4m3": "*fp8e4nv", "e5m2": "*fp8e5", "e2m1": "*u8"}


def scaled(a: str, b: str, m: int, n: int, k: int, block: int) -> tuple[str, list[str], dict[str, Any], int | None]:
    """The row of KERNELS of a product of two types with a scale factor for each block of elements: of 32, or 16."""
    factors = "*u8" if block == 32 else "*fp8e4nv"
    constants = {"M": m, "N": n, "K": k, "BLOCK": block, "A_TYPE": a, "B_TYPE": b}
    packed = {"A_PACKED": 1 + (a == "e2m1"), "B_PACKED": 1 + (b == "e2m1")}
    return "scaled_kernel", [TYPES[a], factors, TYPES[b], factors, F], {**constants, **packed}, None


SCALED_MAPS = ["tensordesc<fp8e4nv[128, 128]>", "tensordesc<u8[1, 1, 1, 2, 256]>"] * 2 + [F, N]
SCALED_SIZES = {"M": 128, "N": 128, "DEPTH": 128, "BLOCK": 32, "TYPE": "e4m3"}
MAPS = ["tensordesc<fp16[128, 64]>", "tensordesc<fp16[128, 64]>", "tensordesc<fp16[128, 128]>"]
KERNELS = {  # by name: the function's name, the types of its arguments, its constants, the stages of its pipeline
    "add": ("add_kernel", [F, F, F, N], {"BLOCK_SIZE": 1024}, None),
    "softmax": ("softmax_kernel", [F, F, N, N, N, N], {"BLOCK_SIZE": 1024, "num_stages": 2}, None),
    "layer_norm": ("layer_norm_fwd", [H, H, F, F, F, F, N, N, "fp32"], {"BLOCK_SIZE": 256}, None),
    "layer_norm_bwd": ("layer_norm_bwd_dx", [F] * 8 + [P, N, N], {"GROUP_SIZE_M": 2, "BLOCK_SIZE_N": 256}, None),
    "matmul": ("matmul_kernel", [H] * 3 + [N] * 9, MATMUL, 3),
    "matmul_bf16": ("matmul_kernel", ["*bf16"] * 3 + [N] * 9, MATMUL, 3),
    "matmul_tf32": ("matmul_kernel", [F] * 3 + [N] * 9, MATMUL, 3),
    "splitk": ("splitk_kernel", [H, H, F, N, N, N], {"BM": 64, "BN": 64, "BK": 32, "SPLIT": 4}, 3),
    "moe": ("moe_kernel", [H, H, H, F, P, P, P] + [N] * 8, {**TILES, "BLOCK_SIZE_M": 16, "top_k": 2}, 3),
    "grouped": ("grouped_matmul_kernel", ["*i64"] * 3 + [P, P, N], {"NUM_SM": 4, **TILES}, 3),
    "matmul_tma": ("matmul_tma_kernel", MAPS + [N] * 3, BIG, 3),
    "matmul_tma_dev": ("matmul_tma_device_desc", [H] * 3 + [N] * 3, BIG, 3),
    "attn": ("attn_fwd", [H] * 4 + ["fp32", N], {"HEAD_DIM": 64, "BLOCK_M": 64, "BLOCK_N": 64}, 2),
    "int8_dot": ("int8_dot", ["*i8", "*i8", P, N], DOT, None),
    "fp8_dot": ("fp8_dot", ["*fp8e4nv", "*fp8e4nv", F, N], DOT, None),
    "quant_fp8": ("quant_fp8", [H, "*fp8e4nv", F], {"N": 512}, None),
    "cumsum": ("cumsum_kernel", [P, P], {"N": 512}, None),
    "sort": ("sort_kernel", [P, P], {"N": 256}, None),
    "hist": ("hist_kernel", [P, P], {"N": 512, "BINS": 32}, None),
    "dropout": ("dropout_kernel", [F, F, N, "fp32", N], {"BLOCK": 512}, None),
    # the kernels of these are in scaled.py
    "mx_e4m3": scaled("e4m3", "e4m3", 128, 128, 128, 32),
    "mx_e4m3_e5m2": scaled("e4m3", "e5m2", 128, 64, 256, 32),
    "mx_e4m3_e2m1": scaled("e4m3", "e2m1", 128, 64, 128, 32),
    "mx_e2m1_e5m2": scaled("e2m1", "e5m2", 128, 32, 128, 32),
    "mx_e2m1": scaled("e2m1", "e2m1", 128, 128, 128, 32),
    "nv_e2m1": scaled("e2m1", "e2m1", 128, 256, 256, 16),
    "mx_maps": ("scaled_maps_kernel", SCALED_MAPS, SCALED_SIZES, 3),
}
ODD = ("n_elements", "n_cols", "seed", "n", "num_valid_tokens", "group_size", "n_rows")  # may be no multiples of 16


def compiled(module: Any, name: str, arch: int) -> triton.compiler.CompiledKernel:
    """A kernel for an architecture, specialised for pointers, strides and sizes that are multiples of 16."""
    called, types, constants, stages = KERNELS[name]
    function = getattr(module, called)
    given = iter(types)
    signature = {one: "constexpr" if one in constants else next(given) for one in function.arg_names}
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, (one, type_) in enumerate(signature.items())
        if type_.startswith("*") or (type_ == N and one not in ODD)
    }
    numbers = {(function.arg_names.index(one),): value for one, value in constants.items()}
    source = ASTSource(fn=function, constexprs=numbers, signature=signature, attrs=attributes)
    options = {"num_warps": 4, **({"num_stages": stages} if stages else {})}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def main(file: str, folder: str, *archs: str) -> None:
    """Compile all kernels of a file for the architectures."""
    spec = importlib.util.spec_from_file_location("kernels", file)
    if spec is None or spec.loader is None:
        sys.exit(f"KERNELS must be a Python file or a folder of compiled.py, got {file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    index = {}
    for arch in map(int, archs):
        for name in KERNELS:
            key = f"{name}.sm{arch}"
            try:
                made = compiled(module, name, arch)
            except Exception as error:  # whatever Triton's compiler raises is the answer for this kernel
                index[key] = {"error": str(error).strip().splitlines()[-1][:200]}
                continue
            (Path(folder) / f"{key}.ptx").write_text(made.asm["ptx"])
            scratch = getattr(made.metadata, "global_scratch_size", 0) or 0
            index[key] = {"entry": made.metadata.name, "shared": made.metadata.shared, "scratch": scratch}
    (Path(folder) / "index.json").write_text(json.dumps(index, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])

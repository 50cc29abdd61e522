"""Make a library of files of FlashInfer's csrc by nvcc: `python build.py LIBRARY.so ARCH FILE.cu ...`.

It runs in the environment that `python bench/environments.py flashinfer` makes. The library has PTX and FlashInfer's
own functions on the host, and uses the shared CUDA runtime, so `ptxsim run` runs its callers. The name of a family in
templates.py stands for the files that FlashInfer makes from its templates.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import templates
import tvm_ffi.libinfo

PACKAGES = Path(sysconfig.get_path("purelib"))
DATA = PACKAGES / "flashinfer" / "data"
CSRC = DATA / "csrc"
FOLDERS = (
    DATA / "cccl" / "libcudacxx" / "include",
    DATA / "cccl" / "cub",
    DATA / "cccl" / "thrust",
    DATA / "include",
    CSRC,
    PACKAGES / "nvidia" / "cu13" / "include",
    tvm_ffi.libinfo.find_include_path(),
    tvm_ffi.libinfo.find_dlpack_include_path(),
)
MACROS = (
    "FLASHINFER_ENABLE_F16",
    "FLASHINFER_ENABLE_BF16",
    "FLASHINFER_ENABLE_FP8_E4M3",
    "FLASHINFER_ENABLE_FP8_E5M2",
    "ENABLE_BF16",
    "ENABLE_FP8",
)
NOT_USED = ("cublasLt.h", "cublas_v2.h")  # a header of FlashInfer includes them, and these files use nothing of them


def main() -> int:
    """Compile. Returns nvcc's exit code."""
    library, arch, *files = sys.argv[1:]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for header in NOT_USED:
            (folder / header).touch()
        sources = []
        for file in files:
            sources += [CSRC / file] if file.endswith(".cu") else templates.written(file, CSRC, folder)
        words = [
            "nvcc",
            "-shared",
            "-cudart",
            "shared",
            "-Xcompiler",
            "-fPIC",
            "-w",
            "-lineinfo",
            "-std=c++17",
            "--expt-relaxed-constexpr",
            "-use_fast_math",
            "-static-global-template-stub=false",
            f"-gencode=arch=compute_{arch},code=compute_{arch}",
            *(f"-D{macro}" for macro in MACROS),
            *(f"-I{path}" for path in (*FOLDERS, folder)),
        ]
        return subprocess.run([*words, "-o", library, *map(str, sources)]).returncode


if __name__ == "__main__":
    sys.exit(main())

"""cuBLAS's matrix product, the rival of this package's product. It is not part of the layer.

The module calls cuBLAS by ctypes, because CuPy forbids cuBLAS while a graph is captured.
"""

from __future__ import annotations

import ctypes
from typing import Any

from .libraries import Library

WORKSPACE = 32 << 20  # bytes; without a workspace, cuBLAS would allocate one within a capture
OP_N, OP_T, DEFAULT = 0, 1, -1
DATA = {"f32": 0, "tf32": 0, "f16": 2, "bf16": 14}  # cudaDataType_t
COMPUTE = {"f32": 68, "tf32": 77, "f16": 68, "bf16": 68}  # cublasComputeType_t: 32F, 32F_FAST_TF32
PROPERTIES = (0, 1, 2)  # libraryPropertyType: major, minor, patch level


# libraries by the driver's version of CUDA, best first
NAMES: dict[str, tuple[str, ...]] = {"12": ("libcublas.so.12",), "": ("libcublas.so.13", "libcublas.so.12")}


def library(driver: str = "") -> Library:
    """The newest cuBLAS that this driver ('13.0') can run. Raises EnvironmentProblem if there is none."""
    return Library("cuBLAS", NAMES.get(driver.partition(".")[0], NAMES[""]), "cublasStatus_t")


def described(found: Library) -> str:
    """The library's version and path, as `cuBLAS 13.1.0 (PATH)`."""
    version = ".".join(str(found.number("cublasGetProperty", ctypes.c_int(each))) for each in PROPERTIES)
    return f"cuBLAS {version} ({found.path})"


class Cublas:
    """A cuBLAS handle for a GPU's stream. used: library, version and path.

    Raises EnvironmentProblem if the library is missing or a call fails."""

    def __init__(self, gpu: Any) -> None:
        self._gpu, self._handle = gpu, ctypes.c_void_p()
        self._library = library(gpu.device.driver)
        workspace = gpu.allocate(WORKSPACE)
        self._call("cublasCreate_v2", ctypes.byref(self._handle))
        self._call("cublasSetStream_v2", self._handle, ctypes.c_void_p(gpu.stream))
        self._call("cublasSetWorkspace_v2", self._handle, ctypes.c_void_p(workspace), ctypes.c_size_t(WORKSPACE))
        self._one, self._zero = ctypes.c_float(1), ctypes.c_float(0)
        self.used = described(self._library)

    def _call(self, name: str, *arguments: Any) -> None:
        with self._gpu.device.current():
            self._library.call(name, *arguments)

    def product(self, kind: str, m: int, n: int, k: int, a: int, lda: int, b: int, ldb: int, c: int, ldc: int) -> None:
        """C[m, n] = A[m, k] B[n, k]^T, all row-major. a, b, c: addresses; lda, ldb, ldc: elements between rows."""
        # cuBLAS is column-major, so it computes C^T = B A^T
        data, number = ctypes.c_int(DATA[kind]), ctypes.c_int
        self._call(
            "cublasGemmEx", self._handle, number(OP_T), number(OP_N), number(n), number(m), number(k),
            ctypes.byref(self._one), ctypes.c_void_p(b), data, number(ldb), ctypes.c_void_p(a), data, number(lda),
            ctypes.byref(self._zero), ctypes.c_void_p(c), data, number(ldc), number(COMPUTE[kind]), number(DEFAULT),
        )  # fmt: skip

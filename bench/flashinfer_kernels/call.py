"""Call functions of FlashInfer, and compare their results with NumPy's: `python call.py LIBRARY CASE`.

`ptxsim run` runs this program; bench/ptx_flashinfer.py makes the library and starts it. The last line that is printed
is `right`, or `wrong` and which results are.
"""

from __future__ import annotations

import sys

import numpy as np
import tvm_ffi
from cases import CASES
from device import Tensor


def main() -> None:
    """Print whether the results are NumPy's."""
    library, name = sys.argv[1:]
    wrong = []
    for what, (found, want, error) in CASES[name].call(tvm_ffi.load_module(library)).items():
        got = (found.read() if isinstance(found, Tensor) else found).astype(float)
        far = np.abs(got - want.astype(float)).max() if got.shape == want.shape else float("inf")
        if not far <= error:
            wrong.append(f"{what} is off by {far:.2g}")
    print("wrong: " + ", ".join(wrong) if wrong else "right", flush=True)


if __name__ == "__main__":
    main()

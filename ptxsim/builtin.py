"""Functions of CUDA's runtime that PTX only declares: printf, assert, grid-wide barriers."""

from __future__ import annotations

from . import isa
from .lowering import Lowering
from .rows import FRAME


def lower_builtin(low: Lowering, name: str, places: list[int], returns: int) -> None:
    """Emit a call of a built-in function. places: the offsets of its results and arguments in the frame."""

    def argument(index: int) -> int:
        row = low.new_row()
        flags = isa.LOCAL << isa.SPACE_SHIFT
        low.emit(isa.LD, isa.B64, a=FRAME, imm=places[returns + index], flags=flags, items=[row])
        return row

    def result(type_: int, row: int) -> None:
        if returns:
            flags = isa.LOCAL << isa.SPACE_SHIFT
            low.emit(isa.ST, type_, a=FRAME, imm=places[0], flags=flags, items=[row])

    if name == "vprintf":
        done = low.new_row()
        low.emit(isa.PRINTF, d=done, a=argument(0), b=argument(1))
        result(isa.B32, done)
    elif name in ("__assertfail", "__assert_fail"):
        low.emit(isa.TRAP)
    elif name == "cudaCGGetIntrinsicHandle":
        result(isa.B64, low.constant(1))
    elif name in ("cudaCGSynchronize", "cudaCGSynchronizeGrid"):
        low.emit(isa.GRIDSYNC)
        result(isa.B32, low.constant(0))
    elif name.lstrip("_").startswith("cuda"):
        raise low.fail(
            f"the kernel calls {name}, a function of CUDA's runtime for devices, by which kernels launch others: "
            "dynamic parallelism is not supported. Launch these kernels from the host"
        )
    else:
        raise low.fail(f"function {name} is neither in the module nor built in (vprintf, __assertfail, grid barriers)")

"""Lowers each PTX opcode. Modifiers are read one by one, and anything unknown raises an error.

HANDLERS has a function for each opcode, which gets the lowering and a `Mods`. The function must take every modifier;
`Mods.done` checks this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import isa
from ..lowering import Lowering
from ..syntax import Instruction
from .arithmetic import (
    add_carry,
    arithmetic,
    divide,
    function,
    mad_carry,
    multiply,
    multiply24,
    multiply_add,
    sub_carry,
    unary,
)
from .asynchronous import any_fence, any_reduction, any_store, copy, mbarrier, warpgroup
from .bits import bit_find, clamp_wrap, dot_product, logic, lop3, permute, plain
from .cluster import map_address, rank_of
from .compare import compare, compare_set, copysign, select, select_sign, test_property
from .control import branch, branch_indexed, call, dependency, leave, nothing, set_registers, stack
from .convert import convert, is_space, move, to_address
from .memory import atomic, fence, load, policy_of
from .mods import HALVES, INTEGERS, WIDE_FLOATS, WORDS, Mods
from .packed import pairs
from .tensor import tensor_map_instruction
from .tensor_memory import tensor_core
from .texture import query, sample, surface
from .video import VIDEO
from .warp import (
    active,
    barrier,
    elect,
    match,
    matrix_access,
    move_matrix,
    multiply_matrix,
    reduce,
    shuffle,
    sleep,
    vote,
)
from .wmma import fragments

HANDLERS: dict[str, Callable[[Any, Mods], None]] = {
    "add": pairs(arithmetic(isa.ADD, isa.FADD, isa.ADD2)), "sub": pairs(arithmetic(isa.SUB, isa.FSUB, isa.SUB2)),
    "min": arithmetic(isa.MIN, isa.FMIN, isa.MIN2), "max": arithmetic(isa.MAX, isa.FMAX, isa.MAX2),
    "mul": pairs(multiply), "mad": multiply_add, "fma": pairs(multiply_add), "div": divide,
    "addc": lambda low, m: add_carry(low, m, True), "subc": lambda low, m: sub_carry(low, m, True),
    "madc": lambda low, m: mad_carry(low, m, True),
    "mul24": multiply24(isa.MUL24, isa.MUL24HI, 2), "mad24": multiply24(isa.MAD24, isa.MAD24HI, 3),
    "sad": plain(isa.SAD, 3, INTEGERS), "rem": plain(isa.REM, 2, INTEGERS), "abs": unary(isa.ABS, isa.FABS),
    "neg": unary(isa.NEG, isa.FNEG), "popc": plain(isa.POPC, 1, (isa.B32, isa.B64)),
    "clz": plain(isa.CLZ, 1, (isa.B32, isa.B64)), "bfind": bit_find,
    "brev": plain(isa.BREV, 1, (isa.B32, isa.B64)), "bfe": plain(isa.BFE, 3, WORDS, wide=(1, 2)),
    "bfi": plain(isa.BFI, 4, (isa.B32, isa.B64), wide=(2, 3)),
    "bmsk": clamp_wrap(isa.BMSK, 2), "szext": clamp_wrap(isa.SZEXT, 2), "shf": clamp_wrap(isa.SHFLEFT, 3),
    "shl": plain(isa.SHL, 2, (isa.B16, isa.B32, isa.B64), wide=(1,)),
    "shr": plain(isa.SHR, 2, (*INTEGERS, isa.B16, isa.B32, isa.B64), wide=(1,)), "prmt": permute, "lop3": lop3,
    "dp4a": dot_product(isa.DP4A), "dp2a": dot_product(isa.DP2A), "fns": plain(isa.FNS, 3, (isa.B32,)),
    "and": logic(isa.AND), "or": logic(isa.OR), "xor": logic(isa.XOR), "not": logic(isa.NOT),
    "cnot": logic(isa.CNOT), "setp": compare, "set": compare_set, "selp": select, "slct": select_sign,
    "testp": test_property, "copysign": copysign, "isspacep": is_space,
    "rcp": function(isa.FRCP, WIDE_FLOATS, exact=True), "sqrt": function(isa.FSQRT, exact=True),
    "rsqrt": function(isa.FRSQRT, WIDE_FLOATS), "sin": function(isa.FSIN), "cos": function(isa.FCOS),
    "lg2": function(isa.FLG2), "ex2": function(isa.FEX2, (isa.F32, *HALVES)),
    "tanh": function(isa.FTANH, (isa.F32, *HALVES)), "mov": move, "cvt": convert, "cvta": to_address,
    "bra": branch, "brx": branch_indexed, "ret": leave(isa.RET), "exit": leave(isa.EXIT), "trap": leave(isa.TRAP),
    "brkpt": leave(isa.TRAP), "call": call, "pmevent": nothing, "prefetch": nothing, "prefetchu": nothing,
    "discard": nothing, "applypriority": nothing, "griddepcontrol": dependency, "setmaxnreg": set_registers,
    "ld": load, "ldu": load, "st": any_store, "atom": atomic, "red": any_reduction, "membar": fence, "fence": any_fence,
    "cp": copy, "createpolicy": policy_of, "bar": barrier, "barrier": barrier, "shfl": shuffle, "vote": vote,
    "match": match, "redux": reduce, "activemask": active, "elect": elect, "nanosleep": sleep, "mma": multiply_matrix,
    "mbarrier": mbarrier, "wgmma": warpgroup, "wmma": fragments,
    "tensormap": tensor_map_instruction, "tcgen05": tensor_core, "mapa": map_address, "getctarank": rank_of,
    "ldmatrix": matrix_access, "stmatrix": matrix_access, "movmatrix": move_matrix,
    "tex": sample, "txq": query, "suld": surface, "sust": surface, "suq": query,
    "alloca": stack, "stacksave": stack, "stackrestore": stack, **VIDEO,
}  # fmt: skip


def decode(low: Lowering, ins: Instruction) -> None:
    """Append the rows of an instruction. Raises PTXError if the opcode or a modifier is unknown."""
    handler = HANDLERS.get(ins.opcode)
    if handler is None:
        raise low.fail(f"opcode {ins.opcode!r} is not known to the machine")
    handler(low, Mods(low, ins))

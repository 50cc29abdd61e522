"""Numbers of opcodes, types, spaces, flags and columns, for lowering and the compiled interpreter.

Numba reads these numbers as constants. The code is a table with a row for each instruction. A column of this table is a
field of the instruction.
"""

from __future__ import annotations

# ---- columns of an instruction ----
(OP, TYPE, TYPE2, D, A, B, C, E, PRED, NEGATE, IMM, FLAGS, D2, LIST, COUNT, LINE) = range(16)
COLUMNS = 16

# ---- types: the low 4 bits are the size in bytes, the rest is the kind ----
U, S, BITS, F = 0x00, 0x10, 0x20, 0x30
U8, U16, U32, U64 = 1, 2, 4, 8
S8, S16, S32, S64 = 0x11, 0x12, 0x14, 0x18
B8, B16, B32, B64 = 0x21, 0x22, 0x24, 0x28
F16, F32, F64 = 0x32, 0x34, 0x38
BF16, F16X2, BF16X2, TF32, PREDICATE, U16X2, S16X2 = 0x42, 0x54, 0x64, 0x74, 0x81, 0x94, 0xA4
E4M3X2, E5M2X2, F32X2 = 0xB2, 0xC2, 0xD8
TYPES = {
    "u8": U8, "u16": U16, "u32": U32, "u64": U64, "s8": S8, "s16": S16, "s32": S32, "s64": S64, "b8": B8, "b16": B16,
    "b32": B32, "b64": B64, "f16": F16, "f32": F32, "f64": F64, "bf16": BF16, "f16x2": F16X2, "bf16x2": BF16X2,
    "tf32": TF32, "pred": PREDICATE, "u16x2": U16X2, "s16x2": S16X2, "e4m3x2": E4M3X2, "e5m2x2": E5M2X2,
    "f32x2": F32X2,
}  # fmt: skip

# ---- spaces ----
GENERIC, GLOBAL, SHARED, LOCAL, CONST, PARAM = range(6)
SHARED_WINDOW = 0x0100_0000_0000  # the first generic address of a block's shared memory
LOCAL_WINDOW = 0x0200_0000_0000
PARAM_WINDOW = 0x0300_0000_0000  # the first generic address of the parameters with which kernels are launched
WINDOW = 0x0100_0000_0000  # bytes of each window
# The bits of a shared address from RANK_SHIFT on name a block of the cluster: n + FIRST_RANK for block n, 0 for the
# thread's own. The lowest of them is the lowest bit of the rank, as on GPUs: kernels of CUTLASS clear it by a mask
RANK_SHIFT, FIRST_RANK = 24, 2
GLOBAL_START = 0x7F00_0000_0000
FUNCTION_START = 0x0400_0000_0000  # "addresses" of functions
TEXTURE_START = 0x0500_0000_0000  # the first handle of a texture or surface

# ---- flags ----
RN, RZ, RM, RP, RNA = 0, 1, 2, 3, 4  # the rounding, in the low 3 bits
ROUND = 7
FTZ, SAT, INTEGER, HIGH, WIDE, APPROX, CARRY_IN, CARRY_OUT = 8, 16, 32, 64, 128, 256, 512, 1024
NAN, XORSIGN, RELU, FINITE = 2048, 4096, 8192, 16384
# order and scope of a memory operation
WEAK, VOLATILE, RELAXED, ACQUIRE, RELEASE, ACQ_REL, SC = range(7)
CTA, GPU, SYS, CLUSTER = range(4)
ORDER_SHIFT, SCOPE_SHIFT, SPACE_SHIFT = 0, 4, 8  # places in FLAGS of memory operations
NOT_COHERENT = 1 << 12  # bit of the same FLAGS for ld.nc and ldu

# ---- opcodes, a hundred a group ----
# The interpreter tests ranges of numbers, and the comments below name the opcodes at which ranges begin. If a
# new opcode belongs to no range, insert it before the first of these names, not at the end of its group.
# integer, logic, moves; ADDC and the opcodes after it use the carry
(
    ADD, SUB, MUL, MULHI, MULWIDE, MAD, MADHI, MADWIDE, SAD, DIV, REM, ABS, NEG, MIN, MAX, AND, OR, XOR, NOT,
    CNOT, SHL, SHR, SHFLEFT, SHFRIGHT, POPC, CLZ, BFIND, BFINDSHIFT, BREV, BFE, BFI, BMSK, SZEXT, PRMT, LOP3,
    DP4A, DP2A, MUL24, MUL24HI, MAD24, MAD24HI, FNS, MOV, SELP, SLCT, SETP, SET, ADD2, SUB2, MIN2, MAX2,
    ISSPACEP, ADDC, SUBC, MADC, MADCHI,
) = range(56)  # fmt: skip
# floating point
(
    FADD, FSUB, FMUL, FFMA, FDIV, FABS, FNEG, FMIN, FMAX, FRCP, FSQRT, FRSQRT, FSIN, FCOS, FLG2, FEX2, FTANH,
    FSETP, FSET, FTESTP, FCOPYSIGN, FSLCT,
) = range(100, 122)  # fmt: skip
# conversions
(
    CVT,
    CVTPACK,
) = range(200, 202)
# vectors, clocks, the stack
(
    PACK,
    UNPACK,
    CLOCK,
    GLOBALTIMER,
    CLUSTERREG,
    LOCALADDR,
    ALLOCA,
    STACKSAVE,
    STACKRESTORE,
) = range(300, 309)
# control
(
    BRA,
    RET,
    EXIT,
    CALL,
    CALLI,
    BRX,
    TRAP,
    NOP,
) = range(400, 408)
# memory; sampling.py runs the opcodes from TEX on, before BULKLOAD. Those from BULKLOAD on are bulk copies.
# async_store.py runs STASYNC, tensor.py the opcodes from TENSORLOAD on, and tensor_product.py those from TCMMA on
(
    LD,
    ST,
    ATOM,
    RED,
    FENCE,
    CPASYNC,
    CPCOMMIT,
    CPWAIT,
    COPYPARAM,
    TEX,
    TEXQUERY,
    SULOAD,
    SUSTORE,
    BULKLOAD,
    BULKSTORE,
    BULKCOMMIT,
    BULKWAIT,
    STASYNC,
    TENSORLOAD,
    TENSORSTORE,
    BULKREDUCE,
    MAPCOPY,
    TCMMA,
    TCCOPY,
    TCCOMMIT,
) = range(500, 525)
# barriers and waits; those from MBINIT on are of mbarriers, those from PROXYFENCE on are fences
(
    BAR,
    BARARRIVE,
    BARRED,
    WARPSYNC,
    NANOSLEEP,
    GRIDSYNC,
    GRIDWAIT,
    GRIDTRIGGER,
    CLUSTERARRIVE,
    CLUSTERWAIT,
    MBINIT,
    MBINVAL,
    MBARRIVE,
    MBEXPECT,
    MBWAIT,
    MBCOPIES,
    PROXYFENCE,
    INITFENCE,
    TCFENCE,
) = range(600, 619)
# between the lanes of a warp; opcodes from MMA on need all lanes. Those from TCALLOC on use tensor memory, those from
# WGMMA on are instructions of warpgroups
(
    SHFL, VOTE, MATCH, REDUX, ACTIVEMASK, ELECT, MMA, LDMATRIX, STMATRIX, MOVMATRIX,
    TCALLOC, TCDEALLOC, TCLOAD, TCSTORE, TCWAIT, WGMMA, WGFENCE, WGCOMMIT, WGWAIT,
) = range(700, 719)  # fmt: skip
# built-in functions
(
    PRINTF,
    MALLOC,
    FREE,
) = range(800, 803)
COMPARE = {
    "eq": 0, "ne": 1, "lt": 2, "le": 3, "gt": 4, "ge": 5, "lo": 6, "ls": 7, "hi": 8, "hs": 9, "equ": 10, "neu": 11,
    "ltu": 12, "leu": 13, "gtu": 14, "geu": 15, "num": 16, "nan": 17,
}  # fmt: skip
ATOMS = {
    name: number for number, name in enumerate(["add", "exch", "cas", "min", "max", "inc", "dec", "and", "or", "xor"])
}
REDUCTIONS = {"add": 0, "min": 3, "max": 4, "and": 7, "or": 8, "xor": 9}
# opcodes whose list of operands has rows of registers; in the lists of the others are places and offsets
ROW_LISTS = {LD, ST, PACK, UNPACK, TEX, SULOAD, SUSTORE, STASYNC, MMA, LDMATRIX, STMATRIX, WGMMA}
ROW_LISTS |= {BULKLOAD, TENSORLOAD, TENSORSTORE, TCMMA, TCLOAD, TCSTORE}
OTHER_LISTS = {CALL, CALLI, BRX}

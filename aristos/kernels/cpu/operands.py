"""Products by panels of 32 columns: by `packed` for packed weights, by `tiles` for bfloat16 on AMX, else by `widened`.

The docstrings of these modules define operands, panels and sums. On one instruction set, an element type has the same
arithmetic for any number of rows, so a row's sums never depend on the rows beside it.
"""

from kernel_cache.compile import inlined, jit

from ... import weight_types
from ...primitives import memory as mem
from ...primitives.buffers import FLOAT
from ...weight_types import WEIGHT_TYPES
from ..common.branches import unrolled
from . import tiles, widened
from .convert import BFLOAT16, FLOAT16, FLOAT32, SPLIT, round_row
from .elements import WIDTH
from .micro_kernels import SUMS
from .packed_panels import STEP
from .target import FORMAT, ISA

NARROW_BYTES, SPLIT_BYTES = WEIGHT_TYPES["bfloat16"].nbytes(1, WIDTH), weight_types.SPLIT.nbytes(1, WIDTH)
SPARE_BYTES = 128  # spare memory for the shapes of tiles, or for one row of 32 elements

release = tiles.release if ISA == "amx" else mem.pause
if FORMAT:
    from . import packed

    _ways = {BFLOAT16: packed, FLOAT32: packed}
else:
    _ways = {BFLOAT16: widened, FLOAT16: widened}
    if ISA == "amx":
        _ways |= {BFLOAT16: tiles, SPLIT: tiles}


def _by_element(name, arguments):
    """A function `name`(element, *arguments) that calls the function `name` of the element type's module."""
    functions = {element: getattr(way, name) for element, way in _ways.items()}
    return jit(unrolled(name, arguments, f"return case(code, {arguments})", functions, globals()))


operand_size = _by_element("operand_size", "rows, columns")
depth_of = _by_element("depth_of", "rows")
pack_operand = _by_element("pack_operand", "m, x, columns, a")
round_operand = _by_element("round_operand", "m, sums, j, columns, a, spare")
panel_sums = _by_element("panel_sums", "m, a, depth, panel, sums, carry, ahead, spare")


def operand_bytes(element: int, rows: int, columns: int) -> int:
    """Bytes of an operand of `rows` rows. This function is called from Python."""
    return int(_ways[element].operand_size(element, rows, columns))


@inlined
def panel_bytes(element):
    """Bytes that a panel of plain weights has for each k."""
    return SPLIT_BYTES if element == SPLIT else NARROW_BYTES


@jit
def panel_step(element, panels, depth):
    """Bytes from one panel of a matrix to the next. panels: the address of the first. depth: how many k there are."""
    if FORMAT:
        return mem.load(panels + STEP)
    return panel_bytes(element) * ((depth + WIDTH - 1) // WIDTH * WIDTH)


@inlined
def spare_bytes(rows, depth):
    """Bytes of the spare memory of products of up to `rows` rows and `depth` k."""
    return packed.spare_bytes(rows, depth) if FORMAT else SPARE_BYTES


@inlined
def float_rows(element):
    """Whether rows are float32."""
    return element in (FLOAT32, SPLIT)


@jit
def write_rows(element, m, sums, y, j, columns):
    """Round 32 sums of each of m rows once, and write them to columns j.. of rows of y.

    y: the address of an array of row addresses. columns: how many columns y has. Rows of 16-bit elements must have
    space for whole panels.
    """
    if float_rows(element):
        nbytes = FLOAT * min(WIDTH, columns - j)
        for i in range(m):
            mem.copy_row(mem.load(y + 8 * i) + FLOAT * j, sums + SUMS * i, nbytes)
    else:
        for i in range(m):
            round_row(element, mem.load(y + 8 * i) + 2 * j, sums + SUMS * i, WIDTH)


@jit
def begin(spare):
    """Prepare for the products of a run. spare: the address of SPARE_BYTES bytes."""
    mem.store(spare + 64, tiles.NO_SHAPE)


@jit
def end():
    """Clean up after the products of a run."""
    release()

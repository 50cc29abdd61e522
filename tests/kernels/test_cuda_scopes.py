"""Memory order in the machine code of every primitive for shared words, and of `primitives.memory` on CUDA.

An acquire is a strong load, then an invalidation of the L1 cache (CCTL.IVALL); a release is a barrier of the same
scope, then a strong store. Words that other devices and the host read need scope SYS; scope GPU covers one device only.
"""

from __future__ import annotations

import re

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
import scopes

from aristos.errors import EnvironmentProblem
from aristos.kernels.cuda import assemble, ptx
from aristos.kernels.cuda.assemble import TARGETS
from aristos.kernels.cuda.catalogue import Kernel
from aristos.kernels.cuda.compile_report import finish
from aristos.kernels.cuda.compiler import cuda, types
from aristos.primitives import memory as mem
from kernel_cache.offline import capability
from ptxsim.kernels import compiled

pytestmark = pytest.mark.slow

try:
    assemble.tool("ptxas")
    assemble.tool("nvdisasm")
except EnvironmentProblem as missing:
    pytest.skip(str(missing), allow_module_level=True)

# primitive -> its machine code in order; {} stands for the scope
ORDERED = {
    "load_relaxed": ["LDG.E.64.STRONG.{}"],
    "load_acquire": ["LDG.E.64.STRONG.{}", "CCTL.IVALL"],
    "store_relaxed": ["STG.E.64.STRONG.{}"],
    "store_release": ["MEMBAR.ALL.{}", "ERRBAR", "STG.E.64.STRONG.{}"],
    "fence": ["MEMBAR.ALL.{}", "ERRBAR", "CCTL.IVALL"],
    "add": ["MEMBAR.ALL.{}", "ERRBAR", "ATOMG.E.ADD.64.STRONG.{}", "CCTL.IVALL"],
    "compare_exchange": ["MEMBAR.ALL.{}", "ERRBAR", "ATOMG.E.CAS.64.STRONG.{}", "CCTL.IVALL"],
}
WIDE = {
    "load16_once": "LDG.E.NA.LTC128B.128",
    "store16_once": "STG.E.NA.128",
}
PRIMITIVES = {
    name: value for module in (ptx, scopes) for name, value in vars(module).items() if hasattr(value, "plain")
}
NAMES = [f"{name}_{scope}" for name in ORDERED for scope in ("gpu", "sys") if f"{name}_{scope}" in PRIMITIVES]
MEMORY = r"^(LD|ST|ATOM|RED|MEMBAR|ERRBAR|CCTL\.)"


def opcodes(function, arch, folder, takes=2):
    """The memory opcodes of a kernel with `takes` int64 arguments, without loads of the arguments."""
    arguments = (types.int64,) * takes
    text = compiled(function, arguments, capability(TARGETS[arch])).ptx
    row = finish(Kernel("small", function, arguments, 32, 0, 1), arch, text, folder)
    assert row["spill_bytes"] == 0
    sass = (folder / f"small.{arch}.sass").read_text()
    found = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?(\S+?)[\s;]", sass)
    return [opcode for opcode in found if re.match(MEMORY, opcode) and not opcode.startswith("LDC")]


def kernel_of(name):
    """The smallest kernel that applies a primitive to the word at `a` and stores its result at `b`."""
    it = PRIMITIVES[name]
    given = it.plain.__code__.co_argcount

    if name.startswith("fence"):

        def kernel(a, b):
            it()
    elif name.startswith("store16"):

        def kernel(a, b):
            it(a, 1, 2, 3, 4)
    elif name.startswith("load16"):

        def kernel(a, b):
            v = it(a)
            ptx.store8(b, v[0] + v[1] + v[2] + v[3])
    elif name.startswith("store"):

        def kernel(a, b):
            it(a, b)
    elif given == 1:

        def kernel(a, b):
            ptx.store8(b, it(a))
    elif given == 2:

        def kernel(a, b):
            ptx.store8(b, it(a, b))
    else:

        def kernel(a, b):
            ptx.store8(b, it(a, b, b))

    return cuda.jit(kernel)


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_each_primitive_has_its_order_and_scope(name, arch, tmp_path):
    what, scope = name.rsplit("_", 1)
    expected = [opcode.format(scope.upper()) for opcode in ORDERED[what]]
    keeps = what not in ("fence", "store_relaxed", "store_release")
    found = [opcode for opcode in opcodes(kernel_of(name), arch, tmp_path) if opcode != "CGAERRBAR"]
    assert found == expected + ["STG.E.64"] * keeps


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize("name", WIDE)
def test_16_bytes_are_one_access(name, arch, tmp_path):
    found = opcodes(kernel_of(name), arch, tmp_path)
    assert found == [WIDE[name]] + ["STG.E.64"] * name.startswith("load")


@pytest.mark.parametrize("arch", TARGETS)
def test_scopes_of_the_memory_operations(arch, tmp_path):
    """As in the engine, a row is stored, then the tail is stored, and then the peer's credit is read.

    Atomic adds and exchanges have device scope.
    """

    @cuda.jit
    def put(row, tail, credit):
        mem.store(row, 1)
        mem.store_release(tail, mem.fetch_add(tail + 64, 1))
        while mem.load_acquire(credit) < 1:
            mem.pause()
        if mem.compare_exchange(credit, 1, 2):
            mem.store(row, 3)

    found = opcodes(put, arch, tmp_path, takes=3)
    strong = [opcode for opcode in found if "STRONG" in opcode or "MEMBAR" in opcode]
    assert set(strong) == {
        "MEMBAR.ALL.SYS",
        "STG.E.64.STRONG.SYS",
        "LDG.E.64.STRONG.SYS",
        "MEMBAR.ALL.GPU",
        "ATOMG.E.ADD.64.STRONG.GPU",
        "ATOMG.E.CAS.64.STRONG.GPU",
    }
    assert re.search("STG.E.64( .*)? MEMBAR.ALL.SYS( .*)? STG.E.64.STRONG.SYS", " ".join(found)), (
        "a row before its tail"
    )
    assert re.search("LDG.E.64.STRONG.SYS CCTL.IVALL", " ".join(found))

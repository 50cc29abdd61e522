"""Every CUDA kernel, compiled by the users' command: its machine code and its resources.

No kernel runs here: the tests read what the compilers wrote. The compiler of CUDA 12, which is in this environment,
compiles for sm_80 and sm_90. That of CUDA 13, which has its own environment (`make .venv/cuda13/.aristos`), compiles
for sm_100. Aristos ships kernels that are compiled for these three. A run takes a share of the kernels that PATTERNS
names, see support/sweeps.py. With KERNELS=all both compilers compile every kernel for the three, and those that once
spilled for every other architecture too.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import sweeps

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
from aristos.errors import EnvironmentProblem
from aristos.kernels.cuda import assemble, build, router
from aristos.kernels.cuda.__main__ import main
from aristos.kernels.cuda.assemble import TARGETS
from aristos.kernels.cuda.catalogue import kernels
from aristos.kernels.cuda.gemm import TILES, tiles
from aristos.kernels.cuda.target import Target
from aristos.substrate.cuda import counted, persistent
from kernel_cache.compile import cache_folder

pytestmark = pytest.mark.slow

try:
    assemble.tool("ptxas")
    assemble.tool("nvdisasm")
except EnvironmentProblem as missing:
    pytest.skip(str(missing), allow_module_level=True)

ARCHS = list(TARGETS)
KERNELS = {(kernel.name, arch): kernel for arch in ARCHS for kernel in kernels(arch) + persistent.kernels(arch)}
PRODUCT = {
    "bf16": r"HMMA\.16816\.F32\.BF16",
    "f16": r"HMMA\.16816\.F32 ",
    "tf32": r"HMMA\.1688\.F32\.TF32",
    "f32": r"FFMA ",
}
LOOPS = {  # kernel -> the tile whose product is its main loop
    (f"gemm_{tile.name}", arch): tile for arch in ARCHS for kind in TILES for tile in tiles(kind, Target.named(arch))
} | {(router.route(kind).__name__, arch): router._tile(kind) for arch in ARCHS for kind in router.KINDS}
LAYERS = {
    (f"layer_{tile.name}", arch): tile
    for arch in ARCHS
    for kind in persistent.ROWS
    for tile in persistent.layer_tiles(kind, Target.named(arch))
}
LOOPS |= LAYERS
GROUPS = {key: tile for key, tile in LOOPS.items() if tile.groups}  # by warpgroups: Hopper's 16-bit products
COPY = r"LDGSTS\.E\.BYPASS\.LTC128B\.128"
KB = 1024
DOCS = Path(__file__).parents[2] / "docs"
SM_SHARED = {"sm_80": 164 * KB, "sm_90": 228 * KB, "sm_100": 228 * KB}  # CUDA programming guide, compute capabilities


@dataclass(frozen=True)
class Budget:
    """Limits: registers per thread, shared bytes per block, and the least blocks on an SM for each of ARCHS."""

    registers: int
    shared: int
    blocks: tuple[int, int, int]
    why: str


WIDE = 255  # the most that an instruction can address: with so few resident threads, registers are no limit
BUDGETS = {
    "16x128": Budget(128, 72 * KB, (2, 3, 3), "weights are read at the memory's speed: four chunks a block under way"),
    "32x128": Budget(168, 80 * KB, (2, 2, 2), "as 16x128, with twice the sums"),
    "64x128": Budget(192, 72 * KB, (2, 2, 2), "64 sums a thread; two blocks hide each other's barriers"),
    "128x128": Budget(176, 96 * KB, (1, 2, 1), "256 threads: 128 registers each where two blocks are to fit (sm_90)"),
    "256x128": Budget(WIDE, 144 * KB, (1, 1, 1), "128 sums a thread: the fewest reads of shared memory for a product"),
    # warpgroups, for sm_90 alone: the chunks and 1 KB more, for barriers and for the alignment to eight rows
    "wgmma_64x128": Budget(
        128, 73 * KB, (0, 3, 0), "weights are read at the memory's speed: three blocks, two chunks a block under way"
    ),
    "wgmma_128x128": Budget(128, 97 * KB, (0, 2, 0), "two blocks hide each other's beginnings and ends"),
    "wgmma_256x128": Budget(200, 193 * KB, (0, 1, 0), "128 sums a thread; weights are read half as often"),
    "16x64": Budget(128, 40 * KB, (4, 4, 4), "four blocks of four warps hide the 4 cycles of a multiply-add"),
    "64x64": Budget(168, 48 * KB, (3, 3, 3), "three blocks of 128 threads share 65536 registers"),
    "128x64": Budget(WIDE, 72 * KB, (2, 2, 2), "64 sums and 16 rows of a thread; two blocks of 128 threads"),
    "route": Budget(168, 48 * KB, (3, 3, 3), "the product of 64x64"),
    "route_bf16": Budget(168, 36 * KB, (3, 3, 3), "the product of 64x64, rows half as wide"),
    "route_f16": Budget(168, 36 * KB, (3, 3, 3), "the product of 64x64, rows half as wide"),
    "drop": Budget(88, 21 * KB, (5, 5, 5), "as place, with a count for each choice"),
    "place": Budget(
        48, 9 * KB, (10, 10, 10), "a few loads a thread: warps hide each other's waits; 256 slots and k = 8"
    ),
    # persistent kernels: the product's registers, and more for values that steps need after the product; 128 bytes more
    # shared memory, for the command. 24 to 40 registers are left free, up to the blocks' limit, because steps change
    # more often than products
    "layer_16x128": Budget(152, 73 * KB, (2, 3, 3), "up to 168 registers leave three blocks, as the product has them"),
    "layer_64x128": Budget(232, 73 * KB, (2, 2, 2), "up to 255 registers leave two blocks"),
    "layer_128x128": Budget(WIDE, 97 * KB, (1, 2, 1), "256 threads: where two blocks are to fit (sm_90) they have 128"),
    "layer_wgmma_64x128": Budget(
        152, 74 * KB, (0, 3, 0), "up to 168 registers leave three blocks, as the product has them"
    ),
    "layer_wgmma_128x128": Budget(128, 98 * KB, (0, 2, 0), "256 threads: two blocks leave 128 registers each"),
    "layer_wgmma_256x128": Budget(WIDE, 194 * KB, (0, 1, 0), "one block: registers are no limit"),
    "layer_16x64": Budget(168, 41 * KB, (3, 4, 3), "sm_90 fits four blocks of 128 registers; sm_100 would spill"),
    "layer_64x64": Budget(WIDE, 49 * KB, (3, 3, 2), "three blocks of 168 registers; sm_100 would spill, and has two"),
    "begin": Budget(64, 0, (8, 8, 8), "one block, once a call"),
    "fail": Budget(64, 0, (32, 32, 32), "one thread, once a failure"),
    "put_rows": Budget(64, 0, (4, 4, 4), "256 threads: four blocks keep enough loads on their way"),
    "ping_pong": Budget(64, 0, (32, 32, 32), "two blocks of a warp"),
    "lend": Budget(64, 0, (32, 32, 32), "one block of 64 threads, once a process"),
}


def budget(kernel):
    """The budget of a kernel. All types of a product or a layer share it."""
    found = re.fullmatch(r"(gemm_|layer_)(?:bf16|f16|tf32|f32)_(.+?)(_counted)?", kernel)
    return BUDGETS[found[1].replace("gemm_", "") + found[2] if found else kernel]


ENVIRONMENTS = {"cuda12": Path(sys.prefix), "cuda13": Path(sys.prefix) / "cuda13"}
MAKE_TABLE = "docs/performance.md must have the table of `python -m aristos.kernels.cuda`, without _counted kernels"
# Layer kernels take longest to compile. Those of one tile differ only in their products, which `gemm_` kernels test
# too. So one type of each tile is compiled, one tile of each type, and the layer kernels with few free registers.
# Products of float16, and on sm_100 those of TF32, differ from bfloat16's in one instruction: one tile is enough.
PATTERNS = {
    "cuda12": r"^(?!.*\.sm_100$|layer_|gemm_f16_(?!16x128).*\.sm_80$|route_f16\.sm_80$)"
    r"|^layer_(bf16_16x128|f32_16x64)\.sm_80$"
    r"|^layer_(bf16_wgmma_128x128|f16_wgmma_64x128|tf32_64x128|f32_64x64)\.sm_90$",
    "cuda13": r"^(?!layer_|gemm_(f16|tf32)_(?!16x128)|route_f16).*\.sm_100$"
    r"|^layer_(bf16_16x128|f32_16x64|f32_64x64)\.sm_100$",
}
ALL = sweeps.everything()
if ALL:
    PATTERNS = dict.fromkeys(PATTERNS, "")
# The users' command, or a script that does the same in one process and keeps the PTX for other tests.
REPORT = ["-m", "aristos.kernels.cuda"] if ALL else [str(Path(__file__).parents[1] / "support" / "kept_report.py")]
EVERY_ARCH = assemble.ARCHS if ALL else tuple(ARCHS)
# At some time these spilled with some toolkit on some architecture, where their launch bounds request this many blocks.
# Those of float16 differ from bfloat16's in one instruction, and are left out.
ONCE_SPILLED = r"^layer_(bf16_(wgmma_)?128x128|tf32_128x128|f32_16x64|f32_64x64)\."
# Of the kernels with counters, only the one with the fewest free registers is compiled, for Hopper like the GPU report.
COUNTED = "_counted" if ALL else r"^layer_bf16_wgmma_128x128_counted\.sm_90$"
TOOLKIT_ARCHS = dict.fromkeys(PATTERNS, EVERY_ARCH) if ALL else {"cuda12": ("sm_80", "sm_90"), "cuda13": ("sm_100",)}
EVERYWHERE = {
    (kernel.name, arch): kernel
    for arch in EVERY_ARCH
    for kernel in persistent.kernels(arch) + counted.kernels(arch)
    if re.search(f"{ONCE_SPILLED}|{COUNTED}", f"{kernel.name}.{arch}")
}


@cache
def patterned(environment):
    """{(kernel, architecture)}: what the tests compile with a toolkit, in all runs together."""
    found = {key for key in KERNELS if re.search(PATTERNS[environment], ".".join(key))}
    return found | {(kernel, arch) for kernel, arch in EVERYWHERE if arch in TOOLKIT_ARCHS[environment]}


def chosen(environment):
    """{(kernel, architecture)}: what this run compiles with a toolkit."""
    return patterned(environment) & share()


def share():
    """{(kernel, architecture)}: what this run compiles, of all architectures and types of layers and of products."""
    found = patterned("cuda12") | patterned("cuda13")
    layers = sorted(key for key in found if key[0].startswith("layer_"))
    return {*sweeps.share(layers), *sweeps.share(sorted(found.difference(layers)))}


@pytest.fixture(scope="session", params=ENVIRONMENTS)
def built(request, tmp_path_factory):
    """(folder, {(kernel, architecture): its row of the report}). Equal sources, types and tools are compiled once.

    Tests of kernels that this run does not compile are skipped.
    """
    pattern = f"^({'|'.join(sorted('.'.join(key) for key in chosen(request.param)))})$"
    folder = ENVIRONMENTS[request.param]
    python = folder / "bin" / "python"
    if not python.exists():
        why = f"no kernel was compiled by {request.param}: there is no {python}; make .venv/cuda13/.aristos"
        warnings.warn(why, stacklevel=1)  # pytest prints warnings at its end, but only counts skipped tests
        pytest.skip(why)
    made_of = repr((pattern, sorted((name, arch, build._key(kernel)) for (name, arch), kernel in KERNELS.items())))
    packages = sorted(path.name for path in folder.glob("lib/python3*/site-packages/*.dist-info"))
    digest = hashlib.sha256((made_of + repr(packages)).encode())
    for source in sorted(Path(assemble.__file__).parent.glob("*.py")):  # includes the modules that write the report
        digest.update(source.read_bytes())
    out = cache_folder() / "cuda-report" / digest.hexdigest()[:16]
    if not (out / "report.json").exists():
        aside = tmp_path_factory.mktemp("cuda")
        # sm_90 first: its PTX is kept for the PTX machine, and other architectures are assembled from it
        archs = ",".join(sorted(EVERY_ARCH, key=lambda arch: arch != "sm_90"))
        command = [str(python), *REPORT, "--arch", archs, "--kernels", pattern, "--out", str(aside)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
        assert done.returncode == 0, done.stderr[-2000:]
        for old in out.parent.glob("*"):  # each takes 100 MB
            if time.time() - old.stat().st_mtime > 86400:
                shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(aside, out, ignore=shutil.ignore_patterns("report.json"))
        shutil.copy(aside / "report.json", out)  # last: a folder with it is complete
    rows = json.loads((out / "report.json").read_text())
    return out, {(row["kernel"], row["arch"]): row for row in rows}


def text(built, kernel, arch):
    """The machine code of a kernel."""
    if (kernel, arch) not in built[1]:
        pytest.skip("this run does not compile this kernel")
    return (built[0] / f"{kernel}.{arch}.sass").read_text()


def without_type(kernel, arch):
    """(a kernel's name without its type, architecture)."""
    return re.sub(r"_(bf16|f16|tf32|f32)(?=_|$)", "", kernel), arch


def test_every_kernel_has_its_files(built):
    out, rows = built
    assert set(rows) in map(chosen, ENVIRONMENTS)
    for kernel, arch in rows:
        files = {kind: out / f"{kernel}.{arch}.{kind}" for kind in ("ptx", "cubin", "sass")}
        ptx = files["ptx"].read_text()
        assert re.search(rf"^\.target {TARGETS.get(arch, arch)}$", ptx, re.M)
        bounds = (KERNELS | EVERYWHERE)[kernel, arch].function.targetoptions.get("launch_bounds")
        assert re.findall(r"^\.minnctapersm (\d+)$", ptx, re.M) == ([str(bounds[1])] if bounds else []), kernel
        assert files["cubin"].read_bytes()[:4] == b"\x7fELF"
        assert "EXIT" in files["sass"].read_text()
    fields = {"kernel", "arch", "registers", "spill_bytes", "shared_bytes", "blocks_per_sm"}
    assert all(set(row) == fields for row in rows.values())


def test_runs_compile_every_kernel_and_each_run_every_architecture(monkeypatch):
    """Kernels that differ only in their type count as one, except those of layers, of which some types are compiled."""
    compiled = set()
    for number in range(sweeps.PARTS):
        if not ALL:
            monkeypatch.setenv("KERNELS", str(number))
        layers = {key for key in share() if key in LAYERS}
        assert {arch for _, arch in layers} == set(ARCHS)
        assert {LAYERS[key].kind for key in layers} >= {"bf16", "tf32", "f32"}
        assert {arch for _, arch in share() - layers} >= set(ARCHS)
        assert {LOOPS[key].kind for key in share() - layers if key in LOOPS} == set(PRODUCT)
        compiled |= share()
    assert compiled == patterned("cuda12") | patterned("cuda13") >= set(EVERYWHERE)
    assert {without_type(*key) for key in set(KERNELS) - set(LAYERS)} <= {without_type(*key) for key in compiled}
    assert {(tile.kind, arch) for (name, arch), tile in LAYERS.items() if (name, arch) in compiled} >= {
        *(("bf16", arch) for arch in ARCHS),
        *(("f32", arch) for arch in ARCHS),
        ("f16", "sm_90"),
        ("tf32", "sm_90"),
    }
    assert Counter(arch for _, arch in KERNELS) == {"sm_80": 39, "sm_90": 35, "sm_100": 39}


def test_shared_memory_is_aligned_to_128_bytes(built):
    """Copies of 16 bytes and rows of 128 bytes need this alignment, for every shared array of a kernel."""
    for kernel, arch in built[1]:
        found = re.findall(r"\.extern \.shared \.align (\d+)", (built[0] / f"{kernel}.{arch}.ptx").read_text())
        assert set(found) == ({"128"} if (KERNELS | EVERYWHERE)[kernel, arch].shared_bytes else set()), kernel


def test_kernels_read_nothing_as_read_only(built):
    """A load by ld.global.nc is undefined if the kernel writes there, and a kernel's memory has many writers."""
    for kernel, arch in built[1]:
        assert not re.search(r"\bld\S*\.nc\b", (built[0] / f"{kernel}.{arch}.ptx").read_text()), kernel
        assert "CONSTANT" not in "".join(re.findall(r"LDG\S*", text(built, kernel, arch))), kernel


def test_nothing_spills(built):
    """Kernels that once spilled are compiled for each architecture that ships compiled, with the requested blocks."""
    assert {arch for _, arch in EVERYWHERE} == set(EVERY_ARCH)
    assert set(ARCHS) < set(assemble.ARCHS)
    for (name, arch), row in built[1].items():
        assert row["spill_bytes"] == 0, row
        assert not re.search(r"\b(LDL|STL)\b", text(built, name, arch)), row
        assert row["blocks_per_sm"] >= (KERNELS | EVERYWHERE)[name, arch].blocks, row


def test_resources_are_within_the_budgets(built):
    """Registers and shared memory are within the budget. The blocks on an SM follow from them."""
    for (name, arch), row in built[1].items():
        if arch not in ARCHS:
            continue
        threads, most = (KERNELS | EVERYWHERE)[name, arch].threads, budget(name)
        assert 0 < row["registers"] <= most.registers, (row, most)
        assert row["shared_bytes"] <= most.shared, (row, most)
        by_registers = 65536 // (-(-row["registers"] // 8) * 8 * threads)
        by_shared = SM_SHARED[arch] // (row["shared_bytes"] + KB)  # the system reserves 1 KB per block
        assert row["blocks_per_sm"] == min(by_registers, by_shared, 2048 // threads, 32), row
        assert row["blocks_per_sm"] >= most.blocks[ARCHS.index(arch)], (row, most)


def test_ptxas_has_no_advice(built):
    """ptxas would report a wgmma that it serialises because other instructions access its registers."""
    assert json.loads((built[0] / "advice.json").read_text()) == []


def test_every_kernel_has_a_budget():
    assert {id(budget(name)) for name, _ in KERNELS} == {id(each) for each in BUDGETS.values()}


@pytest.mark.parametrize(("kernel", "arch"), GROUPS)
def test_main_loops_of_warpgroups(built, kernel, arch):
    """The main loop is one chunk: its products, 16-byte copies of rows, one bulk copy of weights, and its barrier.

    Each product has 64 rows x 128 columns. Products start while those of the previous chunk still run. There are no
    other products.
    """
    tile, sass = GROUPS[kernel, arch], text(built, kernel, arch)
    chunks, loop = main_loop(sass, "HGMMA")
    wide = {"bf16": r"HGMMA\.64x128x16\.F32\.BF16 ", "f16": r"HGMMA\.64x128x16\.F32 "}[tile.kind]
    found = {
        name: len(re.findall(pattern, loop))
        for name, pattern in (
            ("products", wide),
            ("all products", r"\b(HGMMA|HMMA|FFMA|FMUL)\b"),
            ("begun", r"\bgsb0 ;"),
            ("waits", r"WARPGROUP\.DEPBAR\.LE gsb0, 0x1"),
            ("all waits", r"WARPGROUP\.DEPBAR"),
            ("copies", COPY),
            ("all copies", r"LDGSTS"),
            ("bulk copies", r"UBLKCP\.S\.G"),
            ("expected", r"SYNCS\.ARRIVE\.TRANS64"),
            ("between proxies", r"FENCE\.VIEW\.ASYNC"),
            ("shared memory", r"(?<!@!PT )\b(LDS|LDSM|STS)\b"),
            ("global", r"\b(LDG|STG|LD|ST|LDL|STL)\."),
            ("atomics", r"\b(ATOM|RED)"),
        )
    }
    products, copies = 4 * tile.warp_rows // 16, tile.a_bytes // (16 * tile.threads)
    assert found == {
        name: chunks * count
        for name, count in {
            "products": products,
            "all products": products,
            "begun": 1,
            "waits": 1,
            "all waits": 1,
            "copies": copies,
            "all copies": copies,
            "bulk copies": 1,
            "expected": 1,
            "between proxies": 1,
            "shared memory": 0,
            "global": 0,
            "atomics": 0,
        }.items()
    }
    assert "SYNCS.PHASECHK.TRANS64.TRYWAIT" in loop
    assert not re.search(r"\b(HMMA|LDSM)\b", sass), "all products must be wgmma, which reads matrices by descriptors"
    assert len(re.findall(r"SYNCS\.EXCH\.64", sass)) == len(re.findall(r"UBLKCP", sass)) == tile.stages


@pytest.mark.parametrize(("kernel", "arch"), [key for key in LOOPS if key not in GROUPS])
def test_main_loops_of_warps(built, kernel, arch):
    """The main loop is one chunk of k: its products, reads of shared memory and 16-byte copies, and nothing else.

    Products run on tensor cores with matrices from ldmatrix, or are fused multiply-adds with 16-byte reads.
    """
    tile = LOOPS[kernel, arch]
    chunks, loop = main_loop(text(built, kernel, arch), PRODUCT[tile.kind])
    found = {
        name: len(re.findall(pattern, loop))
        for name, pattern in (
            ("products", PRODUCT[tile.kind]),
            ("matrices", r"LDSM\.16\.M88\.4"),
            ("reads", r"LDS\.128"),
            ("copies", COPY),
            ("other products", r"\b(HMMA|FFMA|FMUL|IMMA)\b"),
            ("other reads of shared memory", r"\b(LDS|LDSM)\."),
            ("other copies", r"\bLDGSTS\b"),
            ("global", r"\b(LDG|STG|LD|ST|LDL|STL)\."),
            ("atomics", r"\b(ATOM|RED)"),
        )
    }
    if tile.kind == "f32":
        rows, columns = tile.m // (4 * tile.warps_m) >> tile.narrow, tile.n // (8 * tile.warps_n)
        expected = {"products": 32 * tile.sums, "matrices": 0, "reads": 8 * (rows + columns)}
    else:
        rows, columns = tile.m // (16 * tile.warps_m), tile.n // (8 * tile.warps_n)
        expected = {"products": 4 * rows * columns, "matrices": 4 * (rows + columns // 2), "reads": 0}
    expected["copies"] = (tile.a_bytes + tile.n * 128) // (16 * tile.threads)
    expected |= {"other products": expected["products"], "other copies": expected["copies"], "global": 0, "atomics": 0}
    expected["other reads of shared memory"] = expected["matrices"] + expected["reads"]
    assert found == {name: chunks * count for name, count in expected.items()}


@pytest.mark.parametrize(("kernel", "arch"), [key for key in LOOPS if key[0].startswith("gemm_")])
def test_outputs_are_16_byte_stores_past_l1(built, kernel, arch):
    stores = re.findall(r"\bSTG\.E\S*", text(built, kernel, arch))
    assert set(stores) == {"STG.E.NA.128"}, "outputs must be stored 16 bytes at a time, past L1"


@pytest.mark.parametrize(("kernel", "arch"), LAYERS)
def test_scopes_and_row_copies_of_layer_kernels(built, kernel, arch):
    """Shared words have system scope. Atomic adds and exchanges have device scope.

    A CCTL follows each acquire, a MEMBAR precedes each release, and there are no others. Rows are read once and written
    once, 16 bytes per lane.
    """
    sass = text(built, kernel, arch)
    strong = re.findall(r"\b(LDG|STG|ATOMG)\.\S*STRONG\.(\w+)", sass)
    assert set(strong) == {("LDG", "SYS"), ("STG", "SYS"), ("ATOMG", "GPU")}
    count = {name: sum(found == name for found, _ in strong) for name in ("LDG", "STG", "ATOMG")}
    assert min(count.values()) > 0
    # in kernels with bulk copies ptxas adds a MEMBAR of block scope before each MEMBAR of the PTX
    fences = [scope for scope in re.findall(r"\bMEMBAR\.(\S+)", sass) if scope != "ALL.CTA"]
    assert sorted(fences) == ["ALL.GPU"] * count["ATOMG"] + ["ALL.SYS"] * count["STG"]
    assert len(re.findall(r"\bCCTL\.IVALL", sass)) == count["LDG"] + count["ATOMG"]
    assert re.search(r"\bLDG\.E\.NA\.LTC128B\.128\b", sass), "rows must be read 16 bytes a lane"
    assert re.search(r"\bSTG\.E\.NA\.128\b", sass), "rows must be written 16 bytes a lane"


def main_loop(sass, product):
    """(chunks of k per iteration, text of the innermost loop that contains products and a barrier)."""
    lines, labels, loops = sass.splitlines(), {}, []
    for i, line in enumerate(lines):
        if label := re.match(r"\s*(\.L\S+):", line):
            labels[label[1]] = i
        back = re.search(r"\bBRA\b.*`\((\.L\S+)\)", line)
        if back and back[1] in labels:
            loops.append("\n".join(lines[labels[back[1]] : i + 1]))
    loops = [loop for loop in loops if re.search(product, loop) and "BAR.SYNC" in loop]
    assert loops, f"no loop with {product}"
    inner = min(loops, key=len)
    return inner.count("BAR.SYNC"), inner  # one barrier a chunk; ptxas may unroll by two


def table_of(text):
    """{(kernel, architecture): (registers, bytes spilled, bytes of shared memory, blocks)} of a table of kernels."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        name = re.fullmatch(r"(\w+)(?: \((.*)\))?", cells[0])
        if name is None or len(cells) != 5 or not cells[2].isdigit():
            continue
        archs = name[2].split(", ") if name[2] else ARCHS
        columns = [[int(n) for n in cell.split(", ")] for cell in cells[1:]]
        for i, arch in enumerate(archs):  # a cell with one number holds for all architectures
            found[name[1], arch] = tuple(column[min(i, len(column) - 1)] for column in columns)
    return found


def test_the_docs_have_the_current_table(built):
    """Each kernel compiled here is compared with docs/performance.md, if that names the same compilers."""
    docs = (DOCS / "performance.md").read_text(encoding="utf-8")
    by = (built[0] / "report.md").read_text(encoding="utf-8").split("\n\n", 1)[0]
    table = table_of(docs.partition("\nBy numba-cuda ")[2].strip().split("\n\n")[1])
    assert set(table) == set(KERNELS), MAKE_TABLE
    if by not in docs:
        pytest.skip(f"docs/performance.md has the table of other compilers than: {by}")
    fields = ("registers", "spill_bytes", "shared_bytes", "blocks_per_sm")
    for key, row in built[1].items():
        assert key not in table or table[key] == tuple(row[field] for field in fields), (key, MAKE_TABLE)


def test_the_docs_say_what_each_gpu_gets():
    """docs/cuda.md says for every architecture which tiles a layer has, and which kernels these tests compile."""
    rows = re.findall(r"^ *\| (`sm_.*)$", (DOCS / "cuda.md").read_text(encoding="utf-8"), re.M)
    found = {}
    for archs, _, tiles_, compiled in (row.split(" | ") for row in rows):
        for arch in re.findall(r"`(sm_\d+)`", archs):
            found[arch] = tiles_, compiled.strip(" |")

    def shown(kind, gpu):
        return ", ".join(f"{tile.m} ({tile.blocks})" for tile in persistent.layer_tiles(kind, gpu))

    def text(arch):
        gpu = Target.named(arch)
        half, single, full = (shown(kind, gpu) for kind in ("bf16", "tf32", "f32"))
        assert shown("f16", gpu) == half
        words = f"16-bit, `tf32` {half}" if half == single else f"16-bit, by warpgroups, {half}; `tf32` {single}"
        return (
            f"{words}; `f32` {full}",
            "all kernels" if arch in ARCHS else "with `KERNELS=all`, those that once spilled",
        )

    assert found == {arch: text(arch) for arch in assemble.ARCHS}


def test_without_numba_cuda_the_command_says_what_to_install(tmp_path):
    """aristos can be imported without numba-cuda. The command says what is missing."""
    code = (
        "import sys; sys.modules['numba_cuda'] = None; import aristos, aristos.kernels;"
        f"from aristos.kernels.cuda.__main__ import main; sys.exit(main(['--out', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "error: CUDA kernels need numba-cuda 0.30: pip install 'aristos[cuda12]'" in done.stderr


def test_unknown_architectures_and_kernels_are_refused(tmp_path, capsys):
    assert main(["--arch", "sm_90,sm_75", "--out", str(tmp_path)]) == 1
    refused = f"--arch must be one or more of {', '.join(assemble.ARCHS)}, separated by commas, got sm_75"
    assert refused in capsys.readouterr().err
    assert main(["--arch", " , ", "--out", str(tmp_path)]) == 1
    assert "got nothing" in capsys.readouterr().err
    assert main(["--kernels", "gemm_f8", "--out", str(tmp_path)]) == 1
    refused = capsys.readouterr().err
    assert "--kernels must match NAME.ARCH of a kernel, got 'gemm_f8'; names are begin, drop, fail" in refused
    assert f"architectures {', '.join(assemble.TARGETS)}" in refused
    assert main(["--kernels", "(", "--out", str(tmp_path)]) == 1
    assert "error: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_missing_tool_is_reported(monkeypatch):
    monkeypatch.setattr(assemble.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    assemble.tool.cache_clear()
    with pytest.raises(
        EnvironmentProblem, match="nvdisasm was found neither in a wheel nor on PATH: pip install nvidia"
    ):
        assemble.tool("nvdisasm")
    assemble.tool.cache_clear()


def test_the_error_of_ptxas_is_reported(tmp_path):
    (tmp_path / "bad.ptx").write_text(".version 8.0\n.target sm_80\n.address_size 64\nnonsense\n")
    with pytest.raises(EnvironmentProblem, match=r"ptxas -v -arch=sm_80 .*bad\.ptx .* failed: .*nonsense"):
        assemble.assemble(tmp_path / "bad.ptx", tmp_path / "bad.cubin", "sm_80")


def test_advice_of_ptxas_is_found(tmp_path):
    """ptxas reports that it serialises a warpgroup's products because a register is accessed too early."""
    body = """
.version 8.0
.target sm_90a
.address_size 64
.visible .entry sums(.param .u64 out, .param .u64 a) {
  .reg .f32 %f<4>; .reg .b64 %d<2>; .reg .pred %p; .reg .u64 %o;
  ld.param.u64 %d0, [a]; ld.param.u64 %o, [out]; cvta.to.global.u64 %o, %o; setp.eq.b32 %p, 0, 0;
  mov.f32 %f0, 0f00000000; mov.f32 %f1, %f0; mov.f32 %f2, %f0; mov.f32 %f3, %f0;
  wgmma.fence.sync.aligned;
  wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f0, %f1, %f2, %f3}, %d0, %d0, %p, 1, 1, 0, 0;
  wgmma.commit_group.sync.aligned;
  WAIT
  st.global.f32 [%o], %f0;
  ret;
}
"""
    for wait, advised in (("wgmma.wait_group.sync.aligned 0;", False), ("", True)):
        (tmp_path / "sums.ptx").write_text(body.replace("WAIT", wait))
        made = assemble.assemble(tmp_path / "sums.ptx", tmp_path / "sums.cubin", "sm_90a")
        assert bool(made.advice) == advised, made.advice

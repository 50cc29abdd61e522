"""Every CUDA kernel for every architecture, by the command that users have: what is in its machine code, what it takes.

Nothing runs here: this is what compiled.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
from aristos.errors import EnvironmentProblem
from aristos.kernels.cuda import assemble
from aristos.kernels.cuda.__main__ import TARGETS, main
from aristos.kernels.cuda.catalogue import kernels
from aristos.simt import limits

try:
    assemble.tool("ptxas")
    assemble.tool("nvdisasm")
except EnvironmentProblem as missing:
    pytest.skip(str(missing), allow_module_level=True)

ARCHS = list(TARGETS)
KERNELS = {(kernel.name, arch): kernel for arch in ARCHS for kernel in kernels(arch)}
PRODUCT = {
    "bf16": r"HMMA\.16816\.F32\.BF16",
    "f16": r"HMMA\.16816\.F32 ",
    "tf32": r"HMMA\.1688\.F32\.TF32",
    "f32": "FFMA",
}


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """(folder, rows of the report by kernel and architecture)."""
    out = tmp_path_factory.mktemp("cuda")
    assert main(["--out", str(out)]) == 0
    rows = json.loads((out / "report.json").read_text())
    return out, {(row["kernel"], row["arch"]): row for row in rows}


def text(built, kernel, arch):
    return (built[0] / f"{kernel}.{arch}.sass").read_text()


def test_all_are_there(built):
    out, rows = built
    assert set(rows) == set(KERNELS)
    assert len({name for name, _ in rows}) == len(rows) // len(ARCHS) == 23
    for kernel, arch in rows:
        files = {kind: out / f"{kernel}.{arch}.{kind}" for kind in ("ptx", "cubin", "sass")}
        assert re.search(rf"^\.target {TARGETS[arch]}$", files["ptx"].read_text(), re.M)
        assert files["cubin"].read_bytes()[:4] == b"\x7fELF"
        assert "EXIT" in files["sass"].read_text()
    fields = {"kernel", "arch", "registers", "spill_bytes", "shared_bytes", "blocks_per_sm"}
    assert all(set(row) == fields for row in rows.values())


def test_shared_memory_starts_on_a_line(built):
    """Copies of 16 bytes and whole rows of 128 need it, whichever of a kernel's names for it they use."""
    for kernel, arch in built[1]:
        found = re.findall(r"\.extern \.shared \.align (\d+)", (built[0] / f"{kernel}.{arch}.ptx").read_text())
        assert set(found) == {"128"}, kernel


def test_budgets(built):
    """No spills; as many blocks on an SM as a kernel is meant to have, or as its shared memory permits on an A100."""
    for (name, arch), row in built[1].items():
        kernel = KERNELS[name, arch]
        assert row["spill_bytes"] == 0, row
        assert 0 < row["registers"] <= 255, row
        room = limits.of((8, 0) if arch == "sm_80" else (9, 0)).shared // (row["shared_bytes"] + 1024)
        assert row["blocks_per_sm"] >= min(kernel.blocks, room) >= 1, row
        assert row["shared_bytes"] <= limits.of((8, 0)).shared_block, row


@pytest.mark.parametrize(("kernel", "arch"), [key for key in KERNELS if key[0].startswith("gemm_")])
def test_products(built, kernel, arch):
    """The main loop multiplies on tensor cores, reads matrices from shared memory, and copies 16 bytes at a time."""
    sass = text(built, kernel, arch)
    kind = kernel.split("_")[1]
    loop = main_loop(sass, PRODUCT[kind])
    assert re.search(r"LDGSTS\.E\.BYPASS\.LTC128B\.128", loop)
    assert re.search(r"LDSM\.16\.M88\.4" if kind != "f32" else r"LDS\.128", loop)
    assert not re.search(r"\b(LDL|STL)\b", sass)
    assert re.search(r"STG\.E\.\w+\.128|STG\.E\.128", sass)
    assert not re.search(r"STG\.E(?!\.(\w+\.)?128)", sass), "outputs go out 16 bytes at a time"


def main_loop(sass, product):
    """The text from the first barrier of the pipeline to the last product."""
    lines = sass.splitlines()
    places = [i for i, line in enumerate(lines) if re.search(product, line)]
    assert places, product
    barrier = max(i for i in range(places[0]) if "BAR.SYNC" in lines[i])
    return "\n".join(lines[barrier : places[-1] + 1])


@pytest.mark.parametrize("arch", ARCHS)
def test_router(built, arch):
    """Scores are fused multiply-adds from shared memory; tensor cores would round them otherwise."""
    sass = text(built, "route", arch)
    assert "FFMA" in sass
    assert "HMMA" not in sass
    assert re.search(r"LDGSTS\.E\.BYPASS\.LTC128B\.128", sass)


def test_without_the_compiler(tmp_path):
    """aristos imports without numba-cuda; its CUDA kernels say what is missing, and so does the command."""
    code = (
        "import sys; sys.modules['numba_cuda'] = None; import aristos, aristos.kernels;"
        f"from aristos.kernels.cuda.__main__ import main; sys.exit(main(['--out', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "error: CUDA kernels need numba-cuda 0.30: pip install 'aristos[cuda12]'" in done.stderr


def test_unknown_architectures(tmp_path, capsys):
    assert main(["--arch", "sm_90,sm_75", "--out", str(tmp_path)]) == 1
    assert "--arch must name some of sm_80, sm_90, sm_100, with commas between, got sm_75" in capsys.readouterr().err
    assert main(["--arch", " , ", "--out", str(tmp_path)]) == 1
    assert "got nothing" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_missing_tools(monkeypatch):
    monkeypatch.setattr(assemble.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    assemble.tool.cache_clear()
    with pytest.raises(
        EnvironmentProblem, match="nvdisasm was found neither in a wheel nor on PATH: pip install nvidia"
    ):
        assemble.tool("nvdisasm")
    assemble.tool.cache_clear()


def test_what_does_not_assemble(tmp_path):
    (tmp_path / "bad.ptx").write_text(".version 8.0\n.target sm_80\n.address_size 64\nnonsense\n")
    with pytest.raises(EnvironmentProblem, match=r"ptxas -v -arch=sm_80 .*bad\.ptx .* failed: .*nonsense"):
        assemble.assemble(tmp_path / "bad.ptx", tmp_path / "bad.cubin", "sm_80")

"""Building cubins without a driver: for each architecture, kept for later processes, rebuilt if damaged."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from dataclasses import replace

import cache_keys
import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
from cases import ROOT, clean_environment
from cuda_kernels import FILL, REVERSE, WORDS

import ptxsim
from aristos.errors import EnvironmentProblem, InputError
from aristos.kernels.cuda import ahead, assemble, build, catalogue, keys
from kernel_cache import compile as compile_
from kernel_cache import private

pytestmark = pytest.mark.slow

try:
    assemble.tool("ptxas")
    assemble.tool("nvdisasm")
except EnvironmentProblem as missing:
    pytest.skip(str(missing), allow_module_level=True)

OTHER = """
import sys, warnings
warnings.simplefilter("error")
sys.path.insert(0, "tests/support")
from aristos.kernels.cuda import build
from kernel_cache import offline
from cuda_kernels import FILL, REVERSE

count = 0
def counted(*args, original=offline.compiled):
    global count
    count += 1
    return original(*args)
offline.compiled = counted
for kernel in (FILL, REVERSE):
    build.build(kernel, "sm_90")
print(count)
"""


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Use an empty cache. The fixture is a function that lists the cache's entries."""
    monkeypatch.setattr(build, "cache_folder", lambda: tmp_path)
    return lambda: sorted((tmp_path / "cuda").glob("*"))


@pytest.fixture
def compiled(monkeypatch):
    """The names of the kernels that are compiled."""
    names, original = [], build.ptx
    monkeypatch.setattr(build, "ptx", lambda kernel, target: names.append(kernel.name) or original(kernel, target))
    return names


def made_for(text):
    """The target of machine code, such as sm_90a. The text names it, or before sm_100 the flags of its header do."""
    named, flag = re.search(r"\.target\s+(\w+)", text), re.search(r"\bEF_CUDA_SM(\d+)", text)
    return named[1] if named else f"sm_{flag[1]}" + ("a" if "EF_CUDA_ACCELERATORS" in text else "")


def machine_code(built, folder):
    path = folder / "kernel.cubin"
    path.write_bytes(built.cubin)
    return assemble.disassemble(path)


@pytest.mark.parametrize(("arch", "target"), [("sm_80", "sm_80"), ("sm_90", "sm_90a"), ("sm_100", "sm_100")])
@pytest.mark.parametrize("kernel", [FILL, REVERSE], ids=["fill", "reverse"])
def test_a_cubin_is_for_its_architecture(kept, tmp_path, kernel, arch, target):
    built = build.build(kernel, arch)
    text = machine_code(built, tmp_path)
    assert made_for(text) == target
    assert f".text.{built.entry}:" in text
    assert kernel.name in built.entry
    assert ("STS" in text) == (kernel is REVERSE)
    (entry,) = kept()
    assert entry.name.startswith(f"{kernel.name}.{target}.")


def test_the_kernels_compute_correctly_on_the_ptx_machine():
    """tests/gpu expects the same results from a GPU."""
    device = ptxsim.Machine().device(0)
    words, turned = device.array(np.arange(WORDS)), device.empty(WORDS, np.int64)
    filled = device.array(np.zeros(1000, np.int64))
    device.launch(FILL.function, 8, FILL.threads, filled.ptr, 1000, -5)
    device.launch(REVERSE.function, 1, REVERSE.threads, words.ptr, turned.ptr, shared=REVERSE.shared_bytes)
    assert not device.machine.run()
    np.testing.assert_array_equal(filled.copy_to_host(), np.arange(1000) - 5)
    np.testing.assert_array_equal(turned.copy_to_host(), np.arange(WORDS)[::-1])


def test_a_malformed_architecture_is_refused(kept, tmp_path):
    assert made_for(machine_code(build.build(FILL, "sm_89"), tmp_path)) == "sm_89"
    with pytest.raises(InputError, match="arch must look like 'sm_90', got 'hopper'"):
        build.build(FILL, "hopper")


@pytest.mark.parametrize(
    ("name", "first", "other"),
    [
        ("gemm_bf16_128x128", "sm_80", "sm_89"),
        ("gemm_f32_64x64", "sm_90", "sm_80"),
        ("place", "sm_90", "sm_80"),
        ("gemm_bf16_128x128", "sm_100", "sm_120"),
    ],
)
def test_the_ptx_of_one_architecture_is_that_of_another(name, first, other):
    """Launch bounds are equal too, so the report compiles one PTX for both and assembles it for each."""

    def code(text):
        return re.sub(r"_ZN\w+|_cudapy_smem_\d+", "NAME", text[text.index(".entry") :])

    one, two = (next(each for each in catalogue.kernels(arch) if each.name == name) for arch in (first, other))
    targets = [assemble.TARGETS.get(arch, arch) for arch in (first, other)]
    assert one.blocks == two.blocks
    assert code(build.ptx(one, targets[0])[0]) == code(build.ptx(two, targets[1])[0])


def test_an_architecture_that_ptxas_does_not_know_is_refused_in_one_sentence(kept):
    """A GPU may be newer than the compilers."""
    why = r"^ptxas V[\d.]+ does not know sm_130: install a newer one: pip install nvidia-cuda-nvcc"
    with pytest.raises(EnvironmentProblem, match=why):
        build.build(FILL, "sm_130")


def test_a_cached_kernel_is_not_compiled_again(kept, compiled):
    first = build.build(FILL, "sm_90")
    again = build.build(FILL, "sm_90")
    assert first == again
    assert compiled == ["fill"]
    build.build(FILL, "sm_80")
    assert compiled == ["fill", "fill"]


def started(cache):
    """A process that builds both kernels and prints how many it compiled."""
    env = {**clean_environment(), "ARISTOS_CACHE": str(cache)}
    return subprocess.Popen([sys.executable, "-c", OTHER], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)


def compiled_by(processes):
    counts = [process.communicate(timeout=300)[0] for process in processes]
    assert not any(process.returncode for process in processes)
    return [int(count) for count in counts]


def test_one_process_of_a_node_compiles_and_later_ones_load(tmp_path):
    together = [started(tmp_path), started(tmp_path)]
    assert sum(compiled_by(together)) == 2, "a kernel was compiled by both"
    assert compiled_by([started(tmp_path)]) == [0]


@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: d[:-1] + bytes([d[-1] ^ 1])])
def test_a_damaged_entry_is_rebuilt(kept, compiled, damage):
    built = build.build(FILL, "sm_90")
    (path,) = kept()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="is damaged: the kernel is compiled again"):
        rebuilt = build.build(FILL, "sm_90")
    assert len(rebuilt.cubin) == len(built.cubin)  # equal except for a number in Numba's name of the kernel
    assert compiled == ["fill", "fill"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build.build(FILL, "sm_90") == rebuilt


@pytest.mark.filterwarnings("ignore:Could not find source")
def test_the_key_depends_on_types_sources_and_tools(kept, compiled, monkeypatch):
    """A change of the types, of the tools or of the kernel's file makes a new entry."""
    build.build(FILL, "sm_90")
    build.build(replace(FILL, types=(*FILL.types[:2], FILL.types[2].__class__("int32"))), "sm_90")
    monkeypatch.setattr(build, "_tools", lambda: "others")
    build.build(FILL, "sm_90")
    assert len(kept()) == len(compiled) == 3
    code = FILL.function.py_func.__code__
    monkeypatch.setattr(FILL.function.py_func, "__code__", code.replace(co_filename=__file__))
    build.build(FILL, "sm_90")
    assert len(kept()) == 4


def test_an_unwritable_cache_gives_a_warning(tmp_path, monkeypatch):
    (tmp_path / "cuda").write_text("a file where the folder should be")
    monkeypatch.setattr(build, "cache_folder", lambda: tmp_path)
    with pytest.warns(UserWarning, match="cannot be kept in .*cuda.*set ARISTOS_CACHE"):
        assert build.build(FILL, "sm_90").cubin[:4] == b"\x7fELF"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["cuda"]


def test_a_full_disk_leaves_no_partial_entry(kept, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(private.os, "replace", full)
    with pytest.warns(UserWarning, match="No space left on device; set ARISTOS_CACHE"):
        build.build(FILL, "sm_90")
    assert not kept()


def no_ptxas(monkeypatch):
    def missing(name):
        raise EnvironmentProblem(f"{name} was found neither in a wheel nor on PATH")

    monkeypatch.setattr(build, "tool_version", missing)
    build._tools.cache_clear()


def test_without_ptxas_nvjitlink_assembles(kept, tmp_path, monkeypatch):
    no_ptxas(monkeypatch)
    try:
        built = build.build(FILL, "sm_90")
        assert build.assembler()[0] == "nvJitLink"
        assert made_for(machine_code(built, tmp_path)) == "sm_90a"
        with pytest.raises(EnvironmentProblem, match=r"nvJitLink for sm_90a failed: .*nonsense"):
            build._machine_code(".version 8.0\n.target sm_90a\n.address_size 64\nnonsense\n", "sm_90a")
    finally:
        build._tools.cache_clear()


def test_without_ptxas_and_nvjitlink_the_error_names_both(monkeypatch):
    no_ptxas(monkeypatch)
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvjitlink", None)
    monkeypatch.delattr("cuda.bindings.nvjitlink", raising=False)
    with pytest.raises(EnvironmentProblem, match=r"ptxas was found neither .*; nvJitLink, .* cannot be loaded"):
        build.assembler()


def test_without_numba_cuda_the_error_says_what_to_install():
    """The module can be imported. The import of kernels raises an error that says what to install."""
    code = (
        "import sys; sys.modules['numba_cuda'] = None; from aristos.kernels.cuda import build\n"
        "try: from aristos.kernels.cuda import catalogue\nexcept build.EnvironmentProblem as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "CUDA kernels need numba-cuda 0.30: pip install 'aristos[cuda12]'" in done.stdout, done.stderr


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """(a folder of kernels compiled ahead, its file). The file holds `fill` for sm_90, compiled on another machine."""
    folder = tmp_path / "ahead"
    folder.mkdir()
    monkeypatch.setattr(ahead, "FOLDER", folder)
    return folder, ahead.write(folder, FILL, "sm_90a", build.Built("fill_of_another_machine", b"\x7fELF of it"))


def test_a_kernel_compiled_ahead_needs_neither_compiler_nor_cache(kept, compiled, shipped, monkeypatch):
    """The kernel is found with any CPU, Python and assembler."""
    monkeypatch.setattr(build, "_tools", lambda: pytest.fail("the key holds the assembler"))
    monkeypatch.setattr(compile_, "versions", lambda: pytest.fail("the key holds Python and CPU"))
    built = build.build(FILL, "sm_90")
    assert built == build.Built("fill_of_another_machine", b"\x7fELF of it")
    assert build.place(FILL, "sm_90") == build.COMPILED_AHEAD
    assert compiled == kept() == []


def test_a_kernel_that_does_not_fit_is_compiled_here(kept, compiled, shipped, monkeypatch):
    """A kernel does not fit if types, options, sources or the architecture differ."""
    others = [
        (FILL, "sm_80"),
        (replace(FILL, types=(*FILL.types[:2], FILL.types[2].__class__("int32"))), "sm_90"),
        (REVERSE, "sm_90"),
    ]
    for kernel, arch in others:
        assert build.place(kernel, arch) == build.NOWHERE
        assert build.build(kernel, arch).entry != "fill_of_another_machine"
        assert build.place(kernel, arch) == build.KEPT
    assert len(compiled) == len(kept()) == 3
    monkeypatch.setattr(keys, "_sources", lambda kernel, key: ("others", "others"))
    assert ahead.find(FILL, "sm_90a") is None


def test_a_kernel_compiled_ahead_is_found_whatever_the_clocks_say(monkeypatch, shipped):
    """The clock of a machine without a network may be older than the files of a kit. Finding kernels ignores it.

    A kernel is written only if its sources have not been edited since the program started.
    """
    with monkeypatch.context() as patch:
        patch.setattr(compile_, "STARTED", 0.0)  # every file is newer
        cache_keys.forget()
        assert build.place(FILL, "sm_90") == build.COMPILED_AHEAD
        with pytest.raises(InputError, match="a source of the kernel fill was edited while this program ran"):
            ahead.write(shipped[0], FILL, "sm_90a", build.Built("fill", b""))
    cache_keys.forget()


def test_a_damaged_kernel_compiled_ahead_is_compiled_here(kept, compiled, shipped):
    _, path = shipped
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="is damaged: the kernel is compiled again"):
        build.build(FILL, "sm_90")
    assert compiled == ["fill"]


def test_the_key_of_a_kernel_compiled_ahead_ignores_options_that_no_compiler_reads(monkeypatch):
    """Other releases of Numba-CUDA have more options, and may print types in another way."""
    before = keys.ahead_key(FILL), keys.kernel_key(FILL)
    monkeypatch.setitem(FILL.function.targetoptions, "of_a_later_release", True)
    assert keys.ahead_key(FILL) == before[0]
    assert keys.kernel_key(FILL) != before[1]
    monkeypatch.setitem(FILL.function.targetoptions, "launch_bounds", (32, 1))
    assert keys.ahead_key(FILL) != before[0]

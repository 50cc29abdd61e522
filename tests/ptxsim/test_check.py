"""`ptxsim check` on CUDA C++, PTX and scripts; launches are given as text."""

from __future__ import annotations

import os
import shutil
import sys
import time

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from needs_nvrtc import compiles

import ptxsim
from ptxsim import check, host_code, launch_arguments, launch_text, nvcc, nvrtc
from ptxsim.command import main
from ptxsim.errors import InputError

CU = """#include <cfloat>
#include <cstdio>
#include <limits>
#include <vector>
#include <cuda_runtime.h>
#include <stdint.h>

// simt: app::add<<<8, 128>>>(float32[1000]=seed:1, float32[1000]=2, out:float32[1000], COUNT)
// simt: app::twice<float><<<(4, 2), dim3(64, 2), 64>>>(out, 1000)
namespace app {
struct Sum { __device__ float operator()(float a, float b) const { return a + b; } };
int ceil_div(int a, int b) { return (a + b - 1) / b; }

__global__ void add(const float* a, const float *b, float out[], uint32_t n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x + ceil_div(0, 7);
    if (i < n) out[i] = Sum()(a[i], b[i]) < FLT_MAX ? Sum()(a[i], b[i]) : std::numeric_limits<float>::max();
}

template <typename T> __global__ void twice(T* x, int n) {
    extern __shared__ T s[];
    int i = (blockIdx.y * gridDim.x + blockIdx.x) * 128 + threadIdx.y * 64 + threadIdx.x;
    if (threadIdx.y == 0 && threadIdx.x < 16) s[threadIdx.x] = 1;
    SYNC;
    if (i < n) x[i] *= 1 + s[threadIdx.x % 16];
}

void launch(float* a, int n = 1) { add<<<ceil_div(n, 128), 128>>>(a, a, a, n); }  // host: { is no brace
std::vector<float> three() { return std::vector<float>(3, '{'); }
}

int main() {
    float* a;
    cudaMalloc(&a, 4);
    app::launch(a, 1);
    printf("} %d\\n", (int)app::three().size());
}
"""


def line_of(text, part):
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


def checked(capsys, *words):
    """(exit code, stdout, stderr) of the command."""
    code = main(["check", *map(str, words)])
    out = capsys.readouterr()
    return code, out.out, out.err


@compiles
@pytest.mark.parametrize(
    ("count", "sync", "kinds"),
    [
        ("1000", "__syncthreads()", {}),
        ("1001", "__syncthreads()", {"out_of_bounds": "out[i] = Sum"}),
        ("1000", "__syncwarp()", {"race": "s[threadIdx.x] = 1", "uninitialised": "x[i] *="}),
    ],
)
def test_a_file_with_host_code_templates_and_a_namespace(tmp_path, capsys, monkeypatch, count, sync, kinds):
    monkeypatch.chdir(tmp_path)
    text = CU.replace("COUNT", count).replace("SYNC", sync)
    (tmp_path / "kernels.cu").write_text(text)
    code, out, err = checked(capsys, "--seeds", 2, "kernels.cu")
    assert code == (1 if kinds else 0), out + err
    for kind, part in kinds.items():
        assert f"{kind}: kernels.cu:{line_of(text, part)}: app::" in out
    assert {line.partition(":")[0] for line in out.splitlines()[:-2]} == set(kinds)
    if "out_of_bounds" in kinds:
        assert {name for name in ("a[1000]", "b[1000]", "out[1000]") if name in out} == {
            "a[1000]",
            "b[1000]",
            "out[1000]",
        }


@compiles
def test_annotations_and_launches_of_the_command_line(tmp_path, capsys):
    path = tmp_path / "one.cu"
    path.write_text('extern "C" __global__ void put(int* x, int at) {\n    x[at] = 1;\n}\n')
    launch = "put<<<1, 1>>>(int32[4], {})"
    assert checked(capsys, "--launch", launch.format(3), "--launch", launch.format(2), path)[0] == 0
    code, out, _ = checked(capsys, "--github", "--launch", launch.format(-1), path)
    assert code == 1
    assert out.startswith(f"::error file={path},line=2,title=out_of_bounds::put, block (0, 0, 0), thread (0, 0, 0): ")
    assert "x[-1]" in out
    both = tmp_path / "two.cu"
    both.write_text(f"// simt: {launch.format(0)}\n" + path.read_text())
    assert checked(capsys, both, both)[0] == 0


@compiles
def test_errors_of_the_compiler_are_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(nvcc, "found", lambda: None)
    path = tmp_path / "wrong.cu"
    path.write_text("#include <nowhere.h>\n// simt: k<<<1, 1>>>()\n__global__ void k() { undeclared(); }\n")
    code, _, err = checked(capsys, path)
    assert code == 2
    assert 'identifier "undeclared" is undefined' in err
    assert "taken as empty: nowhere.h" in err
    assert "#ifndef __CUDACC_RTC__" in err


@compiles
def test_a_launch_of_a_kernel_that_the_file_lacks(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(nvcc, "found", lambda: None)
    path = tmp_path / "k.cu"
    path.write_text("// simt: app::j<<<1, 1>>>()\nnamespace app { __global__ void k() {} }\n")
    code, _, err = checked(capsys, path)
    assert code == 2
    assert f"{path} has no kernel or variable app::j: write the name of one as in C++, with its namespace and" in err
    assert "__nv_name_map" not in err


def test_without_nvrtc_the_command_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    nvrtc.compiled_kernels.cache_clear()
    path = tmp_path / "k.cu"
    path.write_text("// simt: k<<<1, 1>>>()\n__global__ void k() {}\n")
    monkeypatch.delattr("cuda.bindings.nvrtc", raising=False)
    code, _, err = checked(capsys, path)
    assert code == 3
    assert "pip install 'aristos[simt]' brings it, and no GPU is needed" in err
    assert "'nvcc -ptx -lineinfo FILE.cu' makes PTX" in err


PTX = """// simt: scale<<<2, 32>>>(int32[64]=range, out:int32[64], 3)
// simt: scale<<<2, 32>>>(out, int32[FEW], 2)
.version 8.0
.target sm_90
.address_size 64
.visible .entry _Z5scalePKiPii(.param .u64 a, .param .u64 b, .param .u32 n)
{
.reg .u64 %a, %b, %o; .reg .u32 %i, %c, %t, %n, %v;
ld.param.u64 %a, [a]; ld.param.u64 %b, [b]; ld.param.u32 %n, [n];
mov.u32 %i, %ctaid.x; mov.u32 %c, %ntid.x; mov.u32 %t, %tid.x; mad.lo.u32 %i, %i, %c, %t;
mul.wide.u32 %o, %i, 4; add.u64 %a, %a, %o; add.u64 %b, %b, %o;
ld.global.u32 %v, [%a]; mul.lo.u32 %v, %v, %n;
st.global.u32 [%b], %v;
exit;
}
"""


@pytest.mark.parametrize(("few", "code"), [(64, 0), (63, 1)])
def test_ptx_with_a_mangled_name(tmp_path, capsys, few, code):
    path = tmp_path / "k.ptx"
    path.write_text(PTX.replace("FEW", str(few)))
    got, out, _ = checked(capsys, path)
    assert got == code
    if code:
        assert f"out_of_bounds: {path}:13: scale, block (1, 0, 0), thread (31, 0, 0)" in out
        assert "arg2[63]" in out


def test_reports_without_lines_of_the_source_say_so(tmp_path, capsys):
    path, note = tmp_path / "k.ptx", "names no lines of its source, so reports name lines of the PTX: nvcc -lineinfo"
    path.write_text(PTX.replace("FEW", "63"))
    assert f"\n{path} {note}" in checked(capsys, path)[1]
    path.write_text(PTX.replace("FEW", "63").replace("ld.global", ".loc 1 7 0\nld.global") + '.file 1 "of.cu"\n')
    assert note not in checked(capsys, path)[1]
    path.write_text(PTX.replace("FEW", "64"))
    assert note not in checked(capsys, path)[1]


SCRIPT = """import sys
import numpy as np
from numba import cuda

@cuda.jit
def k(x):
    x[cuda.threadIdx.x // {}] = 1

{}
sys.exit({})
"""


@pytest.mark.parametrize(
    ("share", "launch", "end", "code", "words"),
    [
        (1, "k[1, 32](np.zeros(32))", 0, 0, "0 reports"),
        (2, "k[1, 32](np.zeros(32))", 0, 1, "race: "),
        (1, "k[1, 32](np.zeros(32))", 5, 1, "0 reports"),
        (1, "", 0, 2, "no kernel ran"),
    ],
)
def test_scripts(tmp_path, capsys, share, launch, end, code, words):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(share, launch, end))
    got, out, err = checked(capsys, path, "--its-own", "option")
    assert got == code
    assert words in out + err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.ptx"], "there is no file nowhere.ptx"),
        (["k.txt"], "expected SCRIPT.py, or files of CUDA C++ (.cu) or PTX (.ptx), got k.txt"),
        (["k.ptx", "k.py"], "got k.py"),
        (["k.ptx", "--schedules", "2"], "options come before the file: write --schedules before k.ptx"),
        (["--launch", "k<<<1, 1>>>()", "k.py"], "a script launches its kernels itself"),
        (["none.ptx"], "no launch is given: write one in a comment"),
        (["--launch", "nothing<<<1, 1>>>()", "k.ptx"], "one of the kernels _Z5scalePKiPii, got nothing"),
        (["--launch", "scale<<<1, 2000>>>(int32[4], int32[4], 1)", "k.ptx"], "block can be (1024, 1024, 64) at most"),
        (
            ["--launch", "scale<<<1, 1>>>(x, int32[4], 1)", "k.ptx"],
            "the name of an array of an earlier launch, {MEMBERS} or &{MEMBERS}, got 'x'",
        ),
        (["--launch", "scale<<<1>>>(1)", "k.ptx"], "a launch is NAME<<<GRID, BLOCK>>>(ARGUMENTS)"),
        (["--launch", "scale<<<n, 1>>>(1)", "k.ptx"], "a grid or a block is a number or (x, y, z), got 'n'"),
        (["--launch", "scale<<<1, 1>>>(away.npy, int32[4], 1)", "k.ptx"], "cannot read the argument away.npy"),
        (["--launch", "scale<<<1, 1>>>(text[4], int32[4], 1)", "k.ptx"], "TYPE is one of NumPy's types of numbers"),
        (["--launch", "scale<<<1, 1>>>(a:int32[4], a:int32[4], 1)", "k.ptx"], "with a new name and a new array"),
        (["--launch", "scale<<<1, 1>>>(float[4], int32[4], 1)", "k.ptx"], "write float32 or float64, got 'float[4]'"),
        (["--launch", "scale<<<1, 1>>>({int 4}, int32[4], 1)", "k.ptx"], "write int32 or int64, got '{int 4}'"),
        (["--launch", "scale<<<1, 1>>>(bfloat16[4], int32[4], 1)", "k.ptx"], "as bfloat16, is an integer of its size"),
        (["--launch", "scale<<<1, 1>>>(int32[4], int32[4], int32[4])", "k.ptx"], "got an array's address"),
        (["--launch", "scale<<<1, 1>>>(int32[4])", "k.ptx"], "3 parameters (.u64, .u64, .u32), got 1"),
        (["--launch", "nothing<<<1, 1>>>()", "k.ptx"], "k.ptx: expected the name of one of the kernels"),
        (["--arch", "sm_80", "k.ptx"], "k.ptx is for sm_90, and the machine is sm_80: add --arch sm_90"),
        (
            ["--arch", "sm_100", "special.ptx"],
            "special.ptx is for sm_90a, and the machine is sm_100: add --arch sm_90a",
        ),
        (["lacking.ptx"], "lacking.ptx: PTX line 14 (of.cu:7): frobnicate.u32: opcode 'frobnicate' is not known"),
    ],
)
def test_usage(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "k.ptx").write_text(PTX.replace("FEW", "64"))
    (tmp_path / "none.ptx").write_text(PTX.partition(".version")[1] + PTX.partition(".version")[2])
    (tmp_path / "k.py").write_text("")
    (tmp_path / "k.txt").write_text("")
    (tmp_path / "special.ptx").write_text(PTX.replace("sm_90", "sm_90a"))
    lacking = PTX.replace("ld.global.u32 %v", ".loc 1 7 0\nfrobnicate.u32 %v").replace(
        ".address", '.file 1 "of.cu"\n.address'
    )
    (tmp_path / "lacking.ptx").write_text(lacking)
    code, _, err = checked(capsys, *words)
    assert code == 2
    assert message in err


def test_arrays_of_arguments(tmp_path):
    np.save(tmp_path / "data.npy", np.arange(6, dtype=np.int16).reshape(2, 3))
    arguments = launch_arguments.Arguments(ptxsim.Machine().device(0), tmp_path)
    made = {
        text: arguments.make(text, "x").copy_to_host()
        for text in (
            "data.npy",
            "int32[2, 3]=range",
            "float32[4]=2.5",
            "float64[1000]=seed:7",
            "int64[1000]=seed:7<10",
            "uint8[999]=seed:3",
        )
    }
    assert made["data.npy"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert made["int32[2, 3]=range"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert made["float32[4]=2.5"].tolist() == [2.5] * 4
    assert 0 <= made["float64[1000]=seed:7"].min() < 0.1 < 0.9 < made["float64[1000]=seed:7"].max() < 1
    assert set(made["int64[1000]=seed:7<10"]) == set(range(10))
    assert len(set(made["uint8[999]=seed:3"])) > 200
    empty = arguments.make("x:float16[5]", "other")
    assert empty.dtype == np.float16
    assert empty.allocation.name == "x"
    assert arguments.make("x", "y") is empty
    assert [arguments.make(text, "") for text in ("5", "-0x10", "2.5f", "1e3", "true")] == [5, -16, 2.5, 1000, 1]
    assert not ptxsim.Machine().device(0).empty(3)._view().any()


STRUCT = """#include <cuda_runtime.h>
#include "sizes.h"
struct Job { float *to; int count; double factor; unsigned char less; };
__global__ void fill(Job job, float *other) {
    int i = threadIdx.x;
    if (i < job.count - job.less) job.to[i] = job.factor * WIDTH + EXTRA + other[i];
}
// simt: @1 fill<<<1, 64>>>({out:float32[64]=0, int32 60, float64 1.5, uint8 4}, float32[64]=range)
// simt: fill<<<1, 64>>>({float32[64]=0, int32 60, float64 1.5, uint8 4}, out)
"""


@compiles
@pytest.mark.parametrize(("launches", "code"), [(1, 0), (2, 1)])
def test_structures_macros_folders_and_devices(tmp_path, capsys, launches, code):
    """A structure with an array's address, -I, -D, and launches on two devices that share an array: they race."""
    (tmp_path / "headers").mkdir()
    (tmp_path / "headers" / "sizes.h").write_text("#define WIDTH 2\n")
    file = tmp_path / "fill.cu"
    file.write_text("// simt:".join(STRUCT.split("// simt:")[: launches + 1]))
    words = ["check", "--devices", "2", "-I", str(tmp_path / "headers"), "-D", "EXTRA=1", str(file)]
    assert main(words) == code
    assert ("race" in capsys.readouterr().out) == (code == 1)
    assert main(["check", *words[3:]]) == 2
    assert "devices 0 to 0, got 1: --devices, or Machine(devices=), gives more" in capsys.readouterr().err


HAND_OVER = """.version 8.0
.target sm_90
.address_size 64
{launches}
.visible .entry put(.param .u64 data) {{
.reg .u64 %d; .reg .u32 %t; ld.param.u64 %d, [data]; mov.u32 %t, %tid.x; mad.wide.u32 %d, %t, 4, %d;
st.global.u32 [%d], %t; ret; }}
.visible .entry get(.param .u64 data, .param .u64 out) {{
.reg .u64 %d, %o; .reg .u32 %t, %x; ld.param.u64 %d, [data]; ld.param.u64 %o, [out]; mov.u32 %t, %tid.x;
mad.wide.u32 %d, %t, 4, %d; mad.wide.u32 %o, %t, 4, %o; ld.global.u32 %x, [%d]; st.global.u32 [%o], %x; ret; }}
"""
PUT, GET = "stream a: put<<<1, 64>>>(data:int32[64]=0)", "stream b: get<<<1, 64>>>(data, int32[64])"


@pytest.mark.parametrize(
    ("launches", "code", "words"),
    [
        ([PUT, GET], 1, "order of launches"),
        ([PUT, "stream a: record done", "stream b: wait done", GET], 0, "6 launches"),
        ([PUT, GET.replace("stream b", "stream a")], 0, "6 launches"),
        ([PUT, "stream a: record done", "@1 wait done", "@1 " + GET[10:]], 0, "6 launches"),
        ([PUT, GET.replace("stream b: ", "stream a: programmatic ")], 1, "order of launches"),
        ([PUT, "wait done", GET], 2, "no line before it records the event done"),
        (["record done"], 2, "no launch is given"),
    ],
)
def test_streams_and_events(tmp_path, capsys, launches, code, words):
    path = tmp_path / "hand_over.ptx"
    path.write_text(HAND_OVER.format(launches="\n".join(f"// simt: {launch}" for launch in launches)))
    assert main(["check", "--devices", "2", "--schedules", "3", str(path)]) == code
    printed = capsys.readouterr()
    assert words in printed.out + printed.err


def test_a_schedule_is_shortened(tmp_path, capsys):
    path = tmp_path / "hand_over.ptx"
    path.write_text(HAND_OVER.format(launches=f"// simt: {PUT}\n// simt: {GET}"))
    assert main(["check", "--shorten", "--seed", "2", str(path)]) == 1
    story = capsys.readouterr().out.split("turns of warps, shortened to ")
    before, after = int(story[0].split()[-1]), int(story[1].split()[0])
    assert 2 <= after <= 4
    assert after <= before
    assert story[1].count(", to line") == after
    assert "put on device 0" in story[1]
    assert "get on device 0" in story[1]
    assert main(["check", "--shorten", __file__]) == 2
    assert "not for scripts" in capsys.readouterr().err


def test_a_suppressed_fault_has_no_short_schedule(tmp_path, capsys):
    """The file has a race and an access out of bounds. A rule covers the one that comes first, then two cover both."""
    path, rules = tmp_path / "hand_over.ptx", tmp_path / "known.txt"
    launches = f"// simt: {PUT}\n// simt: {GET}\n// simt: stream a: put<<<1, 64>>>(int32[8]=0)"
    path.write_text(HAND_OVER.format(launches=launches))
    rules.write_text("")
    command = ["check", "--shorten", "--seed", "2", "--suppress", str(rules), str(path)]
    assert main(command) == 1
    story = next(line for line in capsys.readouterr().out.split("\n") if "shortened to" in line)
    kinds = ["race", "out_of_bounds"] if "] race at line" in story else ["out_of_bounds", "race"]
    for count, code in ((1, 1), (2, 0)):
        rules.write_text("".join(f"{kind} {path} known\n" for kind in kinds[:count]))
        assert main(command) == code
        printed = capsys.readouterr().out
        assert "shortened to" not in printed
        assert ("no short schedule: the first fault of this run is suppressed" in printed) == (count == 1)


def test_bytes_of_a_structure(tmp_path):
    device = ptxsim.Machine().device(0)
    arguments = launch_arguments.Arguments(device, tmp_path)
    a = arguments.make("a:float32[4]", "x")
    data = arguments.make("{uint8 1, int32 -2, a, float16 0.5, float64 1e3}", "s")
    want = np.zeros(1, np.dtype([("b", "u1"), ("i", "i4"), ("p", "u8"), ("h", "f2"), ("d", "f8")], align=True))
    want[0] = (1, -2, a.ptr, 0.5, 1000)
    assert data == want.tobytes()
    for text in ("{int32}", "{int32 5 6}", "{text 5}", "{int32 a}", "{5}"):
        with pytest.raises(InputError):
            arguments.make(text, "s")


FAKE = """#!/bin/sh
echo "$@" > {folder}/words
for last; do :; done
cat "$last" > {folder}/source
while [ "$1" != -o ]; do shift; done
cat {folder}/made.ptx > "$2"
"""


@compiles
def test_nvcc_compiles_what_nvrtc_rejects(tmp_path, capsys, monkeypatch):
    """nvcc gets the folders and macros, and its kernels are found by their names in C++."""
    ptx = ".version 8.0\n.target sm_90\n.address_size 64\n"
    for name in ("_Z3addIfEvPT_i", "_Z3addIdEvPT_i"):
        ptx += f".visible .entry {name}(.param .u64 a, .param .u32 n)\n{{\nret;\n}}\n"
    (tmp_path / "made.ptx").write_text(ptx)
    program = tmp_path / "nvcc"
    program.write_text(FAKE.format(folder=tmp_path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    file = tmp_path / "add.cu"
    file.write_text("#error for nvcc alone\n// simt: add<float><<<1, 32>>>(float32[32], 32)\n")
    assert main(["check", "-D", "A=1", "-I", "b", "--arch", "sm_90a", str(file)]) == 0
    words = (tmp_path / "words").read_text()
    assert "-ptx -w -lineinfo" in words
    assert "-arch=sm_90a -Ib -DA=1" in words
    source = (tmp_path / "source").read_text()  # a template that the file does not use is made too
    assert f'#include "{file}"' in source
    assert "<&add<float>, 0>();" in source
    file.write_text(file.read_text().replace("add<float>", "add<int>"))
    assert main(["check", str(file)]) == 2
    assert "add.cu has the kernels add<float>, add<double>, got add<int>" in capsys.readouterr().err


CUB = """#include <cub/cub.cuh>
// simt: k<<<1, 64>>>(int32[64]=range, sum:int32[1])
__global__ void k(const int *x, int *sum) {
    using Reduce = cub::BlockReduce<int, 64>;
    __shared__ Reduce::TempStorage room;
    int all = Reduce(room).Sum(x[threadIdx.x]);
    if (!threadIdx.x) *sum = all;
}
"""


@compiles
def test_the_main_header_of_cub_needs_no_nvcc(tmp_path, monkeypatch):
    monkeypatch.setattr(nvcc, "found", lambda: None)
    (tmp_path / "sum.cu").write_text(CUB)
    assert main(["check", "--save", str(tmp_path), str(tmp_path / "sum.cu")]) == 0
    assert np.load(tmp_path / "sum.npy") == [2016]


@compiles
def test_a_hundred_errors_of_the_compiler_do_not_hide_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(nvcc, "found", lambda: None)
    wrong = "".join(f"__global__ void k{at}() {{ none{at}(); }}\n" for at in range(30))
    (tmp_path / "k.cu").write_text("#include <no_such.h>\n// simt: k0<<<1, 1>>>()\n" + wrong)
    assert main(["check", str(tmp_path / "k.cu")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) < 50
    assert "none0" in lines[0]
    assert "(more lines: " in lines[-3]
    assert "taken as empty: no_such.h" in lines[-2]


@pytest.mark.skipif(not shutil.which("c++filt"), reason="there is no c++filt")
def test_nvcc_shows_which_kernel_a_name_stands_for():
    """Aliases, enumerators and default arguments of a template are written in another way by the compiler."""
    ptx = ".visible .global .align 4 .u32 size = 0;\n"
    mark = "_Z10ptxsim_useIXadL_ZN1n1kI6__halfL5Order0ELb0EEEvPT_EELi1EEvv"
    for name in ("_Z5plainPf", "_ZN1n1kI6__halfL5Order0ELb0EEEvPT_", mark):
        ptx += f".visible .entry {name}(\n"
    wanted = ("plain", "n::k<half, Order::big>", "&size")
    assert list(nvcc.names(ptx, wanted, "k.cu").values()) == [
        "_Z5plainPf",
        "_ZN1n1kI6__halfL5Order0ELb0EEEvPT_",
        "size",
    ]
    with pytest.raises(InputError, match=r"k.cu has the kernels plain, n::k<__half,\(Order\)0,false>, got plane:"):
        nvcc.names(ptx, ("plane",), "k.cu")


def test_names_of_templates_match_without_suffixes_of_numbers():
    """A demangler prints 1000000l for an argument that a launch writes as 1000000 or 1000000LL."""
    wanted = nvcc.shape("void a::k<true, 512, 1000000l>(int*)")
    assert wanted == nvcc.shape("a::k<true, 512, 1000000>") == nvcc.shape("a::k<true,512,1000000LL>")
    assert wanted != nvcc.shape("a::k<true, 51, 1000000>")


def test_launches_in_comments_are_found_in_a_long_file():
    source = "\n" * 500_000 + "  //  simt:  a<<<1, 1>>>()  \n// simt:\n//simt: b<<<1, 1>>>()\r\nx // simt: c\n"
    assert launch_text.in_comments(source) == ["a<<<1, 1>>>()", "b<<<1, 1>>>()"]


def test_launches_are_read_as_cuda_writes_them():
    found = launch_text.read("a::b<float, 3><<< dim3(4, 2), (32, 4), 128 >>>(int32[2, 3]=1, (1), x:f.npy);")
    assert (found.kernel, found.grid, found.block, found.shared) == ("a::b<float, 3>", (4, 2), (32, 4), 128)
    assert found.arguments == ("int32[2, 3]=1", "(1)", "x:f.npy")
    assert launch_text.read("k<<<1,1>>>()").arguments == ()
    with pytest.raises(InputError, match="a launch is NAME"):
        launch_text.read("k(1)")


@pytest.mark.parametrize(
    "part",
    [
        "/* ",
        '"\\"',
        "namespace ",
        "namespace (",
        "__global__ ",
        "add( ",
        "f() { exit(1); } ",
        "a",
        "{ ",
        "} ",
        " = ",
    ],
)
def test_long_files_of_any_kind_are_read_in_little_time(part):
    source, begun = part * (400_000 // len(part)), time.process_time()
    for text in (source, source + "{}", f"__global__ void add({source}!) {{}}"):
        host_code.without_host_code(text), check.parameter_names(text, "add"), launch_text.in_comments(text)
    assert time.process_time() - begun < 5


def test_host_functions_are_blank_and_lines_stay():
    text = CU.replace("SYNC", "")
    left = host_code.without_host_code(text)
    assert len(left.splitlines()) == len(text.splitlines())
    for gone in ("main", "cudaMalloc", "void launch", "three"):
        assert gone in text
        assert gone not in left
    for kept in ("struct Sum", "int ceil_div", "void add", "void twice", "#include <vector>", "// simt: app::add"):
        assert kept in left
        assert line_of(left, kept) == line_of(text, kept)
    for head in ("struct alignas(1) A", "struct __align__(8) A : Base<int>"):  # a class, although it has parentheses
        aligned = head + " { int x; void copy(int *y) { std::memcpy(&x, y, 4); } };"
        assert host_code.without_host_code(aligned) == aligned
    guarded = "#ifndef X\nint main() { }\n#endif\n"
    assert host_code.without_host_code(guarded) == "#ifndef X\n              \n#endif\n"


def test_functions_of_classes_lose_the_mark_of_the_host():
    """NVRTC rejects such a mark. As code of the device they do no harm."""
    text = "struct A {\n  /* __host__ */ __host__ A(int n) {}\n  __host__ __device__ A();\n#define M __host__\n};\n"
    left = host_code.without_host_code(text)
    assert left == text.replace("__host__ A", "         A").replace("__host__ __dev", "         __dev")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('f() {\n  g();\n  throw E("x");\n}\n', "f() {\n  g();\n  __trap();\n}\n"),
        ("f() {\n\n  throw E(\n    1);\n  g();\n}\n", "f() {\n\n  __trap();\n\n  g();\n}\n"),
        (
            "f() {\n  if (a) { }\n  else\n    throw E(1);\n}\n",
            "f() {\n  if (a) { }\n  else\n    __trap();\n}\n",
        ),
    ],
)
def test_a_throw_becomes_a_trap_and_lines_stay(text, left):
    assert host_code.without_host_code("__device__ void " + text) == "__device__ void " + left


LIBRARY = {
    "k.cu": """#include "inner/launch.cuh"
namespace lib {
__global__ void add(float *x, int n) {
    CHECK(n == 32);
    if (threadIdx.x < n) x[threadIdx.x] += std::numeric_limits<int>::max() > 0 ? one() : 0;
}
void add(float *x, int n, cudaStream_t stream) {
    LAUNCH(add, x, n);
}
}
// simt: lib::add<<<1, 32>>>(float32[32]=1, 32)
""",
    "headers/inner/launch.cuh": """#pragma once
#include <exception>
#include <string>
#include "helper.cuh"
class Failure : public std::exception {
  std::string text;
 public:
  explicit Failure(const char *file, int line) { text = std::string(file) + std::to_string(line); }
};
#define CHECK(condition) do { if (not (condition)) { printf("%s", #condition); asm("trap;"); } } while (0)
#define LAUNCH(kernel, ...) if (cudaLaunchKernelEx(&cfg, kernel, ##__VA_ARGS__)) throw Failure(__FILE__, __LINE__)
""",
    "headers/inner/helper.cuh": """#pragma once
#include <cstdint>
#include <rarely_used.h>
inline void print(const std::string &text) { std::cout << text; }
__device__ float one() { return static_cast<float>(static_cast<uint32_t>(1)); }
""",
}


@compiles
def test_a_librarys_headers_with_host_code_are_compiled(tmp_path, capsys):
    """Its headers bring headers of the host, classes and functions of the host; a host function only launches."""
    for name, text in LIBRARY.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert main(["check", "-I", str(tmp_path / "headers"), str(tmp_path / "k.cu")]) == 0
    assert "covered: 1 kernel" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "k.cu")]) == 2
    assert "launch.cuh" in capsys.readouterr().err


SYMBOLS = """
__constant__ float taps[3];
namespace app {
struct Scale { int by; float *more; };
__device__ Scale scale;
}
// simt: taps = float32[3]=range
// simt: app::scale = {int32 4, more:float32[32]=2}
// simt: blur<<<1, 32>>>(float32[32]=range, out:float32[32])
// simt: same<<<1, 32>>>(out, WANTED)
__global__ void blur(const float *x, float *out) {
    out[threadIdx.x] = (taps[1] * x[threadIdx.x] + taps[2]) * app::scale.by + app::scale.more[threadIdx.x];
}
__global__ void same(const float *out, float wanted) {
    if (out[threadIdx.x] != 4 * threadIdx.x + wanted) asm("trap;");
}
"""


@compiles
def test_variables_of_a_file_get_values(tmp_path, capsys):
    file = tmp_path / "taps.cu"
    file.write_text(SYMBOLS.replace("WANTED", "10.0"))
    assert main(["check", str(file)]) == 0
    assert "0 reports" in capsys.readouterr().out
    file.write_text(SYMBOLS.replace("WANTED", "11.0"))
    assert main(["check", str(file)]) == 1
    for text, message in (
        ("float32[4]=0", "taps has 12 bytes, got a value of 16"),
        ("0.5", "write the type too"),
    ):
        file.write_text(SYMBOLS.replace("float32[3]=range", text))
        assert main(["check", str(file)]) == 2
        assert message in capsys.readouterr().err
    ptx = tmp_path / "k.ptx"
    ptx.write_text(
        "// simt: gone = int32[1]=0\n// simt: k<<<1, 32>>>()\n.version 8.0\n.target sm_90\n"
        ".address_size 64\n.const .b32 there;\n.visible .entry k()\n{\nret;\n}\n"
    )
    assert main(["check", str(ptx)]) == 2
    assert "the kernels have the variables there, got gone" in capsys.readouterr().err

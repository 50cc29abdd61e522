"""Programs of the driver API for tests of `ptxsim run`: kernels, the beginning of a program, and how one runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PTX = """.version 8.0
.target sm_90
.address_size 64
.visible .global .align 4 .f32 factor = 0f40000000;
.visible .entry saxpy(.param .u64 x, .param .u64 y, .param .u32 n)
{
.reg .b64 %x, %y, %i, %g; .reg .b32 %t, %b, %d, %n; .reg .f32 %f<4>; .reg .pred %p;
ld.param.u64 %x, [x]; ld.param.u64 %y, [y]; ld.param.u32 %n, [n];
mov.u32 %t, %tid.x; mov.u32 %b, %ctaid.x; mov.u32 %d, %ntid.x; mad.lo.u32 %t, %b, %d, %t;
setp.ge.u32 %p, %t, %n; @%p bra END;
mul.wide.u32 %i, %t, 4; add.u64 %x, %x, %i; add.u64 %y, %y, %i;
mov.u64 %g, factor; ld.global.f32 %f1, [%g]; ld.global.f32 %f2, [%x]; ld.global.f32 %f3, [%y];
fma.rn.f32 %f3, %f1, %f2, %f3; st.global.f32 [%y], %f3;
END: ret;
}
.visible .entry fill(.param .u64 x, .param .f32 v)
{
.reg .b64 %x, %i; .reg .b32 %t, %b, %d; .reg .f32 %v;
ld.param.u64 %x, [x]; ld.param.f32 %v, [v];
mov.u32 %t, %tid.x; mov.u32 %b, %ctaid.x; mov.u32 %d, %ntid.x; mad.lo.u32 %t, %b, %d, %t;
mul.wide.u32 %i, %t, 4; add.u64 %x, %x, %i; st.global.f32 [%x], %v;
ret;
}
"""
HEAD = """
import ctypes, sys
import numpy as np
from cuda.bindings import driver as cu

def do(found):
    assert found[0] == cu.CUresult.CUDA_SUCCESS, (found[0], cu.cuGetErrorName(found[0]))
    return found[1] if len(found) == 2 else found[1:]

PTX = open(sys.argv[1], 'rb').read() + b'\\0'
do(cu.cuInit(0))
device = do(cu.cuDeviceGet(0))
context = do(cu.cuDevicePrimaryCtxRetain(device))
do(cu.cuCtxSetCurrent(context))
N = 1000

def to_device(values):
    made = do(cu.cuMemAlloc(values.nbytes))
    do(cu.cuMemcpyHtoD(made, values.ctypes.data, values.nbytes))
    return made

def to_host(pointer):
    values = np.zeros(N, np.float32)
    do(cu.cuMemcpyDtoH(values.ctypes.data, pointer, values.nbytes))
    return values

def launch(name, values, types, stream=0):
    kernel = do(cu.cuModuleGetFunction(module, name))
    do(cu.cuLaunchKernel(kernel, 8, 1, 1, 125, 1, 1, 0, stream, (values, types), 0))

module = do(cu.cuModuleLoadData(PTX))
x = to_device(np.arange(N, dtype=np.float32))
y = to_device(np.ones(N, np.float32))
F, I = ctypes.c_float, ctypes.c_uint32
"""


def command(*words):
    """The command `ptxsim run`."""
    code = "import sys; from ptxsim.command import main; sys.exit(main())"
    return [sys.executable, "-c", code, "run", *map(str, words)]


def environment():
    """The variables with which `command` finds ptxsim."""
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


def run(*words, cwd=None, timeout=300):
    """(exit code, stdout, stderr) of `ptxsim run`."""
    done = subprocess.run(command(*words), cwd=cwd, capture_output=True, text=True, timeout=timeout, env=environment())
    return done.returncode, done.stdout, done.stderr


def run_python(folder, text, *options, head=HEAD):
    """Run a Python program of the driver API, with a file of PTX, in a folder. The result is that of `run`."""
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    (folder / "kernels.ptx").write_text(PTX)
    (folder / "program.py").write_text(head + text)
    return run(*options, "--", sys.executable, "program.py", "kernels.ptx", cwd=folder)

"""`ptxsim run`: functions of the program that a stream calls, at their place in the stream."""

from __future__ import annotations

import re
import shutil

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from driver_programs import HEAD, run_python

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="there is no C compiler"),
]

MORE = """
import threading
one, two = do(cu.cuStreamCreate(1)), do(cu.cuStreamCreate(1))
kept, seen = [], []
pinned = cu.CUdeviceptr(int(do(cu.cuMemHostAlloc(4 * N, 0))))
host = np.ctypeslib.as_array((ctypes.c_float * N).from_address(int(pinned)))

def later(stream, called):
    made = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda data: called())
    kept.append(made)
    do(cu.cuLaunchHostFunc(stream, cu.CUhostFn(int(ctypes.cast(made, ctypes.c_void_p).value)), 0))

def fill(to, value, stream):
    launch(b'fill', (to, value), (None, F), stream)
"""
SPIN = """.version 8.0
.target sm_90
.address_size 64
.visible .entry spin(.param .u64 flag)
{
.reg .b64 %f; .reg .b32 %v; .reg .pred %p;
ld.param.u64 %f, [flag];
LOOP: ld.acquire.sys.global.u32 %v, [%f]; setp.eq.u32 %p, %v, 0; @%p bra LOOP;
ret;
}
"""


@pytest.fixture
def program(tmp_path):
    """A function that runs a Python program: (exit code, its lines, the reports)."""

    def made(text, *options):
        (tmp_path / "spin.ptx").write_text(SPIN)
        code, out, err = run_python(tmp_path, MORE + text, *options, head=HEAD)
        lines = out.splitlines()
        assert "Traceback" not in err, err
        return code, lines, [line for line in lines if re.match(r"\w+: ", line) and "covered: " not in line]

    return made


def test_a_host_function_runs_between_the_launches_before_and_after_it(program):
    code, lines, reports = program("""
fill(pinned, 2.0, one)
later(one, lambda: (seen.append(host[0]), host.fill(host[0] + 3)))
launch(b'saxpy', (pinned, y, N), (None, None, I), one)
later(one, lambda: seen.append(float(to[0])))
to = np.ctypeslib.as_array((ctypes.c_float * N).from_address(int(y)))
later(two, lambda: seen.append('other'))
assert not seen, 'a host function waits for its stream'
do(cu.cuStreamSynchronize(one))
assert seen == [2, 11], seen
do(cu.cuStreamSynchronize(two))
assert seen == [2, 11, 'other'], seen
print('right')
""")
    assert (code, lines[0], reports) == (0, "right", []), lines


def test_a_host_function_orders_what_comes_before_and_after_it_and_nothing_else(program):
    text = """
fill(x, 1.0, one)
later(one, lambda: None)
event = do(cu.cuEventCreate(0))
do(cu.cuEventRecord(event, one))
WAIT
launch(b'saxpy', (x, y, N), (None, None, I), two)
do(cu.cuCtxSynchronize())
"""
    code, _, reports = program(text.replace("WAIT", "do(cu.cuStreamWaitEvent(two, event, 0))"))
    assert (code, reports) == (0, [])
    code, _, reports = program(text.replace("WAIT", ""))
    assert (code, len(reports)) == (1, 1), reports


def test_a_program_that_waits_without_a_call_gets_its_host_functions(program):
    """It waits for what the function does, as with a condition variable; a thread of the stand-in calls it."""
    code, lines, _ = program("""
called = threading.Event()
fill(pinned, 2.0, one)
later(one, lambda: (seen.append((host[0], threading.get_ident() != main)), called.set()))
main = threading.get_ident()
assert called.wait(60)
assert seen == [(2, True)], seen
print('right')
""")
    assert (code, lines[0]) == (0, "right"), lines


def test_a_kernel_may_wait_for_a_host_function_of_another_stream(program):
    code, lines, reports = program("""
host[:] = 0
spin = do(cu.cuModuleGetFunction(do(cu.cuModuleLoad(b'spin.ptx')), b'spin'))
do(cu.cuLaunchKernel(spin, 1, 1, 1, 32, 1, 1, 0, one, ((pinned,), (None,)), 0))
fill(x, 1.0, two)
later(two, lambda: host.view(np.uint32).fill(1))
fill(x, 2.0, two)
do(cu.cuStreamSynchronize(one))
assert host.view(np.uint32)[0] == 1
do(cu.cuStreamSynchronize(two))
assert (to_host(x) == 2).all()
print('right')
""")
    assert (code, lines[0], reports) == (0, "right", []), lines


def test_a_host_function_may_not_call_the_driver_api(program):
    code, lines, _ = program("""
later(one, lambda: seen.append(cu.cuStreamSynchronize(one)[0]))
fill(x, 1.0, one)
do(cu.cuStreamSynchronize(one))
assert seen == [cu.CUresult.CUDA_ERROR_NOT_PERMITTED], seen
print('right')
""")
    assert (code, lines[0]) == (0, "right"), lines


def test_host_functions_are_called_at_the_programs_end(program):
    code, lines, _ = program("""
fill(x, 1.0, one)
later(one, lambda: print('called', flush=True))
""")
    assert (code, lines[0]) == (0, "called"), lines

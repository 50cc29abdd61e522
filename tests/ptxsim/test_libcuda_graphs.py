"""`ptxsim run`: graphs by capture of streams and by explicit nodes, and errors of captures."""

from __future__ import annotations

import re
import shutil
import sys

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from driver_programs import run, run_python

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="there is no C compiler"),
]

MORE = """
one, two, three = (do(cu.cuStreamCreate(1)) for _ in range(3))
R = cu.CUresult
GLOBAL, OF_THREAD, RELAXED = (cu.CUstreamCaptureMode(number) for number in range(3))

def begin(stream, mode=GLOBAL):
    do(cu.cuStreamBeginCapture(stream, mode))

def order(before, after):
    event = do(cu.cuEventCreate(0))
    do(cu.cuEventRecord(event, before))
    do(cu.cuStreamWaitEvent(after, event, 0))

def fill(value, stream):
    launch(b'fill', (x, value), (None, F), stream)

def saxpy(stream):
    launch(b'saxpy', (x, y, N), (None, None, I), stream)

def host(stream, called):
    made = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda data: called())
    kept.append(made)
    library = ctypes.CDLL('libcuda.so.1')  # because the bindings free what they pass on after the first call
    assert library.cuLaunchHostFunc(ctypes.c_void_p(int(stream)), made, None) == 0

def instantiate(graph):
    return do(cu.cuGraphInstantiate(graph, 0))

kept = []
"""


@pytest.fixture
def program(tmp_path):
    """A function that runs a Python program: (exit code, its lines, the reports, each up to what is missing)."""

    def made(text, *options):
        code, out, err = run_python(tmp_path, MORE + text, *options)
        lines = out.splitlines()
        reports = [line.split(" [")[0] for line in lines if re.match(r"\w+: ", line) and "covered: " not in line]
        assert "Traceback" not in err, err
        return code, lines, reports

    return made


FORK = """
begin(one)
order(one, two)
fill(3.0, two)
JOIN
saxpy(one)
LATER
graph = do(cu.cuStreamEndCapture(one))
made = instantiate(graph)
assert (to_host(y) == 1).all(), 'a capture runs nothing'
for _ in range(2):
    do(cu.cuGraphLaunch(made, three))
do(cu.cuStreamSynchronize(three))
print(set(to_host(y).tolist()))
"""


def test_a_captured_graph_runs_as_often_as_it_is_launched_in_the_order_of_its_edges(program):
    code, lines, reports = program(FORK.replace("JOIN", "order(two, one)").replace("LATER", ""))
    assert (code, lines[0], reports) == (0, "{13.0}", []), lines
    # the host's order of calls is none: the fill and the kernel that reads what it writes have no edge
    code, lines, reports = program(FORK.replace("JOIN", "").replace("LATER", "order(two, one)"))
    assert code == 1
    assert len(reports) == 1
    assert "[missing edge: add an edge between the two nodes of the graph]" in "".join(lines), lines
    assert all(word in reports[0] for word in ("race: ", "saxpy", "argument 1 of fill")), reports


def test_what_a_stream_queues_comes_before_and_after_its_graph(program):
    text = """
begin(one)
fill(3.0, one)
made = instantiate(do(cu.cuStreamEndCapture(one)))
saxpy(two)
do(cu.cuGraphLaunch(made, two))
saxpy(OTHER)
do(cu.cuCtxSynchronize())
"""
    code, _, reports = program(text.replace("OTHER", "two"))
    assert (code, reports) == (0, [])
    code, _, reports = program(text.replace("OTHER", "three"))
    assert code == 1
    assert any("argument 1 of " in one for one in reports), reports


def test_copies_fills_host_functions_events_and_graphs_in_a_capture(program):
    """Copies from and to pageable memory use what is there when the graph is launched."""
    code, lines, reports = program("""
source, target, seen = np.full(N, 2, np.float32), np.zeros(N, np.float32), []
outside = do(cu.cuEventCreate(0))
begin(one)
do(cu.cuMemsetD32Async(y, 0, N, one))
inner = instantiate(do(cu.cuStreamEndCapture(one)))
begin(one)
status, number, graph, nodes, *_ = do(cu.cuStreamGetCaptureInfo(one))
assert (int(status), len(nodes or [])) == (1, 0), (status, nodes)
do(cu.cuMemcpyHtoDAsync(x, source.ctypes.data, 4 * N, one))
do(cu.cuGraphLaunch(inner, one))
saxpy(one)
do(cu.cuMemcpyDtoHAsync(target.ctypes.data, y, 4 * N, one))
host(one, lambda: seen.append(float(target[0])))
do(cu.cuEventRecordWithFlags(outside, one, 1))
status, number, graph, nodes, *_ = do(cu.cuStreamGetCaptureInfo(one))
assert int(do(cu.cuGraphNodeGetType(nodes[0]))) == 7
assert int(do(cu.cuStreamIsCapturing(two))) == 0
graph = do(cu.cuStreamEndCapture(one))
nodes, count = do(cu.cuGraphGetNodes(graph, 99))
assert (count, [int(do(cu.cuGraphNodeGetType(node))) for node in nodes[:count]]) == (6, [1, 4, 0, 1, 3, 7])
made = instantiate(graph)
do(cu.cuGraphLaunch(made, one))
source[:] = 5
do(cu.cuGraphLaunch(made, one))
assert not seen
do(cu.cuStreamWaitEvent(two, outside, 0))
do(cu.cuStreamSynchronize(two))
assert seen == [4, 10], seen
do(cu.cuGraphExecDestroy(made))
do(cu.cuGraphDestroy(graph))
assert cu.cuGraphLaunch(made, one)[0] == R.CUDA_ERROR_INVALID_HANDLE
print('right')
""")
    assert (code, lines[0], reports) == (0, "right", []), lines


def test_errors_of_captures_are_cudas(program):
    code, lines, _ = program("""
def ends(code, stream=one):
    found, graph = cu.cuStreamEndCapture(stream)
    assert found == getattr(R, 'CUDA_ERROR_' + code) and not int(graph or 0), (found, graph)

def gives(code, found):
    assert found[0] == getattr(R, 'CUDA_ERROR_' + code), (code, found)

ends('ILLEGAL_STATE')
gives('STREAM_CAPTURE_UNSUPPORTED', cu.cuStreamBeginCapture(0, GLOBAL))
begin(one)  # a stream that is not joined
gives('ILLEGAL_STATE', cu.cuStreamBeginCapture(one, GLOBAL))
order(one, two)
fill(1.0, two)
gives('STREAM_CAPTURE_UNMATCHED', cu.cuStreamEndCapture(two))
ends('STREAM_CAPTURE_INVALIDATED')
begin(one)
order(one, two)
fill(1.0, two)
ends('STREAM_CAPTURE_UNJOINED')
for call in (lambda: cu.cuStreamSynchronize(one), lambda: cu.cuStreamQuery(one), cu.cuCtxSynchronize,
             lambda: cu.cuMemAlloc(64), lambda: cu.cuMemcpyDtoH(np.zeros(4).ctypes.data, x, 4)):
    begin(one)
    gives('STREAM_CAPTURE_UNSUPPORTED', call())
    assert int(do(cu.cuStreamIsCapturing(one))) == 2
    gives('STREAM_CAPTURE_INVALIDATED', cu.cuMemsetD8Async(x, 0, 4, one))
    ends('STREAM_CAPTURE_INVALIDATED')
begin(one, RELAXED)
do(cu.cuMemAlloc(64))
do(cu.cuStreamEndCapture(one))
event = do(cu.cuEventCreate(0))
begin(one)
do(cu.cuEventRecord(event, one))
gives('CAPTURED_EVENT', cu.cuEventSynchronize(event))
ends('STREAM_CAPTURE_INVALIDATED')
begin(one)
begin(two)
do(cu.cuEventRecord(event, one))
gives('STREAM_CAPTURE_MERGE', cu.cuStreamWaitEvent(two, event, 0))
ends('STREAM_CAPTURE_INVALIDATED')
ends('STREAM_CAPTURE_INVALIDATED', two)
do(cu.cuEventRecord(event, two))
begin(one)
gives('STREAM_CAPTURE_ISOLATION', cu.cuStreamWaitEvent(one, event, 0))
ends('STREAM_CAPTURE_INVALIDATED')
blocking = do(cu.cuStreamCreate(0))
begin(blocking)
gives('STREAM_CAPTURE_IMPLICIT', cu.cuStreamIsCapturing(0))
assert int(do(cu.cuStreamIsCapturing(blocking))) == 1, 'a question does not spoil a capture'
gives('STREAM_CAPTURE_IMPLICIT', cu.cuMemsetD8(x, 0, 4))
ends('STREAM_CAPTURE_INVALIDATED', blocking)
import threading
begin(one)
other = threading.Thread(target=lambda: (do(cu.cuCtxSetCurrent(context)),
                                         gives('STREAM_CAPTURE_WRONG_THREAD', cu.cuStreamEndCapture(one)),
                                         print('thread')))
other.start()
other.join()
do(cu.cuStreamEndCapture(one))
fill(1.0, one)  # the streams can be used as before
do(cu.cuCtxSynchronize())
print('right')
""")
    assert (code, lines[:2]) == (0, ["thread", "right"]), lines


def test_explicit_nodes_and_edges_and_changes_of_executable_graphs(program):
    code, lines, reports = program("""
def kernel(name, values, types):
    params = cu.CUDA_KERNEL_NODE_PARAMS()
    params.func = do(cu.cuModuleGetFunction(module, name))
    params.gridDimX, params.gridDimY, params.gridDimZ = 8, 1, 1
    params.blockDimX, params.blockDimY, params.blockDimZ = 125, 1, 1
    params.kernelParams = (values, types)
    kept.append(params)
    return params

graph = do(cu.cuGraphCreate(0))
first = do(cu.cuGraphAddKernelNode(graph, None, 0, kernel(b'fill', (x, 3.0), (None, F))))
last = do(cu.cuGraphAddKernelNode(graph, None, 0, kernel(b'saxpy', (x, y, N), (None, None, I))))
middle = do(cu.cuGraphAddEmptyNode(graph, [first], 1))
do(cu.cuGraphAddDependencies(graph, [middle], [last], 1))
nodes, count = do(cu.cuGraphGetRootNodes(graph, 9))
assert count == 1 and int(nodes[0]) == int(first)
made = instantiate(graph)
do(cu.cuGraphLaunch(made, one))
do(cu.cuStreamSynchronize(one))
assert (to_host(y) == 7).all()
do(cu.cuGraphExecKernelNodeSetParams(made, first, kernel(b'fill', (x, 10.0), (None, F))))
copy = do(cu.cuGraphClone(graph))
do(cu.cuGraphLaunch(made, one))
do(cu.cuStreamSynchronize(one))
assert (to_host(y) == 27).all()
do(cu.cuGraphExecUpdate(made, copy))  # the clone has the first value
do(cu.cuGraphLaunch(made, one))
do(cu.cuStreamSynchronize(one))
assert (to_host(y) == 33).all()
do(cu.cuGraphAddEmptyNode(copy, None, 0))
do(cu.cuGraphAddDependencies(copy, [do(cu.cuGraphNodeFindInClone(last, copy))],
                             [do(cu.cuGraphNodeFindInClone(first, copy))], 1))
assert cu.cuGraphInstantiate(copy, 0)[0] == R.CUDA_ERROR_INVALID_VALUE  # a cycle
kernel(b'fill', (x, 1.0), (None, F))
print('right')
""")
    assert (code, lines[0], reports) == (0, "right", []), lines


CORE = '''
import sys
import numpy as np
from cuda.bindings import driver as cu
from cuda.core import Device, LaunchConfig, Program, ProgramOptions, launch

CODE = r"""
extern "C" __global__ void fill(float *x, float v) { x[blockIdx.x * blockDim.x + threadIdx.x] = v; }
extern "C" __global__ void add(const float *x, float *y) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    y[at] += x[at];
}
"""
device = Device()
device.set_current()
stream = device.create_stream()
options = ProgramOptions(arch="compute_90", lineinfo=True)
module = Program(CODE, code_type="c++", options=options).compile("ptx")
fill, add = module.get_kernel("fill"), module.get_kernel("add")
config = LaunchConfig(grid=2, block=128)
x, y, z = (device.allocate(1024, stream=stream) for _ in range(3))
for one in (y, z):
    launch(stream, config, fill, one, np.float32(1))
builder = device.create_graph_builder().begin_building()
launch(builder, config, fill, x, np.float32(4))
left, right = builder.split(2)
launch(left, config, add, x, y)
launch(right, config, add, x, z)
if "race" in sys.argv:
    launch(right, config, add, x, y)
builder = left.join(left, right)
called = []
builder.callback(lambda: called.append(1))
graph = builder.end_building().complete()
for _ in range(2):
    graph.launch(stream)
stream.sync()
out = np.zeros(256, np.float32)
for one in (y, z):
    assert cu.cuMemcpyDtoH(out.ctypes.data, int(one.handle), 1024)[0] == 0
    print(set(out.tolist()), called)
'''


@pytest.mark.parametrize("race", [False, True])
def test_an_unchanged_program_of_cuda_core_builds_and_launches_a_graph(tmp_path, race):
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    (tmp_path / "program.py").write_text(CORE)
    code, out, err = run("--", sys.executable, "program.py", *["race"] * race, cwd=tmp_path)
    lines = out.splitlines()
    assert code == race, err
    assert lines[1] == "{9.0} [1, 1]", err
    assert race or lines[0] == lines[1]
    assert sum(line.startswith("race: ") for line in lines) == race, lines

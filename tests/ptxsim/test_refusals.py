"""Bad input to the PTX machine gives a clear error or a report, never a hang, a crash or a wrong result."""

from __future__ import annotations

import signal

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from numba import cuda

import ptxsim
from kernel_cache import errors as shared
from ptxsim.errors import ClosedError, EnvironmentProblem, InputError, PtxsimError, own

HEAD = ".version 8.0\n.target sm_90\n.address_size 64\n"
REGISTERS = ".reg .b16 %h<9>; .reg .b32 %r<9>; .reg .b64 %d<9>; .reg .f32 %f<9>; .reg .u32 %u<9>; .reg .pred %p<9>;"


def kernel(body, module="", params=".param .u64 x"):
    """PTX whose body is line 7."""
    return f"{HEAD}{module}.visible .entry k({params})\n{{\n{REGISTERS}\n{body}\nret;\n}}\n"


def launch(text, *args, grid=1, block=32, **options):
    machine = ptxsim.Machine(**options)
    device = machine.device(0)
    device.launch(text, grid, block, *(device.array(a) if isinstance(a, np.ndarray) else a for a in args))
    return machine.run()


ZEROS = np.zeros(64, np.uint32)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("frobnicate.b32 %r1, %r2;", "line 7: frobnicate.b32: opcode 'frobnicate' is not known"),
        ("add.wrong.u32 %r1, %r2, %r3;", r"line 7: add.wrong.u32: modifier .wrong is not supported"),
        ("add.u32 %r1, %r2", "expected ',' or ';' after an operand, got 'ret'"),
        ("add.u32 %r1, %zz, 1;", "%zz is not declared"),
        ("add.u32 %r1, %r9, 1;", "%r9 is not declared"),
        ("add.u32 %r1;", "the number of operands must be 3, got 1"),
        ("add %r1, %r1, 1;", "a type is missing"),
        ("add.u32 %r1, %d2, 1;", "register %d2 of type .b64 does not fit"),
        ("add.u32 %d1, %r2, 1;", "register %d1 of type .b64 does not fit the result"),
        ("mul.wide.u32 %r1, %r2, 1;", "register %r1 of type .b32 does not fit the result"),
        ("add.u32 %r1, %f2, 1;", "register %f2 of type .f32 does not fit"),
        ("add.f32 %f1, %u2, %f1;", "register %u2 of type .u32 does not fit"),
        ("add.u32 %r1, %p1, 1;", "register %p1 of type .pred does not fit"),
        ("and.pred %p1, %r1, %p2;", "register %r1 of type .b32 does not fit"),
        ("add.u32 5, %r1, 1;", "the result must go to a register"),
        ("add.u32 %r1, %r1, 0f3F800000;", "a float cannot be an operand of an integer type"),
        ("@%r1 bra X; X:", "the guard %r1 is not a predicate register"),
        ("bra NOWHERE;", "line 7: the label NOWHERE is not defined"),
        ("X: add.u32 %r1, %r1, 1; X: bra X;", "line 7: label X must be defined once"),
        (".reg .b32 %r<5>;", "line 7: %r is declared a second time"),
        (".reg .b32 %r1;", "line 7: %r1 is declared a second time"),
        (".reg .b32 %q; .reg .b64 %q;", "line 7: %q is declared a second time"),
        (
            "call __cudaCDP2LaunchDeviceV2;",
            "line 7: call: the kernel calls __cudaCDP2LaunchDeviceV2, .* dynamic parallelism is not supported",
        ),
        ("call foo;", "function foo is neither in the module nor built in"),
        ("ld.param.u32 %r1, [nope];", "nope is not declared"),
        ("ld.global.v4.u32 {%r1, %r2}, [%d1];", "vector"),
        ("lop3.b32 %r1, %r2, %r3, %r4, 999;", "the table must be 0 to 255, got 999"),
        ("bar.sync 16;", "barriers 0 to 15"),
        ("bar.sync 0, 33;", "multiple of 32"),
        ("/* comment without end", "line 7"),
        ("{" * 150 + "}" * 150, "nested at most 100 deep"),
        (".local .b8 s[999999999];", "524288 bytes of local memory, got"),
        (".shared .b8 s[-1];", "the size of s must not be negative, got -1"),
        ("brx.idx %r1, T;", "the list of targets T is not defined"),
        ("ld.acquire.global.u32 %r1, [%d1];", "one of .cta, .+ is needed"),
        ("ld.relaxed.global.u32 %r1, [%d1];", "one of .cta, .+ is needed"),
        ("st.release.global.u32 [%d1], %r1;", "one of .cta, .+ is needed"),
        ("st.acquire.gpu.global.u32 [%d1], %r1;", "one of .weak, .volatile, .relaxed, .release, got .acquire"),
        ("ld.release.gpu.global.u32 %r1, [%d1];", "one of .weak, .volatile, .relaxed, .acquire, got .release"),
        ("ld.weak.gpu.global.u32 %r1, [%d1];", "a scope needs one of the orders .relaxed, .acquire"),
        ("st.gpu.global.u32 [%d1], %r1;", "a scope needs one of the orders .relaxed, .release"),
        ("atom.sc.gpu.global.add.u32 %r1, [%d1], 1;", "got .sc"),
        ("fence.relaxed.gpu;", "got .relaxed"),
        ("red.acquire.gpu.global.add.u32 [%d1], 1;", "one of .relaxed, .release, got .acquire"),
        ("popc.b64 %d1, %d2;", "register %d1 of type .b64 does not fit the result"),
        ("setp.eq.u32 %r1, %r2, 1;", "register %r1 of type .b32 does not fit the result"),
        ("vote.sync.ballot.b32 %d1, %p1, -1;", "register %d1 of type .b64 does not fit the result"),
        ("vote.sync.any.pred %r1, %p1, -1;", "register %r1 of type .b32 does not fit the result"),
        ("shfl.sync.idx.b32 %d1, %r1, 0, 31, -1;", "register %d1 of type .b64 does not fit the result"),
        ("shfl.sync.idx.b32 %r1|%r2, %r1, 0, 31, -1;", "register %r2 of type .b32 does not fit the result"),
        ("match.any.sync.b64 %d1, %d2, -1;", "register %d1 of type .b64 does not fit the result"),
        ("redux.sync.add.u32 %d1, %r2, -1;", "register %d1 of type .b64 does not fit the result"),
        ("activemask.b32 %d1;", "register %d1 of type .b64 does not fit the result"),
        ("atom.global.add.u32 %d2, [%d1], 1;", "register %d2 of type .b64 does not fit the result"),
        ("ld.global.u64 %r1, [%d1];", "register %r1 of type .b32 does not fit the result"),
        ("ld.global.u32 %f1, [%d1];", "register %f1 of type .f32 does not fit the result"),
        ("ld.global.f32 %u1, [%d1];", "register %u1 of type .u32 does not fit the result"),
        ("ld.global.v2.u32 {%r1, %h1}, [%d1];", "register %h1 of type .b16 does not fit the result"),
        ("mov.b64 {%r1, %h1}, %d1;", "register %h1 of type .b16 does not fit the result"),
        ("mov.u32 %d1, %r1;", "register %d1 of type .b64 does not fit the result"),
        ("cvt.u64.u32 %r1, %r2;", "register %r1 of type .b32 does not fit the result"),
        ("cvt.rn.f32.u32 %d1, %r2;", "register %d1 of type .b64 does not fit the result"),
        ("add.f32 %u1, %f1, %f1;", "register %u1 of type .u32 does not fit the result"),
        ("add.u32 %f1, %r1, 1;", "register %f1 of type .f32 does not fit the result"),
        ("selp.u32 %p1, 1, 0, %p2;", "register %p1 of type .pred does not fit the result"),
        ("isspacep.shared %r1, %d1;", "register %r1 of type .b32 does not fit the result"),
        ("bar.red.popc.u32 %p1, 0, %p2;", "register %p1 of type .pred does not fit the result"),
        ("bar.red.and.pred %r1, 0, %p2;", "register %r1 of type .b32 does not fit the result"),
        ("fence.acq_rel;", "one of .cta, .+ is needed"),
    ],
)
def test_wrong_instructions(body, words):
    with pytest.raises(ptxsim.PTXError, match=words):
        launch(kernel(body), ZEROS)


def test_results_of_other_sizes_are_accepted():
    body = (
        "set.eq.f16.f16 %h1, %h2, %h3; set.eq.u32.f32 %r1, %f1, %f2; set.nan.bf16.bf16 %h1, %h2, %h3; "
        "mul.wide.u32 %d1, %r1, %r2; cvt.u32.u64 %r1, %d1; shl.b64 %d1, %d1, %r1; popc.b64 %r1, %d1; "
        "ld.param.u64 %d2, [x]; ld.global.u8 %r1, [%d2]; ld.global.u16 %d1, [%d2]; "
        "cvt.u8.u32 %d1, %r1; cvt.u16.u32 %r1, %r2;"
    )
    assert launch(kernel(body), ZEROS) == []


def test_a_register_beside_a_family_of_its_name():
    """a<2> declares a0 and a1, not a. A register of a family may have its own declaration before, as for ptxas."""
    body = (
        "{ .reg .b32 a; .reg .b16 a<2>; mov.b32 a, 0x50003; mov.b32 {a0, a1}, a; cvt.u32.u16 %r1, a0; "
        "cvt.u32.u16 %r2, a1; add.u32 %r1, %r1, %r2; } "
        "{ .reg .b64 b1; .reg .b32 b<2>; mov.u64 b1, 7; cvt.u32.u64 b0, b1; add.u32 %r1, %r1, b0; } "
        "ld.param.u64 %d2, [x]; st.global.u32 [%d2], %r1;"
    )
    machine = ptxsim.Machine()
    array = machine.device(0).array(np.zeros(1, np.uint32))
    machine.device(0).launch(kernel(body), 1, 1, array)
    assert machine.run() == []
    assert array.copy_to_host()[0] == 15


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"has no kernel \(.entry\)"),
        ("hello world", "line 1: unknown directive 'hello'"),
        ("\x00\x01\x7fELF", "line 1: cannot read"),
        (kernel("").replace("8.0", "x"), "expected a number after .version"),
        (kernel("")[:-3], "a body must end with a closing brace"),
        (kernel("") + kernel(""), "k is defined a second time"),
        (kernel("", ".global .u32 g; .global .u32 g;\n"), "line 4: g is defined a second time"),
        (kernel("", ".global .u32 g[2] = {1, 2, 3};\n"), "g must have at most 2 values, got 3"),
        (kernel(".shared .b8 s[999999];"), "232448 bytes of shared memory, got 999999"),
    ],
)
def test_wrong_modules(text, words):
    with pytest.raises(InputError, match=words):
        launch(text, ZEROS)


@pytest.mark.parametrize(
    ("args", "params", "words"),
    [
        ((), ".param .u64 x", r"has 1 parameter \(.u64\), got 0"),
        ((ZEROS, ZEROS), ".param .u64 x", r"has 1 parameter \(.u64\), got 2"),
        ((3.5,), ".param .u64 x", "is a .u64 of 8 bytes, got the float 3.5"),
        (("a",), ".param .u64 x", "got 'a'"),
        ((None,), ".param .u64 x", "got None"),
        ((1 << 64,), ".param .u64 x", "got 18446744073709551616"),
        ((-129,), ".param .u8 x", "is a .u8 of 1 byte, got -129"),
    ],
)
def test_wrong_arguments_of_ptx(args, params, words):
    with pytest.raises(InputError, match=words):
        launch(kernel("", params=params), *args)


def test_an_integer_for_a_float_parameter():
    body = "ld.param.f32 %f1, [y]; ld.param.u64 %d1, [x]; st.global.f32 [%d1], %f1;"
    machine = ptxsim.Machine()
    out = machine.device(0).array(np.zeros(1, np.float32))
    machine.device(0).launch(kernel(body, params=".param .u64 x, .param .f32 y"), 1, 1, out, 3)
    assert machine.run() == []
    assert out.copy_to_host()[0] == 3


@cuda.jit
def add_one(a, b):
    i = cuda.grid(1)
    if i < a.size:
        b[i] = a[i] + 1


@pytest.mark.parametrize(
    ("grid", "block", "shared", "words"),
    [
        (0, 32, 0, "grid must be 1 to 3 positive whole numbers, got 0"),
        (1, 0, 0, "block must be"),
        (-1, 32, 0, "got -1"),
        ((1, 2, 3, 4), 32, 0, "grid must be"),
        (1.5, 32, 0, "got 1.5"),
        ("x", 32, 0, "got 'x'"),
        ((), 32, 0, r"got \(\)"),
        (1, 2048, 0, "block can be .* at most, got 2048"),
        (1, (32, 33), 0, "1 to 1024 threads, got 1056"),
        (1, (1, 1, 65), 0, "block can be"),
        ((1, 70000), 32, 0, "grid can be .* at most"),
        (1 << 31, 32, 0, "grid can be"),
        (1, 32, 1 << 20, "232448 bytes of shared memory, got 1048576"),
        (1, 32, -4, "shared must be"),
        (1, 32, 1.5, "shared must be"),
    ],
)
def test_wrong_launches(grid, block, shared, words):
    machine = ptxsim.Machine()
    a = machine.device(0).array(np.zeros(64, np.float32))
    with pytest.raises(InputError, match=words):
        machine.device(0).launch(add_one, grid, block, a, a, shared=shared)
    machine.device(0).launch(add_one, 2, 32, a, a)  # the machine still works
    assert machine.run() == []
    assert (a.copy_to_host() == 1).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"devices": 0}, r"devices must be an int in 1\.\.64, got 0"),
        ({"devices": "2"}, "devices must be .* got '2'"),
        ({"sm_count": 300}, r"sm_count must be an int in 1\.\.256, got 300"),
        ({"arch": "sm_20"}, "must be at least .7, 0."),
        ({"arch": "ampere"}, "must look like"),
        ({"seed": "x"}, "seed must be"),
        ({"limit": 0}, "limit must be"),
    ],
)
def test_wrong_machine_options(options, words):
    with pytest.raises(InputError, match=words):
        ptxsim.Machine(**options)


@pytest.mark.filterwarnings("error")
def test_machine_options_may_be_numpy_scalars():
    machine = ptxsim.Machine(np.int8(2), np.uint16(3), seed=np.int64(1 << 60), limit=np.int64(1000))
    assert machine.device(np.int64(1)).number == 1
    assert machine.seed == 1 << 60
    for number in (2, -1, "0", 0.0):
        with pytest.raises(InputError, match=f"the machine has devices 0 to 1, got {number!r}"):
            machine.device(number)


def test_arrays_of_another_machine_and_after_close():
    one, other = ptxsim.Machine(), ptxsim.Machine()
    a, b = one.device(0).array(np.zeros(64, np.float32)), other.device(0).array(np.zeros(64, np.float32))
    for text in (add_one, kernel("", params=".param .u64 x, .param .u64 y")):
        with pytest.raises(InputError, match="belongs to another machine"):
            other.device(0).launch(text, 2, 32, a, b)
    with ptxsim.use(other), pytest.raises(InputError, match="belongs to another machine"):
        add_one[2, 32](a, b)
    one.device(0).launch(add_one, 2, 32, a, a)
    other.device(0).launch(add_one, 2, 32, b, b)
    assert one.run() == other.run() == []
    assert (a.copy_to_host() == 1).all()
    assert (b.copy_to_host() == 1).all()
    a.free()
    with pytest.raises(InputError, match="was freed"):
        one.device(0).launch(add_one, 2, 32, a, a)
    other.close()
    for action in (
        other.run,
        b.copy_to_host,
        lambda: other.device(0).array(np.zeros(3)),
        lambda: other.device(0).launch(add_one, 1, 1, b, b),
    ):
        with pytest.raises(ClosedError):
            action()


@pytest.mark.parametrize(
    "values",
    [
        np.arange(128, dtype=np.float32)[::2],
        np.arange(64, dtype=np.float32)[::-1],
        np.broadcast_to(np.float32(3), (64,)),
        np.arange(128, dtype=np.float32).reshape(64, 2)[:, 1],
        np.zeros(0, np.float32),
    ],
)
def test_arrays_of_any_strides(values):
    out = np.zeros(2 * len(values), np.float32)[::2]
    machine = ptxsim.Machine()
    machine.device(0).launch(add_one, 2, 32, values, out)
    assert machine.run() == []
    assert (out == values + 1).all()


@pytest.mark.parametrize("value", ["x", None, [1, 2], np.array([None]), np.ones(4, ">f4"), np.array(["a"]), object()])
def test_arguments_of_unsupported_types(value):
    machine, z = ptxsim.Machine(), np.zeros(64, np.float32)
    with pytest.raises(Exception, match=r".{3}"):  # either Numba's own type error or the machine's
        machine.device(0).launch(add_one, 1, 32, value, z)
    machine.device(0).launch(add_one, 2, 32, z, z)
    assert machine.run() == []
    assert (z == 1).all()


def test_a_machine_works_after_faults():
    @cuda.jit
    def far(a):
        a[1000] = 1

    machine, a = ptxsim.Machine(strict=True), np.zeros(64, np.float32)
    machine.device(0).launch(far, 1, 32, a)
    with pytest.raises(ptxsim.KernelFault, match=r"out_of_bounds.* a\[1000\]"):
        machine.run()
    for body in ("trap;", "mov.u64 %d1, 1234; call (), %d1, ();"):
        machine.device(0).launch(kernel(body), 1, 32, 0)
        with pytest.raises(ptxsim.KernelFault, match="trap"):
            machine.run()
    machine.device(0).launch(add_one, 2, 32, a, a)
    assert machine.run() == []
    assert (a == 1).all()


@pytest.mark.parametrize(
    "address",
    [
        0,
        -1,
        (1 << 63) - 4,
        -(1 << 63),
        0x7EFF_FFFF_FFFC,
        0x0100_0000_0000,
        0x01FF_FFFF_FFFC,
        0x02FF_FFFF_FFFC,
        0x7F10_0000_0000,
        0x7F0F_FFFF_FFFC,
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_wild_addresses(address, check):
    body = f"mov.u64 %d1, {address}; ld.u32 %r1, [%d1]; st.u32 [%d1], %r1; atom.add.u32 %r2, [%d1], 1;"
    kinds = {report.kind for report in launch(kernel(body), ZEROS, check=check)}
    assert kinds <= {"out_of_bounds", "misaligned"}
    assert kinds or not check


@pytest.mark.parametrize("body", ["mov.u32 %r1, 17; bar.sync %r1;", "mov.u32 %r1, 7; bar.sync 0, %r1;"])
def test_wrong_barrier_operands(body):
    assert [(r.kind, "barriers 0 to 15" in r.message) for r in launch(kernel(body), ZEROS)][:1] == [
        ("barrier_divergence", True)
    ]


COUNT = "UP: add.u32 %r1, %r1, 1; setp.ne.u32 %p1, %r1, 0; @%p1 bra UP;"
CHANGE = (
    "ld.param.u64 %d1, [x]; UP: ld.volatile.global.u32 %r1, [%d1]; add.u32 %r1, %r1, 1; "
    "st.volatile.global.u32 [%d1], %r1; bra UP;"
)
WAIT = "ld.param.u64 %d1, [x]; UP: ld.acquire.gpu.global.u32 %r1, [%d1]; setp.eq.u32 %p1, %r1, 0; @%p1 bra UP;"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (COUNT, "1 thread spins here"),
        (CHANGE, "1 thread still runs after 1000000 instructions of warps"),
        (WAIT, "1 thread spins here"),
        ("UP: bra UP;", "1 thread spins here"),
    ],
)
def test_endless_loops(body, words):
    machine = ptxsim.Machine(limit=1_000_000)
    machine.patience = 500_000
    machine.device(0).launch(kernel(body), 1, 1, machine.device(0).array(ZEROS))
    assert [(r.kind, words in r.message) for r in machine.run()] == [("deadlock", True)]
    a = np.zeros(64, np.float32)
    machine.device(0).launch(add_one, 2, 32, a, a)
    assert machine.run() == []


def test_endless_recursion():
    module = """.func f(.param .b32 n)
{ .reg .b32 %r1; .param .b32 m; ld.param.b32 %r1, [n]; add.u32 %r1, %r1, 1; st.param.b32 [m], %r1; call f, (m); ret; }
"""
    body = "{ .param .b32 m; st.param.b32 [m], %r1; call f, (m); }"
    assert [(r.kind, r.message) for r in launch(kernel(body, module), ZEROS)] == [
        ("trap", "the stack of calls is full")
    ]


def test_ctrl_c_ends_a_run():
    machine = ptxsim.Machine()
    machine.device(0).launch(kernel(CHANGE), 1, 1, machine.device(0).array(ZEROS))
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            machine.run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    a = np.zeros(64, np.float32)
    machine.device(0).launch(add_one, 2, 32, a, a)
    assert machine.run() == []
    assert (a == 1).all()


@pytest.mark.parametrize(
    ("raised", "expected"), [(shared.input_error, InputError), (shared.environment_problem, EnvironmentProblem)]
)
def test_errors_of_shared_code_are_the_machines(raised, expected):
    with pytest.raises(expected, match="the folder is read-only") as error, own():
        raise raised("the folder is read-only")
    assert isinstance(error.value, PtxsimError)


def test_a_kernel_that_the_machine_lacks_leaves_the_others():
    """An instruction without support refuses its kernel and those that call it, when they are launched."""
    kernel = ".visible .entry {}(.param .u64 p)\n{{\n.reg .b64 %rd<2>;\nld.param.u64 %rd1, [p];\n{}\nexit;\n}}\n"
    call = "call.uni lacking;"
    text = ".version 8.3\n.target sm_90a\n.address_size 64\n"
    text += ".func lacking()\n{\n.reg .b64 %rd<2>;\nnoway.b32 %rd1;\nret;\n}\n"
    text += kernel.format("good", "st.global.u32 [%rd1], 7;") + kernel.format("bad", "noway.b32 %rd1;")
    text += kernel.format("calls", call) + kernel.format("after", "st.global.u32 [%rd1], 9;")
    machine = ptxsim.Machine()
    array = machine.device(0).array(np.zeros(1, np.uint32))
    for name, value in (("good", 7), ("after", 9)):
        machine.device(0).launch(text, 1, 1, array, entry=name)
        assert array.copy_to_host()[0] == value
    for name in ("bad", "calls"):
        with pytest.raises(ptxsim.PTXError, match=r"opcode 'noway' is not known .*; other kernels of the module can"):
            machine.device(0).launch(text, 1, 1, array, entry=name)
    with pytest.raises(ptxsim.PTXError, match="noway"):
        machine.load(text.replace("st.global.u32 [%rd1], 7", "noway").replace("st.global.u32 [%rd1], 9", "noway"))


@pytest.mark.parametrize(
    ("instruction", "why"),
    [
        ("griddepcontrol;", "needs .wait or .launch_dependents"),
        ("griddepcontrol.wait.sync;", "modifier .sync"),
        ("setmaxnreg.sync.aligned.u32 40;", "needs .inc or .dec"),
        ("setmaxnreg.inc.sync.aligned.u32 41;", "a multiple of 8 from 24 to 256"),
    ],
)
def test_launch_control_is_read(instruction, why):
    text = f".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k()\n{{\n{instruction}\nexit;\n}}\n"
    with pytest.raises(ptxsim.PTXError, match=why):
        ptxsim.Machine().load(text)

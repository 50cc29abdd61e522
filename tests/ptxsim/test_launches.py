"""The order of launches: on one device and across devices, in streams, by events, programmatic, cooperative."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from needs_nvrtc import compiles

import ptxsim
from ptxsim import nvrtc
from ptxsim.errors import InputError

pytestmark = pytest.mark.slow

HEAD = ".version 8.0\n.target sm_90\n.address_size 64\n"
BODY = """.visible .entry {name}(.param .u64 a, .param .u64 b, .param .u32 v)
{{
.reg .u64 %a, %b, %n, %i; .reg .u32 %v, %t, %c, %d, %r<4>; .reg .pred %p;
ld.param.u64 %a, [a]; ld.param.u64 %b, [b]; ld.param.u32 %v, [v];
mov.u32 %t, %tid.x; mov.u32 %c, %ctaid.x; mov.u32 %d, %ntid.x; mad.lo.u32 %t, %c, %d, %t;
mul.wide.u32 %i, %t, 4; add.u64 %n, %b, %i; add.u64 %i, %a, %i;
{code}
exit;
}}
"""
CODE = {
    "produce": "st.global.u32 [%i], %v;",
    "early": "griddepcontrol.launch_dependents; st.global.u32 [%i], %v;",
    "copy": "ld.global.u32 %r1, [%i]; add.u32 %r1, %r1, %v; st.global.u32 [%n], %r1;",
    "copy_after": "griddepcontrol.wait; ld.global.u32 %r1, [%i]; add.u32 %r1, %r1, %v; st.global.u32 [%n], %r1;",
    "copy_nc": "griddepcontrol.wait; ld.global.nc.u32 %r1, [%i]; add.u32 %r1, %r1, %v; st.global.u32 [%n], %r1;",
    "skip_wait": "griddepcontrol.launch_dependents; st.global.u32 [%n], %v;",
    "signal": "st.release.sys.global.u32 [%b], 1;",
    "await": "L: ld.acquire.sys.global.u32 %r1, [%b]; setp.ne.u32 %p, %r1, 1; @%p bra L;"
    " ld.global.u32 %r1, [%a+28]; st.global.u32 [%b+64], %r1;",
}
PTX = HEAD + "".join(BODY.format(name=name, code=code) for name, code in CODE.items())


class Setting:
    """A machine, and arrays of 64 words by name."""

    def __init__(self, seed=0, devices=2, **options):
        self.machine = ptxsim.Machine(devices=devices, seed=seed, **options)
        self.arrays = {}

    def __getitem__(self, name):
        if name not in self.arrays:
            self.arrays[name] = self.machine.device(0).array(np.zeros(64, np.uint32), name)
        return self.arrays[name]

    def launch(self, kernel, a="x", b="y", v=0, device=0, grid=2, block=32, **options):
        self.machine.device(device).launch(PTX, grid, block, self[a], self[b], v, entry=kernel, **options)

    def kinds(self):
        return {(report.kind, report.missing) for report in self.machine.run()}


@pytest.mark.parametrize("threads", [1, 32])
def test_a_release_hands_on_what_earlier_launches_wrote(threads):
    for seed in range(6):
        setting = Setting(seed)
        setting.launch("produce", v=8)
        setting.launch("signal", b="flag", grid=1, block=threads)
        setting.launch("await", b="flag", device=1, grid=1, block=threads)
        assert setting.kinds() == set() if threads == 1 else setting.machine.run() is not None
        assert setting["flag"][16] == 8


def test_launches_of_one_stream_are_ordered_and_those_of_two_are_not():
    seen = set()
    for seed in range(6):
        setting = Setting(seed, sm_count=2)
        one, two = (setting.machine.device(0).stream() for _ in range(2))
        setting.launch("produce", v=1, stream=one)
        setting.launch("copy", v=1, stream=one)
        assert setting.kinds() == set()
        assert (setting["y"].copy_to_host() == 2).all()
        setting.launch("produce", v=5, stream=one)
        setting.launch("copy", v=1, stream=two)
        assert setting.kinds() == {("race", "order of launches")}
        seen |= set(setting["y"].copy_to_host().tolist())
    assert seen == {2, 6}


def test_events_and_the_default_stream_order_streams():
    for seed in range(4):
        setting = Setting(seed)
        one, two = (setting.machine.device(0).stream() for _ in range(2))
        setting.launch("produce", v=5, stream=one)
        two.wait(one.record())
        setting.launch("copy", v=1, stream=two)
        setting.launch("copy", "y", "z", v=1)  # the default stream waits for both
        setting.launch("copy", "z", "x", v=1, stream=one)  # and both wait for it
        assert setting.kinds() == set()
        assert (setting["x"].copy_to_host() == 8).all()
    setting = Setting()
    aside = setting.machine.device(0).stream(blocking=False)
    setting.launch("produce", v=5, stream=aside)
    setting.launch("copy", v=1)
    assert setting.kinds() == {("race", "order of launches")}


def test_an_event_orders_devices():
    for seed in range(3):
        setting = Setting(seed)
        far = setting.machine.device(1).stream()
        setting.launch("produce", v=5)
        far.wait(setting.machine.device(0).default.record())
        setting.launch("copy", v=1, device=1, stream=far)
        assert setting.kinds() == set()
        assert (setting["y"].copy_to_host() == 6).all()


def test_an_event_covers_only_what_was_launched_before_it():
    setting = Setting(sm_count=1)
    one, two = (setting.machine.device(0).stream() for _ in range(2))
    setting.launch("produce", v=5, stream=one)
    event = one.record()
    setting.launch("produce", v=6, stream=one)
    two.wait(event)
    setting.launch("copy", v=1, stream=two)
    assert setting.kinds() == {("race", "order of launches")}


@pytest.mark.parametrize(
    ("kernel", "found"), [("copy", {("race", "order of launches")}), ("copy_after", set()), ("copy_nc", set())]
)
def test_a_programmatic_launch_must_wait(kernel, found):
    values = set()
    for seed in range(6):
        setting = Setting(seed)
        setting.launch("early", v=5)
        setting.launch(kernel, v=1, programmatic=True)
        assert setting.kinds() == found
        values |= set(setting["y"].copy_to_host().tolist())
    assert values == ({6} if not found else {1, 6})


def test_a_launch_that_is_not_programmatic_waits_for_the_end():
    setting = Setting()
    setting.launch("early", v=5)
    setting.launch("copy", v=1)
    assert setting.kinds() == set()


def test_a_wait_covers_the_kernel_before_alone_if_that_one_did_not_wait():
    setting = Setting()
    setting.launch("early", v=5)
    setting.launch("skip_wait", b="z", v=1, programmatic=True)
    setting.launch("copy_after", v=1, programmatic=True)
    reports = setting.machine.run()
    assert {(report.kind, report.missing) for report in reports} <= {("race", "order of launches")}
    setting.launch("early", v=5)
    setting.launch("copy_after", v=1, programmatic=True)
    setting.launch("copy", "y", "z", v=1)
    assert setting.kinds() == set()


def test_copies_run_the_launches_of_their_device():
    """A collective that is launched on one device so far does not run, so it is not stuck."""
    setting = Setting()
    other = setting.machine.device(1).array(np.zeros(4), "other")
    setting.launch("await", b="flag", grid=1, block=1)
    assert (other.copy_to_host() == 0).all()
    assert not setting.machine.reports
    assert len(setting.machine.queue) == 1
    setting.launch("signal", b="flag", device=1, grid=1, block=1)
    assert setting["flag"][16] == 0  # runs what the kernel of the array's device waits for
    assert not setting.machine.reports
    assert not setting.machine.queue


def test_a_copy_leaves_what_it_does_not_need():
    setting = Setting()
    setting.launch("produce", v=5)
    setting.launch("signal", b="flag", device=1, grid=1, block=1)
    assert (setting["x"].copy_to_host() == 5).all()
    assert [launch.name for launch in setting.machine.queue] == ["signal"]
    setting.machine.run()
    assert setting["flag"][0] == 1


def test_wrong_streams_are_refused():
    setting = Setting()
    with pytest.raises(InputError, match="belongs to device 1"):
        setting.launch("produce", stream=setting.machine.device(1).stream())
    with pytest.raises(InputError, match="wait takes"):
        setting.machine.device(0).stream().wait(3)
    with pytest.raises(InputError, match="a cooperative launch needs all its blocks resident: 64 fit, got 65"):
        Setting(sm_count=2).launch("produce", grid=65, cooperative=True)


GRID_SYNC = """#include <cooperative_groups.h>
__global__ void turns(unsigned *x, unsigned *y) {
  x[blockIdx.x] = blockIdx.x + 1;
  cooperative_groups::this_grid().sync();
  y[blockIdx.x] = x[(blockIdx.x + 1) % gridDim.x];
  cooperative_groups::this_grid().sync();
  x[blockIdx.x] = y[(blockIdx.x + 1) % gridDim.x];
}
"""


@compiles
def test_cooperative_groups_synchronise_a_grid():
    ptx, names = nvrtc.compiled_kernels(GRID_SYNC, "turns.cu", (9, 0), ("turns",))
    for seed in range(3):
        machine = ptxsim.Machine(seed=seed, sm_count=2)
        d = machine.device(0)
        x, y = d.empty(6, np.uint32), d.empty(6, np.uint32)
        for cooperative in (None, True):
            d.launch(ptx, 6, 32, x, y, entry=names["turns"], cooperative=cooperative)
            reports = machine.run()
            assert {report.kind for report in reports} <= {"race"}  # all threads of a block write the same word
            assert {report.verdict for report in reports} <= {"same value"}
            assert x.copy_to_host().tolist() == [3, 4, 5, 6, 1, 2]
    d.launch(ptx, 6, 32, x, y, entry=names["turns"], cooperative=False)
    assert "trap" in {report.kind for report in machine.run()}


def test_a_graph_keeps_the_order_of_its_launches():
    for seed in range(3):
        setting = Setting(seed)
        one, two = (setting.machine.device(0).stream(blocking=False) for _ in range(2))
        setting["x"], setting["y"], setting["z"]
        with setting.machine.capture() as graph:
            setting.launch("copy", "x", "y", v=1, stream=one)
            two.wait(one.record())
            setting.launch("copy", "y", "z", v=1, stream=two)
            one.wait(two.record())
            setting.launch("copy", "z", "x", v=1, stream=one)
        assert setting.machine.run() == []
        assert (setting["x"].copy_to_host() == 0).all()
        setting.launch("produce", v=10)
        for _ in range(3):
            graph.launch()
        setting.launch("copy", "x", "w")
        assert setting.kinds() == set()
        assert (setting["w"].copy_to_host() == 19).all()
        graph.launch(one)
        setting.launch("copy", "x", "w")  # the default stream does not wait for a stream that does not block
        assert setting.kinds() == {("race", "order of launches")}


def test_a_graph_without_an_order_has_none():
    setting = Setting()
    one, two = (setting.machine.device(0).stream() for _ in range(2))
    setting["x"], setting["y"]
    with setting.machine.capture() as graph:
        setting.launch("produce", v=1, stream=one)
        setting.launch("copy", v=1, stream=two)
    graph.launch()
    assert setting.kinds() == {("race", "order of launches")}


def test_nothing_runs_while_a_graph_is_captured():
    setting = Setting()
    array = setting["x"]
    with setting.machine.capture():
        setting.launch("produce", v=1)
        with pytest.raises(InputError, match="nothing can run while a graph is captured"):
            array.copy_to_host()
        with pytest.raises(InputError, match="a graph is being captured already"), setting.machine.capture():
            pass
    with pytest.raises(InputError, match="a graph takes arrays of the machine"), setting.machine.capture():
        setting.machine.device(0).launch(PTX, 1, 1, np.zeros(4, np.uint32), array, 1, entry="produce")
    assert setting.machine.run() == []


def test_a_kernel_may_wait_for_one_of_another_stream_but_not_for_a_later_one_of_its_own():
    for seed in range(4):
        setting = Setting(seed, sm_count=1)
        one, two = (setting.machine.device(0).stream() for _ in range(2))
        setting.launch("await", b="flag", grid=1, block=1, stream=one)
        setting.launch("produce", a="z", v=1, grid=60, block=1, stream=two)
        setting.launch("signal", b="flag", grid=1, block=1, stream=two)
        assert setting.kinds() == set()
    setting = Setting(seed, sm_count=1)
    setting.launch("await", b="flag", grid=1, block=1)
    setting.launch("signal", b="flag", grid=1, block=1)
    assert setting.kinds() == {("deadlock", "")}
    assert "1 block waits for an SM" in str(setting.machine.reports[0])

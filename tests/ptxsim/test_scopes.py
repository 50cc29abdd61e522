"""Which releases an acquire pairs with if scopes differ, by the PTX ISA's release and acquire patterns (8.8 to 8.9.4).

The threads of a test are at stated places (device, block, warp). One writes `data`, which is weak, and then `flag`; the
reader waits for a value of `flag` and reads `data`. So the two weak accesses are ordered in every schedule, or in none:
the expected reports are the same for all seeds.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
import ptxsim

SEEDS = 25
HEAD = """.version 8.0
.target sm_90
.address_size 64
.visible .entry k(.param .u64 a, .param .u64 o, .param .u32 d)
{
.reg .u64 %data, %flag, %out; .reg .u32 %device, %b, %w, %l, %me, %r<8>; .reg .u64 %rd<4>; .reg .pred %p;
ld.param.u64 %data, [a]; ld.param.u64 %out, [o]; ld.param.u32 %device, [d];
add.u64 %flag, %data, 256;
mov.u32 %b, %ctaid.x; mov.u32 %w, %tid.x; and.b32 %l, %w, 31; shr.u32 %w, %w, 5;
setp.ne.u32 %p, %l, 0;
@%p exit;
mad.lo.u32 %me, %device, 16, %w; mad.lo.u32 %me, %b, 4, %me;
"""
WRITE, READ = "st.u32 [%data], 1;", "ld.u32 %r7, [%data]; st.u32 [%out], %r7;"
ADD = "atom.{}.add.u32 %r0, [%flag], 1;"


def wait(value, instruction="ld.relaxed.gpu.u32 %r1, [%flag];"):
    """Repeat an instruction whose result is %r1 until it is at least `value`."""
    return f"{{ L: {instruction} setp.lt.u32 %p, %r1, {value}; @%p bra L; }}"


def reports(threads, seeds=SEEDS, devices=1):
    """For each seed, (reports such as 'race data', the value of out). threads: place -> PTX."""
    text = HEAD
    for number, ((device, block, warp), body) in enumerate(threads.items()):
        text += (
            f"setp.ne.u32 %p, %me, {16 * device + 4 * block + warp};\n@%p bra N{number};\n{body}\nexit;\nN{number}:\n"
        )
    text += "exit;\n}\n"
    blocks, warps = (max(place[i] for place in threads) + 1 for i in (1, 2))
    found = []
    for seed in range(seeds):
        machine = ptxsim.Machine(devices=devices, seed=seed)
        words = machine.device(0).array(np.zeros(128, np.uint32), "words")
        out = machine.device(0).array(np.zeros(1, np.uint32), "out")
        for device in range(devices):
            machine.device(device).launch(text, blocks, 32 * warps, words, out, device)
        where = {"words[0]": "data", "words[64]": "flag"}
        kinds = {f"{report.kind} {where.get(report.address, report.address)}" for report in machine.run()}
        found.append((frozenset(kinds), int(out.copy_to_host()[0])))
    return set(found)


ORDERED = {(frozenset(), 1)}


def racing(found, flag=False):
    """Whether every seed reports a race on `data` and nothing else.

    flag: whether a race on the flag may be reported too.
    """
    kinds = {kinds for kinds, _ in found}
    return all("race data" in each and each <= {"race data", *(["race flag"] if flag else [])} for each in kinds)


@pytest.mark.parametrize("adds", [1, 8])
@pytest.mark.parametrize(("reader", "ordered"), [((0, 0, 1), True), ((0, 1, 1), False)])
def test_a_chain_of_atomic_operations_keeps_the_releases_of_each_thread(reader, ordered, adds):
    """A fence of block scope comes before an atomic operation of device scope. Then threads of block 1 add to the flag.

    The first operation of the release pattern is the fence. A reader in block 0 is in its scope, a reader in block 1 is
    not.
    """
    threads = {
        (0, 0, 0): WRITE + "fence.acq_rel.cta; atom.relaxed.gpu.exch.b32 %r0, [%flag], 1;",
        (0, 1, 0): wait(1) + adds * ADD.format("relaxed.gpu"),
        reader: wait(1 + adds) + "fence.acq_rel.gpu;" + READ,
    }
    found = reports(threads)
    assert found == ORDERED if ordered else racing(found)


@pytest.mark.parametrize(("scope", "ordered"), [("sys", True), ("gpu", False)])
def test_a_release_of_another_device_needs_an_acquire_of_system_scope(scope, ordered):
    """The reader's own device makes the last atomic operation, but the other device makes the release."""
    threads = {
        (0, 0, 0): WRITE + "st.release.sys.u32 [%flag], 1;",
        (1, 0, 0): wait(1, "ld.relaxed.sys.u32 %r1, [%flag];") + ADD.format("relaxed.sys"),
        (1, 1, 0): wait(2, "ld.relaxed.sys.u32 %r1, [%flag];") + f"ld.acquire.{scope}.u32 %r1, [%flag];" + READ,
    }
    found = reports(threads, devices=2)
    # loads of system scope see the flag, but an acquire of gpu scope does not pair with the other device's release
    assert found == ORDERED if ordered else racing(found)


@pytest.mark.parametrize(
    ("first", "second", "ordered"),
    [
        ("gpu", "sys", True),
        ("gpu", "gpu", False),
        ("cta", "sys", False),
    ],
)
def test_a_release_hands_on_what_its_thread_has_acquired(first, second, ordered):
    """Causality is transitive. Block 0 writes to a peer's memory and releases to block 1, which releases to the peer.

    So the first release may have gpu scope, if the second one, to the other device, has system scope.
    """
    threads = {
        (0, 0, 0): WRITE + f"st.release.{first}.u32 [%flag], 1;",
        (0, 1, 0): wait(1, "ld.acquire.gpu.u32 %r1, [%flag];") + f"st.release.{second}.u32 [%flag+8], 1;",
        (1, 0, 0): wait(1, "ld.acquire.sys.u32 %r1, [%flag+8];") + READ,
    }
    found = reports(threads, devices=2)
    if ordered:
        assert found == ORDERED
    else:
        assert all("race data" in kinds for kinds, _ in found)


@pytest.mark.parametrize(("scope", "ordered"), [("gpu", True), ("cta", False)])
def test_an_atomic_operation_of_too_small_a_scope_breaks_the_chain(scope, ordered):
    """Block 1 adds to the flag.

    With block scope the addition does not observe block 0's release, so block 1's readers do not.
    """
    threads = {
        (0, 0, 0): WRITE + "st.release.gpu.u32 [%flag], 1;",
        (0, 1, 0): wait(1) + ADD.format(f"relaxed.{scope}") + "st.relaxed.gpu.u32 [%flag+8], 1;",
        (0, 1, 1): wait(1, "ld.relaxed.gpu.u32 %r1, [%flag+8];") + ADD.format("acquire.gpu") + READ,
    }
    found = reports(threads)
    assert found == ORDERED if ordered else racing(found, flag=True)


@pytest.mark.parametrize(
    ("fences", "ordered"),
    [
        ("fence.acq_rel.gpu; fence.acq_rel.cta;", True),
        ("fence.acq_rel.cta; fence.acq_rel.gpu;", True),
        ("fence.acq_rel.cta;", False),
    ],
)
def test_a_fence_of_a_narrow_scope_leaves_an_earlier_wide_one_in_force(fences, ordered):
    threads = {
        (0, 0, 0): WRITE + fences + "st.relaxed.gpu.u32 [%flag], 1;",
        (0, 1, 0): wait(1) + "fence.acq_rel.gpu; fence.acq_rel.cta;" + READ,
    }
    found = reports(threads)
    assert found == ORDERED if ordered else racing(found)


@pytest.mark.parametrize(
    ("second", "ordered"),
    [
        ("st.relaxed.gpu.u32 [%flag], 2;", True),
        ("st.relaxed.gpu.u32 [%flag+8], 2;", False),
    ],
)
def test_a_release_operation_followed_by_a_strong_write_of_its_location(second, ordered):
    """The two form a release pattern. A strong write of another location would not form one."""
    where = "[%flag+8]" if "+8" in second else "[%flag]"
    threads = {
        (0, 0, 0): WRITE + "st.release.gpu.u32 [%flag], 1;" + second,
        (0, 1, 0): wait(2, f"ld.acquire.gpu.u32 %r1, {where};") + READ,
    }
    found = reports(threads)
    assert found == ORDERED if ordered else racing(found)


@pytest.mark.parametrize(("where", "ordered"), [("[%flag]", True), ("[%flag+8]", False)])
def test_a_strong_read_followed_by_an_acquire_operation_on_its_location(where, ordered):
    """The two form an acquire pattern, although the acquire operation reads a later write, which releases nothing."""
    threads = {
        (0, 0, 0): WRITE + "st.release.gpu.u32 [%flag], 1;",
        (0, 1, 0): wait(1) + "st.relaxed.gpu.u32 [%flag+16], 1;" + wait(2) + f"ld.acquire.gpu.u32 %r1, {where};" + READ,
        (0, 2, 0): wait(1) + wait(1, "ld.relaxed.gpu.u32 %r1, [%flag+16];") + "st.relaxed.gpu.u32 [%flag], 2;",
    }
    found = reports(threads)
    assert found == ORDERED if ordered else racing(found)


@pytest.mark.parametrize(("size", "races"), [("u32", False), ("u64", True)])
def test_strong_accesses_of_different_sizes_race(size, races):
    """Two accesses of the same bytes are morally strong only if they overlap completely."""
    register = "%r0" if size == "u32" else "%rd0"
    threads = {
        (0, 0, 0): "st.relaxed.gpu.u32 [%flag], 1;",
        (0, 1, 0): f"ld.relaxed.gpu.{size} {register}, [%flag];",
    }
    found = {kinds for kinds, _ in reports(threads)}
    assert found == ({frozenset({"race flag"})} if races else {frozenset()})


def test_many_releases_of_one_counter():
    """300 blocks release to a counter; the last one's acquire takes all of them, and their clocks fit the pool."""
    text = (
        HEAD.replace("@%p exit;", "")
        + """
mad.lo.u32 %r2, %b, 32, %l; mul.wide.u32 %rd1, %r2, 4; add.u64 %rd2, %data, %rd1; st.u32 [%rd2+512], %r2;
bar.sync 0;
@%p exit;
fence.acq_rel.gpu; atom.relaxed.gpu.add.u32 %r0, [%flag], 1; fence.acq_rel.gpu;
setp.ne.u32 %p, %r0, 299;
@%p exit;
mov.u32 %r3, 0; mov.u32 %r4, 0;
L: ld.u32 %r5, [%data+512]; add.u32 %r4, %r4, %r5; add.u64 %data, %data, 4; add.u32 %r3, %r3, 1;
setp.lt.u32 %p, %r3, 9600;
@%p bra L;
st.u32 [%out], %r4; exit;
}
"""
    )
    machine = ptxsim.Machine()
    d = machine.device(0)
    words, out = d.array(np.zeros(128 + 9600, np.uint32)), d.array(np.zeros(1, np.uint32))
    d.launch(text, 300, 32, words, out, 0)
    assert machine.run() == []
    assert out.copy_to_host()[0] == 9600 * 9599 // 2

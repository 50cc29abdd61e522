"""Branches, calls and guards on the PTX machine, with lanes that diverge."""

from __future__ import annotations

import numpy as np
from simt_ptx import execute

LANES = range(32)


def lanes(body, module="", head="", threads=32):
    """The final value of r1 in each thread."""
    text = f"{body}\nmad.wide.u32 d38, t, 4, a0;\nst.global.b32 [d38], r1;"
    return execute(text, np.zeros(threads, np.uint32), module=module, head=head, threads=threads)[0].tolist()


def test_loops_of_different_lengths():
    """Each lane counts the Collatz steps of its number, so lanes loop a different number of times."""
    body = """add.u32 r2, t, 1;
mov.u32 r1, 0;
again:
setp.le.u32 p1, r2, 1;
@p1 bra done;
and.b32 r3, r2, 1;
setp.eq.u32 p2, r3, 0;
@p2 bra even;
mad.lo.u32 r2, r2, 3, 1;
bra.uni next;
even:
shr.u32 r2, r2, 1;
next:
add.u32 r1, r1, 1;
bra again;
done:"""

    def steps(n):
        count = 0
        while n > 1:
            n = n // 2 if n % 2 == 0 else 3 * n + 1
            count += 1
        return count

    assert lanes(body, threads=70) == [steps(n + 1) for n in range(70)]


def test_branch_tables():
    body = """rem.u32 r2, t, 5;
mov.u32 r1, 99;
targets: .branchtargets zero, one, two, one;
setp.gt.u32 p1, r2, 3;
@p1 bra out;
brx.idx r2, targets;
zero: mov.u32 r1, 10;
bra out;
one: mov.u32 r1, 11;
bra out;
two: mov.u32 r1, 12;
out:"""
    assert lanes(body) == [{0: 10, 1: 11, 2: 12, 3: 11, 4: 99}[lane % 5] for lane in LANES]


FUNCTIONS = """.func (.param .b32 result) fibonacci(.param .b32 n)
{
.reg .b32 r<6>; .reg .pred p1;
ld.param.b32 r1, [n];
setp.lt.u32 p1, r1, 2;
@p1 bra small;
{
.param .b32 x; .param .b32 y;
sub.u32 r2, r1, 1;
st.param.b32 [x], r2;
call.uni (y), fibonacci, (x);
ld.param.b32 r3, [y];
}
{
.param .b32 x; .param .b32 y;
sub.u32 r2, r1, 2;
st.param.b32 [x], r2;
call (y), fibonacci, (x);
ld.param.b32 r4, [y];
}
add.u32 r1, r3, r4;
small:
st.param.b32 [result], r1;
ret;
}
.func (.param .align 8 .b8 result[16]) both(.param .b64 a, .param .align 4 .b8 pair[8], .param .s8 c)
{
.reg .b64 d<4>; .reg .b32 r<4>;
ld.param.b64 d1, [a];
ld.param.v2.b32 {r1, r2}, [pair];
ld.param.s8 r3, [c];
mul.wide.u32 d2, r1, 3;
add.u64 d1, d1, d2;
sub.u32 r2, r2, r3;
st.param.b64 [result], d1;
st.param.b32 [result+8], r2;
ret;
}
"""


def test_recursive_calls():
    body = """and.b32 r2, t, 7;
{
.param .b32 n; .param .b32 back;
st.param.b32 [n], r2;
call (back), fibonacci, (n);
ld.param.b32 r1, [back];
}"""
    assert lanes(body, FUNCTIONS) == [[0, 1, 1, 2, 3, 5, 8, 13][lane % 8] for lane in LANES]


def test_calls_of_many_arguments_by_some_lanes():
    body = """mov.u32 r1, 0;
setp.ge.u32 p1, t, 20;
@p1 bra past;
{
.param .b64 a; .param .align 4 .b8 pair[8]; .param .s8 c; .param .align 8 .b8 back[16];
mul.wide.u32 d1, t, 1000;
st.param.b64 [a], d1;
st.param.v2.b32 [pair], {t, 7};
st.param.b8 [c], -5;
call (back), both, (a, pair, c);
ld.param.b64 d2, [back];
ld.param.b32 r2, [back+8];
cvt.u32.u64 r1, d2;
add.u32 r1, r1, r2;
}
past:"""
    assert lanes(body, FUNCTIONS) == [1003 * lane + 12 if lane < 20 else 0 for lane in LANES]


def test_calls_through_registers():
    module = "".join(
        f""".func (.param .b32 result) add{n}(.param .b32 x)
{{
.reg .b32 r<3>;
ld.param.b32 r1, [x];
add.u32 r1, r1, {n};
st.param.b32 [result], r1;
ret;
}}
"""
        for n in (100, 200)
    )
    module += ".global .align 8 .u64 table[2] = {add100, add200};\n"
    body = """and.b32 r2, t, 1;
mov.u64 d1, table;
mad.wide.u32 d1, r2, 8, d1;
ld.global.u64 d2, [d1];
{
.param .b32 x; .param .b32 y;
st.param.b32 [x], t;
kind: .callprototype (.param .b32 _) _ (.param .b32 _);
call (y), d2, (x), kind;
ld.param.b32 r1, [y];
}"""
    assert lanes(body, module) == [lane + (200 if lane & 1 else 100) for lane in LANES]


def test_inner_scopes_hide_outer_names():
    """A register, a variable and a label of an inner scope hide the outer ones, only inside it."""
    body = """mov.u32 r1, 1;
{
.reg .b32 r<4>;
.local .b32 r9;
mov.u32 r1, 50;
st.local.b32 [r9], r1;
bra inner;
mov.u32 r1, 60;
inner:
}
mov.u32 r9, 5;
bra inner;
mov.u32 r1, 70;
inner:
add.u32 r1, r1, r9;"""
    assert set(lanes(body)) == {6}


def test_exits_of_some_lanes():
    body = """mov.u32 r1, 3;
and.b32 r2, t, 1;
setp.eq.u32 p1, r2, 1;
@p1 exit;
vote.sync.ballot.b32 r1, 1, 0x55555555;"""
    body = body.replace("vote.sync.ballot.b32 r1, 1,", "setp.eq.u32 p2, 0, 0;\nvote.sync.ballot.b32 r1, p2,")
    assert lanes(body) == [0 if lane & 1 else 0x55555555 for lane in LANES]

"""Copies and fills as actions of a stream: launches of small kernels, which the checker sees like those of a program.

Each place in the program that calls a function has kernels of its own, because a run reports a finding once for each
instruction. If Python code makes the call, the kernels' instructions have its line.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Any

from .. import state as s
from ..launches import Launch
from ..machine import How
from ..streams import Stream

THREADS = 256  # the most threads of an action
LIBRARIES = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), sysconfig.get_path("stdlib")})
ITEMS = {  # bytes -> an item's suffix and registers
    16: ("v4.u32", "{%a, %b, %c, %d}"),
    8: ("v2.u32", "{%a, %b}"),
    4: ("u32", "%a"),
    2: ("u16", "%a"),
    1: ("u8", "%a"),
}
# {body} handles an item of {item} bytes, {last} a smaller item, of {tail} bytes, after the last whole item of a row.
TEXT = """.version 8.0
.target sm_80
.address_size 64
{file}
.visible .entry {name}(.param .u64 to, .param .u64 from, .param .u64 stride, .param .u64 step, .param .u64 width,
.param .u64 height, .param .u32 value)
{{
.reg .b64 %to, %from, %stride, %step, %width, %height, %row, %whole, %at, %first, %next, %here, %there;
.reg .b32 %a, %b, %c, %d, %t, %n; .reg .pred %p;
{place}
ld.param.u64 %to, [to]; ld.param.u64 %from, [from]; ld.param.u64 %stride, [stride]; ld.param.u64 %step, [step];
ld.param.u64 %width, [width]; ld.param.u64 %height, [height]; ld.param.u32 %a, [value];
mov.u32 %b, %a; mov.u32 %c, %a; mov.u32 %d, %a;
mov.u32 %t, %tid.x; mov.u32 %n, %ntid.x; mov.u64 %row, 0; and.b64 %whole, %width, -{item};
ROW: setp.ge.u64 %p, %row, %height; @%p bra END;
mul.wide.u32 %at, %t, {item}; mul.wide.u32 %next, %n, {item};
ITEM: setp.ge.u64 %p, %at, %whole; @%p bra TAIL;
{body}
add.u64 %at, %at, %next; bra ITEM;
TAIL: mul.wide.u32 %at, %t, {tail}; mul.wide.u32 %next, %n, {tail}; add.u64 %at, %at, %whole;
REST: setp.ge.u64 %p, %at, %width; @%p bra LAST;
{last}
add.u64 %at, %at, %next; bra REST;
LAST: add.u64 %to, %to, %stride; add.u64 %from, %from, %step; add.u64 %row, %row, 1; bra ROW;
END: ret;
}}
"""


@dataclass
class Rows:
    """What an action touches: `height` rows of `width` bytes.

    to, source: device addresses of the first rows; source 0 for a fill. stride, step: bytes between rows, at `to` and
    at `source`. private: whether nothing but the action uses the source.
    """

    to: int
    source: int
    width: int
    height: int = 1
    stride: int = 0
    step: int = 0
    private: bool = False


def caller() -> tuple[str, int]:
    """(file, line) of the Python code that calls the driver API, outside of libraries if there is any; else ('', 0)."""
    try:
        frame: Any = sys._getframe(1)
    except ValueError:
        return "", 0
    own = frame.f_globals["__name__"].rpartition(".")[0]
    found = []
    while frame is not None:
        if frame.f_globals.get("__name__", "").rpartition(".")[0] != own:
            found.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    outside = [one for one in found if not one[0].startswith(LIBRARIES) and not one[0].startswith("<")]
    return next(iter([*outside, *found]), ("", 0))


def text_of(what: str, rows: Rows, item: int, tail: int, place: tuple[str, int]) -> str:
    """The PTX of an action. what: its name. item, tail: bytes of an item, and of a smaller one at a row's end.

    place: file and line of the call, as of `caller`.
    """
    moves = []
    for size in (item, tail):
        kind, registers = ITEMS[size]
        space = "const" if rows.private else "global"  # the checker leaves constants alone
        load = f"add.u64 %here, %from, %at; ld.{space}.{kind} {registers}, [%here];" if rows.source else ""
        moves.append(f"{load} add.u64 %there, %to, %at; st.global.{kind} [%there], {registers};")
    file, line = place
    quoted = file.replace('"', "'").replace("\n", " ")
    return TEXT.format(
        file=f'.file 1 "{quoted}"' if file else "",
        place=f".loc 1 {line} 0" if file else "",
        name=what,
        item=item,
        tail=tail,
        body=moves[0],
        last=moves[1],
    )


def enqueue(
    machine: Any,
    stream: Stream,
    what: str,
    rows: Rows,
    after: list[Callable[[], None]],
    place: tuple[str, int],
    value: int = 0,
    tail: int = 1,
) -> Launch:
    """Queue a copy, or a fill with the 32 bits of `value`, in a stream. tail: the bytes of a fill's items.

    after: functions to call when the action has ended. place: file and line of the call, as of `caller`.
    """
    apart = (rows.stride, rows.step) if rows.height > 1 else ()
    item = gcd(16, rows.to, rows.source, *apart)
    program = machine.load(text_of(what, rows, item, tail, place))
    numbers = [rows.to, rows.source, rows.stride, rows.step, rows.width, rows.height, value]
    threads = min(THREADS, -(-rows.width // (32 * item)) * 32)
    return queued(machine, stream, program, what, threads, numbers, after)


def queued(
    machine: Any,
    stream: Stream,
    program: Any,
    what: str,
    threads: int,
    numbers: list[int],
    after: list[Callable[[], None]],
) -> Launch:
    """Queue the kernel of an action, as one block that takes no part of an SM."""
    how = How(0, stream)
    launch: Launch = machine.enqueue(stream.device, program, what, what, (1,), (threads,), numbers, how, after)
    launch.action, launch.per_sm = True, s.WHOLE_SM + 1
    return launch

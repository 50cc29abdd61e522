"""malloc and free for device code, written in PTX. Each module has a heap of 8 MiB; freed memory is not reused."""

from __future__ import annotations

import re

HEAP_BYTES = 1 << 23
DECLARED = re.compile(r"\.extern\s+\.func\s+(?:\([^)]*\)\s*)?(malloc|free)\b")
ALLOCATOR = f"""
.global .align 16 .b32 ptxsim_heap[{HEAP_BYTES // 4}];
.global .align 8 .b64 ptxsim_heap_used;
.visible .func (.param .b64 result) malloc (.param .b64 size)
{{
.reg .b64 %n, %at, %end, %from;
.reg .pred %full;
ld.param.u64 %n, [size];
add.u64 %n, %n, 15;
and.b64 %n, %n, -16;
atom.global.add.u64 %at, [ptxsim_heap_used], %n;
add.u64 %end, %at, %n;
setp.gt.u64 %full, %end, {HEAP_BYTES};
mov.u64 %from, ptxsim_heap;
cvta.global.u64 %from, %from;
add.u64 %at, %at, %from;
selp.b64 %at, 0, %at, %full;
st.param.b64 [result], %at;
ret;
}}
.visible .func free (.param .b64 address)
{{
ret;
}}
"""


def heap_for(text: str) -> str:
    """The PTX of malloc and free if a module declares one of them, else ''."""
    return ALLOCATOR if DECLARED.search(text) else ""

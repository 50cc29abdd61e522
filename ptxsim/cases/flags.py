"""Cases of flags between devices and blocks: scopes, fences, barriers before a release, epochs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ..arrays import DeviceArray
from .run import Case, Setting

LANES = np.arange(32)


def equal(array: DeviceArray, want: np.ndarray) -> bool:
    """Whether an array of the machine holds these values."""
    return bool(np.array_equal(array._view(), want))


def handed_over(setting: Setting, send: str, receive: str) -> Callable[[], bool]:
    """One device writes 64 numbers and sets a flag; the other waits for it and reads them."""
    data, flag = setting.fresh(64, "data"), setting.zeros(1, "flag", np.uint32)
    out = setting.fresh(64, "out", device=1)
    setting.launch(send, 1, 64, data, flag)
    setting.launch(receive, 1, 64, data, flag, out, device=1)
    return lambda: equal(out, np.arange(64))


def queue(setting: Setting) -> Callable[[], bool]:
    """Packets go through a queue in two steps."""
    packets, head = setting.zeros(128, "packets", np.int32), setting.zeros(1, "head", np.uint32)
    out = setting.fresh(128, "out", np.int32, device=1)
    setting.launch("fifo_send", 1, 64, packets, head, 64)
    setting.launch("fifo_receive", 1, 64, packets, head, out, 64, device=1)
    return lambda: equal(out, np.concatenate([np.arange(64), np.arange(64) + 1]))


def two_calls(setting: Setting) -> Callable[[], bool]:
    """Two calls share a lock."""
    tiles, lock = setting.zeros(96, "tiles"), setting.zeros(1, "lock", np.uint32)
    out = setting.zeros(32, "out", device=1)
    setting.launch("calls_produce", 1, 32, tiles, lock)
    setting.launch("calls_consume", 1, 32, tiles, lock, out, device=1)
    return lambda: equal(out, np.full(32, 3))


def exchange(setting: Setting, kernel: str, flags: int = 1, factor: int = 1) -> Callable[[], bool]:
    """Two ranks write, set flags for each other, and add both payloads. flags: pairs of flags that the kernel has."""
    data = [setting.fresh(32, f"data{rank}", device=rank) for rank in (0, 1)]
    words = [[setting.zeros(1, f"flag{rank}", np.uint32, rank) for rank in (0, 1)] for _ in range(flags)]
    out = [setting.fresh(32, f"out{rank}", device=rank) for rank in (0, 1)]
    for rank in (0, 1):
        pairs = [flag[side] for flag in words for side in (rank, 1 - rank)]
        setting.launch(kernel, 1, 32, data[rank], data[1 - rank], *pairs, out[rank], device=rank)
    return lambda: all(equal(one, 2 * factor * LANES) for one in out)


def bytes_of_word(setting: Setting) -> Callable[[], bool]:
    """Two ranks set their flags in one word."""
    flags, words = setting.zeros(2, "flags", np.uint8), setting.zeros(2, "words", np.uint32)
    for rank in (0, 1):
        setting.launch("byte_flags", 1, 32, flags, words, rank, device=rank)
    return lambda: True


def in_turn(setting: Setting) -> Callable[[], bool]:
    """Four blocks add to one sum in turn."""
    total, semaphore = setting.zeros(32, "sum"), setting.zeros(1, "semaphore", np.uint32)
    setting.launch("serial_blocks", 4, 32, total, semaphore)
    return lambda: equal(total, np.full(32, 10))


def next_call(setting: Setting) -> Callable[[], bool]:
    """Four blocks read the flag of a call, and block 0 advances it."""
    flag, arrived = setting.zeros(1, "flag", np.uint32), setting.zeros(1, "arrived", np.uint32)
    out = setting.fresh(128, "out", np.uint32)
    setting.launch("flag_in_kernel", 4, 32, flag, arrived, out)
    return lambda: equal(out, np.zeros(128))


def two_batches(setting: Setting) -> Callable[[], bool]:
    """Two ranks exchange two batches at once, each on its own stream. Each rank has more work for one of the two."""
    counts = [[setting.zeros(1, f"count{rank}", np.int32, rank) for rank in (0, 1)] for _ in range(2)]
    outputs = []
    for batch in (0, 1):
        count = counts[batch if setting.repaired else 0]
        data = [setting.zeros(32, f"data{rank}", device=rank) for rank in (0, 1)]
        out = [setting.fresh(32, f"out{rank}", device=rank) for rank in (0, 1)]
        for rank in (0, 1):
            stream = setting.machine.device(rank).stream()
            arrays = data[rank], data[1 - rank], count[rank], count[1 - rank], out[rank]
            work = 50 if rank == batch else 0
            setting.launch("balanced_barrier", 1, 32, *arrays, work, device=rank, stream=stream)
        outputs += out
    return lambda: all(equal(one, 2 * LANES) for one in outputs)


CASES = [
    Case(
        "fifo_head", "flashinfer-ai/flashinfer#4092", "https://github.com/flashinfer-ai/flashinfer/pull/4092",
        "thread 0 published the head of a queue while other threads wrote the packet; repaired by __syncthreads",
        "flags.cu", ("fifo_send", "fifo_receive"), queue,
    ),
    Case(
        "lock_scope", "ROCm/iris#462", "https://github.com/ROCm/iris/issues/462",
        "a lock that other GPUs poll was set with gpu scope; repaired by sys scope",
        "flags.cu", ("tile_ready", "tile_wait"), partial(handed_over, send="tile_ready", receive="tile_wait"),
    ),
    Case(
        "fixed_lock_value", "ROCm/iris#465", "https://github.com/ROCm/iris/issues/465",
        "every call set the lock to 1, so the lock of the call before counted; repaired by the number of the call",
        "flags.cu", ("calls_produce", "calls_consume"), two_calls,
    ),
    Case(
        "payload_lifetime", "lightseekorg/tokenspeed#1017", "https://github.com/lightseekorg/tokenspeed/pull/1017",
        "a payload was overwritten by the next call while the peer read it; repaired by a flag that says done",
        "flags.cu", ("one_shot",), partial(exchange, kernel="one_shot", flags=2, factor=3),
    ),
    Case(
        "relaxed_start", "vllm-project/vllm#57059", "https://github.com/vllm-project/vllm/issues/57059",
        "the start barrier of an all-reduce was relaxed on both sides; repaired by release and acquire",
        "flags.cu", ("start_barrier",), partial(exchange, kernel="start_barrier"),
    ),
    Case(
        "volatile_flags", "vllm-project/vllm#8404", "https://github.com/vllm-project/vllm/issues/8404",
        "flags of an all-reduce were volatile, without fences; repaired by fences of system scope",
        "flags.cu", ("volatile_flags",), partial(exchange, kernel="volatile_flags"),
    ),
    Case(
        "byte_flags", "vllm-project/vllm#2760", "https://github.com/vllm-project/vllm/pull/2760",
        "GPUs wrote bytes of one word that was polled as a whole; repaired by a 4-byte flag for each",
        "flags.cu", ("byte_flags",), bytes_of_word,
    ),
    Case(
        "lost_acquire", "deepseek-ai/DeepEP#253", "https://github.com/deepseek-ai/DeepEP/pull/253",
        "the barrier between GPUs polled by a volatile load after its fence was removed; repaired by an acquire",
        "flags.cu", ("nvlink_barrier",), partial(exchange, kernel="nvlink_barrier"),
    ),
    Case(
        "poll_scope", "ROCm/aiter#4786", "https://github.com/ROCm/aiter/pull/4786",
        "signals of other GPUs were polled with gpu scope; repaired by system scope",
        "flags.cu", ("remote_signal", "poll_signal"),
        partial(handed_over, send="remote_signal", receive="poll_signal"),
    ),
    Case(
        "cheap_fence", "AMD-AGI/Primus-Turbo#482", "https://github.com/AMD-AGI/Primus-Turbo/pull/482",
        "the tail of a channel was stored relaxed, with no fence for the rows of other warps; repaired by a release",
        "flags.cu", ("cheap_fence", "channel_read"),
        partial(handed_over, send="cheap_fence", receive="channel_read"),
    ),
    Case(
        "serial_blocks", "NVIDIA/Fuser#2391", "https://github.com/NVIDIA/Fuser/pull/2391",
        "a semaphore between blocks was advanced without __threadfence; repaired by a fence in the same thread",
        "flags.cu", ("serial_blocks",), in_turn,
    ),
    Case(
        "flag_in_kernel", "microsoft/mscclpp#502", "https://github.com/microsoft/mscclpp/pull/502",
        "block 0 advanced the flag of the next call while other blocks read it; repaired by a barrier of the blocks",
        "flags.cu", ("flag_in_kernel",), next_call,
    ),
    Case(
        "two_batches", "uccl-project/uccl#986", "https://github.com/uccl-project/uccl/issues/986",
        "two batches in flight shared the counters of one barrier; repaired here by counters for each",
        "flags.cu", (), two_batches, ("balanced_barrier",),
    ),
]  # fmt: skip

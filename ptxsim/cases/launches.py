"""Cases of launches: streams and events, programmatic launches, grids whose blocks wait for each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .flags import equal
from .run import Case, Setting

BLOCKS, THREADS = 2, 32
COUNT = BLOCKS * THREADS


def chain(setting: Setting) -> Callable[[], bool]:
    """A product begins while the kernel that makes its input runs."""
    x, y = setting.zeros(COUNT, "x"), setting.fresh(COUNT, "y")
    setting.launch("produce_early", BLOCKS, THREADS, x, np.float32(3))
    setting.launch("product", BLOCKS, THREADS, x, y, programmatic=True)
    return lambda: equal(y, np.full(COUNT, 6))


def shapes(setting: Setting) -> Callable[[], bool]:
    """A scheduler reads a shape that the kernel before writes."""
    sizes, x, y = setting.zeros(1, "shapes", np.int32), setting.zeros(COUNT, "x"), setting.fresh(COUNT, "y")
    setting.launch("shapes_early", BLOCKS, THREADS, sizes, x)
    setting.launch("scheduler", BLOCKS, THREADS, sizes, x, y, programmatic=True)
    return lambda: equal(y, np.full(COUNT, 3))


def roles(setting: Setting) -> Callable[[], bool]:
    """One warp loads scale factors, the other the rows."""
    x, scales, y = setting.zeros(64, "x"), setting.zeros(1, "scales"), setting.zeros(64, "y")
    setting.launch("quantize_early", 1, 64, x, scales)
    setting.launch("roles", 1, 64, x, scales, y, programmatic=True)
    return lambda: equal(y, np.where(np.arange(64) < 32, 0, 2 * np.arange(64)))


def three_kernels(setting: Setting) -> Callable[[], bool]:
    """The third of three kernels reads what the first wrote."""
    x, other, y = (setting.zeros(COUNT, name) for name in ("x", "other", "y"))
    setting.launch("produce_early", BLOCKS, THREADS, x, np.float32(3))
    setting.launch("middle", BLOCKS, THREADS, other, np.float32(1), programmatic=True)
    setting.launch("third", BLOCKS, THREADS, x, other, y, programmatic=True)
    return lambda: equal(y, np.full(COUNT, 4))


def merge(setting: Setting) -> Callable[[], bool]:
    """A merge reads where its part begins."""
    at = setting.a.array(np.zeros(BLOCKS, np.int32), "partitions")
    keys = setting.a.array(np.arange(COUNT, dtype=np.float32), "keys")
    y = setting.fresh(COUNT, "y")
    setting.launch("partition_early", BLOCKS, THREADS, at, THREADS)
    setting.launch("merge", BLOCKS, THREADS, at, keys, y, programmatic=True)
    return lambda: equal(y, np.arange(COUNT))


def filled_late(setting: Setting) -> Callable[[], bool]:
    """The output of a kernel on one stream is filled on another stream, after the two had been ordered."""
    compute, comm = setting.stream(), setting.stream()
    x, received = setting.zeros(COUNT, "x"), setting.fresh(COUNT, "received")
    setting.launch("fill", BLOCKS, THREADS, x, np.float32(1), stream=compute)
    comm.wait(compute.record())
    setting.launch("fill", BLOCKS, THREADS, received, np.float32(-1), stream=compute)
    if setting.repaired:
        comm.wait(compute.record())
    setting.launch("add_one", BLOCKS, THREADS, x, received, stream=comm)
    return lambda: equal(received, np.full(COUNT, 2))


def side_stream(setting: Setting) -> Callable[[], bool]:
    """A reduction on one stream waits for the main stream, but its input is scaled on a third."""
    main, side, comm = setting.stream(), setting.stream(), setting.stream()
    grads, out = setting.zeros(COUNT, "grads"), setting.fresh(COUNT, "out")
    setting.launch("fill", BLOCKS, THREADS, grads, np.float32(1), stream=main)
    side.wait(main.record())
    setting.launch("add_one", BLOCKS, THREADS, grads, grads, stream=side)
    comm.wait(main.record())
    if setting.repaired:
        comm.wait(side.record())
    setting.launch("add_one", BLOCKS, THREADS, grads, out, stream=comm)
    return lambda: equal(out, np.full(COUNT, 3))


def initialised_aside(setting: Setting) -> Callable[[], bool]:
    """Parameters are filled on a side stream and used on the main one."""
    main, side = setting.stream(), setting.stream()
    parameters, out = setting.zeros(COUNT, "parameters"), setting.fresh(COUNT, "out")
    setting.launch("fill", BLOCKS, THREADS, parameters, np.float32(5), stream=side)
    if setting.repaired:
        main.wait(side.record())
    setting.launch("add_one", BLOCKS, THREADS, parameters, out, stream=main)
    return lambda: equal(out, np.full(COUNT, 6))


def reused(setting: Setting) -> Callable[[], bool]:
    """Memory is given out again on the stream that allocated it, while another stream still reads it."""
    maker, reader = setting.stream(), setting.stream()
    block, out = setting.zeros(COUNT, "block"), setting.fresh(COUNT, "out")
    setting.launch("fill", BLOCKS, THREADS, block, np.float32(1), stream=maker)
    reader.wait(maker.record())
    setting.launch("add_one", BLOCKS, THREADS, block, out, stream=reader)
    if setting.repaired:
        maker.wait(reader.record())
    setting.launch("fill", BLOCKS, THREADS, block, np.float32(9), stream=maker)
    return lambda: equal(out, np.full(COUNT, 2))


def beside_another(setting: Setting) -> Callable[[], bool]:
    """The blocks of a grid wait for each other. Unless repaired, the grid is larger than the device holds at once."""
    blocks = 2 if setting.repaired else 2 * setting.machine.sm_count * 32
    arrived, x = setting.zeros(1, "arrived", np.uint32), setting.zeros(blocks * THREADS, "x")
    setting.launch("resident", blocks, THREADS, arrived, x)
    return lambda: True


CASES = [
    Case(
        "never_waits", "NVIDIA/cutlass#2760", "https://github.com/NVIDIA/cutlass/issues/2760",
        "a product launched to begin early never waited for the kernel before it; repaired by griddepcontrol.wait",
        "launches.cu", ("product",), chain, ("produce_early",),
    ),
    Case(
        "shape_before_wait", "NVIDIA/cutlass#2962", "https://github.com/NVIDIA/cutlass/issues/2962",
        "the scheduler of tiles read a shape before griddepcontrol.wait; repaired by reading it after the wait",
        "launches.cu", ("scheduler",), shapes, ("shapes_early",),
    ),
    Case(
        "one_warp_waits_not", "NVIDIA/cutlass#3279", "https://github.com/NVIDIA/cutlass/pull/3279",
        "the warp that loads scale factors did not wait; repaired by a wait before the roles part",
        "launches.cu", ("roles",), roles, ("quantize_early",),
    ),
    Case(
        "wait_compiled_out", "flashinfer-ai/flashinfer#2708", "https://github.com/flashinfer-ai/flashinfer/issues/2708",
        "kernels were launched to begin early, but compiled without the waits; repaired by the compiler's flags",
        "launches.cu", ("middle",), three_kernels, ("produce_early", "third"),
    ),
    Case(
        "read_before_wait", "NVIDIA/cccl#5297", "https://github.com/NVIDIA/cccl/issues/5297",
        "a merge read its partition before the wait that should guard it; repaired by reading it after the wait",
        "launches.cu", ("merge",), merge, ("partition_early",),
    ),
    Case(
        "filled_late", "deepseek-ai/DeepEP#589", "https://github.com/deepseek-ai/DeepEP/issues/589",
        "an output was filled on the compute stream after the streams were ordered; repaired by a second wait",
        "launches.cu", (), filled_late, ("fill", "add_one"),
    ),
    Case(
        "side_stream", "NVIDIA/Megatron-LM#3670", "https://github.com/NVIDIA/Megatron-LM/issues/3670",
        "gradients were scaled on a side stream that the reduction did not wait for; repaired by waiting for it",
        "launches.cu", (), side_stream, ("fill", "add_one"),
    ),
    Case(
        "initialised_aside", "NVIDIA-NeMo/Megatron-Bridge#1706",
        "https://github.com/NVIDIA-NeMo/Megatron-Bridge/pull/1706",
        "parameters were made on a side stream that nothing waited for; repaired by a wait",
        "launches.cu", (), initialised_aside, ("fill", "add_one"),
    ),
    Case(
        "reused_memory", "NVIDIA/TensorRT-LLM#15265", "https://github.com/NVIDIA/TensorRT-LLM/pull/15265",
        "memory was given out again while another stream read it; repaired by waiting for that stream",
        "launches.cu", (), reused, ("fill", "add_one"),
    ),
    Case(
        "not_resident", "local-inference-lab/b12x#32", "https://github.com/local-inference-lab/b12x/pull/32",
        "blocks waited for all blocks of a grid that was not resident as a whole; repaired by a grid that fits",
        "launches.cu", (), beside_another, ("resident",),
    ),
]  # fmt: skip

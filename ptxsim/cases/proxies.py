"""Cases of the asynchronous proxy: bulk copies beside plain accesses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from .flags import equal
from .run import Case, Setting

ROUNDS = 6


def summed(setting: Setting, kernel: str, block: int) -> Callable[[], bool]:
    """Rows are fetched through two stages and summed."""
    x = np.arange(32 * ROUNDS, dtype=np.float32)
    y = setting.fresh(32, "y")
    setting.launch(kernel, 1, block, setting.a.array(x, "x"), y, ROUNDS)
    return lambda: equal(y, x.reshape(ROUNDS, 32).sum(0))


def state(setting: Setting) -> Callable[[], bool]:
    """A block stores 64 numbers by a bulk copy."""
    y = setting.fresh(64, "y")
    setting.launch("store_state", 1, 64, y)
    return lambda: equal(y, np.arange(64))


def sent(setting: Setting) -> Callable[[], bool]:
    """Rows are sent through two stages."""
    y = setting.fresh(32 * ROUNDS, "y")
    setting.launch("send_stages", 1, 32, y, ROUNDS)
    return lambda: equal(y, (np.arange(ROUNDS)[:, None] + np.arange(32)).ravel())


def fetched(setting: Setting) -> Callable[[], bool]:
    """One device writes rows and sets a flag; the other fetches them by a bulk copy."""
    rows, flag = setting.fresh(32, "rows"), setting.zeros(1, "flag", np.uint32)
    y = setting.fresh(32, "y", device=1)
    setting.launch("rows_write", 1, 32, rows, flag)
    setting.launch("rows_fetch", 1, 32, rows, flag, y, device=1)
    return lambda: equal(y, np.arange(32))


CASES = [
    Case(
        "stage_reuse", "deepseek-ai/DeepEP#642", "https://github.com/deepseek-ai/DeepEP/pull/642",
        "a stage was given back for the next bulk copy without a proxy fence after its reads; repaired by the fence",
        "proxies.cu", ("stages",), partial(summed, kernel="stages", block=64),
    ),
    Case(
        "ping_pong", "deepseek-ai/DeepGEMM#389", "https://github.com/deepseek-ai/DeepGEMM/pull/389",
        "a warp fetched into a stage that it had just read, without a proxy fence; repaired by the fence",
        "proxies.cu", ("ping_pong",), partial(summed, kernel="ping_pong", block=32),
    ),
    Case(
        "store_state", "MoonshotAI/FlashKDA#24", "https://github.com/MoonshotAI/FlashKDA/issues/24",
        "plain stores were followed by a bulk store with only a barrier between; repaired by a proxy fence",
        "proxies.cu", ("store_state",), state,
    ),
    Case(
        "send_stages", "deepseek-ai/DeepEP#660", "https://github.com/deepseek-ai/DeepEP/pull/660",
        "a stage was filled again before its bulk store had read it; repaired by waiting for all stores",
        "proxies.cu", ("send_stages",), sent,
    ),
    Case(
        "poll_then_fetch", "deepseek-ai/DeepEP#632", "https://github.com/deepseek-ai/DeepEP/pull/632",
        "a flag was polled by plain loads, then the rows were fetched by a bulk copy; repaired by a proxy fence",
        "proxies.cu", ("rows_fetch", "rows_write"), fetched,
    ),
]  # fmt: skip

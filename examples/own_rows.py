"""Keeps and draws measurements of your own: `python examples/own_rows.py`, then `aristos plot own-rows.h5`.

Every start adds a run to the file; `aristos compare own-rows.h5` compares the last two runs.
"""

import time

import numpy as np

import aristos
from aristos.results import Run, Table, append

TOKENS, CALLS = (16, 64, 256), 10
cfg = aristos.MoEConfig(hidden=64, ffn=128, experts=8, top_k=2, max_tokens=max(TOKENS))
rng = np.random.default_rng(0)
started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())  # names the run
seconds = np.empty((len(TOKENS), CALLS))
with aristos.MoE(cfg) as moe:
    moe.load(**aristos.reference.weights(cfg, seed=0))
    for row, tokens in zip(seconds, TOKENS):
        x = rng.standard_normal((tokens, cfg.hidden), np.float32)
        for call in range(CALLS):
            before = time.perf_counter()
            moe(x)
            row[call] = time.perf_counter() - before
    isa = moe.isa

table = Table("my_layer", attributes={"isa": isa, "note": "anything that helps to repeat it"})
table.dim("tokens", TOKENS, "1", "tokens a call").dim("iteration", range(CALLS))
table.add("call_time", ("tokens", "iteration"), seconds, "s", "one call")
print(append("own-rows.h5", Run(attributes={"started_utc": started}, tables=[table])))

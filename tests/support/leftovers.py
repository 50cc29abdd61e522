"""Checks that tests leave no exit hook behind. A layer leaves one if it is not closed or if its call has failed.

The exit hook of such a layer prints, or even ends the job, long after the test. This pytest plugin records the exit
hooks that the package registers while tests run, and fails a run that leaves any.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
from typing import Any

import pytest

OF_PROGRAMS = "aristos.integrations.job"  # its import registers a hook that belongs to no test
_hooks: list[tuple[Callable[..., Any], str]] = []  # each with the test that was running
_of_workers: list[str] = []  # what tests in other processes left
_current = "collection"
_register, _unregister = atexit.register, atexit.unregister


def register(hook: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    module = getattr(hook, "__module__", None) or ""
    if module.startswith("aristos.") and module != OF_PROGRAMS:
        _hooks.append((hook, _current))
    return _register(hook, *args, **kwargs)


def unregister(hook: Callable[..., Any], /) -> None:
    _hooks[:] = [pair for pair in _hooks if pair[0] != hook]
    _unregister(hook)


atexit.register, atexit.unregister = register, unregister


def registered() -> list[Callable[..., Any]]:
    """The exit hooks of the package that are registered now."""
    return [hook for hook, _ in _hooks]


def drop_since(before: list[Callable[..., Any]]) -> None:
    """Remove the hooks registered after `before` was read; for a test whose ranks fail on purpose and cannot close."""
    for hook in registered():
        if hook not in before:
            unregister(hook)


def run_since(before: list[Callable[..., Any]]) -> None:
    """Run and remove the hooks registered after `before` was read, the last one first, as at the process's end."""
    for hook in reversed(registered()):
        if hook not in before:
            hook()
            unregister(hook)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logstart(nodeid: str) -> None:
    global _current
    _current = nodeid


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    found = [f"{test} left the exit hook {hook.__module__}.{hook.__qualname__}" for hook, test in _hooks]
    workers_output = getattr(session.config, "workeroutput", None)
    if workers_output is not None:  # a worker of pytest-xdist: the controller reports
        workers_output["left"] = found
        return
    found += _of_workers
    if found and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    for text in found:
        print(f"\nERROR: {text}: close its layer", flush=True)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of pytest-xdist has ended: keep what its tests left."""
    _of_workers.extend(getattr(node, "workeroutput", {}).get("left", ()))

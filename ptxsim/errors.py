"""The machine's errors, one for each kind of failure that a user can act on. All derive from `PtxsimError`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from kernel_cache import errors


class PtxsimError(Exception):
    """Base class of the errors that the machine raises on purpose."""


class InputError(PtxsimError, errors.InputError):
    """An argument, a kernel's text or a launch is wrong."""


class EnvironmentProblem(PtxsimError, errors.EnvironmentProblem):
    """numba-cuda or NVRTC is missing or cannot work."""


class MemoryProblem(EnvironmentProblem, MemoryError):
    """A simulated GPU does not have enough memory."""


class ClosedError(PtxsimError):
    """The machine that should do something was closed."""


@contextlib.contextmanager
def own() -> Iterator[None]:
    """A block in which errors that kernel_cache raises become errors of the machine."""
    try:
        yield
    except PtxsimError:
        raise
    except errors.InputError as error:
        raise InputError(str(error)) from None
    except errors.EnvironmentProblem as error:
        raise EnvironmentProblem(str(error)) from None

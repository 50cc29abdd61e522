"""An error class for each failure that a user can act on.

All derive from `AristosError`, and `aristos` exports them.
"""

from kernel_cache import errors


class AristosError(Exception):
    """Base class of the errors that Aristos raises on purpose."""

    on_all_ranks = True  # whether every rank raises if a collective raises this error on one


class InputError(AristosError, errors.InputError, ValueError):
    """An argument has the wrong value, shape or dtype."""


class NotLoaded(InputError):
    """A call needs a part of a layer's weights that was not loaded; the message names the part.

    Attributes
    ----------
    part : int
        0: all weights; 1: the router; 2: the shared expert; 3 + e: expert e.
    """

    def __init__(self, message: str, part: int) -> None:
        super().__init__(message)
        self.part = part


class PeerInputError(AristosError):
    """Another rank refused its input, so this collective call has no result; the layer stays usable."""


class MismatchError(AristosError):
    """Ranks have different configurations, or make different calls."""


class OpenCallError(AristosError):
    """A call was started while another one on the same communicator is still open."""


class ClosedError(AristosError):
    """The layer was closed, or an earlier failure left its engine unusable."""


class WaitTimeout(AristosError, TimeoutError):
    """A bounded wait timed out; the message names the rank, the peer, the epoch and the awaited event."""


class PoisonedError(AristosError):
    """Another rank failed during a call and notified this one; the engine is unusable."""

    on_all_ranks = False  # ranks raise it independently of each other


class CorruptionError(AristosError):
    """A word of another rank has a value that no rank writes, so shared memory was damaged; the engine is unusable."""


class EnvironmentProblem(AristosError, errors.EnvironmentProblem):
    """The machine, the MPI library or the launcher cannot do what was asked."""

    on_all_ranks = False


class MemoryProblem(EnvironmentProblem, MemoryError):
    """The windows do not fit into memory; the message gives the bytes needed and the bytes available."""

    on_all_ranks = True


class CheckpointError(AristosError, ValueError):
    """A model directory cannot be read or is not supported; the message names file, tensor and remedy."""


class ResultsError(AristosError):
    """A results file cannot be read or written."""


class TopologyError(AristosError, ValueError):
    """The description of a machine or a network is wrong or incomplete; the message quotes the line."""

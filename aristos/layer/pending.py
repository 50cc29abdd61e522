"""The handle of a call that runs in the background, and the record of which calls of an object are open."""

from __future__ import annotations

import queue
import weakref
from collections.abc import Callable
from typing import Any

from ..errors import ClosedError, InputError, OpenCallError
from ..substrate.runtime import Runtime
from .backend import check_layer
from .collective import Membership


class PendingCall:
    """The handle of a call that `MoE.start` began. Until `wait` has returned, x and out must not be touched.

    `wait` may be called once. If the handle is dropped, the result is dropped too, and the next call on the
    communicator waits until this one has ended.

    Parameters
    ----------
    runtime : Runtime
        The engine that runs the call.
    done : queue
        The queue that gets (seconds, error) when the call ends.
    result : callable
        The function that makes the call's result from the call's seconds.
    """

    def __init__(self, runtime: Runtime, done: Any, result: Callable[[float], Any]) -> None:
        self._done, self._result = done, result
        self._abandoned = False
        self._dropped = weakref.finalize(self, runtime.drop_call, lambda: _end(done))
        self._dropped.atexit = False

    @property
    def waits(self) -> bool:
        """Whether the call is still open. `wait` ends it, and so does closing the layer."""
        return self._done is not None

    def wait(self) -> Any:
        """Wait until the call has ended, and return its result.

        If the call has failed, raise its error, see `MoE.__call__`.

        Returns
        -------
        object
            What `MoE.__call__` returns.

        Raises
        ------
        InputError
            `wait` was called before.
        ClosedError
            The layer was closed.
        """
        if self._abandoned:
            raise ClosedError(
                "this layer was closed, so the call that start() began has no result: call wait() before close()"
            )
        if self._done is None:
            raise InputError("wait() may be called once for each started call, got a second wait()")
        seconds, error = self._take()
        if error is not None:
            raise error
        return self._result(seconds)

    def abandon(self) -> None:
        """Wait until the call has ended and drop its result, because the layer closes."""
        self._take()
        self._abandoned = True

    def _take(self) -> tuple[float, BaseException | None]:
        ended = _end(self._done)
        self._done = None
        self._dropped.detach()
        return ended


def _end(done: Any) -> tuple[float, BaseException | None]:
    """Wait until a started call has ended, and return what it has put into its queue."""
    while True:
        try:
            return done.get(timeout=0.1)  # Ctrl-C can end each short wait; wait() can be called again
        except queue.Empty:
            continue


class OpenCalls:
    """The open calls of one object: a started call that was not waited for, and tapes that wait for `backward`.

    layers: how many layers the object has. tapes: the layer of each open tape, by the tape's number.
    """

    def __init__(self, member: Membership, layers: int) -> None:
        self._member, self._layers = member, layers
        self._started: weakref.ref[PendingCall] | None = None
        self.tapes: dict[int, int] = {}

    def begin(self, call: PendingCall) -> None:
        """Record that a call was started."""
        self._started = weakref.ref(call)

    def started(self) -> PendingCall | None:
        """The handle of a started call that has not been waited for."""
        call = None if self._started is None else self._started()
        return call if call is not None and call.waits else None

    def settled(self) -> Runtime:
        """The runtime; raises OpenCallError while a started call of this object is open."""
        if self.started() is not None:
            raise OpenCallError("a call that start() began is open: call its wait() first")
        runtime = self._member.alive()
        runtime.end_dropped_call()
        return runtime

    def refuse_change(self, layer: Any, what: str) -> None:
        """Raise OpenCallError if a call of this object or a tape of the layer is open: weights may not change then."""
        runtime = self.settled()
        if runtime.open and runtime.caller == self._member.number:
            raise OpenCallError(f"a call of this layer has not returned: call {what} before or after that call")
        check_layer(layer, self._layers)
        self.refuse_tapes(int(layer), what)

    def refuse_tapes(self, layer: int, what: str) -> None:
        """Raise OpenCallError while a tape of the layer is open."""
        if layer in self.tapes.values():
            raise OpenCallError(
                f"{what} would change weights of layer {layer} while a tape of that layer is open: give the tape to"
                " backward(), or discard() it"
            )

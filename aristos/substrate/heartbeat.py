"""The heartbeat that a rank's peers watch. Worker 0 publishes the rank's epoch and progress at intervals."""

from kernel_cache.compile import jit

from ..engine import steps, words
from ..engine.lock import OUTSIDE, acquire, unlock
from ..engine.outbox import HEARTBEAT_NS


@jit
def publish_progress(job, st, now):
    """Publish {epoch, progress} to every peer, at most once in HEARTBEAT_NS. now: ns. Only worker 0 calls this."""
    if now - st[words.HEARTBEAT] > HEARTBEAT_NS:
        st[words.HEARTBEAT] = now
        acquire(job, OUTSIDE)
        progress = st[words.PROGRESS]
        unlock(job)
        steps.heartbeat(job, st, progress)

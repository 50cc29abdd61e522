"""What a host thread does after an idle poll: spin, then yield its core, then sleep."""

from kernel_cache.compile import jit

from ..engine import words
from ..primitives import memory as mem

# (idle polls before a thread yields its core, idle polls before it sleeps): for a thread alone on its core, and for one
# that shares the core
ALONE, CROWDED = (2000, 50_000), (4, 100)


@jit
def rest(job, polls):
    """Pause after `polls` consecutive idle polls: a spin, a yield, or a sleep.

    If ranks share cores, the sleep comes soon. A yield reaches only threads of the same scheduling group, and launchers
    give each rank a session, which is a group. So a rank that only yields could keep the core from the rank that it
    waits for.
    """
    if polls < job[words.SPINS]:
        for _ in range(8):
            mem.pause()
    elif polls < job[words.YIELDS]:
        mem.yield_core()
    else:
        mem.nap()

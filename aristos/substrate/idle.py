"""What a host thread does after an idle poll: spin, then yield its core, then sleep."""

from kernel_cache.compile import jit

from ..engine import words
from ..primitives import memory as mem

# (idle polls until a thread yields its core, until it sleeps): where it has the core to itself, and where it shares it
ALONE, CROWDED = (2000, 50_000), (4, 100)


@jit
def rest(job, polls):
    """Pause after `polls` consecutive idle polls: a spin, a yield, or a sleep.

    Where ranks share cores, the sleep comes soon: a yield reaches only threads of the same scheduling group, and
    launchers give each rank a session, which is a group. A rank that only yields can keep the core from the rank it
    waits for.
    """
    if polls < job[words.SPINS]:
        for _ in range(8):
            mem.pause()
    elif polls < job[words.YIELDS]:
        mem.yield_core()
    else:
        mem.nap()

"""The schedule explorer: the engine's own steps, uncompiled, under a scheduler that decides who goes on.

Ranks, workers, pacing threads and the network are actors of one process (scheduler.py) over memory that watches every
access (memory_model.py, network.py). It needs a process with NUMBA_DISABLE_JIT=1, which `aristos explore` starts. It
refuses to run kernels: an expert is an integer hash here (experts.py), so that results are equal or wrong. Nothing of
the layer imports it.
"""

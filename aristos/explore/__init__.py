"""The schedule explorer: the engine's own steps, uncompiled, under a scheduler that decides which actor runs next.

Ranks, workers, progress threads and the network are actors of one process (scheduler.py). Every access to their memory
is checked (memory_model.py, network.py). The explorer needs a process with NUMBA_DISABLE_JIT=1, which `aristos explore`
starts. The explorer runs no kernels: an expert is an integer hash (experts.py), so results are exactly equal or wrong.
No module of the layer imports the explorer.
"""

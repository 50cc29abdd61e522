"""A network between the ranks of a node, emulated: a word that a rank sets becomes visible to its reader later.

`words` is the lowering of `memory.notify` and `memory.arrived` that delays words, `steps` the engine's steps compiled
with that lowering, `network` the emulated network of a runtime. Ordinary steps have no part of it.
"""

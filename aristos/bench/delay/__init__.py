"""A network between the ranks of a node, emulated: words that a rank notifies are due later at their reader.

`words` is the lowering of `memory.notify` and `memory.arrived` that does it, `steps` the engine's steps compiled with
that lowering, `network` the emulated network of a runtime. Ordinary steps know nothing of it.
"""

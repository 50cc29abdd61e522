"""Emulates a network between the ranks of a node: after a rank sets a word, its readers see it only after a delay.

`words` is the lowering of `memory.notify` and `memory.arrived` that delays words. `steps` has the engine's steps
compiled with that lowering, and `network` the emulated network of a runtime. Ordinary steps contain no code of this
package.
"""

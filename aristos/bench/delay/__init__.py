"""An emulated network between the ranks of a node: its readers see a word later than a rank sets it.

`words` is the lowering of `memory.notify` and `memory.arrived` that delays words. `steps` has the engine's steps
compiled with that lowering, and `network` the emulated network of a runtime. Ordinary steps contain no code of this
package.
"""

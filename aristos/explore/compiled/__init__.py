"""Races in compiled code: a real job records its accesses, and the explorer's vector clocks find unordered ones.

`copies` makes copies of the engine's steps, compiled so that each access to shared memory is recorded. `recorded` has
the primitives that record, `log` the log that all ranks share, `planted` deliberate bugs that can be switched on. `run`
makes the calls, and `checker` then reads the log. Ordinary steps contain no code of this package.
"""

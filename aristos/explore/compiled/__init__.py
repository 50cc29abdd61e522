"""Races in compiled code: a real job records its accesses, and the explorer's vector clocks look for unordered ones.

`copies` makes the engine's steps again, compiled so that each access of shared memory is recorded; `recorded` has the
primitives that do it, `log` the log that all ranks share, `planted` deliberate bugs that can be switched on. After a
call `checker` reads the log. `run` makes the calls. Ordinary steps know nothing of it.
"""

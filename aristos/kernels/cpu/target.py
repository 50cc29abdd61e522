"""The instruction set that this package's modules are made for: in its name, or else the process's. See `by_isa`."""

from ...primitives import isa

ISA = (__package__ or "").partition(".cpu_")[2] or isa.chosen()

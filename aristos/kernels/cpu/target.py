"""The instruction set and the format for which this package's modules are made.

The package's name states them (see `by_isa`). If it does not, the ISA is the process's. FORMAT: the format of packed
weights, a name in `weight_types.FORMATS`; "" if weights are elements.
"""

from ...primitives import isa

_isa, _, FORMAT = (__package__ or "").partition(".cpu_")[2].partition("_")
ISA = _isa or isa.chosen()

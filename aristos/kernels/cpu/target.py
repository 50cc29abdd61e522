"""The instruction set and format for which this package's modules are made, by its name; else the process's set.

See `by_isa`. FORMAT: the format of packed weights, a name in `weight_types.FORMATS`; "" if weights are elements.
"""

from ...primitives import isa

_isa, _, FORMAT = (__package__ or "").partition(".cpu_")[2].partition("_")
ISA = _isa or isa.chosen()

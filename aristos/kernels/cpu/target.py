"""What this package's modules are made for, in its name, or else the process's instruction set. See `by_isa`.

FORMAT: the format of packed weights, a name of `weight_types.FORMATS`; "": weights are elements.
"""

from ...primitives import isa

_isa, _, FORMAT = (__package__ or "").partition(".cpu_")[2].partition("_")
ISA = _isa or isa.chosen()

"""Which devices form which expert-parallel groups, and who holds which experts: Equations 1 and 2 of the poster.

`solve(problem)` gives a `Plan`: the groups, every term, a lower bound that no partition beats, and the placement. It
refuses to measure anything and to start ranks: problems come from a file, from `models.build`, or from a `Problem`.
"""

from .cost import ALLREDUCES, Cost, evaluate
from .plan import Plan
from .problem import OBJECTIVES, Device, Infeasible, Problem, ProblemError, load, parse
from .solver import solve

__all__ = [
    "ALLREDUCES",
    "OBJECTIVES",
    "Cost",
    "Device",
    "Infeasible",
    "Plan",
    "Problem",
    "ProblemError",
    "evaluate",
    "load",
    "parse",
    "solve",
]

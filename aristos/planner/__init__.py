"""Which devices form which expert-parallel groups, and which devices hold which experts: Equations 1 and 2.

`solve(problem)` returns a `Plan`: the groups, every term, a lower bound that no partition beats, and the placement. A
`Problem` is read from a file, made by `published.build`, or constructed by the caller. The planner measures nothing
and starts no ranks.
"""

from .cost import ALLREDUCES, Cost, evaluate
from .plan import Plan
from .problem import OBJECTIVES, Device, Infeasible, Problem, load, parse
from .solver import solve
from .values import ProblemError

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

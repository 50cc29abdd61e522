"""All deliberate bugs by name. Files among the repository's tests define them. Importing a file registers its bugs."""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location

from ..errors import EnvironmentProblem
from .mutation import REGISTERED, Mutation
from .running_step import BUGS


@cache
def load() -> dict[str, Mutation]:
    """All mutations by name. Raises EnvironmentProblem if this package is not part of a clone of the repository."""
    spec = spec_from_file_location("aristos_bugs", BUGS / "__init__.py", submodule_search_locations=[str(BUGS)])
    if spec is None or not BUGS.is_dir():
        raise EnvironmentProblem(
            f"the deliberate bugs are part of the repository, and {BUGS} is no folder: "
            "run --mutation in a clone of the repository, installed by `pip install -e .`"
        )
    sys.modules[spec.name] = module_from_spec(spec)
    for file in sorted(BUGS.glob("mutations*.py")):
        import_module(f"{spec.name}.{file.stem}")
    return REGISTERED

"""Makes a copy of a package from the same files, in which chosen modules are replaced by others.

Compiled code binds names when it is compiled. So code that shall use other primitives needs modules of its own. In a
copy some subpackages are imported from their files a second time, and all other modules are those of the package. The
names of cache folders contain the copy's name (`compile.module_folder`), and its keys cover the files that define the
replacements.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

_made: dict[str, frozenset[Path]] = {}


def make(
    name: str, package: str, again: Iterable[str], replaced: Mapping[str, ModuleType], read: frozenset[Path]
) -> None:
    """Make the copy `name` of a package, unless it exists. Its modules are then imported as those of the package are.

    again: subpackages that the copy imports from their files a second time. All other modules that these need must have
    been imported before. replaced: modules of the copy by their names in the package. read: the files that define them.
    """
    if name in _made:
        return
    inner = {f"{package}.{part}" for part in again}
    copy = ModuleType(name)
    copy.__path__ = import_module(package).__path__
    sys.modules[name] = copy
    for known, module in list(sys.modules.items()):
        if known.startswith(f"{package}.") and not any(known == part or known.startswith(f"{part}.") for part in inner):
            sys.modules[name + known.removeprefix(package)] = module
    for part in sorted(inner):
        made = ModuleType(name + part.removeprefix(package))
        made.__path__ = import_module(part).__path__
        sys.modules[made.__name__] = made
    for known, module in replaced.items():
        sys.modules[f"{name}.{known}"] = module
        above, _, last = f"{name}.{known}".rpartition(".")
        setattr(sys.modules[above], last, module)
    _made[name] = read


def changed(module: ModuleType, name: str, functions: Mapping[str, Any]) -> ModuleType:
    """A module like `module`, for the copy `name` of its package, with some functions replaced."""
    made = ModuleType(".".join([name, *module.__name__.split(".")[1:]]))
    vars(made).update({key: value for key, value in vars(module).items() if not key.startswith("__")})
    vars(made).update(functions)
    return made


def read_by(module: str) -> frozenset[Path]:
    """The files that define what is replaced in the copy that a module belongs to; none for an ordinary module."""
    return _made.get(module.partition(".")[0], frozenset())

"""Lets this process compute the keys of the kernel cache again, as a new process would."""

from __future__ import annotations

from kernel_cache import compile as compiling
from kernel_cache import import_lists, sources


def forget() -> None:
    """Forget the sources that this process has read, and their keys."""
    keys = (compiling.source_key, compiling.code_key, compiling._read)
    read = (sources.files, sources.imported, sources.importers, sources.lowered, sources.digest)
    for function in (*keys, *read, import_lists.load):
        function.cache_clear()
    sources.statements.clear()

"""Keys of the kernel cache as a new process would compute them."""

from __future__ import annotations

from kernel_cache import compile as compiling
from kernel_cache import sources


def forget() -> None:
    """Forget what this process has read of sources."""
    keys = (compiling.source_key, compiling.code_key, compiling._read)
    for function in (*keys, sources.files, sources.imported, sources.importers, sources.digest):
        function.cache_clear()

"""Change a file's texts so that Matplotlib can draw them, and check that a table is small enough to be drawn.

Matplotlib reads a text between two "$" as a formula, fails at half a surrogate, and takes minutes to lay out a long
text.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from kernel_cache.texts import shown

from ...errors import ResultsError
from ...results import Run, Table
from ...results.tables import Variable
from ..samples import SAMPLES

MOST = 200  # the most characters of a text
PANELS = ("case", "pattern", "tokens", "way", "what")  # dimensions with a panel for each point
MOST_PANELS, MOST_POINTS = 64, 4096
UNLABELLED = (*SAMPLES, "save", "segment")  # dimensions without marks or labels


def label(text: str) -> str:
    """The text cut to MOST characters. Characters that cannot be shown are escaped, and a "$" starts no formula."""
    cut = text if len(text) <= MOST else f"{text[: MOST - 3]}..."
    return shown(cut).replace("$", r"\$")


def drawable(run: Run, file: str) -> Run:
    """The run with texts that can be drawn. Raises ResultsError if a table has more points than a picture shows."""
    tables = [_table(table, file) for table in run.tables]
    return Run(label(run.name), _texts(run.attributes), tables)


def _table(table: Table, file: str) -> Table:
    for name, points in table.dims.items():
        most = MOST_PANELS if name in PANELS else MOST_POINTS
        if len(points.values) > most and name not in UNLABELLED:
            raise ResultsError(
                f"{file}: no picture of the table {label(table.name)!r}: {label(name)} has {len(points.values)} points,"
                f" a picture shows at most {most}"
            )
    dims, variables = ({name: _variable(v) for name, v in part.items()} for part in (table.dims, table.variables))
    return replace(table, dims=dims, variables=variables, attributes=_texts(table.attributes))


def _variable(found: Variable) -> Variable:
    if found.values.dtype.kind != "U":
        return found
    texts = [label(text) for text in found.values.flat]
    return replace(found, values=np.array(texts, dtype=np.str_).reshape(found.values.shape))


def _texts(attributes: dict[str, Any]) -> dict[str, Any]:
    return {key: _text(value) for key, value in attributes.items()}


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(each) for each in value] if len(value) <= MOST else label(str(value[:MOST]))
    return label(value) if isinstance(value, str) else value

"""The site of these pages, for Sphinx: `make docs` writes it to build/site/, and fails at any warning.

The pages read well as files of the repository too. Two things differ on the site: a link to a file outside this folder
becomes a download, and the Python API comes from the docstrings by autodoc, so that other projects can link to it.
"""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import api  # noqa: E402

import aristos  # noqa: E402

project, author, version = "Aristos", "The Aristos developers", aristos.__version__
release, copyright = version, "the Aristos developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx", "numpydoc"]
root_doc, exclude_patterns = "index", ["_build"]
html_theme, html_title = "furo", f"Aristos {version}"
html_theme_options = {"navigation_with_keys": True}
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "dollarmath"]
default_role = "code"  # docstrings mark code by single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
numpydoc_show_class_members = False
warnings.filterwarnings("ignore", "Unknown section Source")  # `_name_sources` renames this section
UPWARDS = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+)\)")  # [text](../path)


def _reference() -> str:
    """The page of the Python API, by autodoc, in the order of `api.PARTS`."""
    lines = [api.HEAD.replace("Made by `python docs/api.py` from the docstrings; change those. ", "")]
    for title, names in api.PARTS.items():
        lines += [f"\n## {title}\n", "```{eval-rst}"]
        for name in names:
            lines += _described(name)
        lines.append("```")
    return "\n".join([*lines, "", api.events()])


def _described(name: str) -> list[str]:
    found = api.find(name)
    kind = api.kind_of(found)
    if kind == "module":
        return [
            f".. automodule:: {name}",
            "",
            *(line for each in api.public(found) for line in _described(f"{name}.{each}")),
        ]
    options = ["   :members:", "   :special-members: __call__"] if kind == "class" else []
    return [f".. auto{kind}:: {name}", *options, ""]


def _change(app: Any, page: str, source: list[str]) -> None:
    """Change the source of a page where the site differs (see the module's docstring)."""
    text = _reference() if page == "api" else source[0]
    folder = (HERE / page).parent
    source[0] = UPWARDS.sub(lambda link: _download(link, folder), text)


def _download(link: re.Match[str], folder: Path) -> str:
    """What replaces a link out of the pages: a download of the file, which the site then holds, or a folder's path."""
    path = (folder / link[2]).resolve()
    if path.is_relative_to(HERE):
        return link[0]
    words = link[1].strip("`")
    return f"{{download}}`{words} <{link[2]}>`" if path.is_file() else f"`{path.relative_to(HERE.parent)}`"


def _name_sources(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Rename the section Source to References, the name that numpydoc knows."""
    for i in range(len(lines) - 1):
        if lines[i] == "Source" and lines[i + 1].startswith("---"):
            lines[i : i + 2] = ["References", "----------"]


def setup(app: Any) -> None:
    """Register the functions of this file; Sphinx calls this."""
    app.connect("source-read", _change)
    app.connect("autodoc-process-docstring", _name_sources, priority=100)  # before numpydoc

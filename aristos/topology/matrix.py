"""`nvidia-smi topo -m`: the matrix of link classes, with the driver's tabs or with spaces in their place.

The rows' labels must equal the columns' labels, and each row must have one cell for each column with X on the diagonal.
Any other text is an error that quotes the line, so that a matrix is never read in part. Other text may be before and
after the matrix.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kernel_cache.texts import whole

from ..errors import TopologyError
from . import cpusets
from .model import Printed

LINK = re.compile(r"X|PIX|PXB|PHB|NODE|SYS|SOC|NV[1-9][0-9]?")
P2P = ("OK", "CNS", "GNS", "TNS", "NS", "DR", "U")  # cells of topo -p2p
NONE = "N/A"
_NUMBERS = re.compile(r"[0-9]{1,18}(?:-[0-9]{1,18})?(?:,[0-9]{1,18}(?:-[0-9]{1,18})?)*")
_HEADING = re.compile(r"(GPU0(?:\s+[\w.-]{1,64})*?)(\s+CPU Affinity)?(\s+NUMA Affinity)?(\s+GPU NUMA ID)?")
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\[[0-9;]{0,5}m")  # a copied text may lack the escape character
_ERROR = re.compile(
    r"has failed|failed to|mismatch|no devices were found|unable to|not found|could ?n[o']t|insufficient|error", re.I
)
LEGEND = (
    ("NODE = Connection traversing PCIe as well as", "within a NUMA node"),
    ("SYS = Connection traversing PCIe as well as", "QPI/UPI)"),
)
# number of headings of affinities -> the places of their cells among the cells that tabs separate after the links
FIELDS = {0: (), 1: (0,), 2: (0, 1), 3: (0, 1, 3)}
LONGEST = 10_000  # the most characters of a line; 100 columns have 1000
MOST_HEADINGS = 16  # the most lines that name columns but have no rows below


@dataclass(frozen=True)
class Matrix:
    """A matrix. labels: names of the columns. cells: [row, column] as printed. gpus: label -> the other cells of a GPU.

    nics: label -> device name of each NIC.
    """

    labels: tuple[str, ...]
    cells: Mapping[tuple[str, str], str]
    gpus: Mapping[str, Printed]
    nics: Mapping[str, str]


def is_gpu(label: str) -> bool:
    return re.fullmatch(r"GPU[0-9]{1,6}", label) is not None


def clean(text: str) -> list[str]:
    """The text's lines, without the codes that set colours."""
    return _COLOUR.sub("", text).replace("\r\n", "\n").split("\n")


def parse(text: str) -> Matrix:
    """The first matrix in the text. Raises TopologyError if there is none, or if the matrix is incomplete."""
    lines = clean(text)
    start, labels, columns = _first(lines)
    rows = lines[start + 1 : start + 1 + len(labels)]
    after = list(itertools.takewhile(lambda line: not _is_heading(line.split()), lines[start + 1 + len(rows) :]))
    links = [_links(rows, at, labels) for at in range(len(labels))]
    _ended(after, labels[-1])
    cells = {(a, b): cell for a, row in zip(labels, links) for b, cell in zip(labels, row)}
    _uncut_links(labels, cells, rows)
    gpus = _affinities(labels, rows, columns)
    _uncut_lists(labels, rows, gpus)
    return Matrix(labels, cells, gpus, _legend(after, labels))


def _first(lines: list[str]) -> tuple[int, tuple[str, ...], int]:
    """(index of the first line that names columns and has rows below, the columns' labels, how many columns follow
    them)."""
    first_error: TopologyError | None = None
    headings = (at for at, line in enumerate(lines) if _is_heading(line.split()))
    for at in itertools.islice(headings, MOST_HEADINGS):
        below = lines[at + 1].split() if at + 1 < len(lines) else []
        if any(word in P2P for word in below[1:]):  # this is another matrix; the right one may follow
            error = f"this is `nvidia-smi topo -p2p`, give the output of `nvidia-smi topo -m`: {_shown(lines[at + 1])}"
        elif not _is_row(below):
            after = next((text for text in lines[at + 1 :] if text.strip()), "the end of the text")
            error = f"expected a row below the columns {_shown(lines[at])}, got {_shown(after)}"
        else:
            return at, *_columns(lines[at])
        first_error = first_error or TopologyError(error)
    raise first_error or _nothing(lines)


def _columns(line: str) -> tuple[tuple[str, ...], int]:
    """The labels that a heading names, and how many columns of affinities follow."""
    found = _HEADING.fullmatch(line.strip()) if len(line) <= LONGEST else None
    tail = [part is not None for part in found.groups()[1:]] if found else []
    if found is None or tail != sorted(tail, reverse=True):
        raise TopologyError(f"expected columns GPU0 GPU1 ... CPU Affinity NUMA Affinity GPU NUMA ID: {_shown(line)}")
    labels = tuple(found[1].split())
    for kind in ("GPU", "NIC"):
        numbers = [whole(label[3:]) for label in labels if re.fullmatch(kind + r"[0-9]+", label)]
        if numbers != list(range(len(numbers))):
            raise TopologyError(f"{kind}s must be numbered from 0 without gaps, got {_shown(line)}")
    if len(set(labels)) < len(labels):
        raise TopologyError(f"no two columns may have the same name, but one name appears twice in {_shown(line)}")
    return labels, sum(tail)


def _nothing(lines: list[str]) -> TopologyError:
    row = next((line for line in lines if _is_row(line.split())), None)
    if row is not None:
        return TopologyError(f"the line that names the columns (GPU0 GPU1 ...) is missing above {_shown(row)}")
    return complaint("nvidia-smi topo -m", "\n".join(lines))


def complaint(command: str, text: str) -> TopologyError:
    """The error for text that is not the command's output. It quotes the line that looks like an error message."""
    found = [line.strip() for line in clean(text) if line.strip()]
    if not found:
        return TopologyError(f"expected the output of `{command}`, got nothing: did the command run?")
    line = next((line for line in found if _ERROR.search(line)), found[0])
    return TopologyError(f"this is not the output of `{command}`: {line[:200]!r}")


def _is_heading(words: list[str]) -> bool:
    return bool(words) and words[0] == "GPU0" and not _is_row(words)


def _is_row(words: list[str]) -> bool:
    """Whether these words are a GPU's label and a cell."""
    return len(words) > 1 and is_gpu(words[0]) and (LINK.fullmatch(words[1]) is not None or words[1] in P2P)


def _shown(line: str) -> str:
    """A line as messages show it."""
    return repr(" ".join(line.split())[:300])


def _links(rows: Sequence[str], at: int, labels: Sequence[str]) -> list[str]:
    """The cells of row `at`, one for each column, with X in the row's own column."""
    words = rows[at].split() if at < len(rows) else []
    if not words or words[0] != labels[at]:
        stopped = _shown(rows[at]) if words else "'the end of the text'"
        before = f"after the row of {labels[at - 1]} comes" if at else "the first row is"
        raise TopologyError(f"the columns {' '.join(labels)[:300]!r} need a row each, in order; {before} {stopped}")
    links = words[1 : len(labels) + 1]
    strange = next((word for word in words[1:] if not (LINK.fullmatch(word) or _is_rest(word))), None)
    if strange is not None:
        known = "X, NV#, PIX, PXB, PHB, NODE, SYS, SOC"
        raise TopologyError(f"{strange[:80]!r} is not a link class ({known}) nor a CPU list: {_shown(rows[at])}")
    own = [i for i, word in enumerate(words[1:]) if word == "X"]
    if len(links) < len(labels) or own != [at] or not all(map(LINK.fullmatch, links)):
        raise TopologyError(
            f"expected {len(labels)} cells with one X, in {labels[at]}'s own column, then CPUs and NUMA: "
            f"got {_shown(rows[at])}"
        )
    return links


def _is_rest(word: str) -> bool:
    """Whether a word is N/A or an ascending list of CPUs, as the driver prints it.

    A list that does not ascend has lost or gained digits.
    """
    if word == NONE:
        return True
    if not _NUMBERS.fullmatch(word):
        return False
    ends = [int(number) for number in re.findall(r"[0-9]+", word)]
    try:
        return ends == sorted(ends) and bool(cpusets.parse(word))
    except ValueError:
        return False


def _affinities(labels: Sequence[str], rows: Sequence[str], columns: int) -> dict[str, Printed]:
    """GPU -> its affinities. columns: how many headings there are for affinities, 0 to 3."""
    found: dict[str, Printed] = {}
    whole_rows: dict[str, bool] = {}
    for label, row in zip(labels, rows):
        rest = _rest(row, len(labels), columns)
        if is_gpu(label):
            found[label] = _affinity(rest, row)
            whole_rows[row] = any(rest) or row.count("\t") >= len(labels) + columns
        elif any(cell not in ("", NONE) for cell in rest):
            raise TopologyError(f"expected no cells after the links of {label}: {_shown(row)}")
    if columns < 3 and len(set(whole_rows.values())) > 1:  # a third column would contain at least N/A
        cut = next(row for row, is_whole in whole_rows.items() if not is_whole)
        raise TopologyError(
            f"this row was cut: other rows have cells after the links, but this row has none: {_shown(cut)}"
        )
    return found


def _rest(row: str, links: int, columns: int) -> list[str]:
    """The cells after the links, "" for an empty cell. The tabs say which cell is empty."""
    words = row.split()[1 + links :]
    if len(words) == columns:
        return words
    fields = [cell.strip() for cell in row.strip(" ").split("\t")][1 + links :]
    cells = [fields[at] for at in FIELDS[columns] if at < len(fields)] if words else [""] * columns
    if "\t" not in row.strip() and words == [NONE]:
        cells = ["", "", NONE][-columns:]  # WSL shows only the last cell, without tabs
    if len(cells) != columns or [cell for cell in cells if cell] != words:
        raise TopologyError(f"expected {columns} cells after the links, got {len(words)}: {_shown(row)}")
    return cells


def _affinity(rest: list[str], row: str) -> Printed:
    found = Printed(*(None if cell in ("", NONE) else cell for cell in rest))
    if len(rest) == 3 and not rest[2]:
        raise TopologyError(f"the row was cut: it must end with a GPU NUMA ID, a number or N/A: {_shown(row)}")
    if found.gpu_numa is not None and whole(found.gpu_numa) is None:
        raise TopologyError(f"GPU NUMA ID must be a number or N/A, got {found.gpu_numa!r} in {_shown(row)}")
    return found


def _uncut_links(labels: Sequence[str], cells: Mapping[tuple[str, str], str], rows: Sequence[str]) -> None:
    """Raise if a line was cut, for example if it ends with NV1 while the other direction is NV18."""
    for label, row in zip(labels, rows):
        here, there = cells[label, labels[-1]], cells[labels[-1], label]
        if here != there and there.startswith(here) and row.rstrip().endswith(here):
            raise TopologyError(
                f"{_shown(row)} was cut: it ends with {here}, but {labels[-1]}'s row has {there} for this pair"
            )


def _uncut_lists(labels: Sequence[str], rows: Sequence[str], gpus: Mapping[str, Printed]) -> None:
    """Raise if a line was cut. Its list of CPUs is then the start of another row's list, and overlaps with that
    list."""
    lists = {label: each.cpus for label, each in gpus.items() if each.cpus is not None}
    for (label, cpus), other in itertools.product(lists.items(), lists.values()):
        if other != cpus and other.startswith(cpus) and cpusets.parse(other) & cpusets.parse(cpus):
            row = _shown(rows[labels.index(label)])
            raise TopologyError(f"this row was cut: its CPUs are {cpus}, but another row has {other}: {row}")


def _ended(lines: list[str], last: str) -> None:
    """Raise if the text was cropped, so that it has rows without columns, or a legend without its end."""
    after = next((line for line in lines if line.strip()), "")
    words = after.split()
    if len(words) > 1 and re.fullmatch(r"[A-Za-z]\w*", words[0]) and LINK.fullmatch(words[1]):
        raise TopologyError(f"{last} is the last column, but another row follows: {_shown(after)}")
    joined = " ".join(" ".join(lines).split())
    for begins, ends in LEGEND:
        if begins in joined and ends not in joined:
            cut = next((line for line in lines if begins[:4] in line), after)
            raise TopologyError(f"the text was cut, because its legend is incomplete: {_shown(cut)}")


def _legend(lines: list[str], labels: tuple[str, ...]) -> dict[str, str]:
    """NIC label -> device, from the legend. Without a legend, the label stands for the device."""
    nics = [label for label in labels if not is_gpu(label)]
    numbered = [label for label in nics if re.fullmatch(r"NIC[0-9]+", label)]
    named: dict[str, str] = {}
    for line in lines:
        for label, device in re.findall(r"\b(NIC[0-9]+)\s*:\s*([\w.-]+)", line):
            named.setdefault(label, device)
    missing = [label for label in numbered if label not in named]
    extra = [label for label in named if label not in nics]
    if extra:
        raise TopologyError(f"the legend names {extra[0]}, which has no column: {extra[0]}: {named[extra[0]]}")
    if missing and (named or any("Legend" in line for line in lines)):
        last = next(line for line in reversed(lines) if line.strip()).strip()
        raise TopologyError(f"no line of the legend names {missing[0]}; the text ends with {last[:200]!r}")
    _whole_names({label: named[label] for label in numbered if label in named})
    return {label: named.get(label, label) for label in nics}


def _whole_names(named: Mapping[str, str]) -> None:
    """Raise if names were cut: then a name appears twice, or is the start of another name, as mlx5_ is of mlx5_1."""
    shapes = {label: re.sub(r"\d+", "0", name) for label, name in named.items()}
    for label, name in named.items():
        twice = [other for other in named if other != label and named[other] == name]
        longer = [
            other for other, shape in shapes.items() if shape != shapes[label] and shape.startswith(shapes[label])
        ]
        if twice or (longer and label == list(named)[-1]):
            raise TopologyError(
                f"the legend is cut at '{label}: {name}', as its line"
                f" '{(twice or longer)[0]}: {named[(twice or longer)[0]]}' shows"
            )

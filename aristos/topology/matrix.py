"""`nvidia-smi topo -m`: the matrix of link classes, even if a terminal, a browser or a copy changed its white space.

Cells are recognised by their few possible words, not by white space. The rows' labels must equal the columns', and each
row must have one cell for each column with X on the diagonal. Any other text is an error that quotes the line: a matrix
is never read in part.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from kernel_cache.texts import whole

from ..errors import TopologyError
from . import cpusets
from .layout import Row, affinities

WORDS = ("X", "PIX", "PXB", "PHB", "NODE", "SYS", "SOC")
P2P = ("OK", "CNS", "GNS", "TNS", "NS", "DR", "U")  # cells of topo -p2p
TAILS = ("", "CPUAffinity", "CPUAffinityNUMAAffinity", "CPUAffinityNUMAAffinityGPUNUMAID")
_COLOUR = re.compile(
    r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_]"
    # copying may lose the escape character, or replace it
    r"|(?:\^\[|\\(?:x1b|033|u001b|e)|[\u241b\u2190\ufffd])?\[(?:[0-9]{1,2}(?:;[0-9]{1,2})*)?m"
)
_TAGS = "p|pre|code|span|summary|details|div|table|tbody|thead|td|th|tr"  # and not <inactive>, which nvidia-smi prints
_QUOTES = '`"\u201c\u201d\u201e\u00ab\u00bb\u2018\u2019'
_FRAME = re.compile(
    rf"^(?:[ ]*(?://|[#>*+{_QUOTES}])[ ]?)+|(?<![{_QUOTES}])[{_QUOTES}]+[ ]*$"  # marks of quotes and comments
    rf"|^(?=.*---)[-:= ]+$|</?(?:{_TAGS})\b[^<>]*>",  # the rule under a table's heading; tags
    re.MULTILINE,
)
_BREAK = re.compile(r"\r\n|[\r\v\f\x85\u2028\u2029]|<br\b[^<>]*>|</tr>", re.IGNORECASE)
_NEXT_CELL = re.compile(r"</t[dh]>(?=\s*<t[dh]\b)", re.IGNORECASE)
_UNSEEN = re.compile("[\0\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")  # characters without a width
_TYPED = str.maketrans({"\u00a0": " ", **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"),
                        **dict.fromkeys("|\u2502\u2503\u2551", " ")})  # fmt: skip
_ATOM = re.compile(r"NV(?=[0-9])|PIX|PXB|PHB|NODE|SYS|SOC|X|N/A")
_NUMBERS = re.compile(r"[0-9]+(?:-[0-9]+)?(?:,[0-9]+(?:-[0-9]+)?)*")
_ERROR = re.compile(
    r"has failed|failed to|mismatch|no devices were found|unable to|not found|could ?n[o']t|insufficient|error", re.I
)
LONGEST = 1000  # characters of a word; 80 cells that stick together have 400
LEGEND = (
    ("NODE=ConnectiontraversingPCIeaswellas", "withinaNUMAnode"),
    ("SYS=ConnectiontraversingPCIeaswellas", "QPI/UPI)"),
)
MOST_READINGS = 64  # readings of a word, or of a row, whose cells stick together
MOST_HEADINGS = 16  # lines that name columns but have no rows below
LONGEST_HEADING = 4000  # characters; 100 columns have 700
LONGEST_LABEL = 64


@dataclass(frozen=True)
class Matrix:
    """labels: of the columns; cells: [row, column] as printed; nics: label -> device name of each NIC.

    cpus, numa, gpu_numa: of each GPU, as printed; None for N/A and for an empty cell.
    """

    labels: tuple[str, ...]
    cells: Mapping[tuple[str, str], str]
    cpus: Mapping[str, str | None] = field(default_factory=dict)
    numa: Mapping[str, str | None] = field(default_factory=dict)
    gpu_numa: Mapping[str, str | None] = field(default_factory=dict)
    nics: Mapping[str, str] = field(default_factory=dict)

    @property
    def gpus(self) -> tuple[str, ...]:
        return tuple(label for label in self.labels if is_gpu(label))


def is_gpu(label: str) -> bool:
    return re.fullmatch(r"GPU[0-9]{1,6}", label) is not None


def clean(text: str) -> list[str]:
    """Lines without colours, quote marks, HTML, table borders, and unusual spaces and dashes."""
    if "&" in text:
        import html  # a large module that few texts need

        text = html.unescape(text)
    text = _NEXT_CELL.sub("\t", _BREAK.sub("\n", _UNSEEN.sub("", text)))
    return _FRAME.sub("", _unlabelled(_COLOUR.sub("", text).translate(_TYPED))).split("\n")


def _unlabelled(text: str) -> str:
    """The text without the label that `srun -l` or `pdsh` puts before every line, like 0: or node17:."""
    label = re.match(r"\s*([\w.\[\],<>-]+:)[ \t]", text)
    if not label or not all(line.startswith(label[1]) for line in text.split("\n") if line.strip()):
        return text
    return re.sub(rf"^{re.escape(label[1])} ?", "", text, flags=re.MULTILINE)


def parse(text: str) -> Matrix:
    """The first matrix in the text. Raises TopologyError if there is none, or it is incomplete."""
    lines = clean(text)
    start, (heading, rows, end) = _first(lines)
    tail = _columns(heading, [row.label for row in rows], lines[start])
    after = list(itertools.takewhile(lambda line: not _is_heading(line.split()), lines[end:]))
    _ended(after, rows[-1])
    read = _resolve(rows)
    labels = tuple(row.label for row in rows)
    cells = {(a, b): cell for a, (links, _) in zip(labels, read) for b, cell in zip(labels, links)}
    _uncut(labels, cells, rows)
    found: dict[str, dict[str, str | None]] = {"cpus": {}, "numa": {}, "gpu_numa": {}}
    columns = TAILS.index(tail)
    found_in = affinities([(row, rest) for row, (_, rest) in zip(rows, read)], columns, is_gpu)
    for label, (cpus, numa, gpu_numa) in found_in.items():
        found["cpus"][label], found["numa"][label], found["gpu_numa"][label] = cpus, numa, gpu_numa
    return Matrix(labels, cells, nics=_legend(after, labels), **found)


def _first(lines: list[str]) -> tuple[int, tuple[str, list[Row], int]]:
    """The index of the first line that names columns and has rows below, and `_rows` of it."""
    first_error: TopologyError | None = None
    tried = 0
    for at, line in enumerate(lines):
        if _is_heading(line.split()):
            tried += 1
            if tried > MOST_HEADINGS:
                break
            found = _rows(lines, at)
            if found[1] and _is_p2p(found[1][0]):  # the right matrix may follow
                first_error = first_error or TopologyError(_complaint(found[1][0], len(found[1])))
                continue
            if found[1]:
                return at, found
            after = next((text.strip() for text in lines[at + 1 :] if text.strip()), "the end of the text")
            first_error = first_error or TopologyError(
                f"no row below the columns {line.strip()[:200]!r} but {after[:200]!r}"
            )
    raise first_error or _nothing(lines)


def _nothing(lines: list[str]) -> TopologyError:
    row = next((line for line in lines if _is_row(line.split())), None)
    if row is not None:
        return TopologyError(f"the line that names the columns (GPU0 GPU1 ...) is missing above {row.strip()[:200]!r}")
    return complaint("nvidia-smi topo -m", "\n".join(lines))


def complaint(command: str, text: str) -> TopologyError:
    """The error for text that is not the command's output; it quotes the line that looks like an error message."""
    found = [line.strip() for line in clean(text) if line.strip()]
    if not found:
        return TopologyError(f"expected the output of `{command}`, got nothing: did the command run?")
    line = next((line for line in found if _ERROR.search(line)), found[0])
    return TopologyError(f"this is not the output of `{command}`: {line[:200]!r}")


def looks_like(text: str) -> bool:
    """Whether some line may be part of a matrix."""
    return any(_is_heading(words) or _is_row(words) for words in map(str.split, clean(text)))


def _is_heading(words: list[str]) -> bool:
    return (
        bool(words) and words[0].startswith("GPU") and bool(re.match(r"GPU[0-9]+\w*$", words[0])) and not _is_row(words)
    )


def _is_row(words: list[str]) -> bool:
    """Whether these are a GPU's label and a cell."""
    if len(words) < 2 or not is_gpu(words[0]):
        return False
    return any(True for _ in _atoms(words[1])) or words[1] in P2P


def _is_p2p(row: Row) -> bool:
    return any(word in P2P for word in row.texts()[0].split())


def _rows(lines: list[str], start: int) -> tuple[str, list[Row], int]:
    """(the heading without white space, the rows, index of the line after them). A wrapped line belongs to its row.

    No rows if none follows the heading. Raises TopologyError if a column has no row.
    """
    heading, at = "".join(lines[start].split()), start + 1
    while at < len(lines) and _label(lines[at], heading) is None:  # a heading may be wrapped, too
        if re.search(r"[^\w\s]", lines[at]):
            return heading, [], at
        heading += "".join(lines[at].split())
        if len(heading) > LONGEST_HEADING:
            return heading, [], at
        at += 1
    rest, rows = heading, list[Row]()
    while at < len(lines):
        label = _label(lines[at], rest) if rest not in TAILS else None
        if label is not None:
            rest = rest.removeprefix(label)
            rows.append(Row(label, [lines[at]]))
        elif rows and _continues(lines[at]):
            rows[-1].lines.append(lines[at])
        elif lines[at].strip() or rest in TAILS:
            break
        at += 1
    if rows and rest not in TAILS:
        stopped = next((line for line in lines[at:] if line.strip()), "the end of the text").strip()[:200]
        columns = lines[start].strip()[:200]
        raise TopologyError(
            f"the columns {columns!r} need a row each, in order; after {rows[-1].label}'s comes {stopped!r}"
        )
    width = max((len(line.rstrip().expandtabs()) for row in rows for line in row.lines[:-1]), default=0)
    for row in rows:
        row.width = width
    return heading, rows, at


def _label(line: str, rest: str) -> str | None:
    """The label at the start of this line if it is the next column's; the first cell may stick to it."""
    words = line.split()
    if not words:
        return None
    first = words[0]
    numbered = re.match(r"(?:GPU|NIC)[0-9]+", rest)
    if len(words) > 1 and rest.startswith(first) and (not numbered or re.fullmatch(r"(?:GPU|NIC)[0-9]+", first)):
        return first
    for cut in range(min(len(first) - 1, LONGEST_LABEL), max(2, len(first) - LONGEST - 1), -1):
        whole = not numbered or first[:cut] == numbered[0]
        if whole and rest.startswith(first[:cut]) and any(_is_link(cells[0]) for cells in _atoms(first[cut:])):
            return first[:cut]
    return None


def _continues(line: str) -> bool:
    """Whether the line has only cells, or pieces of cells."""
    return bool(line.strip()) and all(
        re.fullmatch(r"[A-Z/0-9,-]+", word) and not re.match(r"(GPU|NIC)\d", word) for word in line.split()
    )


def _columns(heading: str, labels: list[str], line: str) -> str:
    """The headings after the labels. Raises TopologyError unless the columns are the rows' labels."""
    tail = heading.removeprefix("".join(labels))
    if "".join(labels) + tail != heading or tail not in TAILS:
        raise TopologyError(f"the rows are {' '.join(labels)}, but the columns {line.strip()[:300]!r}")
    for kind in ("GPU", "NIC"):
        numbers = [whole(label[3:]) for label in labels if re.fullmatch(kind + r"[0-9]+", label)]
        if numbers != list(range(len(numbers))):
            raise TopologyError(f"{kind}s must be numbered from 0 without gaps, got {line.strip()[:300]!r}")
    if len(set(labels)) < len(labels):
        raise TopologyError(f"a column's name appears twice in {line.strip()[:300]!r}")
    return tail


def _atoms(word: str) -> Iterator[tuple[str, ...]]:
    """Readings of a word as cells that stick together: PXBNODE, NV120-31 (NV12 and 0-31, or NV1 and 20-31)."""
    if len(word) > LONGEST:
        return
    steps: dict[int, list[tuple[str, int]]] = {}  # place in the word -> cells that may begin there, and their ends
    left = [0]
    while left:
        at = left.pop()
        if at < len(word) and at not in steps:
            steps[at] = _next(word, at)
            left += [end for _, end in steps[at]]
    whole = {len(word)}  # places from which the rest can be read
    for at in sorted(steps, reverse=True):
        steps[at] = [(cell, end) for cell, end in steps[at] if end in whole]
        if steps[at]:
            whole.add(at)
    ways: list[tuple[int, tuple[str, ...]]] = [(0, ())] if 0 in whole else []
    while ways:
        at, cells = ways.pop()
        if at == len(word):
            yield cells
        else:
            ways += [(end, (*cells, cell)) for cell, end in reversed(steps[at])]


def _next(word: str, at: int) -> list[tuple[str, int]]:
    """The cells that may begin at a place of a word, and where they end."""
    number = _NUMBERS.match(word, at)
    if number:  # numbers are not split: there is no way to know where
        last = number.end() == len(word) or word.startswith("N/A", number.end())
        return [(number[0], number.end())] if last and _listed(number[0]) else []
    found = _ATOM.match(word, at)
    if found is None:
        return []
    if found[0] != "NV":
        return [(found[0], found.end())]
    return [
        (word[at : at + 2 + digits], at + 2 + digits)
        for digits in (2, 1)
        if re.fullmatch(r"[1-9][0-9]*", word[at + 2 : at + 2 + digits]) and at + 2 + digits <= len(word)
    ]


def _listed(numbers: str) -> bool:
    """Whether it is an ascending list of CPUs, as the driver prints it. Others have lost or gained a digit."""
    ends = [int(number) for number in re.findall(r"[0-9]+", numbers)]  # numbers of at most LONGEST digits
    try:
        return ends == sorted(ends) and bool(cpusets.parse(numbers))
    except ValueError:
        return False


Reading = tuple[tuple[str, ...], tuple[str, ...]]  # (link cells, what follows them)


def _readings(row: Row, at: int, columns: int) -> list[Reading]:
    """Readings of a row: `columns` link cells with X at `at`, then numbers and N/A."""
    found: dict[Reading, None] = {}
    for text in row.texts():
        ways = [list(itertools.islice(_atoms(word), MOST_READINGS)) for word in text.split()]
        for choice in itertools.islice(itertools.product(*ways), MOST_READINGS):
            cells = tuple(itertools.chain.from_iterable(choice))
            links = tuple(cell for cell in itertools.takewhile(_is_link, cells))
            rest = cells[len(links) :]
            diagonal = [i for i, cell in enumerate(links) if cell == "X"] == [at]
            if len(links) == columns and diagonal and not any(_is_link(cell) for cell in rest):
                found.setdefault((links, rest))
        if found:
            break
    return list(found)


def _is_link(cell: str) -> bool:
    return cell in WORDS or cell.startswith("NV")


def _resolve(rows: list[Row]) -> list[Reading]:
    """One reading for each row. Of several, the one that agrees with the rows that have only one."""
    readings = [_readings(row, at, len(rows)) for at, row in enumerate(rows)]
    for row, ways in zip(rows, readings):
        if not ways:
            raise TopologyError(_complaint(row, len(rows)))
    known = {at: ways[0][0] for at, ways in enumerate(readings) if len(ways) == 1}
    chosen = []
    for at, ways in enumerate(readings):
        if len(ways) > 1:
            ways = [way for way in ways if all(way[0][other] == links[at] for other, links in known.items())]
        if len(ways) != 1:
            raise TopologyError(f"cells stick together, and can be read in several ways: {rows[at].shown!r}")
        chosen.append(ways[0])
    return chosen


def _complaint(row: Row, columns: int) -> str:
    words = row.texts()[0].split()
    strange = [word for word in words if not any(True for _ in _atoms(word))]
    if any(word in P2P for word in strange):
        return f"this is `nvidia-smi topo -p2p`, give the output of `nvidia-smi topo -m`: {row.shown!r}"
    if strange:
        known = "X, NV#, PIX, PXB, PHB, NODE, SYS, SOC"
        return f"{strange[0][:80]!r} is not a link class ({known}) nor a CPU list: {row.shown!r}"
    return f"expected {columns} cells with one X, in {row.label}'s own column, then CPUs and NUMA: got {row.shown!r}"


def _uncut(labels: tuple[str, ...], cells: Mapping[tuple[str, str], str], rows: list[Row]) -> None:
    """Raise if a line ends with NV1 and the other direction is NV18: the line was cut."""
    for row in rows:
        last = (row.label, labels[-1])
        here, there = cells[last], cells[last[::-1]]
        if here != there and there.startswith(here) and row.shown.endswith(here):
            raise TopologyError(f"{row.shown!r} ends with {here} where {labels[-1]}'s row has {there}: the line is cut")


def _ended(lines: list[str], last: Row) -> None:
    """Raise if the text was cropped: rows without columns, or a legend without its end."""
    after = next((line for line in lines if line.strip()), "")
    words = after.split()
    if (
        len(words) > 1
        and re.fullmatch(r"[A-Za-z]\w*", words[0])
        and all(any(_is_link(cells[0]) for cells in _atoms(word)) for word in words[1:2])
    ):
        raise TopologyError(f"{last.label} is the last column, but another row follows: {after.strip()[:200]!r}")
    joined = "".join("".join(lines).split())
    for begins, ends in LEGEND:
        if begins in joined and ends not in joined:
            cut = next((line for line in lines if begins[:4] in "".join(line.split())), after).strip()
            raise TopologyError(f"the legend is cut, so the matrix is too: {cut[:200]!r}")


def _legend(lines: list[str], labels: tuple[str, ...]) -> dict[str, str]:
    """NIC label -> device, from the legend, or without one the label."""
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
    """Raise if a name appears twice or is the start of another one: mlx5_1 and mlx5_ were cut."""
    shapes = {label: re.sub(r"\d+", "0", name) for label, name in named.items()}
    for label, name in named.items():
        twice = [other for other in named if other != label and named[other] == name]
        longer = [
            other for other, shape in shapes.items() if shape != shapes[label] and shape.startswith(shapes[label])
        ]
        if twice or (longer and label == list(named)[-1]):
            raise TopologyError(
                f"the legend is cut at '{label}: {name}', {(twice or longer)[0]} is {named[(twice or longer)[0]]}"
            )

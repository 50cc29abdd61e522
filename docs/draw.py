"""Draw docs/rooms.svg and docs/call.svg from the imports of the package: `python docs/draw.py` (`--check` compares).

Needs only Python. tests/package/test_rooms.py compares the code with FLOORS, and the pictures with the code.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from functools import cache
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "aristos"

# Rooms from the top of the house to the bottom. A room imports from rooms below it only; rooms of one floor do not
# import each other. `loose` stands for the public, loose modules of the package.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("report",),
    ("bench",),
    ("launcher", "doctor", "integrations"),
    ("explore", "simulate", "checkpoint"),
    ("layer",),
    ("substrate",),
    ("engine", "transport"),
    ("kernels", "planner"),
    ("topology", "results"),
    ("host",),
    ("primitives",),
    ("loose",),
)
# The rooms that making, loading, calling and training a layer needs. They import no other room.
CORE = ("layer", "checkpoint", "substrate", "engine", "transport", "kernels", "host", "primitives", "loose")
HOLDS = {
    "cli": "commands",
    "report": "runs compared, pages",
    "bench": "microbenchmarks, plots",
    "launcher": "starts a job",
    "doctor": "checks machine and MPI",
    "explore": "schedules of the protocol",
    "simulate": "steps in virtual time",
    "layer": "MoE, Exchange, weights",
    "substrate": "runs the steps: CPU, CUDA",
    "engine": "the protocol's steps",
    "transport": "windows and puts",
    "kernels": "arithmetic: common, CPU, CUDA",
    "planner": "EP groups (Equation 1)",
    "topology": "devices, links, network",
    "results": "HDF5 files",
    "checkpoint": "model directories",
    "integrations": "torch, transformers",
    "host": "MPI library, launcher, nodes",
    "primitives": "memory, wire, buffers",
    "loose": "config, errors, placement, reference, models",
}

# One call of a layer, in order: (lane, what happens, file, function, what is put to the other lane). Lane 0 is the
# source of a token, lane 1 the owner of its expert. Every function named must exist.
CALL: tuple[tuple[int, str, str, str, str], ...] = (
    (0, "check arguments, fill the job", "layer/moe.py", "MoE.__call__", ""),
    (0, "route: k experts and weights for each token", "engine/routing.py", "execute", ""),
    (0, "pack: sort (token, choice) pairs by owner and expert", "engine/packing.py", "execute", ""),
    (0, "announce: rows for each expert, to every rank", "engine/packing.py", "announce", "announcement"),
    (1, "read announcements", "engine/arrivals.py", "read_announcement", ""),
    (0, "dispatch a tile: take credit, put its rows", "engine/dispatch.py", "execute", "rows"),
    (0, "put its record, then the tail", "engine/dispatch.py", "publish", "record, tail"),
    (1, "read records: rows are pending", "engine/arrivals.py", "read_record", ""),
    (1, "expert: GEMM, activation, GEMM on landed rows", "engine/experts.py", "execute", "output rows"),
    (1, "return: record, then tail", "engine/returns.py", "post_return", "record, tail"),
    (1, "free ring rows: credit", "engine/returns.py", "free_rows", "credit"),
    (0, "read return records", "engine/arrivals.py", "read_returns", ""),
    (0, "count rows that are back; queue finished blocks", "engine/returns.py", "count_back", ""),
    (0, "combine: weighted sum in order of choices", "engine/combine.py", "execute", ""),
    (0, "end: all combined, all read, all returned", "engine/steps.py", "finished", ""),
)


def modules() -> dict[str, Path]:
    """Dotted name -> file, for every module of the package."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = list(file.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def _texts(tree: ast.Module, module: str, package: str) -> dict[str, str]:
    """Names whose text an f-string of a module may hold: those that Python sets, and constants of the module."""
    found = {"__name__": module, "__package__": package}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            text = _pattern(node.value, found)
            if text is not None and "[" not in text:
                found[node.targets[0].id] = text.replace("\\", "")
    return found


def _pattern(node: ast.expr, texts: dict[str, str]) -> str | None:
    """A regular expression for the values that an expression of text may have; None if their beginning is not known."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value)
    if isinstance(node, ast.Name) and node.id in texts:
        return re.escape(texts[node.id])
    if not isinstance(node, ast.JoinedStr):
        return None
    parts = []
    for part in node.values:
        name = part.value.id if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name) else ""
        text = _pattern(part, texts) if isinstance(part, ast.Constant) else None
        parts.append(text or (re.escape(texts[name]) if name in texts else "[^.]+"))
    return None if parts[0].startswith("[") else "".join(parts)


def _by_name(node: ast.Call, texts: dict[str, str]) -> str | None:
    """A regular expression of the modules that a call of import_module may import; "" if it is another call."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name != "import_module":
        return ""
    found = _pattern(node.args[0], texts)
    if found is None or not found.startswith("\\."):
        return found
    rest = found
    while rest.startswith("\\."):
        rest = rest[2:]
    above = (len(found) - len(rest)) // 2 - 1  # "." is the package itself
    return re.escape(".".join(texts["__package__"].split(".")[: -above or None])) + "\\." + rest


def imports() -> dict[str, set[str]]:
    """Every module's imports from the package, also in functions, for type checkers and by import_module.

    The front door, `aristos/__init__.py`, counts as importing nothing: it loads names when they are first used.
    """
    return {module: set() if module == "aristos" else targets for module, targets in _read(PACKAGE)[0].items()}


def computed() -> set[str]:
    """The modules with a call of import_module whose argument no reader knows, because it is computed."""
    return _read(PACKAGE)[1]


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def _read(_package: Path) -> tuple[dict[str, set[str]], set[str]]:
    known = modules()
    graph: dict[str, set[str]] = {}
    unknown = set()
    for name, file in known.items():
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        tree = _tree(file)
        texts = _texts(tree, name, package)
        targets = graph.setdefault(name, set())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                base = _base(node, package)
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    targets |= {inner} & known.keys() or {base} & known.keys()
            elif isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names} & known.keys()
            elif isinstance(node, ast.Call):
                wanted = _by_name(node, texts)
                if wanted is None:
                    unknown.add(name)
                elif wanted:
                    targets |= {each for each in known if re.fullmatch(wanted, each)}
        targets.discard(name)
    return graph, unknown


def _base(node: ast.ImportFrom, package: str) -> str:
    """The module that `from ... import` names."""
    if not node.level:
        return node.module or ""
    above = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join(above + ([node.module] if node.module else []))


def outsiders(file: Path) -> set[str]:
    """Packages beside this one and the standard library that a module's file imports, in functions too."""
    found, texts = set(), _texts(_tree(file), "aristos", "aristos")
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Call):
            wanted = _by_name(node, texts)
            found |= {wanted.replace("\\", "").partition(".")[0]} if wanted else set()
    return found - sys.stdlib_module_names - {"aristos"}


def core() -> dict[str, Path]:
    """The modules of the rooms in CORE, and their files; without programs and the front door."""
    return {
        name: file
        for name, file in modules().items()
        if room(name) in CORE and name != "aristos" and not name.endswith("__main__")
    }


def room(module: str) -> str:
    """The room of a module; `loose` for the modules beside the rooms."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else "loose"


def arrows() -> dict[tuple[str, str], set[tuple[str, str]]]:
    """Imports between rooms: (importing room, imported room) -> pairs of modules, without those of `__main__` files."""
    found: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for module, targets in imports().items():
        if module.endswith("__main__"):  # programs
            continue
        for target in targets:
            pair = (room(module), room(target))
            if pair[0] != pair[1]:
                found.setdefault(pair, set()).add((module, target))
    return found


def _around(module: str) -> set[str]:
    """A module and the packages that it is in."""
    parts = module.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts) + 1)}


def circles() -> list[list[str]]:
    """Groups of modules that import each other, directly or through others (Tarjan's algorithm).

    An import of a module also runs the packages around it, except those that contain the importing module.
    """
    graph = imports()
    for name, targets in graph.items():
        around = {each for target in targets for each in _around(target) if not f"{name}.".startswith(f"{each}.")}
        graph[name] = around & graph.keys()
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for other in graph[name]:
            if other not in number:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], number[other])
        if lowest[name] == number[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for name in graph:
        if name not in number:
            visit(name)
    return found


def upward() -> list[str]:
    """A line for each import that goes up, or sideways, in the house."""
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    return sorted(
        f"{module} imports {target}: {pair[1]} is not below {pair[0]}"
        for pair, found in arrows().items()
        if floor[pair[0]] >= floor[pair[1]]
        for module, target in found
    )


def missing() -> list[str]:
    """Functions that CALL names and the package does not have."""
    found = []
    for _, _, file, name, _ in CALL:
        path = PACKAGE / file
        body: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
        for part in name.split("."):
            node = next((n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == part), None)
            if node is None:
                found.append(f"{file} has no {name}")
                break
            body = node.body
    return found


# ---- pictures: SVG by hand, so that the same code gives the same bytes

FONT = 'font-family="DejaVu Sans, Helvetica, Arial, sans-serif"'
INK, PALE, BLUE, WHITE = "#222222", "#e8edf3", "#2f6db5", "#ffffff"


def _text(
    x: float,
    y: float,
    text: str,
    size: int = 13,
    anchor: str = "start",
    weight: str = "normal",
    turn: int = 0,
    ink: str = INK,
) -> str:
    turned = f' transform="rotate({turn} {x:g} {y:g})"' if turn else ""
    return (
        f'<text x="{x:g}" y="{y:g}" {FONT} font-size="{size}" font-weight="{weight}" text-anchor="{anchor}"'
        f' fill="{ink}"{turned}>{escape(text)}</text>'
    )


def _svg(width: float, height: float, parts: list[str]) -> str:
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    return "\n".join([head, f'<rect width="{width:g}" height="{height:g}" fill="{WHITE}"/>', *parts, "</svg>", ""])


def rooms_picture() -> str:
    """The rooms by floor, and as a matrix which room imports from which."""
    pairs = arrows().keys()
    names = [name for floor in FLOORS for name in floor]
    floor = {name: level for level, inside in enumerate(FLOORS) for name in inside}
    left, top, step = 420, 150, 38
    parts = [_text(20, 34, "The rooms of aristos/, top of the house first", 18, weight="bold")]
    parts.append(_text(20, 56, "A dot: the room of the line imports from the room of the column."))
    parts.append(_text(20, 73, "Every dot lies right of the diagonal: imports go downwards only."))
    for i, name in enumerate(names):
        y = top + step * i
        if floor[name] % 2 == 0:
            parts.append(f'<rect x="10" y="{y}" width="{left + step * len(names)}" height="{step}" fill="{PALE}"/>')
        parts.append(_text(20, y + 24, f"({name})" if name == "loose" else f"{name}/", 14, weight="bold"))
        parts.append(_text(130, y + 24, HOLDS[name], 12))
        parts.append(_text(left + step * i + step / 2 + 4, top - 8, name, 12, turn=-60))
    for i, upper in enumerate(names):
        parts.append(
            f'<rect x="{left + step * i + 14}" y="{top + step * i + 14}" width="10" height="10" fill="{INK}"/>'
        )
        for j, lower in enumerate(names):
            if (upper, lower) in pairs:
                x, y = left + step * j + step / 2, top + step * i + step / 2
                parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="8" fill="{BLUE}"/>')
    return _svg(left + step * len(names) + 40, top + step * len(names) + 20, parts)


def call_picture() -> str:
    """One call of the layer: what a source and an owner do, in order, and what they put to each other."""
    wide, gap, top, step = 390, 250, 110, 62
    lanes = (20, 20 + wide + gap)
    right = lanes[1] + wide
    parts = [
        _text(
            20, 34, "One call of the layer, seen by a token's source and by the owner of its expert", 18, weight="bold"
        )
    ]
    parts.append(
        _text(
            20, 56, "Time goes down where an arrow says so; everything else overlaps. Every rank is both sides at once."
        )
    )
    for x, name in zip(lanes, ("source rank", "owner rank")):
        parts.append(_text(x + wide / 2, top - 14, name, 15, "middle", "bold"))
    for i, (lane, what, file, name, puts) in enumerate(CALL):
        x, y = lanes[lane], top + step * i
        parts.append(f'<rect x="{x}" y="{y}" width="{wide}" height="46" rx="6" fill="{PALE}" stroke="{BLUE}"/>')
        parts.append(_text(x + 10, y + 19, what, 13))
        parts.append(_text(x + 10, y + 37, f"{file}: {name}", 11, ink=BLUE))
        if puts:
            a, b = (lanes[0] + wide, lanes[1]) if lane == 0 else (lanes[1], lanes[0] + wide)
            tip = 9 if a > b else -9
            parts.append(
                f'<line x1="{a}" y1="{y + 23}" x2="{b + tip}" y2="{y + 23}" stroke="{INK}" stroke-width="1.5"/>'
            )
            parts.append(f'<path d="M{b} {y + 23} l{tip} -5 v10 z" fill="{INK}"/>')
            parts.append(_text((a + b) / 2, y + 17, f"put {puts}", 12, "middle"))
    return _svg(right + 20, top + step * len(CALL) + 10, parts)


PICTURES = {"rooms.svg": rooms_picture, "call.svg": call_picture}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a picture is out of date")
    given = parser.parse_args(argv)
    wrong = missing()
    for line in wrong:
        print(f"docs/draw.py: CALL is out of date: {line}", file=sys.stderr)
    for name, draw in PICTURES.items():
        path, text = ROOT / "docs" / name, draw()
        if given.check:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                wrong.append(name)
                print(f"docs/{name} is out of date: run python docs/draw.py", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(ROOT))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

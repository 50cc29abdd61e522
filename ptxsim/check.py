"""Run the kernels of a Python script, or of a file of CUDA C++ or PTX, with the checker.

A script launches its kernels itself. For CUDA C++ and PTX the launches are given as text (launch_text.py). NVRTC
compiles CUDA C++; it needs no driver, and compiles only kernels, no host code.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from kernel_cache import regular

from . import kernels, launch_arguments, launch_text, profile, suppress
from .architectures import mismatch
from .coverage import Coverage
from .errors import InputError
from .findings import LINES_OF_SOURCE, Report, lines, total
from .launch_text import EVERY, LaunchText, SymbolText
from .machine import Machine
from .nvrtc import compiled_kernels
from .program import Program
from .shorten import shorten
from .streams import Event, Stream
from .waiting import compile_machine

KINDS = (".py", ".cu", ".ptx")
BARE = f"names no lines of its source, so reports name lines of the PTX: {LINES_OF_SOURCE}"
NO_LAUNCH = (
    "no launch is given: write one in a comment of the file, '// simt: add<<<8, 128>>>(float32[1000]=seed:1, "
    "float32[1000], 1000)', or pass --launch"
)


def check(
    file: str,
    args: list[str],
    launches: list[str],
    seeds: int,
    github: bool,
    flags: tuple[str, ...] = (),
    **options: Any,
) -> int:
    """Run a file's kernels with `seeds` seeds and print the reports.

    Returns 1 if there are reports or a script fails, else 0. args: the arguments of a script, or for CUDA C++ and PTX
    further files. launches: launches as text, which replace those in the files' comments. github: whether to print
    reports as annotations of GitHub Actions. flags: `-I` and `-D` options for CUDA C++. options: those of `Machine`
    and three more. `suppress` names files of known reports. `shorten` says whether to print a short schedule of each
    file's first report. `save` names a folder for the named arrays as they are after the last schedule. Raises
    InputError if a file is missing, a launch is wrong or nothing ran, and EnvironmentProblem if NVRTC or numba-cuda is
    missing.
    """
    rules, shortens = suppress.read(options.pop("suppress", [])), options.pop("shorten", False)
    save = options.pop("save", None)
    files = [Path(file)] if file.endswith(".py") else [Path(name) for name in (file, *args)]
    for path in files:
        if str(path).startswith("-"):
            raise InputError(f"options come before the file: write {path} before {file}")
        if path.suffix not in KINDS or (path.suffix == ".py" and len(files) > 1):
            raise InputError(f"expected SCRIPT.py, or files of CUDA C++ (.cu) or PTX (.ptx), got {path}")
        if not path.exists():
            raise InputError(f"there is no file {path}")
    if launches and files[0].suffix == ".py":
        raise InputError("--launch is for CUDA C++ and PTX: a script launches its kernels itself")
    if save and (files[0].suffix == ".py" or len(files) > 1):
        raise InputError("--save is for one file of CUDA C++ or PTX: a script can save its arrays itself")
    if shortens and files[0].suffix == ".py":
        raise InputError("--shorten runs a file again and again: it is for CUDA C++ and PTX, not for scripts")
    compile_machine()
    failed, found = 0, list[Report]()
    first = options.pop("seed")
    covered, known, seen, stories = Coverage(), list[Report](), dict[int, int](), list[str]()
    for path in files:
        looks = shortens  # whether the next report's schedule is shortened
        for seed in range(first, first + seeds):
            machine = Machine(seed=seed, **options)
            if path.suffix == ".py":
                code, reports = script(path, args, machine)
                failed = failed or code
            else:
                reports = run(path, launches, machine, flags, save)
            covered.add(machine)
            if looks and any(suppress.matching(rules, report) is None for report in reports):
                looks = False
                make, again = partial(Machine, seed=seed, **options), partial(run, path, launches, flags=flags)
                story = shorten(make, again)
                if story is not None:
                    fault = replace(story.fault, file=shown(story.fault.file, path))
                    hidden = suppress.matching(rules, fault) is not None
                    said = "no short schedule: the first fault of this run is suppressed" if hidden else story.said()
                    stories.append(f"{path} [--seed {seed}] {said}")
            for report in [one for one in reports if not any(same(one, other) for other in [*found, *known])]:
                (known if suppress.matching(rules, report) else found).append(report)
                seen[id(report)] = seed
    form = annotation if github else str
    printed = lines(found, form if seeds == 1 else lambda report: f"{form(report)} [--seed {seen[id(report)]}]")
    bare = [f"{path} {BARE}" for path in files if path.suffix == ".ptx" and any(one.file == str(path) for one in found)]
    ends = [*suppress.said(rules, known), *bare, covered.said(first, seeds), total(len(printed))]
    print(*printed, *stories, *ends, sep="\n")
    return 1 if found or failed else 0


def same(one: Report, other: Report) -> bool:
    """Whether the reports of two runs name the same fault."""
    return (one.kind, one.file, one.line, one.other_line) == (other.kind, other.file, other.line, other.other_line)


def annotation(report: Report) -> str:
    """A report in the form that GitHub Actions shows beside the line of the file."""
    text = f"{report.who}: {report.message}{report.advice}"
    text = text.replace("%", "%25").replace("\n", "%0A")
    return f"::error file={report.file},line={report.line},title={report.kind}::{text}"


def script(path: Path, args: list[str], machine: Machine) -> tuple[int, list[Report]]:
    """Run a Python script. Returns (its exit code, the reports)."""
    kernels.numba_cuda()
    code, _ = profile.run_script(machine, path, args)
    if not code and not machine.done:
        raise InputError(profile.NOTHING)
    return code, machine.reports


# ---- CUDA C++ and PTX ----
def text_of(path: Path) -> str:
    """The source of a file. Raises InputError if it cannot be read."""
    try:
        return regular.read(path).decode("utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def run(
    path: Path, texts: list[str], machine: Machine, flags: tuple[str, ...] = (), save: str | None = None
) -> list[Report]:
    """Run the launches of a file. Launches of one stream run one after the other. Returns their reports.

    save: a folder for the arrays that have names.
    """
    source = text_of(path)
    texts = texts or launch_text.in_comments(source)
    symbols = [symbol for symbol in map(launch_text.read_symbol, texts) if symbol]
    shared = [array for array in map(launch_text.read_each, texts) if array]
    others = [text for text in texts if not launch_text.read_symbol(text) and not launch_text.read_each(text)]
    launches = [one for text in others for one in on_devices(launch_text.read(text), len(machine.devices))]
    if not any(not launch.action for launch in launches):
        raise InputError(f"{path}: {NO_LAUNCH}")
    entries: dict[str, str] = {}
    ptx = source
    if path.suffix == ".cu":
        kernels = [launch.kernel for launch in launches if not launch.action]
        wanted = tuple(dict.fromkeys(kernels + [f"&{one.name}" for one in symbols]))
        ptx, found = compiled(source, str(path), machine.cc, wanted, flags)
        entries |= found
    program = loaded(path, ptx, machine)
    arguments = launch_arguments.Arguments(machine.device(0), path.parent)
    for array in shared:
        arguments.each(array, machine)
    for symbol in symbols:
        set_symbol(machine, program, symbol, entries.pop(f"&{symbol.name}", symbol.name), arguments)
    streams, events = dict[tuple[int, str], Stream](), dict[str, Event]()
    for launch in launches:
        if launch.action:
            order(launch, stream_of(launch, machine, streams), events)
            continue
        entry = entries.setdefault(launch.kernel, entry_of(path, program, entries.get(launch.kernel, launch.kernel)))
        names = parameter_names(source, launch.kernel)
        try:
            device = machine.device(launch.device)
            values = values_of(launch, arguments.on(device), names, program.functions[entry].params)
            how: dict[str, Any] = {"stream": stream_of(launch, machine, streams), "programmatic": launch.programmatic}
            how |= {"shared": launch.shared, "entry": entry, "cluster": launch.cluster}
            device.launch(ptx, launch.grid, launch.block, *values, **how)
            machine.queue[-1].name = launch.kernel
        except InputError as error:
            raise InputError(f"{launch.text}: {error}") from error
    reports = machine.run()
    if save:
        saved(Path(save), arguments.named)
    return [replace(report, file=shown(report.file, path)) for report in reports]


def saved(folder: Path, arrays: dict[str, Any]) -> None:
    """Write each array to FOLDER/NAME.npy."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array.copy_to_host())
    except OSError as error:
        raise InputError(f"cannot save arrays in {folder}: {error.strerror}") from error


@cache
def compiled(
    source: str, name: str, cc: tuple[int, int], wanted: tuple[str, ...], flags: tuple[str, ...]
) -> tuple[str, dict[str, str]]:
    """The PTX of CUDA C++ and the kernels' names in it. A file is compiled once for all its schedules."""
    return compiled_kernels(source, name, cc, wanted, flags)


def stream_of(launch: LaunchText, machine: Machine, streams: dict[tuple[int, str], Stream]) -> Stream:
    """The stream that a launch names. It is made for the first launch that names it."""
    device = machine.device(launch.device)
    if not launch.stream:
        return device.default
    key = launch.device, launch.stream
    if key not in streams:
        streams[key] = device.stream()
    return streams[key]


def order(launch: LaunchText, stream: Stream, events: dict[str, Event]) -> None:
    """Record an event in a stream, or let the stream wait for one. Raises InputError for an event not yet recorded."""
    if launch.action == "record":
        events[launch.kernel] = stream.record()
    elif launch.kernel in events:
        stream.wait(events[launch.kernel])
    else:
        raise InputError(f"{launch.text}: no line before it records the event {launch.kernel}")


def set_symbol(machine: Machine, program: Program, symbol: SymbolText, name: str, arguments: Any) -> None:
    """Give a variable of the kernels its value, before they run. name: the variable's name in PTX."""
    try:
        numbers = range(len(machine.devices)) if symbol.device is None else [symbol.device]
        for number in numbers:
            made = arguments.on(machine.device(number)).make(symbol.value, symbol.name)
            if isinstance(made, (int, float)):
                raise InputError(f"write the type too, such as '{symbol.name} = int32[1]={symbol.value}'")
            data = made if isinstance(made, bytes) else made.copy_to_host().tobytes()
            machine.loader.set_variable(program, number, name, data)
    except InputError as error:
        raise InputError(f"{symbol.text}: {error}") from error


def shown(file: str, path: Path) -> str:
    """A report's file as the user knows it: as `path` if it is the file given, else relative to the current folder."""
    if not file or Path(file).resolve() == path.resolve():
        return str(path)
    return os.path.relpath(file) if Path(file).is_relative_to(Path.cwd()) else file


def on_devices(launch: LaunchText, count: int) -> list[LaunchText]:
    """A launch for each device that it names."""
    return [replace(launch, device=number) for number in range(count)] if launch.device == EVERY else [launch]


def values_of(
    launch: LaunchText, arguments: launch_arguments.Arguments, names: list[str], params: list[Any]
) -> list[Any]:
    """The arguments of a launch. names: the names of the kernel's parameters, which arrays without a name get."""
    values = []
    for number, text in enumerate(launch.arguments):
        name = names[number] if len(names) == len(launch.arguments) else f"arg{number + 1}"
        made = arguments.make(text, name)
        if isinstance(made, launch_arguments.Open) and number < len(params):
            made = made + bytes(max(params[number].size - len(made), 0))
        values.append(made)
    return values


def loaded(path: Path, ptx: str, machine: Machine) -> Program:
    """The program of a file. Raises InputError if the machine cannot run it, or is not of its architecture."""
    try:
        program = machine.load(ptx)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    why = mismatch(program.target, machine.arch, machine.cc)
    if why:
        raise InputError(f"{path} {why}")
    return program


def entry_of(path: Path, program: Program, kernel: str) -> str:
    """The name in PTX, perhaps mangled by C++, of a kernel. Raises InputError if no kernel or more than one fits."""
    entries = [name for name, info in program.functions.items() if info.entry]
    mangled = re.compile(rf"_Z\w*?{len(kernel)}{re.escape(kernel)}(?![a-z]\w*\d)")
    found = [name for name in entries if name == kernel] or [name for name in entries if mangled.match(name)]
    if len(found) != 1:
        raise InputError(
            f"{path}: expected the name of one of the kernels {', '.join(entries) or '(there are none)'}, got {kernel}"
        )
    return found[0]


def parameter_names(source: str, kernel: str) -> list[str]:
    """The names of a kernel's parameters in CUDA C++. Returns [] if the kernel is not found.

    A parameter whose name is not found is left out.
    """
    name = re.escape(kernel.partition("<")[0].rpartition("::")[2])
    heads = (piece.partition("__global__")[2] for piece in re.split("[;{}]", source))
    form = re.compile(rf"\b{name}\s*\(([^(){{}}]*)\)")
    found = next((match for head in heads if (match := form.search(head))), None)
    names = [last_word(part) for part in launch_text.pieces(found[1])] if found else []
    return [name for name in names if name]


def last_word(parameter: str) -> str:
    """The name in a parameter, such as `x` in `const float x[]`; empty if the parameter has none."""
    text = parameter.rstrip()
    if text.endswith("]") and (inside := text[:-1].rstrip()).endswith("["):
        text = inside[:-1].rstrip()
    found = re.match(r"\w*", text[::-1])
    return found[0][::-1] if found else ""

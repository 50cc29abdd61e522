"""Every command of every page is checked: quick ones run, and the program's own parser reads the words of the others.

A command is a line of a shell block, or text in backticks that begins with a program's name. Launchers before a program
are checked, and the program is checked without them. ELSEWHERE and CANNOT say why a program is not run here.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pages
import pytest

from aristos.bench import command_line
from aristos.cli.__main__ import main as aristos
from ptxsim.command import main as ptxsim

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
# Text in backticks with one of these is not a whole command.
OPEN = re.compile(r"\.\.\.|<|^srun -\S+$|--require-hashes$")
SET = re.compile(r"^[A-Z]+=\$\((.*)\)\S*$")  # a variable is set to what a command prints
NAMED = re.compile(r"(aristos [a-z]+( [a-z]+)?|ptxsim [a-z]+|python -m [a-z.]+)$")  # text that only names a command

# Programs of the system or of other projects, and why they are not run here.
CANNOT = {
    "module": "environment modules exist on clusters only",
    "conda": "conda-forge: another package manager",
    "spack": "another package manager",
    "apptainer": "builds and starts containers",
    "apt": "needs root and changes the machine",
    "salloc": "needs Slurm; tests/launch/test_slurm.py uses a virtual one",
    "nvidia-smi": "needs an NVIDIA driver; tests/topology reads its recorded output",
    "export": "a command of the shell",
    "source": "a command of the shell",
    ".": "a command of the shell",
    "cd": "a command of the shell",
    "echo": "a command of the shell",
    "sed": "of the system; test_tutorials.py runs it",
    "cp": "of the system; test_tutorials.py runs it",
    "tar": "unpacks what `make gpu-kit` makes",
    "./run.sh": "lies in the kit; tests/bench/test_gpu_kit.py runs its commands",
}
# Programs without options that take long -> the test that runs them.
ELSEWHERE = {
    "docs/code_lines.py": "tests/package/test_rooms.py",
    "examples/upcycle.py": "tests/integrations/test_model_examples.py",
    "examples/chat.py": "tests/integrations/test_model_examples.py",
    "examples/layer.py": "tests/package/test_examples.py",
    "examples/minilm.py": "tests/package/test_examples.py",
    "aristos.engine.generate": "tests/engine/test_words.py",
    "model.py": "",  # the reader's own program
    "train.py": "",
    "my_job.py": "",
}
# Programs that readers of a page save. test_tutorials.py, or the page's own test, runs them.
SAVED = {name for page in PAGES for name in pages.programs(page.read_text())}
# These are quick: they run as they are written, to the end, with exit code 0.
RUN = (
    "aristos topo",
    "aristos topo --json",
    "aristos models",
    "aristos plan --model mixtral-8x7b --cluster examples/cluster-4x4.json",
    "aristos run --dry-run -n 8 -- python model.py",
    "python -m mpi4py --mpi-library",
    "python -m aristos.bench floors mixtral-8x7b --gpus 1,8",
)
# Names that the reader chooses -> values that are used here.
STANDS_FOR = {"N": "2", "S": "16", "H": "16", "F": "16", "E": "4", "k": "2", "X": "layer", "NAME": "mixtral-8x7b"}


def commands(page: Path) -> Iterator[str]:
    text = page.read_text()
    for language, block in FENCE.findall(text):
        if language in ("sh", "console"):
            lines = block.replace("\\\n", " ").splitlines()
            lines = [
                line for line in lines if line.strip() and (language == "sh" or line.startswith("$ "))
            ]  # the other lines of a console block are output
            yield from (SET.sub(r"\1", line.removeprefix("$ ")) for line in lines)
    ours = ("aristos", "ptxsim")
    known = (*CANNOT, *ours, "python", "python3", "mpirun", "mpiexec", "srun", "sbatch", "make", "pip", "pytest")
    for quoted in INLINE.findall(FENCE.sub("", text)):
        if quoted.split()[0] in known[len(CANNOT) :] and " " in quoted and not OPEN.search(quoted):
            yield f"{quoted} --help" if NAMED.match(quoted) else quoted


ALL = sorted({(command, page.name) for page in PAGES for command in commands(page)})


def parts(line: str) -> Iterator[list[str]]:
    """The simple commands of a line, without comments and redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;>:")
    lexer.whitespace_split, lexer.commenters = True, "#"
    found: list[str] = []
    words = iter(lexer)
    for word in words:
        if word in ("&&", "|", ";"):
            yield found
            found = []
        elif word == ">":
            next(words)
        else:
            found.append(STANDS_FOR.get(word, word))
    yield found


class Parsed(BaseException):
    """Raised when a parser has accepted the words."""


@pytest.fixture
def parsers(monkeypatch):
    """Every argparse parser raises Parsed when it has accepted its words."""
    parse, known = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args

    def parse_args(parser, args=None, namespace=None):
        found = parse(parser, args, namespace)
        if isinstance(parser, command_line._Parser):
            return found  # `command_line.parse` checks more
        raise Parsed

    def parse_known_args(parser, args=None, namespace=None):
        found, rest = known(parser, args, namespace)
        if parser.prog == "aristos run" and not rest:  # `aristos run` parses its options here only
            raise Parsed
        return found, rest

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the repository's files, and with files that a reader has."""
    for name in ("FILE.npz", "node.txt", "topology.conf"):
        (tmp_path / name).touch()
    np.savez(tmp_path / "FILE.npz", counts=np.ones((1, 1, 2), int), tokens=[2])
    monkeypatch.chdir(tmp_path)
    for name in ("examples", "launch", "bench", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)


def program(words: list[str]) -> list[str]:
    """The words of the program: without variables, and without mpirun, mpiexec or srun and their options."""
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if words[0] in ("mpirun", "mpiexec", "srun"):
        at = 1
        while words[at].startswith("-"):
            assert re.fullmatch(r"-[nN]\d*|-l|--(ntasks-per-node|gpus-per-node|mpi|gpu-bind)=\w+", words[at]), words
            at += 2 if words[at] in ("-n", "-N") else 1
        return program(words[at:])
    return words


def check(words: list[str], monkeypatch) -> None:
    """Raise if the program does not accept its words."""
    words = program(words)
    first, rest = words[0], words[1:]
    if first in CANNOT:
        return
    if first == "aristos" and "--" in rest:
        at = rest.index("--")
        check(rest[at + 1 :], monkeypatch)
        rest = rest[:at]
    if first.startswith("launch/") and "--" in rest:
        at = rest.index("--")
        check(rest[at + 1 :], monkeypatch)
        first, rest = "python", [first, *rest[:at]]
    elif first == "launch/virtual_slurm":
        first, rest = "python", [first, *rest]
    if first == "aristos":
        accepted(lambda: aristos(rest))
    elif first == "ptxsim":
        accepted(lambda: ptxsim(rest))
    elif first in ("python", "python3"):
        check_python(rest, monkeypatch)
    elif first == "make":
        done = subprocess.run(["make", "-n", *rest], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    elif first == "pip":
        check_pip(rest)
    elif first == "pytest":
        check_pytest(rest)
    elif first == "true":
        pass
    else:
        scripts = [word for word in (first, *rest) if word.startswith("launch/")]
        assert first in ("sbatch", *scripts), f"no rule for the program {first}"
        assert all((ROOT / script).is_file() for script in scripts)
        subprocess.run(["bash", "-n", *(ROOT / script for script in scripts)], check=True, timeout=10)


def accepted(run) -> None:
    try:
        code = run()
    except Parsed:
        return
    except SystemExit as end:
        code = end.code
    assert code in (0, None)


def check_python(words: list[str], monkeypatch) -> None:
    if words[0] == "-c":
        compile(words[1], "command", "exec")
        return
    if words[:2] == ["-m", "pytest"]:
        check_pytest(words[2:])
        return
    if words[:2] == ["-m", "venv"] or words[:2] == ["-m", "mpi4py"] or words[:2] == ["-m", "pdb"]:
        return  # a part of Python, or a command that another test runs
    if words[:2] == ["-m", "aristos.bench"] and words[2:3] != ["floors"]:
        accepted(lambda: command_line.parse(words[2:]) and 0)
        return
    if words[:2] == ["-m", "aristos"]:
        check(["aristos", *words[2:]], monkeypatch)
        return
    if words[:2] == ["-m", "aristos.launcher.take_seat"]:
        return  # `aristos run` starts it with these words
    if words[0] == "-m" and words[1] not in ELSEWHERE:
        name = "aristos.bench.main" if words[1] == "aristos.bench" else f"{words[1]}.__main__"
        accepted(lambda: importlib.import_module(name).main(words[2:]))
        return
    name = words[words[0] == "-m"]
    if name in SAVED:
        return
    if name in ELSEWHERE:
        assert not ELSEWHERE[name] or Path(name).stem.rpartition(".")[2] in (ROOT / ELSEWHERE[name]).read_text()
        return
    script = ROOT / words[0]
    assert script.is_file(), f"{script} does not exist"
    if "argparse" not in script.read_text() and "argv" in script.read_text():
        assert subprocess.run([sys.executable, "-m", "py_compile", script], timeout=60).returncode == 0
        return
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.setattr(sys, "argv", [str(script), *words[1:]])
    accepted(lambda: runpy.run_path(str(script), run_name="__main__") and 0)


def check_pip(words: list[str]) -> None:
    """Extras of this package exist; other packages are not installed here."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert words[0] == "install"
    for word in words[1:]:
        extras = re.fullmatch(r"(?:\.|(?:\./)?aristos)\[([\w,]+)\]", word)
        assert not extras or set(extras[1].split(",")) <= set(known), f"{word}: the extras are {sorted(known)}"


def check_pytest(words: list[str]) -> None:
    for word in words:
        if word.startswith("tests/"):
            assert (ROOT / word).exists(), word


def test_commands_are_found():
    texts = {command for command, _ in ALL}
    assert len(texts) > 90
    assert "make lint       # ruff and mypy" in texts or any(text.startswith("make lint") for text in texts)
    assert [list(parts("$X a && b 'c<<<1>>>' # d")), list(parts("a > b | c"))] == [
        [["$X", "a"], ["b", "c<<<1>>>"]],
        [["a"], ["c"]],
    ]


@pytest.mark.parametrize(("command", "page"), ALL, ids=[f"{page}: {command[:60]}" for command, page in ALL])
def test_every_command_is_accepted(command, page, parsers, folder, monkeypatch):
    for words in parts(command):
        if words:
            for each in " ".join(words).split(" : ") if words[0] == "mpiexec" else [None]:
                check(
                    words if each is None else each.split() if each.startswith("mpi") else each.split()[2:], monkeypatch
                )


@pytest.mark.parametrize("command", RUN)
def test_quick_commands_run(command, folder, capsys):
    assert any(command in text for text, _ in ALL), "no page has this command"
    words = shlex.split(command)
    if words[0] == "aristos":
        assert aristos(words[1:]) == 0
        out = capsys.readouterr().out
        assert out
        assert [line for line in out.splitlines() if len(line) > 120 and sys.prefix not in line] == []
    else:
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_every_module_of_the_command_line_is_a_command(capsys):
    assert aristos(["--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 120


def test_an_unknown_command_is_answered_with_one_like_it(capsys):
    assert aristos(["reprot"]) == 2
    said = "aristos: the command 'reprot' is not known (similar: report, plot); aristos --help lists all names\n"
    assert capsys.readouterr().err == said


def test_a_wrong_command_is_found(parsers, folder, monkeypatch):
    for wrong in (
        "aristos plan --modle x",
        "mpirun -n 2 python -m aristos.bench layer --tokns 3",
        "pip install '.[mpi]'",
        "python bench/compare.py --nonsense",
        "make nonsense",
        "launch/nothing.sh",
        "python examples/nothing.py",
        "mpirun --np 2 true",
    ):
        with pytest.raises((AssertionError, SystemExit, command_line.UsageError)):
            check(next(parts(wrong)), monkeypatch)
    assert shutil.which("make")


def test_the_planners_page_has_whole_problems(monkeypatch):
    """The page's Python example runs from the repository's root. The planner reads the page's problem."""
    from aristos import planner

    blocks = dict(FENCE.findall((ROOT / "docs" / "planner.md").read_text()))
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    exec(compile(blocks["python"], "planner.md", "exec"), names)
    assert names["plan"].achieved
    assert planner.parse(json.loads(blocks["json"])).n == 1024

"""Runs every fuzz target for a short time, and reads all inputs that once were finds.

`make fuzz` goes on for longer.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
FINDS = sorted(path for path in (HERE / "finds").rglob("*") if path.is_file())


@pytest.fixture
def known(tmp_path, monkeypatch) -> dict:
    """The targets, in a folder of their own."""
    monkeypatch.setattr(sys, "path", [str(HERE), str(HERE.parent / "support"), *sys.path])
    monkeypatch.chdir(tmp_path)
    from targets import targets

    return targets(tmp_path)


def test_random_inputs_end_in_values_or_documented_errors(known):
    """Each target reads some hundreds of inputs. The seed is fixed, so that a failure comes from a change of the code.

    The target `results` is left out: the library reads one of some dozens of damaged HDF5 files for ever.
    """
    names = sorted(set(known) - {"results"})
    words = [sys.executable, str(HERE / "run.py"), *names, "--seconds", "1", "--inputs", "400", "--seed", "3"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count(" 0 finds") == len(names), done.stdout


def test_each_form_of_packed_weights_has_a_target(known, monkeypatch):
    """A target's valid inputs reach the reader of its form for each of the three matrices of an expert."""
    import packed_models

    from aristos.checkpoint import packed

    read = {}
    for name, form in packed.FORMS.items():

        def parts(m, kind, name=name, form=form):
            found = form.parts(m, kind)
            read[name] = read.get(name, 0) + 1
            return found

        monkeypatch.setitem(packed.FORMS, name, form._replace(parts=parts))
    for target, seeds in packed_models.seeds().items():
        for each in seeds:
            before = sum(read.values())
            known[f"packed_{target}"].read(each)
            assert sum(read.values()) - before >= 3, target
    assert set(read) == set(packed.FORMS)


@pytest.mark.parametrize("find", FINDS, ids=[f"{path.parent.name}-{path.name}" for path in FINDS])
def test_an_earlier_find_is_read_or_refused(find, known):
    from run import attempt
    from targets import DOCUMENTED

    attempt(known[find.parent.name].read, find.read_bytes(), DOCUMENTED)


def test_a_fault_is_found(tmp_path):
    """A reader that is broken on purpose, in the worker's process, is a find."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import run\n"
        "import aristos.topology.hostlist as h\n"
        "h._RANGE = __import__('re').compile('([0-9]+)(?:-([0-9]+))?')\n"
        "run.FINDS = __import__('pathlib').Path('finds')\n"
        "sys.exit(run.work('hostlist', 2, 0, 10**6, False))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(HERE)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode > 0, done.stderr
    assert "hostlist: ValueError at hostlist.py" in done.stdout
    assert list((tmp_path / "finds" / "hostlist").iterdir())

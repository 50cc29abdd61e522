"""The results file: runs are read back, by this package and by others, and no failure loses an earlier run."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aristos import results
from aristos.errors import AristosError, InputError, ResultsError
from aristos.results import Run, Table, hdf5  # `load` starts a process for each file; `hdf5.read` does not

WRITER = """\
import sys
import numpy as np
from aristos.results import Run, Table, append
path, count, tag, size = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
for i in range(count):
    table = Table("fill").dim("n", np.arange(size)).add("values", "n", np.full(size, i))
    append(path, Run(f"{tag}-{i:05d}", {"i": i}, [table]))
    print(i, flush=True)
"""


def example_run(name: str = "") -> Run:
    seconds = np.random.default_rng(0).random((2, 300))
    table = Table("layer", attributes={"tokens": 4, "router": {"scale": 1.5}})
    table.dim("rank", range(2)).dim("iteration", range(300)).dim("schedule", ["fused", "bulk"])
    table.add("seconds", ("rank", "iteration"), seconds.astype(np.float32), "s", "time of a call")
    table.add("right", "schedule", [True, False])
    table.add("peak", (), 3.5, "GFLOP/s", "the kernel's own peak")
    attributes = {
        "argv": ["-m", "aristos.bench"],
        "seed": 1,
        "versions": {"numpy": "2.0", "é": "ü"},
        "commit": None,
        "on": True,
        "none": [],
        "mixed": [1, "a", [2]],
    }
    return Run(name, attributes, [table])


def writer(path: Path, count: int, tag: str, size: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), str(count), tag, str(size)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_an_appended_run_is_loaded(tmp_path):
    path = tmp_path / "new folder" / "r.h5"
    first, second = example_run(), example_run("29991231T000000Z-abcdef")
    results.append(path, first)
    results.append(path, second)
    loaded = results.load(path)
    assert list(loaded) == [first.name, second.name]
    run = loaded[first.name]
    attributes = run["attributes"]
    assert attributes["schema"] == "aristos-bench/1"
    assert attributes["argv"] == ["-m", "aristos.bench"]
    assert attributes["versions.é"] == "ü"
    assert (attributes["seed"], attributes["on"], attributes["none"]) == (1, True, [])
    assert json.loads(attributes["mixed"]) == [1, "a", [2]]
    assert "commit" not in attributes
    table = run["tables"]["layer"]
    assert table["attributes"] == {"tokens": 4, "router.scale": 1.5}
    seconds = table["variables"]["seconds"]
    assert seconds["values"].dtype == np.float64
    np.testing.assert_array_equal(seconds["values"], first.tables[0].variables["seconds"].values)
    assert (seconds["dims"], seconds["units"], seconds["long_name"]) == (("rank", "iteration"), "s", "time of a call")
    assert list(table["dims"]["schedule"]["values"]) == ["fused", "bulk"]
    assert table["variables"]["peak"]["values"] == 3.5
    leftovers = {p.name for p in path.parent.iterdir()} - {"r.h5", "r.h5.lock"}
    assert not leftovers


def test_results_print_one_line_for_each_run(tmp_path):
    for name in ("a", "b"):
        table = Table("layer").dim("call", range(1000)).add("call_time", "call", np.ones(1000), "s")
        results.append(tmp_path / "r.h5", Run(name, {"command": "python -m aristos.bench"}, [table, Table("idle")]))
    assert repr(hdf5.read(tmp_path / "r.h5")).splitlines() == [
        "<2 runs of a results file>",
        "a: idle, layer (python -m aristos.bench)",
        "b: idle, layer (python -m aristos.bench)",
    ]


def test_pandas(tmp_path):
    pytest.importorskip("pandas")
    for _ in range(2):
        results.append(tmp_path / "r.h5", example_run())
    frames = hdf5.read(tmp_path / "r.h5").to_pandas()["layer"]
    assert set(frames) == {("rank", "iteration"), ("schedule",), ()}
    frame = frames["rank", "iteration"]
    assert list(frame.columns) == ["run", "rank", "iteration", "seconds"]
    assert len(frame) == 2 * 2 * 300  # each measured value has a row
    expected = example_run().tables[0].variables["seconds"].values
    assert set(frame[(frame["rank"] == 1) & (frame["iteration"] == 7)]["seconds"]) == {expected[1, 7]}
    assert dict(zip(frames["schedule",]["schedule"], frames["schedule",]["right"])) == {"fused": 1, "bulk": 0}
    assert list(frames[()]["peak"]) == [3.5, 3.5]


@pytest.mark.parametrize("engine", ["h5netcdf", "h5py"])
def test_a_file_that_is_open_elsewhere_in_this_process_is_loaded_and_appended_to(tmp_path, engine):
    """HDF5 refuses to open a file a second time in a process with other locking flags."""
    path, run = tmp_path / "r.h5", example_run("first")
    results.append(path, run)
    if engine == "h5py":
        held = h5py.File(path, "r")
        seconds = held["runs/first/layer/seconds"]
    else:
        xarray = pytest.importorskip("xarray")
        held = xarray.open_dataset(path, engine=engine, group="runs/first/layer")
        seconds = held["seconds"]
    with held:
        results.check(path)
        assert list(results.load(path)) == ["first"]
        results.append(path, example_run("second"))
        assert list(results.load(path)) == ["first", "second"]
        assert np.asarray(seconds).shape == (2, 300)  # the open array still shows the old file


def test_xarray_reads_it(tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    run = example_run()
    results.append(tmp_path / "r.h5", run)
    with xarray.open_dataset(tmp_path / "r.h5", engine="h5netcdf", group=f"runs/{run.name}/layer") as data:
        assert data["seconds"].dims == ("rank", "iteration")
        assert data["seconds"].attrs == {"units": "s", "long_name": "time of a call"}
        assert data["schedule"].values.tolist() == ["fused", "bulk"]
        assert float(data["peak"]) == 3.5
    with xarray.open_datatree(tmp_path / "r.h5", engine="h5netcdf") as tree:
        assert tree[f"runs/{run.name}/layer"]["right"].sel(schedule="fused") == 1


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="no h5dump on PATH")
def test_h5dump_reads_it(tmp_path):
    results.append(tmp_path / "r.h5", example_run())
    done = subprocess.run(["h5dump", str(tmp_path / "r.h5")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "DIMENSION_SCALE" in done.stdout


@settings(max_examples=40)
@given(
    values=hnp.arrays(
        st.sampled_from(["f8", "f4", "i8", "u1", "i4"]), hnp.array_shapes(min_dims=0, min_side=0, max_side=40)
    ),
    text=st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=4),
)
def test_any_array_and_text_survive(tmp_path_factory, values, text):
    path = tmp_path_factory.mktemp("any") / "r.h5"
    table = Table("t")
    for i, n in enumerate(values.shape):
        table.dim(f"d{i}", range(n))
    table.add("values", tuple(table.dims), values)
    table.dim("word", np.array(text, dtype=str))
    run = Run(attributes={"text": text, "host": "n" * 100_000}, tables=[table])
    results.append(path, run)
    loaded = hdf5.read(path)[run.name]
    read = loaded["tables"]["t"]
    np.testing.assert_array_equal(read["variables"]["values"]["values"], values)
    assert read["variables"]["values"]["values"].dtype == values.dtype
    assert read["dims"]["word"]["values"].tolist() == text
    assert loaded["attributes"]["text"] == text
    assert len(loaded["attributes"]["host"]) == 100_000


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda t: t.add("x", "size", [1]), "dimension 'size': add it first"),
        (lambda t: t.dim("n", [1, 2]).add("x", "n", [1]), r"must have shape \(2,\), got \(1,\)"),
        (lambda t: t.dim("n", [[1]]), "one-dimensional"),
        (lambda t: t.dim("n", [1]).dim("n", [1]), "has 'n' already"),
        (lambda t: t.add("a/b", (), 1), "without '/'"),
        (lambda t: t.add("x", (), 1j), "numbers or text, got complex128"),
    ],
)
def test_tables_refuse(build, words):
    with pytest.raises(InputError, match=words):
        build(Table("t"))


def test_attributes_that_cannot_be_stored(tmp_path):
    with pytest.raises(InputError, match=r"attribute 'a\.b' cannot be stored"):
        results.append(tmp_path / "r.h5", Run(attributes={"a": {"b": object()}}))
    assert not (tmp_path / "r.h5").exists()


def test_a_run_is_never_replaced(tmp_path):
    results.append(tmp_path / "r.h5", example_run("x"))
    with pytest.raises(ResultsError, match=r"r\.h5: has a run 'x' already"):
        results.append(tmp_path / "r.h5", Run("x"))
    assert hdf5.read(tmp_path / "r.h5")["x"]["tables"]


def test_a_run_grows_by_tables(tmp_path):
    path = tmp_path / "r.h5"
    for i, name in enumerate(("layer", "idle")):
        results.append(path, Run("x", {"suites": i, "seed": 7}, [Table(name).add("v", (), i)]), more=True)
    run = hdf5.read(path)["x"]
    assert set(run["tables"]) == {"layer", "idle"}
    assert run["attributes"] == {"schema": results.SCHEMA, "suites": 1, "seed": 7}
    with pytest.raises(ResultsError, match=r"r\.h5: run 'x' has a table 'idle' already"):
        results.append(path, Run("x", {}, [Table("idle")]), more=True)


def other_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["data"] = 1


def without_runs(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = results.SCHEMA
        file["runs"] = 1


def two_schemas(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = [1, 2]


def truncated(path: Path) -> None:
    results.append(path, example_run())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p.write_text("time,rank\n"), "not an HDF5 file"),
        (lambda p: p.write_bytes(b""), "not an HDF5 file"),
        (other_hdf5, "no schema"),
        (without_runs, "without its group 'runs'"),
        (two_schemas, r"the schema \[1, 2\]"),
        (truncated, "cannot be read"),
        (lambda p: p.mkdir(), "cannot be read"),
    ],
)
def test_other_files_are_refused_and_left_alone(tmp_path, make, words):
    path = tmp_path / "mine.h5"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    for action in (results.load, results.check, lambda p: results.append(p, example_run())):
        with pytest.raises(ResultsError, match=words) as caught:
            action(path)
        assert str(path) in str(caught.value)
        assert isinstance(caught.value, AristosError)
    assert before is None or path.read_bytes() == before
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".aside")]


@pytest.mark.parametrize("spoil", ["suite", "dims", "table", "scale"])
def test_damaged_runs_are_named_without_a_traceback(tmp_path, capsys, spoil):
    from aristos.cli.__main__ import main

    path = tmp_path / "odd.h5"
    results.append(path, example_run("x"))
    with h5py.File(path, "r+") as file:
        run = file["runs/x"]
        if spoil == "table":
            run["number"] = 1
        elif spoil == "scale":
            run["layer"].create_dataset("bare", data=[1, 2])
        else:
            del run["layer"].attrs[spoil]
    with pytest.raises(ResultsError, match=r"odd\.h5: cannot be read: ."):
        results.load(path)
    assert main(["plot", str(path)]) == 3
    assert f"aristos plot: {path}" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "cause"), [(MemoryError(), "out of memory"), (RuntimeError(), "RuntimeError")])
def test_an_error_without_a_text_has_a_cause(error, cause, tmp_path, monkeypatch):
    path = tmp_path / "r.h5"
    results.append(path, example_run("x"))
    monkeypatch.setattr(h5py, "File", mock.Mock(side_effect=error))
    with pytest.raises(ResultsError, match=rf"r\.h5: cannot be read: {cause}$"):
        hdf5.read(path)


def test_a_table_without_the_variables_of_its_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    from aristos.cli.__main__ import main

    results.append(tmp_path / "r.h5", Run("x", {}, [Table("layer")]))
    assert main(["plot", str(tmp_path / "r.h5")]) == 3
    assert "no picture of the table 'layer'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["layer", "put", "mine"])
def test_a_table_of_ones_own_is_drawn_by_its_dimensions_whatever_its_name(tmp_path, capsys, name):
    """The table lacks variables that the benchmark's pictures need, as `layer` needs `schedule`."""
    pytest.importorskip("matplotlib")
    from aristos.cli.__main__ import main

    table = Table(name).dim("tokens", [8, 16]).dim("what", ["a", "b"]).dim("rank", range(2)).dim("iteration", range(5))
    seconds = np.random.default_rng(0).random((2, 2, 2, 5))
    table.add("call_time", ("tokens", "what", "rank", "iteration"), seconds, "s")
    table.add("loss", "iteration", np.arange(5.0), "1").add("steps", (), 3)
    results.append(tmp_path / "r.h5", Run("x", {}, [table]))
    assert main(["plot", str(tmp_path / "r.h5"), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / f"{name}.png")]
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_the_picture_of_a_table_of_ones_own_has_medians_of_the_slowest_rank():
    pytest.importorskip("matplotlib")
    from matplotlib import pyplot

    from aristos.bench.plots.any_table import any_table

    seconds = np.random.default_rng(0).random((2, 3, 2, 5))
    table = (
        Table("mine").dim("tokens", [8, 16]).dim("what", list("abc")).dim("rank", range(2)).dim("iteration", range(5))
    )
    figure = any_table(table.add("call_time", ("tokens", "what", "rank", "iteration"), seconds, "s"))
    (axis,) = figure.axes
    wanted = np.median(seconds.max(axis=2), axis=-1)
    assert [line.get_label() for line in axis.lines] == list("abc")
    assert np.allclose([line.get_ydata() for line in axis.lines], wanted.T)
    assert all(list(line.get_xdata()) == [8, 16] for line in axis.lines)
    pyplot.close(figure)


def test_a_run_is_named_by_its_beginning():
    assert Run(attributes={"started_utc": "2026-01-31T12:00:59Z"}).name.startswith("20260131T120059Z-")
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{6}", Run().name)


def test_check_leaves_nothing_and_refuses_an_empty_path(tmp_path, monkeypatch):
    results.check(tmp_path / "r.h5")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ResultsError, match="empty path"):
        results.check("")
    refusal = OSError(errno.EROFS, "Read-only file system")
    monkeypatch.setattr("tempfile.NamedTemporaryFile", lambda **_: (_ for _ in ()).throw(refusal))
    with pytest.raises(ResultsError, match=r"r\.h5: .* cannot be written to: .*Read-only"):
        results.check(tmp_path / "r.h5")


def test_missing_file_and_unwritable_folder(tmp_path, monkeypatch):
    with pytest.raises(ResultsError, match=r"none\.h5"):
        results.load(tmp_path / "none.h5")
    results.check(tmp_path / "a" / "b" / "new.h5")
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="cannot be written to"):
        results.check(tmp_path / "file" / "r.h5")
    with pytest.raises(ResultsError, match="cannot be written"):
        results.append(tmp_path / "file" / "r.h5", example_run())


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "r.h5"
    results.append(path, example_run("a"))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    words = r"r\.h5 cannot be written: No space left on device: [1-9]\d+ bytes are needed in .*, \d+ are free; the"
    with pytest.raises(ResultsError, match=words):
        results.append(path, example_run("b"))
    assert list(hdf5.read(path)) == ["a"]
    assert {p.name for p in tmp_path.iterdir()} - {"r.h5.lock"} == {"r.h5"}  # some versions of filelock leave the lock


def test_a_link_and_the_file_mode_stay(tmp_path):
    (tmp_path / "far").mkdir()
    link, real = tmp_path / "r.h5", tmp_path / "far" / "r.h5"
    results.append(real, example_run("a"))
    real.chmod(0o640)
    link.symlink_to(real)
    assert results.append(link, example_run("b")) == real
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert list(hdf5.read(link)) == ["a", "b"]


def test_a_link_planted_beside_the_file_is_not_followed(tmp_path):
    """A link with the name of the copy is not followed, nor one with the name of the lock."""
    (tmp_path / "precious").write_text("x")
    for name in (f".r.h5.{socket.gethostname()}.{os.getpid()}.aside", ".r.h5.aside"):
        (tmp_path / name).symlink_to("precious")
    results.append(tmp_path / "r.h5", example_run("x"))
    assert list(hdf5.read(tmp_path / "r.h5")) == ["x"]
    assert (tmp_path / "precious").read_text() == "x"
    (tmp_path / "s.h5.lock").symlink_to("precious")
    with pytest.raises(ResultsError, match="cannot be written"):
        results.append(tmp_path / "s.h5", example_run("x"))
    assert (tmp_path / "precious").read_text() == "x"


def test_a_kill_during_a_write_loses_no_earlier_run(tmp_path):
    path = tmp_path / "r.h5"
    rng = np.random.default_rng(1)
    known = 0
    for round_ in range(4):
        process = writer(path, 1000, f"{round_:02d}", size=100_000)
        assert process.stdout is not None
        process.stdout.readline()  # one run is appended, and the next is being written
        time.sleep(float(rng.uniform(0, 0.15)))
        process.send_signal(signal.SIGKILL)
        said = 1 + len(process.stdout.read().split())
        process.wait()
        loaded = hdf5.read(path)
        mine = [name for name in loaded if name.startswith(f"{round_:02d}-")]
        assert said <= len(mine) <= said + 1  # the last run may be in the file before it is printed
        assert len(loaded) >= known + said
        known = len(loaded)
        for run in loaded.runs:
            assert (run.tables[0].variables["values"].values == run.attributes["i"]).all()
    results.append(path, example_run())
    assert {p.name for p in tmp_path.iterdir()} - {"r.h5.lock"} == {"r.h5"}  # copies of killed writers are removed


def test_concurrent_writers_lose_nothing(tmp_path):
    path = tmp_path / "r.h5"
    processes = [writer(path, 25, tag) for tag in ("a", "b", "c")]
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert len(hdf5.read(path)) == 75


def refuse_flock(monkeypatch, code: int) -> None:
    import fcntl

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_flock_is_refused(tmp_path, monkeypatch, code):
    refuse_flock(monkeypatch, code)
    for name in "ab":
        results.append(tmp_path / "r.h5", example_run(name))
    assert list(hdf5.read(tmp_path / "r.h5")) == ["a", "b"]
    assert not (tmp_path / "r.h5.softlock").exists()


def test_stale_locks(tmp_path, monkeypatch):
    path = tmp_path / "r.h5"
    (tmp_path / "r.h5.lock").write_text("left by a writer that is gone")
    results.append(path, example_run("a"), lock_seconds=5)  # a lock file without a flock holds no lock
    refuse_flock(monkeypatch, errno.ENOLCK)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    (tmp_path / "r.h5.softlock").write_text(f"{int(gone.stdout)}\n{socket.gethostname()}\n")
    results.append(path, example_run("b"), lock_seconds=20)
    (tmp_path / "r.h5.softlock").write_text("4711\nanother-host\n")
    with pytest.raises(ResultsError, match=r"r\.h5\.softlock for 0\.5 s; if no writer runs, remove that file"):
        results.append(path, example_run("c"), lock_seconds=0.5)
    assert list(hdf5.read(path)) == ["a", "b"]


def test_a_held_lock_is_named(tmp_path):
    import filelock

    with filelock.FileLock(str(tmp_path / "r.h5.lock")), pytest.raises(ResultsError, match=r"r\.h5\.lock for 0\.3 s"):
        results.append(tmp_path / "r.h5", example_run(), lock_seconds=0.3)


def test_a_writer_on_another_host_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "r.h5"
    results.append(path, example_run("a"))
    write, others = results.hdf5._write_run, [example_run("b"), example_run("c")]

    def interrupted(target, runs, run, more):
        write(target, runs, run, more)
        if others and run.name == "d":  # another host writes now, and cannot see this host's flock
            aside = path.with_name("other.h5")
            shutil.copy(path, aside)
            with h5py.File(aside, "r+", locking=False) as file:
                write(path, file["runs"], others.pop(), False)
            os.replace(aside, path)

    monkeypatch.setattr(results.hdf5, "_write_run", interrupted)
    results.append(path, example_run("d"))
    assert list(hdf5.read(path)) == ["a", "b", "c", "d"]

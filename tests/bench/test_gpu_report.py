"""bench/gpu_report.py without a GPU: its messages, its time limits, and its page for invented results."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import multiprocessing
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
try:
    from first_run import command, compiling, figures, page, parts, processes, profiled, tasks, together, unfinished
    from first_run.samples import Samples
finally:
    sys.path.pop(0)

from fake_nvml import FakeGpu, Library
from simt_gpu import on_ranks

from aristos import results
from aristos.bench import suites
from aristos.bench.context import Column, Sheet
from aristos.bench.gpu import clock
from aristos.errors import EnvironmentProblem
from aristos.kernels.cuda import build
from aristos.kernels.cuda.gemm import tiles
from aristos.kernels.cuda.target import Target

pytestmark = pytest.mark.parallel

FACTS = {"gpu": "An H100", "gpu_arch": "sm_90", "gpu_uuid": "GPU-1", "driver_version": "580.1"}
PRINT = "import json; print(json.dumps({document!r}))"


def suite(**rows):
    return {
        "suites": {
            name: {"ok": True, "tables": [{"title": f"{name} here", "rows": given, "notes": ["a note"]}]}
            for name, given in rows.items()
        }
    }


GEMM = suite(gemm=[{"rows": 16, "share": 0.2, "check": "ok"}, {"rows": 1024, "share": 0.71, "check": "ok"}])
PUT = suite(
    put=[{"way": "both ways", "share": s, "check": "ok"} for s in (0.9, 0.8)] + [{"way": "one way", "share": 0.1}],
    signal=[{"row_bytes": 16, "median_us": 4.5, "check": "ok"}],
)
LAYER = suite(
    layer=[
        {"tokens": 64, "what": "aristos graph", "speedup": 2.0, "median_us": 500.0, "check": "FAILED"},
        {"tokens": 512, "what": "aristos graph", "speedup": 0.8, "median_us": 700.0, "check": "ok"},
    ]
)
RIGHT = {parts.DRIVER: PRINT.format(document={"facts": FACTS})}


@pytest.fixture
def report(monkeypatch, tmp_path, capsys):
    """A function that runs a report: (exit code, page, stderr). programs: the name of a part -> a Python program."""
    monkeypatch.setattr(command.machine, "check_before", lambda: None)
    monkeypatch.setattr(command.machine, "check", lambda facts: None)
    monkeypatch.setattr(processes, "BEAT", 0.2)
    monkeypatch.setattr(parts, "SAVING", 80.0)  # parts have few of the minutes, so that those that hang end soon

    def made(programs, minutes=2.0, seconds=None, *words):
        programs = RIGHT | programs
        chosen = tuple(
            dataclasses.replace(each, seconds=(seconds or {}).get(each.name, each.seconds))
            for each in parts.PARTS
            if each.name in programs
        )
        monkeypatch.setattr(command, "PARTS", chosen)
        run = processes.run_part

        def started(part, limit, show, options=()):
            return run(part, limit, show, (), ("-c", programs[part.name]))

        monkeypatch.setattr(command.processes, "run_part", started)
        stem = tmp_path / "report"
        code = command.main(["--out", str(stem), "--minutes", str(minutes), *words], "doc", together.report)
        return code, stem.with_suffix(".md").read_text(), capsys.readouterr().err

    return made


def test_wrong_options_are_usage_errors(capsys):
    for words, why in (
        (["--routing", "nowhere.npz"], "no such file: --routing nowhere.npz"),
        (["--minutes", "0"], "must be in 1..120, got 0"),
        (["--parts", "layer,gem"], "got 'gem'"),
        (["--rehearse", "rain"], "--rehearse takes one of product, hang, library, disk"),
    ):
        with pytest.raises(SystemExit):
            command.parsed(words, "doc")
        assert why in capsys.readouterr().err


def test_a_rehearsal_has_more_time():
    for words, minutes in (([], 8), (["--rehearse"], 60), (["--rehearse", "hang", "--minutes", "4"], 4)):
        assert command.parsed(words, "doc").minutes == minutes


def test_the_report_names_failed_parts_and_figures(report, tmp_path):
    """A part that hangs is ended and named. Wrong rows give no figures.

    Other figures have their floors and predictions beside them.
    """
    names = (parts.DRIVER, parts.PUTS, parts.LAYER, parts.GEMMS, parts.ROUTER, "exchange")
    code, text, err = report(
        {
            parts.PUTS: PRINT.format(document=PUT),
            parts.LAYER: PRINT.format(document=LAYER),
            parts.GEMMS: PRINT.format(document=GEMM),
            parts.ROUTER: "import sys; print('x'); print('no kernel', file=sys.stderr); sys.exit(4)",
            "exchange": "import sys, time; print('lock taken', file=sys.stderr, flush=True); time.sleep(90)",
        },
        1.0,
        dict.fromkeys(names, 1.0),
    )
    assert code == 1
    assert text.startswith("# Aristos on An H100: HUNG: exchange; failed: router\n")
    text = re.sub(r"after \d+ s \| \d+", "after N s | N", re.sub(r"\(4\) \| \d+", "(4) | N", text))
    for line in (
        "- driver_version: 580.1",
        "over cuBLAS | 0.75 to 0.85 | 0.85 of cuBLAS | 0.71 of cuBLAS | no |",
        "over the copy | - | 0.85 of the copy | 0.8 of the copy | no |",
        "| put + signal there and back, 16 bytes | 4 to 5 | 6 us | 4.5 us | yes |",
        "| layer over the unfused chain, 64 tokens | 0.4 to 0.6 | 1.5 x | not measured | - |",
        "| layer over the unfused chain, 512 tokens | 0.7 to 0.85 | 1.2 x | 0.8 x | no |",
        "| layer, aristos graph | 512 | 212 | memory | 700 | 3.3 x |",
        "| router | FAILED (4) | N | no kernel |",
        "| exchange | HUNG: ended after N s | N | lock taken |",
        "## gemm here",
        "- a note",
        "## What router said last\n\n```\nx\nno kernel\n```",
        "## What exchange said last\n\n```\nlock taken\n```",
        "were not sampled",
    ):
        assert line in text, (line, text)
    (run,) = results.load(tmp_path / "report.h5").runs
    assert run.attributes["gpu"] == "An H100"
    assert list(run.tables[0].variables["outcome"].values)[:3] == ["ok", "ok", "ok"]
    assert "exchange: 0 s" in err


def test_wrong_results_stop_what_builds_on_them(report):
    """The first line says that results are wrong. Parts that do not need right products still run."""
    code, text, _ = report(
        {
            parts.PRODUCTS: "import sys; print('bf16_16x128: 1 WRONG'); sys.exit(1)",
            parts.TESTS: "raise AssertionError('it must not run')",
            parts.PUTS: PRINT.format(document=PUT),
            parts.LAYER: "raise AssertionError('it must not run')",
        }
    )
    assert code == 1
    head = "WRONG RESULTS: products against float64; not run: tests/gpu, layer"
    assert text.startswith(f"# Aristos on An H100: {head}\n")
    assert "| layer | not run: products against float64 gave wrong results | 0 |  |" in text
    assert "| put + signal there and back, 16 bytes | 4 to 5 | 6 us | 4.5 us | yes |" in text


@pytest.mark.parametrize(
    ("program", "how"),
    [
        ("import os; os.kill(os.getpid(), 11)", "failed"),
        ("import sys; sys.exit(4)", "failed"),
    ],
    ids=["crash", "error"],
)
def test_a_check_that_crashes_stops_what_builds_on_it(report, program, how):
    code, text, _ = report({parts.PRODUCTS: program, parts.LAYER: "raise AssertionError('it must not run')"})
    assert code == 1
    assert f"| layer | not run: products against float64 {how} | 0 |  |" in text


def test_parts_out_of_time_are_named_and_stop_nothing(report):
    """Rows that a part printed before its limit are on the page. The first line names parts that did not end."""
    late = f"""import sys, time; print('x', flush=True); print({json.dumps(GEMM)!r}, flush=True)
print({unfinished.OUT_OF_TIME!r}, file=sys.stderr, flush=True); time.sleep(90)"""
    programs = {parts.PRODUCTS: f"raise SystemExit({parts.INCOMPLETE})", parts.LAYER: late, parts.PHASES: ""}
    code, text, _ = report(programs, 1.0, dict.fromkeys(programs, 2.0) | {parts.DRIVER: 0.5, parts.LAYER: 0.5})
    assert code == 1
    assert text.startswith("# Aristos on An H100: out of time: products against float64, layer\n")
    assert "| products against float64 | not complete |" in text
    assert "| layer | ran out of time after" in text
    assert "| phases | ok |" in text
    assert "## gemm here" in text


def test_a_part_hangs_if_a_call_or_the_driver_stands_still():
    still, done = (
        "cuda: rank 0 of 1, epoch 3: running, 7 commands published; worker 2 holds the lock",
        "epoch 3: done, 9",
    )
    assert unfinished.verdict(still, still, None).startswith("HUNG: a call makes no progress at epoch 3: running, 7")
    assert unfinished.verdict(still, still.replace("7 c", "8 c"), None) == unfinished.OUT_OF_TIME
    assert unfinished.verdict(done, done, None) == unfinished.OUT_OF_TIME
    assert unfinished.verdict(done, done, object()) == "HUNG: the driver does not answer"
    assert unfinished.verdict(done, "rank 0 of 1: the driver has not answered for 2 s", None).startswith("HUNG")


def test_rows_of_a_suite_that_has_not_ended_are_printed(monkeypatch):
    monkeypatch.setattr(unfinished, "_sheets", {"layer": [Sheet("layer", (Column("tokens", "tokens"),))]})
    assert unfinished.document() == ""
    unfinished._sheets["layer"][0].records.append({"tokens": 64, "check": "ok"})
    (table,) = json.loads(unfinished.document())["suites"]["layer"]["tables"]
    assert table["rows"] == [{"tokens": 64, "check": "ok"}]


def test_a_part_that_fails_keeps_its_rows(monkeypatch, capsys):
    """A wait ran out at the second number of tokens. The row of the first number is printed as a document."""
    from aristos.bench import main

    sheet = Sheet("layer", (Column("tokens", "tokens"),))
    sheet.records.append({"tokens": 64, "check": "ok"})
    monkeypatch.setattr(unfinished, "_sheets", {"layer": [sheet]})
    monkeypatch.setattr(main, "main", lambda words: 3)
    given = SimpleNamespace(words=("layer", "--seconds", "30"), end=time.monotonic() + 60, out="none")
    assert tasks.bench(given) == 3
    (table,) = processes._document(capsys.readouterr().out)["suites"]["layer"]["tables"]
    assert table["rows"] == [{"tokens": 64, "check": "ok"}]


def test_the_first_line_does_not_say_every_part_if_some_did_not_run():
    ran = [parts.Ran(parts.PARTS[0], 0, 1.0), parts.Ran(parts.PARTS[1], 0, 1.0)]
    assert page.verdict(ran, (), 12) == "2 of 12 parts ran, every output was right"
    assert page.verdict(ran, (), 2) == "every part ran, every output was right"


@pytest.mark.parametrize(("reached", "code"), [(0, 4), (1, parts.INCOMPLETE), (2, 0)])
def test_tiles_that_were_not_reached_have_a_code(monkeypatch, reached, code):
    """If the layer's own tiles were not checked, the check has failed, and parts that need it do not run."""
    from aristos.bench.suites import gemm_gpu
    from aristos.kernels.cuda import gemm

    class Right:
        y = SimpleNamespace(get=lambda: np.zeros((16, 1)))

        def __init__(self, *words):
            pass

        def calls(self, rows, tile):
            return {gemm_gpu.OURS: None}

        def error(self, call, rows):
            return 0.0

    gpu = SimpleNamespace(device=SimpleNamespace(target=None), close=lambda: None)
    monkeypatch.setattr(clock, "BenchGpu", lambda world: gpu)
    monkeypatch.setattr(gemm_gpu, "Products", Right)
    monkeypatch.setattr(gemm, "tiles", lambda kind, target: [SimpleNamespace(m=16, name=kind)])
    left = iter([True] * reached + [False] * 2)
    assert tasks.check_products({"bfloat16": "bf16", "float32": "f32"}, lambda: next(left)) == code


def test_a_hung_layer_stops_what_would_hang_too(report):
    code, text, _ = report(
        {
            parts.LAYER: "import time; time.sleep(90)",
            parts.PHASES: "raise AssertionError('it must not run')",
        },
        1.0,
        {parts.DRIVER: 0.5, parts.LAYER: 0.5},
    )
    assert code == 1
    assert "| phases | not run: layer hung | 0 |  |" in text


def test_the_report_ends_within_its_minutes_whatever_hangs(monkeypatch):
    """Even if every part hangs, the limits end before the time that was asked for, and leave time to write files."""
    for seconds in (60.0, 480.0, 600.0):
        ends = parts.limits(parts.PARTS, seconds)
        assert ends == sorted(ends)
        assert ends[-1] == pytest.approx(seconds * (1 - parts.SAVING / 480))
    assert sum(each.seconds for each in parts.PARTS) + parts.SAVING == 60 * parts.MINUTES


def test_a_short_report_leaves_the_driver_time_to_answer():
    """The driver's part imports what the report needs and asks every library. A short report does not shorten that."""
    for seconds, driver in ((60.0, 30.0), (120.0, 35.0), (480.0, 35.0), (960.0, 70.0)):
        ends = parts.limits(parts.PARTS, seconds)
        assert ends[0] == pytest.approx(driver)
        assert all(one < other for one, other in itertools.pairwise(ends))
    assert parts.limits(parts.PARTS[:1], 60.0) == [pytest.approx(42.0)]
    assert parts.limits(parts.PARTS, 3600.0, rehearsing=True)[0] == pytest.approx(1800.0)


def test_parts_that_hang_end_in_time_with_their_children(report, tmp_path):
    """All parts ignore SIGTERM, and have a child process that would write a file later. The report ends in time."""
    mark = tmp_path / "late"
    child = f"import time; time.sleep(2.5); open({str(mark)!r}, 'w')"
    hang = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(900)"
    )
    start = time.monotonic()
    names = (parts.KERNELS, parts.PUTS, parts.GEMMS)
    _, text, _ = report(dict.fromkeys(names, hang), 1.0, dict.fromkeys((parts.DRIVER, *names), 0.5))
    assert time.monotonic() - start < 20
    assert all(f"| {name} | HUNG" in text for name in names)
    time.sleep(2.5)
    assert not mark.exists()


def test_words_of_a_part_whose_pipe_stays_open_are_kept(monkeypatch):
    """A process in its own session outlives the part and keeps its pipes open, like one that hangs in the driver."""
    child = "import sys, time; print('lock of worker 3', file=sys.stderr, flush=True); time.sleep(20)"
    program = f"""import subprocess, sys, time; print('driver', end='', flush=True)
subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True); time.sleep(60)"""
    monkeypatch.setattr(processes, "JOIN", 0.2)
    ran = processes.run_part(parts.PARTS[0], 3.0, print, (), ("-c", program))
    assert ran.code is None
    assert ran.said == ["driver", "lock of worker 3"]


@pytest.mark.parametrize("at", [parts.GEMMS, parts.DRIVER])
def test_ctrl_c_leaves_parts_that_are_named(report, monkeypatch, tmp_path, at):
    """The interrupted part and all later ones are named as not finished. Before the driver answers there is no page."""
    started = processes.run_part

    def interrupted(part, *rest):
        if part.name == at:
            raise KeyboardInterrupt
        return started(part, *rest)

    monkeypatch.setattr(processes, "run_part", interrupted)
    (tmp_path / "report.md").write_text("nothing")
    code, text, err = report({parts.PUTS: PRINT.format(document=PUT), parts.GEMMS: "", parts.ROUTER: ""})
    assert code == 1
    if at == parts.DRIVER:
        assert text == "nothing"
        assert "Ctrl-C ended the report before the driver had answered" in err
    else:
        assert text.startswith("# Aristos on An H100: not finished: gemm, router\n")
        assert "- Ctrl-C ended the report" in text


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_that_ends_programs_leaves_what_ctrl_c_leaves(report, tmp_path, name):
    """A scheduler, `timeout` or a closed terminal sends such a signal. The part that runs is ended."""
    mark = tmp_path / "late"
    hit = f"""import os, signal, time; os.kill(os.getppid(), signal.{name}); time.sleep(3)
open({str(mark)!r}, "w")"""
    number = signal.Signals[name]
    before = signal.signal(number, signal.SIG_DFL)  # under `nohup` the tests would ignore SIGHUP
    try:
        start = time.monotonic()
        code, text, _ = report({parts.PUTS: PRINT.format(document=PUT), parts.GEMMS: hit, parts.ROUTER: ""})
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert code == 1
    assert text.startswith("# Aristos on An H100: not finished: gemm, router\n")
    assert f"- {name} ended the report" in text
    time.sleep(max(0.0, 4.0 - (time.monotonic() - start)))
    assert not mark.exists()


def test_a_full_disk_prints_the_page(report, monkeypatch, capsys, tmp_path):
    """The page and the results file cannot be written. The page goes to stdout and says what is missing."""
    monkeypatch.setattr(processes, "kept", lambda path, text: f"{path}: No space left on device")
    monkeypatch.setattr(
        results, "append", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    (tmp_path / "report.md").touch()
    made = []
    monkeypatch.setattr("builtins.print", lambda *a, **k: made.append((k.get("file"), a[0])))
    code, _, _ = report({parts.PUTS: PRINT.format(document=PUT)})
    assert code == 1
    (text,) = [text for file, text in made if file is None]
    assert text.startswith("# Aristos on An H100: every part ran, every output was right")
    assert "report.h5 lacks the figures: [Errno 28] No space left on device" in text
    assert "| put + signal there and back, 16 bytes | 4 to 5 | 6 us | 4.5 us | yes |" in text


def test_clocks_are_sampled_by_part():
    """For each part the page has the range of the clock, the most power and heat, and the reasons of throttling."""
    library = Library([FakeGpu("H100", "GPU-1", "0000:01:00.0")], {})
    samples = Samples("GPU-1", library)
    samples.part = "layer"
    samples.start()
    end = time.monotonic() + 10
    while not samples.rows and time.monotonic() < end:
        time.sleep(0.01)
    samples.stop()
    assert samples.rows[0]["throttled"] == 0x44
    assert samples.line("layer")[:-1] == [
        "layer",
        "100001 to 100001",
        "350",
        "61",
        "power cap (1 of 1), heat, in hardware (1 of 1)",
    ]
    assert samples.line("gemm") == ["gemm", "-", "-", "-", "-", "0"]
    ran = [parts.Ran(parts.Part("layer", "bench"), 0, 1.0)]
    assert "| layer | 100001 to 100001 | 350 | 61 | power cap" in page.markdown(FACTS, ran, samples=samples)
    assert not list(Samples("GPU-2", library).start().rows)


def test_the_report_of_several_gpus(monkeypatch, tmp_path):
    """Under mpirun all ranks run every part in their own process. The page names every GPU."""
    from aristos.bench import main

    monkeypatch.setattr(together.nvml, "load", lambda: None)
    monkeypatch.setattr(unfinished, "follow", lambda: None)
    monkeypatch.setattr(command.machine, "facts", lambda: FACTS | {"gpu_uuid": "GPU-1"})
    monkeypatch.setattr(command.launch_environment, "started_as", lambda: ("mpirun", 2, 0))
    monkeypatch.setattr(tasks, "check_products", lambda kinds, go_on: print("bf16_16x128: 1e-3 ok") or 0)
    monkeypatch.setattr(command.machine, "check_before", lambda: None)
    monkeypatch.setattr(command.machine, "check", lambda facts, ours: None)
    seen = []

    def bench(words):
        seen.append(words)
        print(json.dumps(PUT if words[0] == "put" else LAYER))
        return 0 if words[0] != "exchange" else 1

    monkeypatch.setattr(main, "main", bench)
    stem = tmp_path / "report"
    assert command.main(["--out", str(stem)], "doc", together.report) == 1
    text = stem.with_suffix(".md").read_text()
    for line in (
        "# Aristos on An H100: WRONG RESULTS: exchange\n",
        "- gpus: An H100 GPU-1",
        "| products against float64 | ok | 0 | bf16_16x128: 1e-3 ok |",
        "| exchange | WRONG |",
        "| put + signal there and back, 16 bytes | 4 to 5 | 6 us | 4.5 us | yes |",
    ):
        assert line in text
    assert [words[0] for words in seen] == ["put", "layer", "exchange", "idle"]
    assert all("cuda" in words and str(stem.with_suffix(".h5")) in words for words in seen)
    assert all(words[words.index("--timeout") + 1] == "5.0" for words in seen)


def test_a_rehearsal_meets_no_goal():
    ran = [parts.Ran(parts.Part(parts.PUTS, "bench"), 0, 1.0, [], PUT)]
    text = page.markdown(FACTS | {"rehearsal": "times mean nothing"}, ran)
    assert "| put + signal there and back, 16 bytes | 4 to 5 | 6 us | 4.5 us | a rehearsal |" in text
    assert "were not sampled: the PTX machine has none." in text
    assert "| 4.5 us | yes |" in page.markdown(FACTS, ran)


def test_the_page_of_several_gpus_has_the_clocks_of_one(tmp_path):
    samples = Samples("GPU-1", None, [{"part": parts.PUTS, "sm_clock_mhz": 1980, "power_w": 350.0, "celsius": 61}])
    made = together.Page(tmp_path / "r.md", FACTS, samples, print)
    made.write([parts.Ran(parts.PARTS[4], 0, 1.0)])
    text = (tmp_path / "r.md").read_text()
    assert "| put and signal | 1980 to 1980 | 350 | 61 |" in text
    assert f"- {together.CLOCKS}\n" in text


@pytest.mark.parametrize(
    ("said", "head"),
    [
        ("cuda: rank 0 of 2, epoch 3: running, 7 commands published; worker 2 holds the lock", "HUNG: layer"),
        ("cuda: rank 0 of 2, epoch 3: done, 7 commands published; the lock is free", "failed: layer"),
    ],
)
def test_the_page_of_a_job_that_ended(tmp_path, capsys, said, head):
    """A page that cannot be written is printed."""
    made = together.Page(tmp_path / "nowhere" / "r.md", FACTS, Samples("GPU-1", None), lambda text: None)
    made.of_ended(parts.Part("layer", "bench"), [], [said, "rank 1 wrote nothing"])
    text = capsys.readouterr().out
    assert text.startswith(f"# Aristos on An H100: {head}; not finished: ")
    assert f"{said}\nrank 1 wrote nothing\n" in text


def test_minutes_and_refusals_hold_under_mpirun(monkeypatch, tmp_path, capsys):
    """Parts share the minutes, an alarm ends the job when they are over, and every rank's GPU is checked."""
    from aristos.bench import main

    monkeypatch.setattr(together.nvml, "load", lambda: None)
    monkeypatch.setattr(unfinished, "follow", lambda: None)
    alarms, seen = [], []
    monkeypatch.setattr(together.signal, "alarm", alarms.append)
    monkeypatch.setattr(command.machine, "facts", lambda: dict(FACTS))
    monkeypatch.setattr(command.machine, "check_before", lambda: None)
    monkeypatch.setattr(command.machine, "check", lambda facts, ours: None)
    monkeypatch.setattr(command.launch_environment, "started_as", lambda: ("mpirun", 2, 0))
    monkeypatch.setattr(tasks, "check_products", lambda kinds, go_on: 0)
    monkeypatch.setattr(main, "main", lambda words: seen.append(words) or 0)
    words = ["--out", str(tmp_path / "report"), "--minutes", "1"]
    assert command.main(words, "doc", together.report) == 0
    assert alarms == [60, 0]
    assert sum(float(words[words.index("--seconds") + 1]) for words in seen) < 60 * len(seen)
    assert max(float(words[words.index("--seconds") + 1]) for words in seen) < 60
    for ask in ("check_before", "facts"):
        monkeypatch.setattr(command.machine, ask, lambda ask=ask: refuse(f"refused by {ask}"))
        assert command.main(words, "doc", together.report) == 3
        assert f"no GPU to report on: rank 0: refused by {ask}" in capsys.readouterr().err
        monkeypatch.setattr(command.machine, ask, lambda: dict(FACTS))
    assert alarms[2:] == [60, 0] * 2
    monkeypatch.setattr(command.machine, "check_before", lambda: refuse("no"))
    monkeypatch.setattr(command.launch_environment, "started_as", lambda: ("mpirun", 2, 1))
    assert command.main(words, "doc", together.report) == 3
    assert not capsys.readouterr().err, "only rank 0 prints it"


def refuse(why):
    raise EnvironmentProblem(why)


@pytest.mark.parametrize(("arch", "goal"), [("sm_80", 0.6), ("sm_90", 0.85), ("sm_100", 0.6)])
def test_the_goal_is_higher_with_warpgroup_products(arch, goal):
    found = {figure.part: figure for figure in figures.figures(arch)}
    assert found["gemm"].goal == goal
    groups = any(tile.groups for tile in tiles("bf16", Target.named(arch)))
    assert bool(found["gemm"].predicted) == groups == (goal == 0.85)


def test_parts_can_be_parsed_and_figures_name_existing_parts(tmp_path):
    """The command lines of the parts are valid, and time all suites on GPUs but `plan`."""
    from aristos.bench.command_line import parse

    names, timed = {each.name for each in parts.PARTS}, set()
    assert {figure.part for figure in figures.figures("sm_90")} <= names
    assert {each.task for each in parts.PARTS} <= set(tasks.TASKS)
    for at, each in enumerate(parts.PARTS):
        assert set(each.needs) <= {other.name for other in parts.PARTS[:at]}, "a part needs a later part"
    trace = tmp_path / "trace.npz"
    trace.touch()
    for each in (*parts.PARTS, parts.replayed(trace)):
        if each.task == "bench":
            asked = parse([*each.words, "--backend", "cuda", "--json", "--out", "none"])
            assert asked.budget <= each.seconds - 5, "there is no time left to start"
            timed |= set(asked.suites)
    assert timed == set(suites.known("cuda")) - {"plan"}  # `plan` needs several GPUs
    for each in together.TOGETHER[1:]:
        assert parse([*each.words, "--backend", "cuda", "--json", "--out", "none"]).budget <= each.seconds
    assert sum(float(each.words[each.words.index("--seconds") + 1]) for each in together.TOGETHER[1:]) < 200


NCU = """==PROF== Connected to process 7
==PROF== Profiling "gemm": 0%....100% - 1 pass
"ID","Kernel Name","gpu__time_duration.sum","dram__bytes.sum","launch__registers_per_thread"
"","","us","Mbyte","register/thread"
"0","gemm_bf16","123.4","33.5","199"
"1","layer_bf16","900.1","700.2","168"
"""


def test_the_profilers_table_is_read():
    rows = profiled.parse(NCU)
    assert rows == [
        dict(zip(("kernel", "time us", "bytes of DRAM Mbyte", "registers register/thread"), each))
        for each in (("gemm_bf16", "123.4", "33.5", "199"), ("layer_bf16", "900.1", "700.2", "168"))
    ]
    assert profiled.parse("==ERROR== nothing\n") == []


@pytest.mark.parametrize(
    ("script", "note"),
    [
        (None, "ncu was not found on PATH"),
        ("echo ERR_NVGPUCTRPERM; exit 1", "may not read the counters (ERR_NVGPUCTRPERM): run as root"),
        ("echo LibraryNotLoaded >&2; exit 9", "gave no counters (exit code 9): LibraryNotLoaded"),
        ("sleep 30", "did not end in time: no counters were read"),
        (f"cat <<'E'\n{NCU}E", "clocks are the GPU's own"),
    ],
)
def test_the_profiler_may_be_missing_forbidden_or_slow(monkeypatch, tmp_path, capsys, script, note):
    monkeypatch.setattr(profiled, "PLACES", ())
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if script else str(tmp_path))
    if script:
        (tmp_path / "ncu").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "ncu").chmod(0o755)
    assert profiled.report(SimpleNamespace(end=time.monotonic() + profiled.MARGIN + 2)) == 0
    (sheet,) = json.loads(capsys.readouterr().out)["suites"]["ncu"]["tables"]
    assert note in sheet["notes"][0]
    assert len(sheet["rows"]) == (2 if script and "cat" in script else 0)


@pytest.mark.slow
def test_the_product_check_covers_the_tiles_of_each_kind(monkeypatch, capsys):
    """The check runs on the PTX machine, for the two smallest tiles of each kind."""
    from aristos.kernels.cuda import gemm
    from aristos.row_types import KINDS

    importlib.import_module("aristos.substrate.cuda.persistent")  # it stores all tiles when it is imported
    monkeypatch.setattr(clock, "FLUSH", 1 << 12)
    all_tiles = gemm.tiles
    monkeypatch.setattr(gemm, "tiles", lambda kind, arch: all_tiles(kind, arch)[:2])
    assert on_ranks(1, lambda comm, rank: tasks.check_products(KINDS)) == [0]
    *said, last = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == [
        "f32_16x64",
        "f32_64x64",
        "tf32_16x128",
        "tf32_32x128",
        "bf16_wgmma_64x128",
        "bf16_wgmma_128x128",
        "f16_wgmma_64x128",
        "f16_wgmma_128x128",
    ]
    assert all(line.endswith("ok") for line in said)
    assert last == "8 tiles ok"


@pytest.mark.slow
def test_kernels_are_compiled_until_the_time_is_over(monkeypatch, capsys):
    """Kernels that exist are counted by their place. A process that takes too long is ended, and its kernel counted."""
    places = {"ahead": build.COMPILED_AHEAD, "kept": build.KEPT, "new": build.NOWHERE}
    monkeypatch.setattr(compiling, "listed", lambda arch: {name: name for name in places})
    monkeypatch.setattr(build, "place", lambda kernel, arch: places[kernel])
    monkeypatch.setattr(compiling, "get_context", lambda how: multiprocessing.get_context("fork"))
    monkeypatch.setattr(compiling, "compile_one", slow_compiler)
    start = time.monotonic()
    assert compiling.fill("sm_90", start + 1.0) == parts.INCOMPLETE
    assert time.monotonic() - start < 10
    said = "1 kernels compiled ahead, 1 kernels in the cache, 1 kernels not compiled in time"
    assert capsys.readouterr().out == f"sm_90: {said}\n"


def slow_compiler(name, arch):
    time.sleep(60)


@pytest.mark.slow
def test_the_pattern_for_the_profiler_matches_the_kernels_to_profile():
    """The pattern matches kernels of products and of the persistent layer, and no other kernels."""
    from kept_ptx import ptx

    from aristos.kernels.cuda import catalogue, gemm
    from aristos.substrate.cuda import persistent

    tile = gemm.tiles("f32", Target.named("sm_90"))[0]
    for kernel, fits in (
        (catalogue.product_kernel(tile), True),
        (persistent.layer_kernel(tile), True),
        (persistent.BEGIN, False),
        (catalogue.route_kernels()["place"], False),
    ):
        assert bool(re.search(profiled.NAMED, ptx(kernel, "sm_90")[1])) == fits, kernel.name


@pytest.mark.slow
def test_the_report_itself_may_hang():
    """A report that hangs, for example while it draws a picture, ends when its time is over."""
    program = "import time; from first_run import command\nwith command.bounded(1.0): time.sleep(60)"
    start = time.monotonic()
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, env=processes.environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert time.monotonic() - start < 50
    assert "Timeout" in done.stderr

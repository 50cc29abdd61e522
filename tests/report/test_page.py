"""`aristos report`: what a page holds, that texts of files cannot do anything in it, and what it refuses."""

from __future__ import annotations

import json
import re
import tracemalloc
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from result_files import layer, put, timeline, write

from aristos.cli.__main__ import main
from aristos.report import library, markup, run_part
from aristos.report.page import page
from aristos.results import Run, Table

LIBRARY = "window.Plotly = 'stands for plotly.js';"
VOID = {"meta", "br"}


@pytest.fixture(autouse=True)
def _small_library(monkeypatch):
    """A few characters instead of 4.8 MB."""
    monkeypatch.setattr(library, "script", lambda: LIBRARY)


class Elements(HTMLParser):
    """Every element with its attributes, and the text of the page; complains about elements that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.within: set[tuple[str, str]] = set()  # (an element, one around it)
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.within |= {(tag, each) for each in self.open}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.texts.append(data)

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == name]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture
def files(tmp_path) -> list[str]:
    """Two files of runs, the second slower in fused calls, and a timeline."""
    first = write(tmp_path / "first.h5", "first", layer(), put())
    second = write(tmp_path / "second.h5", "second", layer(1.2, 3, busy=True), put(1.0, 4), commit="fedcba", finished=0)
    return [first, second, timeline(tmp_path / "call.json")]


def figures(text: str) -> list[dict]:
    found = re.findall(r'<script type="application/json" id="figure-\d+">(.*?)</script>', text)
    return [json.loads(each) for each in found]


def test_a_page_says_what_ran_where_and_what_changed(files):
    text = page(files)
    said = Elements(text).text
    for each in (
        "Aristos: 2 runs and 1 timeline",
        "What changed from first to second",
        "MPICH Version: 5.0.2",
        "avx512",
        "python -m aristos.bench layer put",
        "aristos 0.1.0, numpy 2.4.6",
        "This run did not finish",
        "layer: tokens 128, fused: +",
        "Of 10 rows, 2 slower (the most +",
        "2 disturbed and not judged",
        "median (ms)",
        "rank 1: 50%",
        "0123456789abcdef",
        "one layer call on one rank",
        "against float64",
        "Timeline call.json",
        "of the workers' time",
    ):
        assert each in said, each
    assert "From " + files[1] in said


def test_plots_hold_the_numbers_of_the_tables(files):
    changed, _, times, latency, *_, bars = figures(page(files))
    assert {trace["name"] for trace in changed["data"]} == {"slower", "noise", "disturbed"}
    (slower,) = (trace for trace in changed["data"] if trace["name"] == "slower")
    assert slower["x"] == pytest.approx([1.2, 1.2], rel=0.02)
    assert [trace["name"] for trace in times["data"]] == ["bulk", "fused"]
    assert times["data"][0]["x"] == [16, 128, 1024]
    assert times["data"][0]["y"] == pytest.approx([1.01, 8.1, 64.6], rel=0.02)
    assert (times["layout"]["xaxis"]["type"], times["layout"]["yaxis"]["type"]) == ("log", "log")
    assert latency["layout"]["xaxis"]["type"] == "category"  # because of 0 bytes
    assert latency["data"][0]["x"] == ["0 B", "8 B", "4 KiB", "1 MiB"]
    assert bars["layout"]["yaxis"]["ticktext"][0] == "rank 0, worker 0"
    assert sum(len(trace["x"]) for trace in bars["data"]) == 80


def test_disturbed_points_are_hollow(files):
    found = figures(page(files[1:2]))
    assert found[0]["data"][0]["marker"]["symbol"] == ["circle-open", "circle", "circle"]
    assert found[0]["data"][0]["text"] == ["disturbed, rank 1: 50%", "", ""]


def test_a_page_can_be_used_by_keyboard_and_read_aloud(files):
    found = Elements(page(files))
    names = [name for name, _ in found.found]
    assert found.of("html")[0]["lang"] == "en"
    assert names.count("h1") == names.count("main") == names.count("title") == 1
    links = [each["href"] for each in found.of("a")]
    ids = [attributes["id"] for _, attributes in found.found if "id" in attributes]
    assert links[0] == "#main"
    assert {link[1:] for link in links} <= set(ids)
    assert len(ids) == len(set(ids))
    assert names.count("table") == names.count("caption") > 5
    assert all(each["scope"] in ("col", "row") for each in found.of("th"))
    assert all(each.get("aria-label") for each in found.of("div") if "data-figure" in each)
    boxes = [each for each in found.of("div") if each.get("class") == "scroll"]
    assert len(boxes) == names.count("table")
    assert all(each["tabindex"] == "0" and each["aria-label"] for each in boxes)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in found.of("meta")
    assert {("table", "details"), ("figure", "main")} <= found.within
    assert ("details", "details") not in found.within  # one key opens a table
    assert ("figure", "details") not in found.within  # the script draws all plots at once, none in a closed box
    levels = [int(name[1]) for name in names if re.fullmatch("h[1-6]", name)]
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_texts_of_a_file_are_only_texts(tmp_path):
    bad = '</script><script>window.ran=1</script><img src=x onerror="window.ran=1">&amp;\u2028'
    dim = bad.replace("/", "").replace("\u2028", "")  # which names in HDF5 cannot hold
    mine = Table(dim, attributes={"dtype": bad, "disturbed": bad, "shape": bad})
    mine.dim(dim, [bad, "b"], bad, bad).dim("iteration", range(8))
    mine.add(f"t{dim}", (dim, "iteration"), np.ones((2, 8)), "s", bad)
    mine.add("other", dim, [bad, "x"], bad, bad)
    facts = dict.fromkeys(("command", "cpu", "mpi_library", "commit", "crowded", dim), bad)
    first = write(tmp_path / "a.h5", f"a{dim}", mine, hosts=[bad], **facts)
    second = write(tmp_path / "b.h5", "b", mine, cores_of_rank=[bad, bad])
    calls = Path(timeline(tmp_path / "t.json"))
    document = json.loads(calls.read_text())
    document["otherData"][bad] = bad
    document["traceEvents"][0]["args"]["name"] = bad
    calls.write_text(json.dumps(document))
    text = page([first, second, str(calls)])
    found = Elements(text)
    assert {name for name, _ in found.found} & {"img", "iframe", "object", "link"} == set()
    assert len([each for each in found.of("script") if "type" not in each]) == 2
    assert not [key for _, attributes in found.found for key in attributes if key.startswith("on")]
    assert "window.ran=1</script><img" in found.text  # it is shown
    for each in figures(text):
        for shown in re.findall(r'"(?:name|text|ticktext)":\s*("[^"]*"|\[[^\]]*\])', json.dumps(each)):
            assert "<" not in shown  # plotly.js reads tags in texts
    assert "\u2028" not in text


def test_a_timeline_says_which_rank_began_last_and_who_waited_for_whom(tmp_path):
    calls = Path(timeline(tmp_path / "t.json", steps=1))
    document = json.loads(calls.read_text())
    late, bad = 200_000.0, "<b>rank 1</b>"
    for name, cat, rank, begin, took in (
        ("wait for rank 1", "wait", 0, 10.0, late),
        ("wait for another worker", "wait", 0, 300_000.0, 1000.0),
        (f"wait for {bad}", "wait", 0, 400_000.0, 1.0),
        ("wire", "wire", 0, 20.0, 5000.0),
        ("expert 3", "expert", 2, late, 3000.0),
    ):
        document["traceEvents"].append(
            {"ph": "X", "name": name, "cat": cat, "pid": rank, "tid": 0, "ts": begin, "dur": took}
        )
    document["traceEvents"].append({"ph": "M", "name": "thread_name", "pid": 2, "tid": 0, "args": {"name": "worker 0"}})
    calls.write_text(json.dumps(document))
    text = page([str(calls)])
    said = Elements(text).text
    assert "Rank 2 began last, at 200 ms. Rank 0 waited most: 201 ms, longest for rank 1." in said
    assert "rank 0 0 400 0.016 201 rank 1 rank 1 0.001 0.009 0.016 0 - rank 2 200 203 3 0 -" in said
    (figure,) = figures(text)
    (waits,) = (each for each in figure["data"] if each["name"] == "wait")
    assert waits["hovertext"] == ["wait for rank 1", "wait for another worker", "wait for &lt;b&gt;rank 1&lt;/b&gt;"]
    one = Path(timeline(tmp_path / "one.json", ranks=1))
    assert "began last" not in Elements(page([str(one)])).text


def test_a_policy_allows_the_pages_own_two_scripts_alone(files):
    import base64
    import hashlib

    text = page(files[:1])
    (policy,) = (each["content"] for each in Elements(text).of("meta") if "http-equiv" in each)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    hashes = {base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts}
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == hashes
    assert len(hashes) == 2


def test_one_file_shows_its_last_two_runs_compared(tmp_path):
    path = tmp_path / "r.h5"
    for name, slower in (("a", 9.0), ("b", 1.0), ("c", 1.2)):
        write(path, name, layer(slower))
    said = Elements(page([str(path)])).text
    assert "What changed from b to c" in said
    assert "Run a " not in said
    write(tmp_path / "other.h5", "d", put())
    said = Elements(page([str(path), str(tmp_path / "other.h5")])).text
    assert "Nothing could be compared: c and d cannot be compared: they have no row in common" in said
    assert "of r.h5" not in said
    said = Elements(page([str(path), write(tmp_path / "e.h5", "e", layer())], every=True)).text
    assert "first a, b, c, of " in said


@pytest.mark.slow
def test_a_long_table_and_a_long_timeline_say_what_is_left_out(tmp_path):
    long = Table("mine").dim("n", range(700)).dim("iteration", range(6))
    long.add("took", ("n", "iteration"), np.ones((700, 6)), "s")
    said = Elements(page([write(tmp_path / "r.h5", "a", long), timeline(tmp_path / "t.json", 8, 300)])).text
    assert "The file has 400 more rows of this table." in said
    assert "mine, took: took (the first 400 of 700 rows)" in said
    wide = Elements(page([timeline(tmp_path / "w.json", 260, 1)])).text
    assert "512 workers" in wide
    assert "8 more workers in the file: neither drawn nor counted here." in wide
    assert "more workers" not in said
    assert "Not drawn: the shortest bars (800), each of at most 57 us." in said


@pytest.mark.slow
def test_a_plot_of_ratios_has_the_rows_that_changed_most(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        times = np.ones((600, 1)) * (1 + 0.001 * rng.random((600, 1)))
        times[[3, 599]] *= 2 if name == "b" else 1
        write(
            tmp_path / f"{name}.h5",
            name,
            Table("t").dim("n", range(600)).dim("call", [0]).add("s", ("n", "call"), times, "s"),
        )
    changed, *_ = figures(page([str(tmp_path / "a.h5"), str(tmp_path / "b.h5")]))
    labels = changed["layout"]["yaxis"]["ticktext"]
    assert len(labels) == 400
    assert {"n 3", "n 599"} <= set(labels)
    assert changed["height"] < 10_000


def test_a_large_table_takes_bounded_memory():
    large = Table("mine")
    for dim in "abc":
        large.dim(dim, range(200))
    large.add("bytes", ("a", "b", "c"), np.zeros((200, 200, 200), np.uint8), "B")
    tracemalloc.start()
    try:
        said = run_part.part(Run("x", {}, [large]), "r.h5", lambda figure, caption: markup.Markup(), "run-1")
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert f"The file has {200**3 - 300} more rows of this table." in said


@pytest.mark.parametrize("values", [[[np.inf] * 6, [1.0] * 6], [[1e300] * 6, [1e-300] * 6], [[0.0] * 6, [-1.0] * 6]])
def test_odd_times_make_a_page_all_the_same(tmp_path, values):
    for name, of in (("a", values), ("b", values[::-1])):
        mine = Table("mine").dim("n", [np.nan, np.inf]).dim("iteration", range(6))
        write(tmp_path / f"{name}.h5", name, mine.add("took", ("n", "iteration"), of, "s"))
    assert "mine" in page([str(tmp_path / "a.h5"), str(tmp_path / "b.h5")])


def test_the_command_writes_the_page(files, tmp_path, capsys):
    target = tmp_path / "pages" / "report.html"
    assert main(["report", *files, "--out", str(target)]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert target.read_text(encoding="utf-8") == page(files)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["none.h5"], 3, "none.h5` writes one"),
        (["text.h5"], 3, "not an HDF5 file"),
        (["other.h5"], 3, "the results are of another version of Aristos"),
        (["empty.h5"], 2, "holds no run"),
        (["text.json"], 3, "is no timeline"),
        (["first.h5", "--out", "folder"], 3, "folder"),
        (["first.h5", "--out", "first.h5/r.html"], 3, "Not a directory"),
    ],
)
def test_what_is_wrong_with_the_files_is_said_in_one_line(files, tmp_path, monkeypatch, words, code, said, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("text.h5", "text.json"):
        Path(name).write_text("no results")
    Path("folder").mkdir()
    for name, schema in (("other.h5", "aristos-bench/9"), ("empty.h5", "aristos-bench/1")):
        with h5py.File(name, "w") as file:
            file.attrs["schema"] = schema
            file.create_group("runs")
    assert main(["report", *words]) == code
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("out", ["second.h5", "./first.h5", "link", "call.json", "notes"])
def test_a_page_replaces_nothing_but_pages(files, tmp_path, monkeypatch, out, capsys):
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("first.h5")
    Path("notes").write_text("mine")
    before = Path(out).read_bytes()
    assert main(["report", files[0], "--out", out]) == 2
    assert "which is no page: give the page another name" in capsys.readouterr().err
    assert Path(out).read_bytes() == before


def test_a_page_replaces_an_older_one_whole_or_not_at_all(files, tmp_path, monkeypatch, capsys):
    target, link = tmp_path / "report.html", tmp_path / "link.html"
    target.write_bytes(b"")
    target.chmod(0o600)
    link.symlink_to(target)
    assert main(["report", files[0], "--out", str(link)]) == 0
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o600
    before = target.read_bytes()
    assert before == page(files[:1]).encode()
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    capsys.readouterr()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as on a disk that is full
    try:
        assert main(["report", *files, "--out", str(target)]) == 3
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"File too large: '{target}'" in capsys.readouterr().err
    monkeypatch.setattr(library, "script", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["report", *files, "--out", str(target)]) == 130
    assert target.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_data_cannot_end_its_element():
    assert markup.data({"</script>": [float("nan"), "\u2028&"]}) == r'{"\u003c/script\u003e":[null,"\u2028\u0026"]}'

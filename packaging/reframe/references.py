"""Figures of the benchmark's JSON document, and references.yaml written from them.

    python references.py local:mpi output/.../rfm_job.out [MORE.out ...] [--margin 0.2]

The references of that system and partition become the medians over the given files, each what a job printed. With a
margin of 0.2 a time may be 1.2 times as long and a bandwidth 1.2 times as small. References of other partitions stay.
Use the options of the test that will be compared, and several jobs.
"""

import argparse
import json
import pathlib
import re
import statistics
from typing import NamedTuple

FILE = pathlib.Path(__file__).with_name("references.yaml")
TEST = "AristosBench"
HEAD = (
    "# References of aristos_bench.py by system:partition: [value, lower limit, upper limit, unit]. See references.py\n"
)


class Figure(NamedTuple):
    """A measured value. unit: GB/s, of which more is better, or ms or us, of which less is."""

    value: float
    unit: str

    def reference(self, margin):
        """As ReFrame writes it: the value, how much less and how much more are allowed (None: any), the unit."""
        limits = (round(1 / (1 + margin) - 1, 4), None) if self.unit == "GB/s" else (None, margin)
        return [float(f"{self.value:.4g}"), *limits, self.unit]


def document(text):
    """The JSON document in what a job printed, or None. Launchers may print lines before and after it."""
    start = re.search(r"^\{$", text, re.M)
    try:
        return json.JSONDecoder().raw_decode(text[start.start() :])[0] if start else None
    except json.JSONDecodeError:
        return None


def problems(found, ranks, suites, expected=()):
    """Sentences that say what is wrong with a document; none if all is right. expected: names of figures."""
    if found is None:
        return ["no JSON document of aristos.bench in the job's output: see its stderr"]
    wrong = [] if found["ok"] else ["the document says ok: false, so an output was wrong"]
    if found["environment"]["ranks"] != ranks:
        wrong.append(f"{found['environment']['ranks']} ranks ran instead of {ranks}: launcher and MPI may not fit")
    wrong += [f"suite {name} is missing" for name in suites if name not in found["suites"]]
    for name, suite in found["suites"].items():
        rows = [row for table in suite["tables"] for row in table["rows"]]
        if not rows:
            wrong.append(f"suite {name} has no rows")
        wrong += [
            f"suite {name}, row {i}: check is {row['check']}" for i, row in enumerate(rows) if row["check"] != "ok"
        ]
    missing = sorted(set(expected) - set(figures(found)))
    return wrong + [
        f"{name} has a reference, but was not measured: use the options of the reference" for name in missing
    ]


def figures(found):
    """Name -> Figure of the suites put and layer.

    put_TRANSPORT_latency is of the smallest put, put_TRANSPORT_bandwidth of the largest; layer_TOKENS_SCHEDULE is the
    median time of a call.
    """
    taken = {}
    suites = found["suites"]
    for table in suites.get("put", {"tables": []})["tables"]:
        smallest, *_, largest = sorted(table["rows"], key=lambda row: row["size_bytes"])
        taken[f"put_{smallest['transport']}_latency"] = Figure(smallest["latency_us"], "us")
        taken[f"put_{largest['transport']}_bandwidth"] = Figure(largest["bandwidth_gbs"], "GB/s")
    for table in suites.get("layer", {"tables": []})["tables"]:
        for row in table["rows"]:
            taken[f"layer_{row['tokens']}_{row['schedule']}"] = Figure(row["median_ms"], "ms")
    return taken


def medians(documents):
    """Name -> Figure, each the median over documents."""
    pairs = [pair for each in documents for pair in figures(each).items()]
    values = {name: [other.value for named, other in pairs if named == name] for name, _ in pairs}
    return {name: Figure(statistics.median(values[name]), figure.unit) for name, figure in pairs}


def main():
    """Write references of one partition."""
    import yaml

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("partition", metavar="SYSTEM:PARTITION")
    parser.add_argument("outputs", nargs="+", type=pathlib.Path, metavar="OUTPUT", help="what a job printed")
    parser.add_argument("--margin", type=float, default=0.2, help="how much worse is allowed (%(default)s)")
    parser.add_argument("--file", type=pathlib.Path, default=FILE, help="where to write (references.yaml beside this)")
    asked = parser.parse_args()
    documents = [document(path.read_text()) for path in asked.outputs]
    for path, found in zip(asked.outputs, documents):
        if found is None or not found["ok"]:
            parser.error(f"{path} has no JSON document of aristos.bench whose outputs were right")
    kept = yaml.safe_load(asked.file.read_text()) if asked.file.exists() else {}
    new = {name: figure.reference(asked.margin) for name, figure in medians(documents).items()}
    kept.setdefault(TEST, {})[asked.partition] = new
    asked.file.write_text(HEAD + yaml.safe_dump(kept, default_flow_style=None, width=120))
    print(f"{len(new)} references of {asked.partition} in {asked.file}")


if __name__ == "__main__":
    main()

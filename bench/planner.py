"""Measures plans for the tables of docs/planner.md: the objective F of ours and of baselines, a bound, planning time.

python bench/planner.py                        six families of generated clusters
python bench/planner.py --folder PROBLEMS      problem files, compared with their optimum_us if they have one
python bench/planner.py --large                1,024 and 100,000 devices
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from pathlib import Path

from aristos import planner
from aristos.planner import baselines

FAMILIES = ("hierarchical", "heterogeneous", "mixed devices", "degraded", "fragmented", "noisy")
SIZES = (24, 32, 48, 64)


def generated(family: str, n: int, seed: int) -> dict:
    """A problem of one family of clusters. Equal arguments give equal problems."""
    rng = random.Random(f"{family} {n} {seed}")
    width = rng.choice((4, 8))
    node: list[int] = []
    while len(node) < n:
        size = {"fragmented": rng.randint(1, width), "heterogeneous": rng.choice((2, 4, 8))}.get(family, width)
        node += [node[-1] + 1 if node else 0] * size
    node = node[:n]
    leaves = rng.choice((2, 4))
    leaf = [v // leaves for v in node]
    levels = rng.random() < 0.5
    intra = rng.choice(((3.0, 11.65), (3.0, 4.46), (3.0, 20.97)))
    inter = rng.choice(((15.0, 47.66), (10.0, 23.83)))
    across = inter[0] * 1.3, inter[1] * rng.choice((1.5, 2.0))
    rate, memory = [1.0] * n, [rng.choice((12, 20, 26))] * n
    if family == "heterogeneous":
        kind = {v: (rng.choice((0.4, 1.0, 2.5)), rng.choice((9, 12, 26, 60))) for v in sorted(set(node))}
        rate, memory = [kind[v][0] for v in node], [kind[v][1] for v in node]
    elif family == "mixed devices":
        rate = [rng.choice((0.4, 1.0, 2.5)) for _ in node]
        memory = [rng.choice((9, 12, 26, 60)) for _ in node]
    slow_nodes = set(rng.sample(range(node[-1] + 1), rng.choice((1, 2)))) if family == "degraded" else set()
    slow_device = rng.randrange(n) if family == "degraded" and rng.random() < 0.3 else -1
    alpha, beta = [[0.0] * n for _ in range(n)], [[0.0] * n for _ in range(n)]
    for i, j in itertools.combinations(range(n), 2):
        a, b = intra if node[i] == node[j] else across if levels and leaf[i] != leaf[j] else inter
        if node[i] != node[j] and slow_nodes & {node[i], node[j]}:
            b *= 4
        if slow_device in (i, j):
            a, b = 50.0, 209.7
        if family == "noisy":
            a, b = a * rng.uniform(0.75, 1.35), b * rng.uniform(0.75, 1.35)
        alpha[i][j] = alpha[j][i] = a
        beta[i][j] = beta[j][i] = b
    return {
        "name": f"{family}, {n}, {seed}",
        "model": "literal" if seed % 3 == 2 else "work_conserving",
        "experts": rng.choice((64, 64, 128)),
        "layer_cost": rng.choice((400.0, 1900.0)),
        "payload_mib": rng.choice((8.0, 134.0, 134.0)),
        "crossings": 4,
        "stages": 192 * n,
        "gradient_mib": rng.choice((0.0, 19300.0, 19300.0)),
        "devices": [
            {"rate": r, "memory": m, "name": f"n{v}d{i}"} for i, (r, m, v) in enumerate(zip(rate, memory, node))
        ],
        "alpha_us": alpha,
        "beta_us_per_mib": beta,
    }


def large() -> list[dict]:
    """Regular clusters, and one with two kinds of nodes, in compressed form."""

    def node(count: int, devices: int, memory: int, rate: float = 1.0, beta: float = 4.46) -> dict:
        return {
            "count": count,
            "alpha_us": 3,
            "beta_us_per_mib": beta,
            "children": [{"count": devices, "rate": rate, "memory": memory}],
        }

    def switch(children: list[dict], count: int = 1, alpha: float = 15, beta: float = 47.66) -> dict:
        return {"count": count, "alpha_us": alpha, "beta_us_per_mib": beta, "children": children}

    pods = {"alpha": 25.0, "beta": 95.0}
    clusters = {
        "128 nodes of 8": switch([node(128, 8, 26)]),
        "256 nodes of 4, little memory": switch([node(256, 4, 12, beta=11.65)]),
        "16 switches of 8 nodes of 8": switch([switch([node(8, 8, 7)], 16)], alpha=20, beta=70),
        "100 pods of 25 switches of 5 nodes of 8": switch(
            [switch([switch([node(5, 8, 26)], 25)], 100, 20, 70)], **pods
        ),
        "60,000 fast and 40,000 slow": switch(
            [switch([switch([node(5, 8, 26)], 25)], 60, 20, 70), switch([node(20, 4, 12, 0.4, 11.65)], 500)], **pods
        ),
    }
    found = []
    for name, cluster in clusters.items():
        p = {
            "name": name,
            "experts": 64,
            "layer_cost": 1900.0,
            "payload_mib": 134,
            "crossings": 4,
            "stages": 1,
            "gradient_mib": 19300,
            "cluster": cluster,
        }
        found.append({**p, "stages": 192 * planner.parse(p).n})
    return found


def line(p: dict, deadline: float) -> tuple[str, float]:
    """Solve a problem. Returns (its row of the table, the gap)."""
    problem = planner.parse(p)
    started = time.monotonic()
    try:
        plan = planner.solve(problem, deadline_s=deadline)
    except planner.Infeasible:
        return f"| {p['name']} | {problem.n} | infeasible | | | | | | |", 0.0
    seconds = time.monotonic() - started
    known = {name: cost.objective_us for name, (_, cost) in baselines.all_baselines(problem).items()}
    best = p.get("optimum_us") or plan.lower_bound_us
    ratios = [known.get(name, float("nan")) / plan.objective_us for name in reversed(baselines.NAMES)]
    cells = " | ".join("-" if r != r or r == float("inf") else f"{r:.3f}" for r in ratios)
    return (
        f"| {p['name']} | {problem.n} | {best / 1e6:.6g} | {plan.objective_us / 1e6:.6g} | {100 * plan.gap:.2f} % |"
        f" {cells} | {seconds:.1f} |"
    ), plan.gap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="solve the problem files in this folder")
    parser.add_argument("--large", action="store_true", help="solve clusters of 1,024 and 100,000 devices")
    parser.add_argument("--deadline", type=float, default=60.0, help="seconds for each plan (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="clusters of each family and size (%(default)s)")
    asked = parser.parse_args()
    if asked.folder:
        problems = [{"name": path.stem, **json.loads(path.read_text())} for path in sorted(asked.folder.glob("*.json"))]
    elif asked.large:
        problems = large()
    else:
        problems = [generated(f, n, s) for f in FAMILIES for n in SIZES for s in range(asked.seeds)]
    print("| instance | devices | optimum or bound, s | ours, s | gap | 2024 greedy | per node | one group | time, s |")
    print("|---|---|---|---|---|---|---|---|---|")
    gaps = []
    for p in problems:
        row, gap = line(p, asked.deadline)
        gaps.append(gap)
        print(row, flush=True)
    print(f"\n{len(gaps)} instances: gap median {100 * statistics.median(gaps):.2f} %, worst {100 * max(gaps):.2f} %")


if __name__ == "__main__":
    main()

"""Parts that the planner's tests share: random problems, and an independent computation of F.

`price` and `best` do not use the package, only lists, loops and the formulas.
"""

from __future__ import annotations

import itertools
import math
import random

Data = dict


def draw(seed: int, n: int, *, model: str = "work_conserving", integers: bool = False) -> Data:
    """A random problem as a file would hold it: nodes of random sizes, and links of two classes, some with noise."""
    rng = random.Random(seed)
    node, at = [], 0
    while len(node) < n:
        node += [at] * rng.randint(1, 4)
        at += 1
    node = node[:n]
    noisy, flat = rng.random() < 0.4, rng.random() < 0.2
    alpha, beta = [[0.0] * n for _ in range(n)], [[0.0] * n for _ in range(n)]
    for i, j in itertools.combinations(range(n), 2):
        a, b = (3.0, 11.6) if node[i] == node[j] or flat else (15.0, 47.6)
        if noisy:
            a, b = a * rng.uniform(0.7, 1.4), b * rng.uniform(0.7, 1.4)
        if integers:
            a, b = rng.randint(0, 2), rng.randint(0, 2)
        alpha[i][j] = alpha[j][i] = a
        beta[i][j] = beta[j][i] = b
    experts = rng.choice((4, 16, 64))
    return {
        "model": model,
        "experts": experts,
        "layer_cost": rng.choice((40.0, 400.0, 1900.0)),
        "payload_mib": rng.choice((0, 8.0, 134)),
        "crossings": rng.choice((2, 4)),
        "stages": rng.choice((n, 192 * n)),
        "gradient_mib": rng.choice((0, 100.0, 19300)),
        "devices": [
            {"rate": rng.choice((0.4, 1.0, 2.5)), "memory": rng.randint(0, experts) + (4 * experts) // n}
            for _ in range(n)
        ],
        "alpha_us": alpha,
        "beta_us_per_mib": beta,
    }


def stage(p: Data, group: tuple[int, ...], model: str) -> float:
    """pi + max C of a group; infinite if it cannot hold all experts. Devices without memory compute nothing."""
    if sum(p["devices"][j]["memory"] for j in group) < p["experts"]:
        return math.inf
    s = len(group)
    rates = sum(p["devices"][j]["rate"] for j in group if p["devices"][j]["memory"])
    pi = (s if model == "work_conserving" else 1) * p["layer_cost"] / rates
    worst = 0.0
    for i in group:
        c = sum(p["alpha_us"][i][j] + p["beta_us_per_mib"][i][j] * p["payload_mib"] / s for j in group if j != i)
        worst = max(worst, p["crossings"] * c)
    return pi + worst


def by_slowness(p: Data) -> list[tuple[int, int]]:
    """Pairs of devices, the slowest link first; equal links in the order of their devices."""
    half = (p["gradient_mib"] or 0) / 2
    pairs = itertools.combinations(range(len(p["devices"])), 2)
    return sorted(pairs, key=lambda ij: -(p["alpha_us"][ij[0]][ij[1]] + p["beta_us_per_mib"][ij[0]][ij[1]] * half))


def reduction(p: Data, k: int, link: tuple[int, int] | None) -> float:
    if k == 1 or link is None or p["gradient_mib"] is None:
        return 0.0
    i, j = link
    return 2 * (k - 1) * (p["alpha_us"][i][j] + p["beta_us_per_mib"][i][j] * p["gradient_mib"] / k)


def price(p: Data, groups: list[list[int]], model: str, allreduce: str) -> float:
    """F of a partition."""
    where = {i: g for g, members in enumerate(groups) for i in members}
    pairs = by_slowness(p)
    if allreduce == "crossing":
        pairs = [(i, j) for i, j in pairs if where[i] != where[j]]
    longest = max(stage(p, tuple(sorted(g)), model) for g in groups)
    return p["stages"] / len(p["devices"]) * longest + reduction(p, len(groups), pairs[0] if pairs else None)


def best(p: Data, model: str, allreduce: str) -> float:
    """The least F of all partitions, tried one by one; infinite if none can hold all experts."""
    n = len(p["devices"])
    kappa = p["stages"] / n
    price_of = [0.0] + [stage(p, tuple(i for i in range(n) if mask >> i & 1), model) for mask in range(1, 1 << n)]
    pairs = by_slowness(p)
    found = math.inf

    def rest(left: int, groups: list[int], longest: float) -> None:
        nonlocal found
        if kappa * longest >= found:
            return  # T_rho is never negative
        if not left:
            link = pairs[0] if pairs else None
            if allreduce == "crossing" and len(groups) > 1:
                link = next((i, j) for i, j in pairs if not any(g >> i & g >> j & 1 for g in groups))
            found = min(found, kappa * longest + reduction(p, len(groups), link))
            return
        low = left & -left
        others = left ^ low
        sub = others
        while True:
            if price_of[sub | low] < math.inf:
                rest(left ^ (sub | low), [*groups, sub | low], max(longest, price_of[sub | low]))
            if not sub:
                return
            sub = (sub - 1) & others

    rest((1 << n) - 1, [], 0.0)
    return found


def relabel(p: Data, order: list[int]) -> Data:
    """The same problem, in which device order[i] has number i."""
    moved = {key: [[p[key][i][j] for j in order] for i in order] for key in ("alpha_us", "beta_us_per_mib")}
    return {**p, **moved, "devices": [p["devices"][i] for i in order]}


def partitions(n: int):
    """Every partition of range(n), each once."""
    if n == 0:
        yield []
        return
    for rest in partitions(n - 1):
        for at in range(len(rest)):
            yield [*rest[:at], [*rest[at], n - 1], *rest[at + 1 :]]
        yield [*rest, [n - 1]]


def longest_stages(p: Data, model: str) -> dict[int, float]:
    """Number of groups -> the shortest possible longest stage; only numbers whose groups can hold all experts."""
    n = len(p["devices"])
    known = {g: stage(p, g, model) for r in range(1, n + 1) for g in itertools.combinations(range(n), r)}
    found: dict[int, float] = {}
    for groups in partitions(n):
        longest = max(known[tuple(g)] for g in groups)
        if longest < found.get(len(groups), math.inf):
            found[len(groups)] = longest
    return found


def idle(p: Data, seed: int) -> Data:
    """The problem with no memory on a third of the devices, and with more memory on the others."""
    rng = random.Random(seed)
    devices = [{**d, "memory": d["memory"] * 2 + 1} for d in p["devices"]]
    for i in rng.sample(range(len(devices)), len(devices) // 3):
        devices[i]["memory"] = 0
    return {**p, "devices": devices}


def placed(p: Data, group: list[int], placement: dict[int, list[int]], model: str) -> tuple[float, float]:
    """(pi, max C) of a group with this placement.

    A source's load is divided among the experts. Of an expert's copies, the source at place i of the group uses copy i
    mod (number of copies). Half of the crossings carry rows, the other half their outputs.
    """
    s, loads = len(group), p.get("loads") or [1.0] * p["experts"]
    work = (s if model == "work_conserving" else 1) * p["layer_cost"]
    sent = {(i, j): 0.0 for i in group for j in group}
    for at, i in enumerate(group):
        for e, owners in placement.items():
            sent[i, owners[at % len(owners)]] += loads[e] / sum(loads)
    pi = max(work / s * sum(sent[i, j] for i in group) / p["devices"][j]["rate"] for j in group)
    worst = 0.0
    for i in group:
        c = sum(
            p["alpha_us"][i][j] + p["beta_us_per_mib"][i][j] * p["payload_mib"] * (sent[i, j] + sent[j, i]) / 2
            for j in group
            if j != i
        )
        worst = max(worst, p["crossings"] * c)
    return pi, worst


def busiest(p: Data, group: list[int], copies: int, model: str) -> float:
    """pi if each device's share of experts, by rate and within memory, is rounded up to a multiple of 1 / copies."""
    s, e = len(group), p["experts"]
    work = (s if model == "work_conserving" else 1) * p["layer_cost"]
    room = {j: min(p["devices"][j]["memory"], e) / copies for j in group}
    rate = {j: p["devices"][j]["rate"] for j in group}
    low, high = 0.0, e / min(rate.values())
    for _ in range(200):  # bisect for the time in which the devices compute all experts together
        middle = (low + high) / 2
        done = sum(min(room[j], middle * rate[j]) for j in group)
        low, high = (middle, high) if done < e else (low, middle)
    up = {j: math.ceil(min(room[j], high * rate[j]) * copies - 1e-6) / copies for j in group}
    return work / e * max(up[j] / rate[j] for j in group)

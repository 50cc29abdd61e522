"""A plan as text: a table of groups, the terms, the bottleneck, and changes that would shorten the step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kernel_cache.texts import ranges

from .cost import communication, evaluate, links_to
from .placing import places
from .plan import Plan
from .terms import comm_us, share_mib

EQUAL = 1e-9  # relative difference up to which times count as equal, because sums differ in their last bits
MOST_GROUPS = 24  # the most lines of the table; of more groups, those with the longest stages are shown


def seconds_text(us: float) -> str:
    """A time in a fitting unit: 12.3 us, 4.56 ms, 7.89 s."""
    for unit, scale in (("s", 1e6), ("ms", 1e3)):
        if abs(us) >= scale:
            return f"{us / scale:.4g} {unit}"
    return f"{us:.4g} us"


def report(plan: Plan, seconds: float) -> str:
    """The whole report. seconds: how long solving took."""
    cost, k = plan.cost, len(plan.groups)
    reduce_us = f"all-reduce {seconds_text(cost.allreduce_us)}" if k > 1 else "no all-reduce"
    lines = [
        f"{k} group{'s' * (k > 1)} of {plan.problem.n} devices, {plan.objective}, found in {seconds:.1f} s"
        f" ({plan.method})",
        f"a step takes {seconds_text(plan.objective_us)}, with any plan at least {seconds_text(plan.lower_bound_us)}"
        f" (gap {100 * plan.gap:.2f} %): kappa {cost.kappa:.6g} stages, {reduce_us}",
        whole_experts(plan),
        "",
        f"{'group':>5}  {'devices':>7}  {'compute':>10}  {'network':>10}  {'experts':>7}  members",
    ]
    shown = list(range(k))
    if k > MOST_GROUPS:
        shown = sorted(int(g) for g in np.argsort(-(cost.pi_us + cost.comm_us), kind="stable")[:MOST_GROUPS])
    for g in shown:
        times = f"{seconds_text(cost.pi_us[g]):>10}  {seconds_text(cost.comm_us[g]):>10}"
        lines.append(f"{g:>5}  {len(plan.groups[g]):>7}  {times}  {held(plan, g):>7}  {ranges(plan.groups[g])}")
    if k > MOST_GROUPS:
        lines.append(f"       and {k - MOST_GROUPS} more groups, whose stages are not longer")
    return "\n".join([*lines, "", explain(plan)])


def held(plan: Plan, group: int) -> str:
    """The number of experts and copies that each device of a group holds: one number, or the least and the most."""
    members = np.array(plan.groups[group])
    found = np.bincount([d for each in places(plan.problem, members) for d in each], minlength=len(members))
    least, most = int(found.min()), int(found.max())
    return f"{least}" if least == most else f"{least}-{most}"


def whole_experts(plan: Plan) -> str:
    """The step that the placement gives, why it differs from the objective, and the memory that an expert takes."""
    mine, cost, problem = plan.achieved, plan.cost, plan.problem
    text = f"with whole experts, and tokens sent as the layer sends them: {seconds_text(mine.step_us)}"
    more = mine.step_us - plan.objective_us
    if plan.objective_us > 0 and abs(more) > EQUAL * plan.objective_us:
        text += f" ({100 * more / plan.objective_us:+.2g} %)"
        g = int(np.argmax(mine.pi_us + mine.comm_us))
        if cost.pi_us[g] > 0 and mine.pi_us[g] > cost.pi_us[g] * (1 + EQUAL):
            over = mine.pi_us[g] / cost.pi_us[g]
            text += f"; the busiest device of group {g} computes {over:.3g} times its share of Equation 1"
    if problem.expert_gb is not None:
        text += f"\nan expert takes {problem.expert_gb:.3g} GB in all layers; experts that fit into a device: "
        text += ranges(sorted({int(m) for m in problem.memory}))
    return text


def explain(plan: Plan) -> str:
    """The bottleneck's device and term, and a change that would shorten the step."""
    found = plan.bottleneck
    term, device, group = found["term"], found["device"], found["group"]
    name, cost, problem = plan.problem.device(device), plan.cost, plan.problem
    if term == "allreduce":
        i, j = cost.link or (device, device)
        what = (
            f"the all-reduce among {len(plan.groups)} groups, {seconds_text(cost.allreduce_us)} of the step, over the"
            f" slowest link, {problem.device(i)} to {problem.device(j)}"
        )
        half = cost.objective_us - cost.allreduce_us / 2
        return (
            f"bottleneck: {what}. With that link twice as fast, a step takes {seconds_text(half)} with the same groups."
        )
    stages = cost.pi_us + cost.comm_us
    stage = stages[group]
    if term == "pi":
        text = f"compute of group {group}, {seconds_text(cost.pi_us[group])} of its stage's {seconds_text(stage)}"
        text += f"; its slowest device is {name} at rate {problem.rate[device]:g}"
    else:
        text = f"the links of {name} in group {group}: {seconds_text(cost.comm_us[group])} of the stage's"
        text += f" {seconds_text(stage)}"
    tied = [int(g) for g in np.flatnonzero(stages >= stage * (1 - EQUAL)) if g != group]
    if tied:
        text += f"; group{'s' * (len(tied) > 1)} {ranges(tied)} take{'s' * (len(tied) == 1)} as long"
    return f"bottleneck: {text}. {_twice_the_rate(plan, device) if term == 'pi' else _twice_the_links(plan, group)}"


def _twice_the_rate(plan: Plan, device: int) -> str:
    """The step's time with the same groups if the device were twice as fast."""
    rate = plan.problem.rate.copy()
    rate[device] *= 2
    after = evaluate(replace(plan.problem, rate=rate), plan.groups, plan.objective, plan.allreduce)
    text = f"With twice the rate, a step takes {seconds_text(after.objective_us)} with the same groups"
    return f"{text}{_then(plan, after.slowest)}."


def _twice_the_links(plan: Plan, group: int) -> str:
    """The step's time with the same groups if the worst device's links within its group were twice as fast."""
    problem, cost = plan.problem, plan.cost
    device, members = int(cost.worst[group]), np.array(plan.groups[group])
    others = members[members != device]
    group_of = np.full(problem.n, -1, np.int64)
    for g, each in enumerate(plan.groups):
        group_of[each] = g
    pays = communication(problem, group_of, np.bincount(group_of))
    alpha, beta = links_to(problem, device, others).T
    pays[others] -= comm_us(problem.crossings, alpha, beta, share_mib(problem.payload_mib, len(members))) / 2
    pays[device] /= 2
    comm = cost.comm_us.copy()
    comm[group] = pays[members].max()
    stage = cost.pi_us + comm
    after = cost.kappa * float(stage.max()) + cost.allreduce_us
    text = (
        f"With the device's links in the group twice as fast, a step takes {seconds_text(after)} with the same groups"
    )
    slowest, next_device = int(np.argmax(stage)), int(members[np.argmax(pays[members])])
    if slowest == group and next_device != device:
        return f"{text}; {problem.device(next_device)} would then be the slowest in that group."
    return f"{text}{_then(plan, slowest)}."


def _then(plan: Plan, slowest: int) -> str:
    """Text that names the slowest group after the change, `slowest`; '' if it was the slowest before too."""
    return f"; group {slowest} would then be the slowest" if slowest != plan.cost.slowest else ""

"""The terms of Equation 1, each written once. Costs, searches, the exact solver and the bounds all call these.

In Python the functions take numbers or NumPy arrays, in compiled loops numbers. The bounds rely on three properties,
which a change here must keep:

- `pi_us` grows with the size if `grows`, and falls with the rates. `rates_for` and `rate_each` are its inverses: change
  all three.
- `comm_us` is linear in alpha and beta, so a device's C is the same whether its partners' alphas and betas or their
  times are summed. It falls with the size of the group only through `share_mib`.
- A stage is pi + max C: `bounds`, `columns` and `reducing` subtract C from a stage's limit.
"""

from __future__ import annotations

from typing import Any

from numba.extending import register_jitable

term = register_jitable(error_model="numpy")


@term
def pi_us(layer_cost: Any, size: Any, rates: Any, grows: bool) -> Any:
    """Compute time of a stage of `size` devices with this sum of rates.

    grows: whether the objective is `work_conserving` rather than `literal`."""
    return (size if grows else 1) * layer_cost / rates


@term
def rates_for(layer_cost: Any, size: Any, limit_us: Any, grows: bool) -> Any:
    """The sum of rates with which pi equals limit_us, which must be positive."""
    return (size if grows else 1) * layer_cost / limit_us


@term
def rate_each(layer_cost: Any, size: Any, limit_us: Any, grows: bool) -> Any:
    """The result of `rates_for` divided by the number of devices."""
    return layer_cost / limit_us / (1 if grows else size)


@term
def share_mib(payload_mib: Any, size: Any) -> Any:
    """The MiB that a device of a group sends each partner in one crossing."""
    return payload_mib / size


@term
def link_us(alpha: Any, beta: Any, mib: Any) -> Any:
    """The time of one message over a link; or over several links, from their sums of alpha and of beta."""
    return alpha + beta * mib


@term
def comm_us(crossings: Any, alpha: Any, beta: Any, share: Any) -> Any:
    """C of a device, from sums of alpha and beta over its partners. Those of one link give one partner's part of C."""
    return crossings * link_us(alpha, beta, share)


@term
def allreduce_us(k: Any, alpha: Any, beta: Any, gradient_mib: Any) -> Any:
    """T_rho among k groups over a link; 0 if gradient_mib is None, because then nothing is reduced."""
    return 0.0 if gradient_mib is None else 2.0 * (k - 1) * (alpha + beta * gradient_mib / k)


@term
def slowness(alpha: Any, beta: Any, gradient_mib: Any) -> Any:
    """The time of one message of T_rho between two groups. The slowest link is the one with the largest such time."""
    return link_us(alpha, beta, 0.0 if gradient_mib is None else gradient_mib / 2)

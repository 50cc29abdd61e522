"""Whether moving tokens to experts takes fewer bytes in a layer than moving experts' weights to tokens.

Moving tokens sends each token to the devices of its k experts and returns the outputs. Moving weights (Janus, SIGCOMM
2023) fetches every expert that a device lacks once for all its tokens. This module compares the bytes that a device
sends and receives in one forward call. Which way takes fewer depends on the batch, not on the network.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Moving:
    """The comparison. token_bytes, weight_bytes: of one device and layer in one forward call.

    move: "tokens" or "weights", whichever takes fewer bytes."""

    token_bytes: float
    weight_bytes: float

    @property
    def move(self) -> str:
        return "tokens" if self.token_bytes <= self.weight_bytes else "weights"


def compare(
    tokens: int, hidden: int, ffn: int, experts: int, top_k: int, gated: bool, group: int, itemsize: int = 2
) -> Moving:
    """Bytes of both ways for one device of a group of `group` devices that share the experts evenly.

    tokens: the number of a device's tokens in a call. With even routing a choice is remote with probability 1 -
    1/group. A token is sent once for each of its choices, and each output returns. An expert has 2 (gated: 3) matrices
    of hidden x ffn. Experts that no token of the device chose are not fetched.
    """
    remote = 1 - 1 / group
    token_bytes = 2.0 * tokens * top_k * remote * hidden * itemsize
    wanted = 1 - (1 - top_k / experts) ** tokens  # probability that some token of the device chooses an expert
    weight_bytes = experts * remote * wanted * (3 if gated else 2) * hidden * ffn * itemsize
    return Moving(token_bytes, weight_bytes)

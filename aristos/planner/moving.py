"""Per layer: is it less to move tokens to experts, or experts' weights to tokens?

Moving tokens sends each to the devices of its k experts and brings the outputs back; moving weights (Janus, SIGCOMM
2023) fetches every expert that a device lacks, once for all its tokens. Both are bytes that a device receives and sends
in one forward call; the answer turns with the batch, not with the network.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Moving:
    """token_bytes, weight_bytes: of one device and layer, forward. move: "tokens" or "weights", whichever is less."""

    token_bytes: float
    weight_bytes: float

    @property
    def move(self) -> str:
        return "tokens" if self.token_bytes <= self.weight_bytes else "weights"


def compare(
    tokens: int, hidden: int, ffn: int, experts: int, top_k: int, gated: bool, group: int, itemsize: int = 2
) -> Moving:
    """Bytes of both ways for one device of a group of so many that share the experts evenly.

    tokens: a device brings to a call. Under even routing a token's choice is remote with probability 1 - 1/group; a
    token travels there once for each of its choices, and its output comes back. An expert has 2 (gated: 3) matrices of
    hidden x ffn; those of experts that no token of the device chose stay where they are.
    """
    remote = 1 - 1 / group
    token_bytes = 2.0 * tokens * top_k * remote * hidden * itemsize
    wanted = 1 - (1 - top_k / experts) ** tokens  # of an expert, by any token of the device
    weight_bytes = experts * remote * wanted * (3 if gated else 2) * hidden * ffn * itemsize
    return Moving(token_bytes, weight_bytes)

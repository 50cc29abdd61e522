"""The arithmetic that steps call: names and arguments. A substrate provides the implementations.

On CPUs `kernels/cpu/lowering.py` registers a compiled function for each name; the schedule explorer replaces them by
hashes. A GPU's blocks compute in the persistent kernel and call none of these. kernels: the job's word KERNELS.
weights: the addresses (up, gate, down, up_bias, gate_bias, down_bias) of one expert, 0 for absent tensors.
"""

BACKWARD_WEIGHTS_BYTES = 9 * 8  # of one expert's addresses for `backward_rows`


def _missing(name):
    raise NotImplementedError(f"nothing computes {name}: import aristos.kernels.cpu.lowering before the steps run")


def route_block(
    kernels, count, x, x_stride, hidden, router, experts, k, score, renormalize, scale, router_bias, select_bias,
    ids, weights, pitch, logits, scratch,
):  # fmt: skip
    """Choose k experts for each of `count` tokens; False if a score is not finite. ids, weights: addresses of
    [count, pitch] int64 and float32, whose first k columns are written. score: `rule` of kernels/common/scores.py.
    scale: bits of a float32. router_bias, select_bias: addresses of [experts] float32, 0 for absent ones. logits: where
    the scores go, [count, experts] float32, or 0. scratch: BLOCK_BYTES of `kernels.cpu.entries`, then
    `kernels.cpu.tokens.route_bytes` bytes.
    """
    _missing("route_block")


def weigh_shared(kernels, count, x, x_stride, hidden, column, weights, pitch, scratch):
    """Write the logistic function of x column, for `count` tokens, at `weights`, `pitch` float32 apart; False if a
    product is not finite. column: address of a packed [hidden, 1]; scratch as of `route_block`.
    """
    _missing("weigh_shared")


def weigh_row(kernels, y, weight, x, hidden, scratch):
    """y[hidden] = weight * x, rounded to the element type. y, weight, x: addresses, of a float32 and of rows."""
    _missing("weigh_row")


def expert_rows(kernels, rows, x, y, weights, activation, hidden, ffn, scratch, wire, kept):
    """Run one expert on `rows` rows. x, y: addresses of arrays of row addresses.

    kept: address of an array of entries of `primitives.taped`, or 0: where the products with up and gate are kept, to
    which the activation function is not applied yet.
    """
    _missing("expert_rows")


def backward_rows(kernels, rows, x, y, places, scalars, weights, activation, hidden, ffn, scratch, wire, kept):
    """Compute `rows` rows [dy | x] of one expert backwards: dx to y, what its weights' gradients need to `places`.

    x, y, places: addresses of arrays of row addresses. scalars: address of an array of words, the combine weights as
    float32 bits, which become their gradients. weights: address of the nine addresses (up, gate, down, up_bias,
    gate_bias, down_bias, then up, gate, down transposed). kept: address of an array of entries of `primitives.taped`,
    or 0: what the forward call has kept of the rows. A row is [dy] if x is kept.
    """
    _missing("backward_rows")


def up_columns(kernels, rows, x, activations, weights, activation, hidden, ffn, first, columns, scratch, wire, kept):
    """Compute hidden activations first..first+columns of a column-split run. kept: as of `expert_rows`."""
    _missing("up_columns")


def down_columns(kernels, rows, activations, y, weights, ffn, first, last, scratch, wire):
    """Compute output columns first..last of a column-split run."""
    _missing("down_columns")


def combine_token(kernels, y, k, weights, rows, hidden, scratch):
    """y[hidden] = sum over j of weights[j] * row j, in order.

    weights: address of [k] float32; rows: address of [k] addresses, 0 for a choice not taken.
    """
    _missing("combine_token")

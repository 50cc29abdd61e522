"""The arithmetic that steps call by name. Written by `python -m aristos.engine.generate`: do not edit.

A function takes the address of an element type's kernels, which the job's word KERNELS holds, and a record that names
the other arguments. On CPUs `kernels/cpu/lowering.py` registers a compiled function for each name. The schedule
explorer replaces the functions by hashes. A GPU's blocks compute in the persistent kernel and call none of them.
"""

from typing import NamedTuple

BACKWARD_WEIGHTS_BYTES = 72  # size of one expert's addresses in a call of `backward_rows`


def _missing(name):
    raise NotImplementedError(f"nothing computes {name}: import aristos.kernels.cpu.lowering before the steps run")


class ExpertWeights(NamedTuple):
    """Addresses of one expert's packed weights."""

    up: int  # address: up projection
    gate: int  # address: gate projection, 0: none
    down: int  # address: down projection
    up_bias: int  # address: bias of the up projection, 0: none
    gate_bias: int  # address: bias of the gate projection, 0: none
    down_bias: int  # address: bias of the down projection, 0: none


class TransposedWeights(NamedTuple):
    """Addresses of one expert's packed weights, transposed."""

    up: int  # address: up projection
    gate: int  # address: gate projection, 0: none
    down: int  # address: down projection


class RouteBlock(NamedTuple):
    """Arguments of `route_block`."""

    tokens: int  # tokens: tokens of the block
    x: int  # address: rows that the router reads
    x_stride: int  # bytes: distance between rows of ROUTER_X
    hidden: int  # columns: width of a row
    router: int  # address: packed router weights, float32, 0: none
    experts: int  # experts: experts that have a score
    k: int  # choices: experts that are chosen for a token
    score: int  # the score and the groups of experts, see `rule` in kernels/common/scores.py
    renormalize: int  # flag: the k weights of a token are divided by their sum
    scale: int  # factor by which weights are multiplied, as bits of a float32
    router_bias: int  # address: [experts] float32, added to scores, 0: none
    select_bias: int  # address: [experts] float32, added to weights only to choose experts, 0: none
    ids: int  # address: [tokens, pitch] int64, whose first k columns are written
    weights: int  # address: [tokens, pitch] float32, whose first k columns are written
    pitch: int  # columns: columns of ids and weights
    logits: int  # address: [tokens, experts] float32, where scores are kept, 0: nowhere
    scratch: int  # address: memory of the size `route_bytes` of kernels/cpu/tokens.py


class ExpertRows(NamedTuple):
    """Arguments of `expert_rows`."""

    rows: int  # rows: rows to compute
    x: int  # address: addresses of the rows
    y: int  # address: addresses of their outputs
    weights: ExpertWeights  # addresses: the expert's weights
    activation: int  # the activation and its limit
    hidden: int  # columns: width of a row
    ffn: int  # columns: width of the hidden activations
    scratch: int  # address: memory of the size `run_bytes` of kernels/cpu/entries.py
    wire: int  # address: the wire to remote peers, 0: none; see primitives/wire.py
    kept: int  # address: entries (primitives/taped.py) that say where products with up and gate are kept, 0: nowhere


class UpColumns(NamedTuple):
    """Arguments of `up_columns`."""

    rows: int  # rows: rows of the run
    x: int  # address: addresses of the rows
    activations: int  # address: hidden activations of the run
    weights: ExpertWeights  # addresses: the expert's weights
    activation: int  # the activation and its limit
    hidden: int  # columns: width of a row
    ffn: int  # columns: width of the hidden activations
    first: int  # column: first column of the hidden activations to compute
    columns: int  # columns: number of columns to compute
    scratch: int  # address: memory of the size `run_bytes` of kernels/cpu/entries.py
    wire: int  # address: the wire to remote peers, 0: none; see primitives/wire.py
    kept: int  # address: as for `expert_rows`


class DownColumns(NamedTuple):
    """Arguments of `down_columns`."""

    rows: int  # rows: rows of the run
    activations: int  # address: hidden activations of the run
    y: int  # address: addresses of the outputs
    weights: ExpertWeights  # addresses: the expert's weights
    ffn: int  # columns: width of the hidden activations
    first: int  # column: first column of the outputs to compute
    last: int  # column: the column after the last one to compute
    scratch: int  # address: memory of the size `run_bytes` of kernels/cpu/entries.py
    wire: int = 0  # address: the wire to remote peers, 0: none; see primitives/wire.py


class CombineToken(NamedTuple):
    """Arguments of `combine_token`."""

    y: int  # address: the output row
    k: int  # choices: choices of the token
    weights: int  # address: [k] float32
    rows: int  # address: [k] addresses of rows, 0 for a choice without a row
    hidden: int  # columns: width of a row
    scratch: int  # address: memory of the size `combine_bytes` of kernels/cpu/tokens.py


class Product(NamedTuple):
    """Arguments of `product`."""

    rows: int  # rows: rows of x
    x: int  # address: addresses of the rows
    depth: int  # columns: width of a row of x
    panels: int  # address: the packed matrix
    columns: int  # columns: width of a row of y
    y: int  # address: addresses of the rows of y
    scratch: int  # address: memory of the size `product_bytes` of kernels/cpu/entries.py


class WeighShared(NamedTuple):
    """Arguments of `weigh_shared`."""

    tokens: int  # tokens: tokens of the block
    x: int  # address: rows of the tokens
    x_stride: int  # bytes: distance between rows of INPUT
    hidden: int  # columns: width of a row
    column: int  # address: packed column w: the shared output is weighted by sigmoid(x w). 0: the weight is 1
    weights: int  # address: the float32 weights that are written
    pitch: int  # columns: distance from one weight to the next
    scratch: int  # address: memory of the size `route_bytes` of kernels/cpu/tokens.py


class BackwardRows(NamedTuple):
    """Arguments of `backward_rows`."""

    rows: int  # rows: rows to compute
    x: int  # address: addresses of the rows
    y: int  # address: addresses of the rows of dx
    places: int  # address: addresses of the rows' places in the store
    scalars: int  # address: words with combine weights as float32 bits; their gradients are written over them
    weights: int  # address: the expert's ExpertWeights, then its TransposedWeights
    activation: int  # the activation and its limit
    hidden: int  # columns: width of a row
    ffn: int  # columns: width of the hidden activations
    scratch: int  # address: memory of the size `store_bytes` of kernels/cpu/expert_backward.py
    wire: int  # address: the wire to remote peers, 0: none; see primitives/wire.py
    kept: int  # address: entries (primitives/taped.py) that say what the forward call has kept of the rows, 0: nothing


class WeighRow(NamedTuple):
    """Arguments of `weigh_row`."""

    y: int  # address: the row that is written
    weight: int  # address: a float32
    x: int  # address: the row that is weighted
    hidden: int  # columns: width of a row
    scratch: int  # address: memory of the size `combine_bytes` of kernels/cpu/tokens.py


class ExpertBlocks(NamedTuple):
    """Arguments of `expert_blocks`."""

    rows: int  # rows: rows to compute, any number
    x: int  # address: addresses of the rows
    dy: int  # address: addresses of the gradients of the rows' outputs
    w: int  # address: [rows] float32: combine weights
    dx: int  # address: addresses of the rows of dx, which are written
    dw: int  # address: [rows] float32: gradients of combine weights, which are written
    weights: ExpertWeights  # addresses: the expert's weights
    transposed: TransposedWeights  # addresses: the expert's weights, transposed
    gradients: tuple[int, ...]  # addresses: gradients of the expert's weights, 0: none
    activation: int  # the activation and its limit
    hidden: int  # columns: width of a row
    ffn: int  # columns: width of the hidden activations
    carry: int  # flag: 1: the call adds to the gradients in memory. 0: it overwrites them
    saved: int  # address: memory of the size `saved_bytes` of the kernel's module
    scratch: int  # address: memory of the size `blocks_bytes` of the kernel's module


def route_block(kernels, call):
    """Choose experts and weights for a block of tokens. Returns False if a score is not finite."""
    _missing("route_block")


def expert_rows(kernels, call):
    """Run one expert on rows."""
    _missing("expert_rows")


def up_columns(kernels, call):
    """Compute some hidden activations of a column-split run."""
    _missing("up_columns")


def down_columns(kernels, call):
    """Compute some output columns of a column-split run."""
    _missing("down_columns")


def combine_token(kernels, call):
    """Write y[hidden], the sum over j of weights[j] * row j, in order."""
    _missing("combine_token")


def weigh_shared(kernels, call):
    """Write sigmoid(x w) of each token's row x and a column w. Returns False if a product is not finite."""
    _missing("weigh_shared")


def backward_rows(kernels, call):
    """Compute one expert's rows [dy | x] backwards, or [dy] if the tape has x."""
    _missing("backward_rows")


def weigh_row(kernels, call):
    """Write y[hidden] = weight * x, rounded to the element type."""
    _missing("weigh_row")

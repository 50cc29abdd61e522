"""How arguments cross to compiled kernels. Written by `python -m aristos.engine.generate`: do not edit.

A block of words holds a call: result, error, then its arguments in order. put_NAME writes the record of the call
NAME into the block at the record's scratch. NAME_at reads the record from a block.
"""

from kernel_cache.compile import inlined

from ...primitives import memory as mem
from ...primitives.arithmetic import (
    BackwardRows,
    CombineToken,
    DownColumns,
    ExpertRows,
    ExpertWeights,
    Product,
    RouteBlock,
    TransposedWeights,
    UpColumns,
    WeighShared,
)

# numbers of the kernels
ROUTE_BLOCK = 0
EXPERT_ROWS = 1
UP_COLUMNS = 2
DOWN_COLUMNS = 3
COMBINE_TOKEN = 4
PRODUCT = 5
WEIGH_SHARED = 6
BACKWARD_ROWS = 7
HEAD_WORDS = 2  # words before a block's arguments: result, error
BLOCK_BYTES = 192  # size of a block, in whole lines
SPARE = BLOCK_BYTES - 8  # place of a word that no call uses


def flat(record):
    """The words of a record in order, for a block that does not lie in the record's scratch."""
    return [word for each in record for word in (each if isinstance(each, tuple) else (each,))]


@inlined
def expert_weights_at(weights):
    """Read the ExpertWeights of an expert of a backward call."""
    return ExpertWeights(
        up=mem.load(weights + 0),
        gate=mem.load(weights + 8),
        down=mem.load(weights + 16),
        up_bias=mem.load(weights + 24),
        gate_bias=mem.load(weights + 32),
        down_bias=mem.load(weights + 40),
    )


@inlined
def transposed_weights_at(weights):
    """Read the TransposedWeights of an expert of a backward call."""
    return TransposedWeights(
        up=mem.load(weights + 48),
        gate=mem.load(weights + 56),
        down=mem.load(weights + 64),
    )


@inlined
def put_route_block(call):
    """Write the arguments of `route_block`."""
    mem.store(call.scratch + 16, call.tokens)
    mem.store(call.scratch + 24, call.x)
    mem.store(call.scratch + 32, call.x_stride)
    mem.store(call.scratch + 40, call.hidden)
    mem.store(call.scratch + 48, call.router)
    mem.store(call.scratch + 56, call.experts)
    mem.store(call.scratch + 64, call.k)
    mem.store(call.scratch + 72, call.score)
    mem.store(call.scratch + 80, call.renormalize)
    mem.store(call.scratch + 88, call.scale)
    mem.store(call.scratch + 96, call.router_bias)
    mem.store(call.scratch + 104, call.select_bias)
    mem.store(call.scratch + 112, call.ids)
    mem.store(call.scratch + 120, call.weights)
    mem.store(call.scratch + 128, call.pitch)
    mem.store(call.scratch + 136, call.logits)
    mem.store(call.scratch + 144, call.scratch + BLOCK_BYTES)


@inlined
def route_block_at(block):
    """Read the arguments of `route_block`."""
    return RouteBlock(
        tokens=mem.load(block + 16),
        x=mem.load(block + 24),
        x_stride=mem.load(block + 32),
        hidden=mem.load(block + 40),
        router=mem.load(block + 48),
        experts=mem.load(block + 56),
        k=mem.load(block + 64),
        score=mem.load(block + 72),
        renormalize=mem.load(block + 80),
        scale=mem.float_of_bits(mem.load(block + 88)),
        router_bias=mem.load(block + 96),
        select_bias=mem.load(block + 104),
        ids=mem.load(block + 112),
        weights=mem.load(block + 120),
        pitch=mem.load(block + 128),
        logits=mem.load(block + 136),
        scratch=mem.load(block + 144),
    )


@inlined
def put_expert_rows(call):
    """Write the arguments of `expert_rows`."""
    mem.store(call.scratch + 16, call.rows)
    mem.store(call.scratch + 24, call.x)
    mem.store(call.scratch + 32, call.y)
    mem.store(call.scratch + 40, call.weights.up)
    mem.store(call.scratch + 48, call.weights.gate)
    mem.store(call.scratch + 56, call.weights.down)
    mem.store(call.scratch + 64, call.weights.up_bias)
    mem.store(call.scratch + 72, call.weights.gate_bias)
    mem.store(call.scratch + 80, call.weights.down_bias)
    mem.store(call.scratch + 88, call.activation)
    mem.store(call.scratch + 96, call.hidden)
    mem.store(call.scratch + 104, call.ffn)
    mem.store(call.scratch + 112, call.scratch + BLOCK_BYTES)
    mem.store(call.scratch + 120, call.wire)
    mem.store(call.scratch + 128, call.kept)


@inlined
def expert_rows_at(block):
    """Read the arguments of `expert_rows`."""
    return ExpertRows(
        rows=mem.load(block + 16),
        x=mem.load(block + 24),
        y=mem.load(block + 32),
        weights=ExpertWeights(
            up=mem.load(block + 40),
            gate=mem.load(block + 48),
            down=mem.load(block + 56),
            up_bias=mem.load(block + 64),
            gate_bias=mem.load(block + 72),
            down_bias=mem.load(block + 80),
        ),
        activation=mem.load(block + 88),
        hidden=mem.load(block + 96),
        ffn=mem.load(block + 104),
        scratch=mem.load(block + 112),
        wire=mem.load(block + 120),
        kept=mem.load(block + 128),
    )


@inlined
def put_up_columns(call):
    """Write the arguments of `up_columns`."""
    mem.store(call.scratch + 16, call.rows)
    mem.store(call.scratch + 24, call.x)
    mem.store(call.scratch + 32, call.activations)
    mem.store(call.scratch + 40, call.weights.up)
    mem.store(call.scratch + 48, call.weights.gate)
    mem.store(call.scratch + 56, call.weights.down)
    mem.store(call.scratch + 64, call.weights.up_bias)
    mem.store(call.scratch + 72, call.weights.gate_bias)
    mem.store(call.scratch + 80, call.weights.down_bias)
    mem.store(call.scratch + 88, call.activation)
    mem.store(call.scratch + 96, call.hidden)
    mem.store(call.scratch + 104, call.ffn)
    mem.store(call.scratch + 112, call.first)
    mem.store(call.scratch + 120, call.columns)
    mem.store(call.scratch + 128, call.scratch + BLOCK_BYTES)
    mem.store(call.scratch + 136, call.wire)
    mem.store(call.scratch + 144, call.kept)


@inlined
def up_columns_at(block):
    """Read the arguments of `up_columns`."""
    return UpColumns(
        rows=mem.load(block + 16),
        x=mem.load(block + 24),
        activations=mem.load(block + 32),
        weights=ExpertWeights(
            up=mem.load(block + 40),
            gate=mem.load(block + 48),
            down=mem.load(block + 56),
            up_bias=mem.load(block + 64),
            gate_bias=mem.load(block + 72),
            down_bias=mem.load(block + 80),
        ),
        activation=mem.load(block + 88),
        hidden=mem.load(block + 96),
        ffn=mem.load(block + 104),
        first=mem.load(block + 112),
        columns=mem.load(block + 120),
        scratch=mem.load(block + 128),
        wire=mem.load(block + 136),
        kept=mem.load(block + 144),
    )


@inlined
def put_down_columns(call):
    """Write the arguments of `down_columns`."""
    mem.store(call.scratch + 16, call.rows)
    mem.store(call.scratch + 24, call.activations)
    mem.store(call.scratch + 32, call.y)
    mem.store(call.scratch + 40, call.weights.up)
    mem.store(call.scratch + 48, call.weights.gate)
    mem.store(call.scratch + 56, call.weights.down)
    mem.store(call.scratch + 64, call.weights.up_bias)
    mem.store(call.scratch + 72, call.weights.gate_bias)
    mem.store(call.scratch + 80, call.weights.down_bias)
    mem.store(call.scratch + 88, call.ffn)
    mem.store(call.scratch + 96, call.first)
    mem.store(call.scratch + 104, call.last)
    mem.store(call.scratch + 112, call.scratch + BLOCK_BYTES)
    mem.store(call.scratch + 120, call.wire)


@inlined
def down_columns_at(block):
    """Read the arguments of `down_columns`."""
    return DownColumns(
        rows=mem.load(block + 16),
        activations=mem.load(block + 24),
        y=mem.load(block + 32),
        weights=ExpertWeights(
            up=mem.load(block + 40),
            gate=mem.load(block + 48),
            down=mem.load(block + 56),
            up_bias=mem.load(block + 64),
            gate_bias=mem.load(block + 72),
            down_bias=mem.load(block + 80),
        ),
        ffn=mem.load(block + 88),
        first=mem.load(block + 96),
        last=mem.load(block + 104),
        scratch=mem.load(block + 112),
        wire=mem.load(block + 120),
    )


@inlined
def put_combine_token(call):
    """Write the arguments of `combine_token`."""
    mem.store(call.scratch + 16, call.y)
    mem.store(call.scratch + 24, call.k)
    mem.store(call.scratch + 32, call.weights)
    mem.store(call.scratch + 40, call.rows)
    mem.store(call.scratch + 48, call.hidden)
    mem.store(call.scratch + 56, call.scratch + BLOCK_BYTES)


@inlined
def combine_token_at(block):
    """Read the arguments of `combine_token`."""
    return CombineToken(
        y=mem.load(block + 16),
        k=mem.load(block + 24),
        weights=mem.load(block + 32),
        rows=mem.load(block + 40),
        hidden=mem.load(block + 48),
        scratch=mem.load(block + 56),
    )


@inlined
def product_at(block):
    """Read the arguments of `product`."""
    return Product(
        rows=mem.load(block + 16),
        x=mem.load(block + 24),
        depth=mem.load(block + 32),
        panels=mem.load(block + 40),
        columns=mem.load(block + 48),
        y=mem.load(block + 56),
        scratch=mem.load(block + 64),
    )


@inlined
def put_weigh_shared(call):
    """Write the arguments of `weigh_shared`."""
    mem.store(call.scratch + 16, call.tokens)
    mem.store(call.scratch + 24, call.x)
    mem.store(call.scratch + 32, call.x_stride)
    mem.store(call.scratch + 40, call.hidden)
    mem.store(call.scratch + 48, call.column)
    mem.store(call.scratch + 56, call.weights)
    mem.store(call.scratch + 64, call.pitch)
    mem.store(call.scratch + 72, call.scratch + BLOCK_BYTES)


@inlined
def weigh_shared_at(block):
    """Read the arguments of `weigh_shared`."""
    return WeighShared(
        tokens=mem.load(block + 16),
        x=mem.load(block + 24),
        x_stride=mem.load(block + 32),
        hidden=mem.load(block + 40),
        column=mem.load(block + 48),
        weights=mem.load(block + 56),
        pitch=mem.load(block + 64),
        scratch=mem.load(block + 72),
    )


@inlined
def put_backward_rows(call):
    """Write the arguments of `backward_rows`."""
    mem.store(call.scratch + 16, call.rows)
    mem.store(call.scratch + 24, call.x)
    mem.store(call.scratch + 32, call.y)
    mem.store(call.scratch + 40, call.places)
    mem.store(call.scratch + 48, call.scalars)
    mem.store(call.scratch + 56, call.weights)
    mem.store(call.scratch + 64, call.activation)
    mem.store(call.scratch + 72, call.hidden)
    mem.store(call.scratch + 80, call.ffn)
    mem.store(call.scratch + 88, call.scratch + BLOCK_BYTES)
    mem.store(call.scratch + 96, call.wire)
    mem.store(call.scratch + 104, call.kept)


@inlined
def backward_rows_at(block):
    """Read the arguments of `backward_rows`."""
    return BackwardRows(
        rows=mem.load(block + 16),
        x=mem.load(block + 24),
        y=mem.load(block + 32),
        places=mem.load(block + 40),
        scalars=mem.load(block + 48),
        weights=mem.load(block + 56),
        activation=mem.load(block + 64),
        hidden=mem.load(block + 72),
        ffn=mem.load(block + 80),
        scratch=mem.load(block + 88),
        wire=mem.load(block + 96),
        kept=mem.load(block + 104),
    )


# calls by steps: name, number of the kernel, what writes the arguments, whether there is a result
STEPS = (
    ("route_block", ROUTE_BLOCK, put_route_block, True),
    ("expert_rows", EXPERT_ROWS, put_expert_rows, False),
    ("up_columns", UP_COLUMNS, put_up_columns, False),
    ("down_columns", DOWN_COLUMNS, put_down_columns, False),
    ("combine_token", COMBINE_TOKEN, put_combine_token, False),
    ("weigh_shared", WEIGH_SHARED, put_weigh_shared, True),
    ("backward_rows", BACKWARD_ROWS, put_backward_rows, False),
)

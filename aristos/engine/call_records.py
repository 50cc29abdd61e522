"""The arguments of steps' calls. Written by `python -m aristos.engine.generate`: do not edit.

Each function returns the record of one call. Its parameters are the values that a step computes. It reads the call's
other arguments from the job.
"""

from kernel_cache.compile import jit

from ..primitives import arithmetic
from . import words


@jit
def route_block(job, tokens, x, experts, ids, weights, pitch, logits, scratch):
    """Arguments of `route_block`."""
    return arithmetic.RouteBlock(
        tokens=tokens,
        x=x,
        x_stride=job[words.ROUTER_X_STRIDE],
        hidden=job[words.HIDDEN],
        router=job[words.ROUTER],
        experts=experts,
        k=job[words.CHOICES],
        score=job[words.SCORE],
        renormalize=job[words.RENORMALIZE],
        scale=job[words.SCALE],
        router_bias=job[words.ROUTER_BIAS],
        select_bias=job[words.SELECT_BIAS],
        ids=ids,
        weights=weights,
        pitch=pitch,
        logits=logits,
        scratch=scratch,
    )


@jit
def expert_rows(job, rows, x, y, weights, ffn, scratch, kept):
    """Arguments of `expert_rows`."""
    return arithmetic.ExpertRows(
        rows=rows,
        x=x,
        y=y,
        weights=weights,
        activation=job[words.ACTIVATION],
        hidden=job[words.HIDDEN],
        ffn=ffn,
        scratch=scratch,
        wire=job[words.WIRE],
        kept=kept,
    )


@jit
def up_columns(job, rows, x, activations, weights, ffn, first, columns, scratch, kept):
    """Arguments of `up_columns`."""
    return arithmetic.UpColumns(
        rows=rows,
        x=x,
        activations=activations,
        weights=weights,
        activation=job[words.ACTIVATION],
        hidden=job[words.HIDDEN],
        ffn=ffn,
        first=first,
        columns=columns,
        scratch=scratch,
        wire=job[words.WIRE],
        kept=kept,
    )


@jit
def down_columns(job, rows, activations, y, weights, ffn, first, last, scratch):
    """Arguments of `down_columns`."""
    return arithmetic.DownColumns(
        rows=rows,
        activations=activations,
        y=y,
        weights=weights,
        ffn=ffn,
        first=first,
        last=last,
        scratch=scratch,
        wire=job[words.WIRE],
    )


@jit
def combine_token(job, y, k, weights, rows, scratch):
    """Arguments of `combine_token`."""
    return arithmetic.CombineToken(
        y=y,
        k=k,
        weights=weights,
        rows=rows,
        hidden=job[words.HIDDEN],
        scratch=scratch,
    )


@jit
def weigh_shared(job, tokens, x, weights, pitch, scratch):
    """Arguments of `weigh_shared`."""
    return arithmetic.WeighShared(
        tokens=tokens,
        x=x,
        x_stride=job[words.INPUT_STRIDE],
        hidden=job[words.HIDDEN],
        column=job[words.SHARED_SIGMOID],
        weights=weights,
        pitch=pitch,
        scratch=scratch,
    )


@jit
def backward_rows(job, rows, x, y, places, scalars, weights, scratch, kept):
    """Arguments of `backward_rows`."""
    return arithmetic.BackwardRows(
        rows=rows,
        x=x,
        y=y,
        places=places,
        scalars=scalars,
        weights=weights,
        activation=job[words.ACTIVATION],
        hidden=job[words.HIDDEN],
        ffn=job[words.FFN],
        scratch=scratch,
        wire=job[words.WIRE],
        kept=kept,
    )


@jit
def weigh_row(job, y, weight, x, scratch):
    """Arguments of `weigh_row`."""
    return arithmetic.WeighRow(
        y=y,
        weight=weight,
        x=x,
        hidden=job[words.HIDDEN],
        scratch=scratch,
    )

"""Every call of a compiled kernel: its arguments by name, with meaning, unit and type.

`python -m aristos.engine.generate` writes both sides from this file: the records that steps fill
(`primitives/arithmetic.py`), and how their words cross to the kernels (`kernels/cpu/call_blocks.py`). Nothing is
compiled here.
"""

from __future__ import annotations

from dataclasses import dataclass

WORD = "word"  # int64
BITS = "float32"  # the bits of a float32 in a word; the kernel reads the float32
SCRATCH = "scratch"  # address of BLOCK_BYTES for the words of the call, then of the kernel's own memory
EXPERT = "expert"  # an address for each of WEIGHTS


@dataclass(frozen=True)
class Argument:
    """An argument of a call. dtype: one of the above."""

    name: str
    unit: str
    meaning: str
    dtype: str = WORD


@dataclass(frozen=True)
class Call:
    """A call of a kernel. result: what it returns, "" for nothing.

    step: steps call it by name; kernel: it has a kernel of its own, else a lowering calls another one.
    """

    name: str
    meaning: str
    arguments: tuple[Argument, ...]
    result: str = ""
    step: bool = True
    kernel: bool = True

    @property
    def record(self) -> str:
        """The name of its record of arguments."""
        return self.name.title().replace("_", "")


def _arguments(rows: str) -> tuple[Argument, ...]:
    """Arguments, one a line: name | unit | meaning | dtype, the last one only where it is not `word`."""
    found = []
    for row in rows.strip().splitlines():
        name, unit, meaning, *dtype = (cell.strip() for cell in row.split("|"))
        found.append(Argument(name, unit, meaning, dtype[0] if dtype else WORD))
    return tuple(found)


# ---- the arrays of an expert's weights, each packed as the kernels read it

WEIGHTS = _arguments("""
    up | address | up projection
    gate | address | gate projection, 0: none
    down | address | down projection
    up_bias | address | 0: none
    gate_bias | address | 0: none
    down_bias | address | 0: none
""")
TURNED = _arguments("""
    up | address | up projection
    gate | address | gate projection, 0: none
    down | address | down projection
""")

# ---- the calls, in the order of their kernels' numbers

CALLS = [
    Call("route_block", "Choose experts and weights for a block of tokens.", _arguments("""
        tokens | tokens | of the block
        x | address | rows that the router reads
        x_stride | bytes | between them
        hidden | columns | width of a row
        router | address | packed router weights, float32
        experts | experts | that have a score
        k | choices | of a token
        score | | which score, and groups of experts, see `rule` in kernels/common/scores.py
        renormalize | flag | the k weights of a token are divided by their sum
        scale | | factor of the weights | float32
        router_bias | address | [experts] float32, added to scores, 0: none
        select_bias | address | [experts] float32, added to weights for choosing alone, 0: none
        ids | address | [tokens, pitch] int64, whose first k columns are written
        weights | address | [tokens, pitch] float32, whose first k columns are written
        pitch | columns | of ids and weights
        logits | address | [tokens, experts] float32, where scores are kept, 0: nowhere
        scratch | address | `route_bytes` of kernels/cpu/tokens.py | scratch
    """), result="False if a score is not finite"),
    Call("expert_rows", "Run one expert on rows.", _arguments("""
        rows | rows | that are computed
        x | address | addresses of the rows
        y | address | addresses of their outputs
        weights | addresses | of the expert | expert
        activation | | which activation, and its limit
        hidden | columns | width of a row
        ffn | columns | width of the hidden activations
        scratch | address | `run_bytes` of kernels/cpu/entries.py | scratch
        wire | address | that is served between panels, 0: none; see primitives/wire.py
        kept | address | entries of primitives/taped.py: where products with up and gate are kept, 0: nowhere
    """)),
    Call("up_columns", "Compute some hidden activations of a column-split run.", _arguments("""
        rows | rows | of the run
        x | address | addresses of the rows
        activations | address | hidden activations of the run
        weights | addresses | of the expert | expert
        activation | | which activation, and its limit
        hidden | columns | width of a row
        ffn | columns | width of the hidden activations
        first | column | of the hidden activations to compute
        columns | columns | to compute
        scratch | address | `run_bytes` of kernels/cpu/entries.py | scratch
        wire | address | that is served between panels, 0: none
        kept | address | as of `expert_rows`
    """)),
    Call("down_columns", "Compute some output columns of a column-split run.", _arguments("""
        rows | rows | of the run
        activations | address | hidden activations of the run
        y | address | addresses of the outputs
        weights | addresses | of the expert | expert
        ffn | columns | width of the hidden activations
        first | column | of the outputs to compute
        last | column | behind the last one to compute
        scratch | address | `run_bytes` of kernels/cpu/entries.py | scratch
        wire | address | that is served between panels, 0: none
    """)),
    Call("combine_token", "Write y[hidden], the sum over j of weights[j] * row j, in order.", _arguments("""
        y | address | of the output row
        k | choices | of the token
        weights | address | [k] float32
        rows | address | [k] addresses of rows, 0 for a choice not taken
        hidden | columns | width of a row
        scratch | address | `combine_bytes` of kernels/cpu/tokens.py | scratch
    """)),
    Call("product", "Write y = x times a packed matrix.", _arguments("""
        rows | rows | of x
        x | address | addresses of the rows
        depth | columns | width of a row of x
        panels | address | the packed matrix
        columns | columns | width of a row of y
        y | address | addresses of the rows of y
        scratch | address | `product_bytes` of kernels/cpu/entries.py | scratch
    """), step=False),
    Call("weigh_shared", "Write the logistic function of x times a column, for tokens.", _arguments("""
        tokens | tokens | of the block
        x | address | rows of the tokens
        x_stride | bytes | between them
        hidden | columns | width of a row
        column | address | packed [hidden, 1] float32
        weights | address | float32 that are written
        pitch | columns | from one of them to the next
        scratch | address | as of `route_block` | scratch
    """), result="False if a product is not finite"),
    Call("backward_rows", "Compute rows [dy | x] of one expert backwards; a row is [dy] if x is kept.", _arguments("""
        rows | rows | that are computed
        x | address | addresses of the rows
        y | address | addresses of the rows of dx
        places | address | addresses of places for what gradients of weights need
        scalars | address | words: combine weights as float32 bits, which become their gradients
        weights | address | of the expert: ExpertWeights, then TurnedWeights
        activation | | which activation, and its limit
        hidden | columns | width of a row
        ffn | columns | width of the hidden activations
        scratch | address | `store_bytes` of kernels/cpu/expert_backward.py | scratch
        wire | address | that is served between panels, 0: none
        kept | address | entries of primitives/taped.py: what the forward call has kept of the rows, 0: nothing
    """)),
    Call("weigh_row", "Write y[hidden] = weight * x, rounded to the element type.", _arguments("""
        y | address | of the row that is written
        weight | address | of a float32
        x | address | of the row
        hidden | columns | width of a row
        scratch | address | as of `combine_token` | scratch
    """), kernel=False),
]  # fmt: skip


def words_of(call: Call) -> int:
    """Words of the call's arguments as they cross."""
    return sum(len(WEIGHTS) if each.dtype == EXPERT else 1 for each in call.arguments)


HEAD_WORDS = 2  # of a block: result, error
BLOCK_WORDS = -(-(HEAD_WORDS + 1 + max(map(words_of, CALLS))) // 8) * 8  # whole lines, with a word to spare

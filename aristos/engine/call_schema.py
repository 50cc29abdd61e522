"""Every call of a compiled kernel: its arguments by name, with meaning, unit and type.

`python -m aristos.engine.generate` writes both sides of the calls from this file: the records that steps fill
(`primitives/arithmetic.py`), functions that take some of their words from a job (`call_records.py`), how words cross to
the kernels (`kernels/cpu/call_blocks.py`), and the job of the router kernels on GPUs (`kernels/cuda/router_job.py`).
Nothing is compiled here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .schema import JOB_SCALARS

WORD = "word"  # int64
BITS = "float32"  # the bits of a float32 in a word; the kernel reads the float32
SCRATCH = "scratch"  # address of BLOCK_BYTES bytes for the words of the call; the kernel's own memory follows
EXPERT = "expert"  # an address for each of WEIGHTS
TRANSPOSED = "transposed"  # an address for each of TRANSPOSED_WEIGHTS; only in calls that use no block
OF_CALL = "of call"  # int64, only in ROUTER_JOB: the kernel `begin` fills the word for each call
GRADIENTS = "gradients"  # a tuple of addresses in the order of WEIGHTS; only in calls that use no block


@dataclass(frozen=True)
class Argument:
    """An argument of a call. dtype: one of the constants above.

    word: the word of the job that a step passes on; "": the step computes the argument. last: whether the argument
    comes last, because the call's lines do not place it. A caller without a job may leave such an argument out: then it
    is 0.
    """

    name: str
    unit: str = ""
    meaning: str = ""
    dtype: str = WORD
    word: str = ""
    last: bool = False


@dataclass(frozen=True)
class Call:
    """A call of a kernel. result: what it returns, "" if it returns nothing.

    step: whether steps call it by name. kernel: whether it has its own kernel; if not, a lowering calls another kernel.
    The kernel of a call with neither gets the record directly, without a block.
    """

    name: str
    meaning: str
    arguments: tuple[Argument, ...]
    result: str = ""
    step: bool = True
    kernel: bool = True

    @property
    def record(self) -> str:
        """The name of the call's record of arguments."""
        return self.name.title().replace("_", "")


def _arguments(rows: str) -> tuple[Argument, ...]:
    """Arguments, one on each line: name | unit | meaning | dtype. dtype is left out if it is `word`.

    A line with only a name places an argument that schema.py declares: a word of the job whose `calls` names this call.
    """
    found = []
    for row in rows.strip().splitlines():
        name, *more = (cell.strip() for cell in row.split("|"))
        unit, meaning, dtype = (*more, *("", "", WORD)[len(more) :])
        found.append(Argument(name, unit, meaning, dtype))
    return tuple(found)


def _with_words(call: Call) -> Call:
    """The call, completed by the arguments that schema.py declares.

    Raises ValueError unless each argument is declared once, by its line or by schema.py.
    """
    given = {}
    for word in JOB_SCALARS:
        for name, argument in word.arguments:
            if name == call.name:
                unit, dtype = ("", BITS) if word.unit == "float32 bits" else (word.unit, WORD)
                given[argument] = Argument(argument, unit, word.meaning, dtype, word.name)
    placed = [each if each.meaning else given.pop(each.name, each) for each in call.arguments]
    for each in placed:
        if not each.meaning or each.name in given:
            wanted = "give it a unit and a meaning, or let one word of schema.py name this call"
            raise ValueError(f"argument {each.name} of {call.name} must be declared once: {wanted}")
    return replace(call, arguments=(*placed, *(replace(each, last=True) for each in given.values())))


# ---- the arrays of an expert's weights, each packed as the kernels read it
#
# The arrays do not depend on the weight type (weight_types.py): codes, scales and zero points of a projection are one
# array, so each type has these addresses. A further array would need a line here, and words in the part `weights` and
# in the record `foreign` of schema.py. `column_runs.weights_of` reads these words, and layer/weights.py fills them by
# the same names.

WEIGHTS = _arguments("""
    up | address | up projection
    gate | address | gate projection, 0: none
    down | address | down projection
    up_bias | address | bias of the up projection, 0: none
    gate_bias | address | bias of the gate projection, 0: none
    down_bias | address | bias of the down projection, 0: none
""")
TRANSPOSED_WEIGHTS = _arguments("""
    up | address | up projection
    gate | address | gate projection, 0: none
    down | address | down projection
""")

# ---- the calls, in the order of their kernels' numbers

CALLS = [_with_words(call) for call in (
    Call("route_block", "Choose experts and weights for a block of tokens.", _arguments("""
        tokens | tokens | tokens of the block
        x | address | rows that the router reads
        x_stride
        hidden
        router
        experts | experts | experts that have a score
        k
        score
        renormalize
        scale
        router_bias
        select_bias
        ids | address | [tokens, pitch] int64, whose first k columns are written
        weights | address | [tokens, pitch] float32, whose first k columns are written
        pitch | columns | columns of ids and weights
        logits | address | [tokens, experts] float32, where scores are kept, 0: nowhere
        scratch | address | memory of the size `route_bytes` of kernels/cpu/tokens.py | scratch
    """), result="False if a score is not finite"),
    Call("expert_rows", "Run one expert on rows.", _arguments("""
        rows | rows | rows to compute
        x | address | addresses of the rows
        y | address | addresses of their outputs
        weights | addresses | the expert's weights | expert
        activation
        hidden
        ffn | columns | width of the hidden activations
        scratch | address | memory of the size `run_bytes` of kernels/cpu/entries.py | scratch
        wire
        kept | address | entries (primitives/taped.py) that say where products with up and gate are kept, 0: nowhere
    """)),
    Call("up_columns", "Compute some hidden activations of a column-split run.", _arguments("""
        rows | rows | rows of the run
        x | address | addresses of the rows
        activations | address | hidden activations of the run
        weights | addresses | the expert's weights | expert
        activation
        hidden
        ffn | columns | width of the hidden activations
        first | column | first column of the hidden activations to compute
        columns | columns | number of columns to compute
        scratch | address | memory of the size `run_bytes` of kernels/cpu/entries.py | scratch
        wire
        kept | address | as for `expert_rows`
    """)),
    Call("down_columns", "Compute some output columns of a column-split run.", _arguments("""
        rows | rows | rows of the run
        activations | address | hidden activations of the run
        y | address | addresses of the outputs
        weights | addresses | the expert's weights | expert
        ffn | columns | width of the hidden activations
        first | column | first column of the outputs to compute
        last | column | the column after the last one to compute
        scratch | address | memory of the size `run_bytes` of kernels/cpu/entries.py | scratch
    """)),
    Call("combine_token", "Write y[hidden], the sum over j of weights[j] * row j, in order.", _arguments("""
        y | address | the output row
        k | choices | choices of the token
        weights | address | [k] float32
        rows | address | [k] addresses of rows, 0 for a choice without a row
        hidden
        scratch | address | memory of the size `combine_bytes` of kernels/cpu/tokens.py | scratch
    """)),
    Call("product", "Write y = x times a packed matrix.", _arguments("""
        rows | rows | rows of x
        x | address | addresses of the rows
        depth | columns | width of a row of x
        panels | address | the packed matrix
        columns | columns | width of a row of y
        y | address | addresses of the rows of y
        scratch | address | memory of the size `product_bytes` of kernels/cpu/entries.py | scratch
    """), step=False),
    Call("weigh_shared", "Write sigmoid(x w) of each token's row x and a column w.", _arguments("""
        tokens | tokens | tokens of the block
        x | address | rows of the tokens
        x_stride
        hidden
        column
        weights | address | the float32 weights that are written
        pitch | columns | distance from one weight to the next
        scratch | address | memory of the size `route_bytes` of kernels/cpu/tokens.py | scratch
    """), result="False if a product is not finite"),
    Call("backward_rows", "Compute one expert's rows [dy | x] backwards, or [dy] if the tape has x.", _arguments("""
        rows | rows | rows to compute
        x | address | addresses of the rows
        y | address | addresses of the rows of dx
        places | address | addresses of the rows' places in the store
        scalars | address | words with combine weights as float32 bits; their gradients are written over them
        weights | address | the expert's ExpertWeights, then its TransposedWeights
        activation
        hidden
        ffn
        scratch | address | memory of the size `store_bytes` of kernels/cpu/expert_backward.py | scratch
        wire
        kept | address | entries (primitives/taped.py) that say what the forward call has kept of the rows, 0: nothing
    """)),
    Call("weigh_row", "Write y[hidden] = weight * x, rounded to the element type.", _arguments("""
        y | address | the row that is written
        weight | address | a float32
        x | address | the row that is weighted
        hidden
        scratch | address | memory of the size `combine_bytes` of kernels/cpu/tokens.py | scratch
    """), kernel=False),
    Call("expert_blocks", "Compute rows of one expert backwards, and the gradients of its weights.", _arguments("""
        rows | rows | rows to compute, any number
        x | address | addresses of the rows
        dy | address | addresses of the gradients of the rows' outputs
        w | address | [rows] float32: combine weights
        dx | address | addresses of the rows of dx, which are written
        dw | address | [rows] float32: gradients of combine weights, which are written
        weights | addresses | the expert's weights | expert
        transposed | addresses | the expert's weights, transposed | transposed
        gradients | addresses | gradients of the expert's weights, 0: none | gradients
        activation | | the activation and its limit
        hidden | columns | width of a row
        ffn | columns | width of the hidden activations
        carry | flag | 1: the call adds to the gradients in memory. 0: it overwrites them
        saved | address | memory of the size `saved_bytes` of the kernel's module
        scratch | address | memory of the size `blocks_bytes` of the kernel's module
    """), step=False, kernel=False),
)]  # fmt: skip

# ---- the job of the router kernels on GPUs, in the order of its words. The host fills those that are not of a call

ROUTER_JOB = _arguments("""
    x | address | rows of the kernel's kind, which the router reads. Each starts at a multiple of 16 bytes | of call
    x_stride | bytes | distance between rows of x | of call
    tokens | tokens | tokens of the call | of call
    hidden | columns | width of a row
    router | address | weights packed by `pack_router`
    experts | experts | experts that ids may name, identity experts included
    top_k | choices | experts that compute a token
    choices | choices | experts that the router chooses for a token: with a shared expert one less than top_k
    score | | the score and the groups of experts, see `rule` in kernels/common/scores.py
    renormalize | flag | the weights of a token are divided by their sum
    scale | float32 bits | factor by which weights are multiplied
    ids | address | [tokens, top_k] int64 chosen experts; -1: no expert; -2 - id: a choice beyond the capacity | of call
    weights | address | [tokens, top_k] float32 combine weights | of call
    given_ids | address | [tokens, choices] int64 from the user; may be the address of ids. 0: none | of call
    given_weights | address | [tokens, choices] float32 from the user, 0: none | of call
    capacity | choices | most choices of an expert, 0: no limit | of call
    slot_of | address | [experts, then the shared expert] int64 slots in the packed order; -1: an identity expert
    slots | experts | slots in the packed order
    offset | address | [slots + 1] int64, see engine/packing.py
    token | address | [tokens * top_k] int64, see engine/packing.py
    position | address | [tokens, top_k] int64, see engine/packing.py
    logits | address | [tokens, experts] float32, where scores are kept, 0: nowhere
    select_bias | address | [experts] float32, added to the weights when experts are compared, 0: none
    input | address | rows of the tokens | of call
    input_stride | bytes | distance between rows of the tokens | of call
    shared_sigmoid | address | `pack_router` of one column w: sigmoid(x w) weighs the shared expert. 0: weight 1
    weighted | address | where tokens times their weights go, whole rows side by side, 0: nowhere
    kept_weights | address | [tokens] float32 by which `weighted` was multiplied; `weights` is then 1. 0: nowhere
    status | address | a word: OK, or the largest status of all tokens; unless it is OK, `place` assigns no rows
    unbegun | address | a word that is not 0 if the engine has failed, so that no call began. 0: no such word
    scratch | address | memory of `scratch_bytes` bytes
""")


def words_of(call: Call) -> int:
    """How many words the call's arguments take in a block."""
    return sum(len(WEIGHTS) if each.dtype == EXPERT else 1 for each in call.arguments)


HEAD_WORDS = 2  # words before a block's arguments: result, error
CROSSING = [call for call in CALLS if call.step or call.kernel]
BLOCK_WORDS = -(-(HEAD_WORDS + 1 + max(map(words_of, CROSSING))) // 8) * 8  # whole lines, with a spare word

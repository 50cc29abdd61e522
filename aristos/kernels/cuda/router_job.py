"""The job of the router kernels. Written by `python -m aristos.engine.generate`: do not edit."""

import numpy as np

from kernel_cache.compile import inlined

(
    X,  # address: rows of the kernel's kind, which the router reads. Each starts at a multiple of 16 bytes
    X_STRIDE,  # bytes: distance between rows of x
    TOKENS,  # tokens: tokens of the call
    HIDDEN,  # columns: width of a row
    ROUTER,  # address: weights packed by `pack_router`
    EXPERTS,  # experts: experts that ids may name, identity experts included
    TOP_K,  # choices: experts that compute a token
    CHOICES,  # choices: experts that the router chooses for a token: with a shared expert one less than top_k
    SCORE,  # the score and the groups of experts, see `rule` in kernels/common/scores.py
    RENORMALIZE,  # flag: the weights of a token are divided by their sum
    SCALE,  # float32 bits: factor by which weights are multiplied
    IDS,  # address: [tokens, top_k] int64 chosen experts; -1: no expert; -2 - id: a choice beyond the capacity
    WEIGHTS,  # address: [tokens, top_k] float32 combine weights
    GIVEN_IDS,  # address: [tokens, choices] int64 from the user; may be the address of ids. 0: none
    GIVEN_WEIGHTS,  # address: [tokens, choices] float32 from the user, 0: none
    CAPACITY,  # choices: most choices of an expert, 0: no limit
    SLOT_OF,  # address: [experts, then the shared expert] int64 slots in the packed order; -1: an identity expert
    SLOTS,  # experts: slots in the packed order
    OFFSET,  # address: [slots + 1] int64, see engine/packing.py
    TOKEN,  # address: [tokens * top_k] int64, see engine/packing.py
    POSITION,  # address: [tokens, top_k] int64, see engine/packing.py
    LOGITS,  # address: [tokens, experts] float32, where scores are kept, 0: nowhere
    SELECT_BIAS,  # address: [experts] float32, added to the weights when experts are compared, 0: none
    INPUT,  # address: rows of the tokens
    INPUT_STRIDE,  # bytes: distance between rows of the tokens
    SHARED_SIGMOID,  # address: `pack_router` of one column w: sigmoid(x w) weighs the shared expert. 0: weight 1
    WEIGHTED,  # address: where tokens times their weights go, whole rows side by side, 0: nowhere
    KEPT_WEIGHTS,  # address: [tokens] float32 by which `weighted` was multiplied; `weights` is then 1. 0: nowhere
    STATUS,  # address: a word: OK, or the largest status of all tokens; unless it is OK, `place` assigns no rows
    UNBEGUN,  # address: a word that is not 0 if the engine has failed, so that no call began. 0: no such word
    SCRATCH,  # address: memory of `scratch_bytes` bytes
    JOB_WORDS,
) = range(32)
LASTING = (
    "hidden",
    "router",
    "experts",
    "top_k",
    "choices",
    "score",
    "renormalize",
    "scale",
    "slot_of",
    "slots",
    "offset",
    "token",
    "position",
    "logits",
    "select_bias",
    "shared_sigmoid",
    "weighted",
    "kept_weights",
    "status",
    "unbegun",
    "scratch",
)
OF_CALL = (
    "x",
    "x_stride",
    "tokens",
    "ids",
    "weights",
    "given_ids",
    "given_weights",
    "capacity",
    "input",
    "input_stride",
)
ABSENT = (  # words whose 0 says that there is nothing
    "given_ids",
    "given_weights",
    "capacity",
    "logits",
    "select_bias",
    "shared_sigmoid",
    "weighted",
    "kept_weights",
    "unbegun",
)


def new_job(**values: int) -> np.ndarray:
    """A job with all words but those of a call. Raises TypeError unless `values` names all of LASTING."""
    return _filled(LASTING, values)


def whole_job(**values: int) -> np.ndarray:
    """A job with all words, for kernels launched without `begin`. Words of ABSENT may be left out: they are 0.

    Raises TypeError unless `values` has the others.
    """
    return _filled(LASTING + OF_CALL, dict.fromkeys(ABSENT, 0) | values)


def _filled(names: tuple[str, ...], values: dict[str, int]) -> np.ndarray:
    if values.keys() != set(names):
        missing, unknown = sorted(set(names) - values.keys()), sorted(values.keys() - set(names))
        raise TypeError(f"a job of the router kernels: missing {missing}, unknown {unknown}")
    job = np.zeros(JOB_WORDS, np.int64)
    for name, value in values.items():
        job[globals()[name.upper()]] = value
    return job


@inlined
def fill_routing(job, x, x_stride, tokens, ids, weights, given_ids, given_weights, capacity, input_, input_stride):
    """Fill the words of a call in compiled code."""
    job[X] = x
    job[X_STRIDE] = x_stride
    job[TOKENS] = tokens
    job[IDS] = ids
    job[WEIGHTS] = weights
    job[GIVEN_IDS] = given_ids
    job[GIVEN_WEIGHTS] = given_weights
    job[CAPACITY] = capacity
    job[INPUT] = input_
    job[INPUT_STRIDE] = input_stride

"""The enumerated values of words: phases, kinds of commands, statuses, modes, causes and results."""

# phases of a call
PHASE_ROUTE, PHASE_PACKING, PHASE_RUN, PHASE_DONE = range(4)

# kinds of commands. IDLE: there is nothing to do now. SETTLE: the worker has only to count rows that it has noted, see
# `returns.settle`. SIZED: an exchange's rows are known. LIST and SHARE belong to column-split runs. POST is no command:
# it marks time at the wire in timelines
IDLE, ROUTE, PACK, DISPATCH, EXPERT, COMBINE, FINISH, FAIL, SIZED, SHARE, BUNDLE, POST, SETTLE, LIST, SUM = range(15)

# phases of a column-split run: hidden activations, outputs
RUN_UP, RUN_DOWN = range(2)

# verdicts on a source. UNANNOUNCED: its announcement was not read yet. SERVE: its rows are computed. SKIP: its rows are
# not computed, and go back as empty returns
UNANNOUNCED, SERVE, SKIP = range(3)

# modes, announced with each call: a layer's call, a phase of an exchange, or a layer's backward call
MODE_LAYER, MODE_DISPATCH, MODE_COMBINE, MODE_BACKWARD = range(4)

# statuses of a rank. REFUSED: it refuses its input. NOT_LOADED + n: part n of the layer's weights is missing, see
# layer/weights.py. A rank announces its status, except for two, which the rank that reads an announcement finds.
# MISMATCH: the two ranks made different calls. MISPLACED: they have different placements
OK, REFUSED, NOT_FINITE, BAD_IDS, MISMATCH, MISPLACED, NOT_LOADED = range(7)

# causes of a failure, in the poison word (poison.py). No cause is 0, because a poison word of 0 means no failure.
# OUT_OF_BOUNDS: a peer's word has a value that no rank writes (bounds.py)
CAUSE_TIMEOUT, CAUSE_INTERRUPT, CAUSE_ERROR, CAUSE_OUT_OF_BOUNDS = range(1, 5)

# results of the compiled loop
RAN, PAUSED, POISONED, ALL_ANNOUNCED = range(4)

# A return record whose rows are not staged has UNSTAGED in place of a pair's number. No pair has this number; some
# pairs have small negative numbers
UNSTAGED = -(1 << 63)

UNSUMMED_TILE = -1  # `landed_left` of a tile whose rows are computed, and whose tokens' sums are not

"""The enumerated values of words: phases, kinds of commands, statuses, modes, causes and results."""

# phases of a call
PHASE_ROUTE, PHASE_PACKING, PHASE_RUN, PHASE_DONE = range(4)

# kinds of commands. IDLE: nothing to do now. SETTLE: only pieces to count. SIZED: an exchange's rows are known.
# LIST and SHARE belong to column-split runs. POST: the wire, in the timeline only
IDLE, ROUTE, PACK, DISPATCH, EXPERT, COMBINE, FINISH, FAIL, SIZED, SHARE, BLOCK, POST, SETTLE, LIST = range(14)

# phases of a column-split run: hidden activations, outputs
RUN_UP, RUN_DOWN = range(2)

# what a source's announcement led to: none read, its rows are computed, its rows are returned unread
UNANNOUNCED, SERVE, SKIP = range(3)

# modes of a call: a layer, or a phase of an exchange
MODE_LAYER, MODE_DISPATCH, MODE_COMBINE = range(3)

# statuses that a rank announces. REFUSED: its input. MISMATCH: it made another call than the reader
OK, REFUSED, NOT_FINITE, BAD_IDS, MISMATCH = range(5)

# causes of poison, never 0, which is a word without poison
CAUSE_TIMEOUT, CAUSE_INTERRUPT, CAUSE_ERROR = range(1, 4)
ORIGIN_BITS, CAUSE_BITS = 20, 4  # in the poison word; the epoch lies above

# results of the compiled loop
RAN, PAUSED, POISONED, ALL_ANNOUNCED = range(4)

EXCHANGE = -1  # the layer that an exchange announces
UNSTAGED = -(1 << 63)  # in a return record: its rows are not staged. No small negative number: pairs may have those

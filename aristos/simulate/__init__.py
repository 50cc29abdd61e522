"""The shipped steps in virtual time: how long a call takes on ranks that nobody has to hold.

The engine's compiled loops run unchanged, one thread for each worker, in one process. Their primitives are lowered to
functions that charge virtual time, and hand over to the worker whose time comes next (`scheduler`). Rows have no bytes.
Puts to other nodes share a modelled network (`network`). This room predicts no results of a layer, only its time.
"""

"""The shipped steps in virtual time: how long a call would take on more ranks than there are here.

The engine's compiled loops run unchanged in one thread, each worker on a stack of its own. Their primitives are lowered
to functions that charge virtual time, and hand over to the worker whose time comes next (`scheduler`). Rows have no
bytes. Puts to other nodes share a modelled network (`network`). This room predicts how long a layer's calls take, and
not their results.
"""

"""`aristos doctor`: checks whether machine, MPI library and launcher do what a layer needs. Each file has one subject.

A check is a function that returns a `Finding`. What it examines is an argument, if tests can fake it. Checks repair
nothing, and change nothing outside the process.
"""

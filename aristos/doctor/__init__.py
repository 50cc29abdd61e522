"""`aristos doctor`: checks whether machine, MPI library and launcher do what a layer needs. One file a subject.

A check is a function that returns a `Finding`. What it examines is an argument if tests can fake it. Nothing is
repaired, and nothing outside the process is changed.
"""

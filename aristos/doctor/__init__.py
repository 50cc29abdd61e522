"""`aristos doctor`: checks whether machine, MPI library and launcher do what a layer needs. Each file has one subject.

A check is a function that returns a `Finding`. Its arguments are what it examines, so that tests can pass other values.
Checks repair nothing, and change nothing outside the process.
"""

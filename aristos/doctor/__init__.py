"""`aristos doctor`: checks whether machine, MPI library and launcher do what a layer needs. Each file has one subject.

A check is a function that returns a `Finding`. It gets what it examines as an argument, where tests can fake that.
Checks repair nothing, and change nothing outside the process.
"""

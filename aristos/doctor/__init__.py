"""`aristos doctor`: does this machine, MPI library and launcher do what a layer needs? One file a subject.

A check is a function that returns a `Finding`; what it looks at is passed to it where that can be faked. It repairs
nothing and changes nothing outside the process.
"""

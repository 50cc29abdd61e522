"""Published bugs of kernels that signal, reduced to a few lines: as reported and as repaired (docs/ptxsim-cases.md).

`python -m ptxsim.cases` runs them and prints which the machine reports. `table.CASES` lists them with their links.
"""

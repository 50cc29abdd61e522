"""The errors that this package raises. Another package may replace the classes by its own, derived from these."""

from __future__ import annotations


class Problem(Exception):
    """Base class of the errors that this package raises."""


class InputError(Problem, ValueError):
    """An argument has the wrong value, shape or dtype."""


class EnvironmentProblem(Problem):
    """The machine, or a package installed on it, cannot do what was requested."""


_raised: tuple[type[InputError], type[EnvironmentProblem]] = (InputError, EnvironmentProblem)


def raise_as(input_error: type[InputError], environment_problem: type[EnvironmentProblem]) -> None:
    """Let this package raise these classes from now on, in the whole process."""
    global _raised
    _raised = input_error, environment_problem


def input_error(message: str) -> InputError:
    """The error to raise for a wrong argument."""
    return _raised[0](message)


def environment_problem(message: str) -> EnvironmentProblem:
    """The error to raise if the machine or its packages cannot do something."""
    return _raised[1](message)


def quoted(value: object, most: int = 200) -> str:
    """A value's representation for a message, cut to `most` characters.

    Python refuses to represent an integer with more than 4,300 digits.
    """
    try:
        text = repr(value)
    except Exception:  # a caller's object may raise anything
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= most else f"{text[:most]}..."

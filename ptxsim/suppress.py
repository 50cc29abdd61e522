"""A file of known reports, which `ptxsim check` does not print again.

Each line names a kind of report, a file, perhaps with a line, and a reason:

    race  kernels/reduce.cu:41  both write the same bits, see issue 12

The kind same_value_in_shared names races whose two stores write the same value to shared memory. The file * stands for
any file. Empty lines and lines that begin with # are left out. A rule without a reason is refused. The folder `known`
has files for the code of compilers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kernel_cache import regular, texts

from . import state as s
from . import verdicts
from .errors import InputError
from .findings import Report

SAME_IN_SHARED = "same_value_in_shared"
KNOWN = Path(__file__).with_name("known")


@dataclass(frozen=True)
class Rule:
    """A line of the file. file: * for any. line: 0 for any line of the source file."""

    kind: str
    file: str
    line: int
    reason: str

    def fits(self, report: Report) -> bool:
        """Whether the rule is about a report."""
        kinds = {report.kind}
        if (report.kind, report.verdict) == ("race", verdicts.SAME) and report.address.startswith("shared "):
            kinds.add(SAME_IN_SHARED)
        at = self.line in (0, report.line, report.other_line)
        return self.kind in kinds and at and (self.file == "*" or Path(report.file).as_posix().endswith(self.file))


def read(files: list[str]) -> list[Rule]:
    """The rules of files. Raises InputError for a line that is no rule.

    A name without a folder and an ending, such as `triton`, names a file in the folder `known`, if that file exists.
    """
    rules = []
    for file in files:
        known = KNOWN / f"{file}.txt"
        try:
            text = regular.read(known if "/" not in file and known.exists() else Path(file))
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror}") from error
        rules += rules_in(text.decode("utf-8", errors="replace"), file)
    return rules


def rules_in(lines: str, file: str) -> list[Rule]:
    """The rules in the text of a file."""
    rules = []
    for number, text in enumerate(lines.splitlines(), 1):
        words = text.split(maxsplit=2)
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 3 or words[0] not in (*s.KINDS, SAME_IN_SHARED):
            raise InputError(f"{file}:{number}: expected KIND FILE[:LINE] REASON, got {texts.shown(text)}")
        name, colon, line = words[1].rpartition(":")
        place = texts.whole(line) if colon else None
        rules.append(Rule(words[0], words[1] if place is None else name, place or 0, words[2]))
    return rules


def matching(rules: list[Rule], report: Report) -> Rule | None:
    """The first rule about a report, or None."""
    return next((rule for rule in rules if rule.fits(report)), None)


def said(rules: list[Rule], known: list[Report]) -> list[str]:
    """A line about each rule: how many reports the rule has left out, 0 if no report fits it."""
    lines = []
    for rule in rules:
        count = sum(matching(rules, report) is rule for report in known)
        place = f"{rule.file}:{rule.line}" if rule.line else rule.file
        lines.append(f"suppressed {count}: {rule.kind} {place}: {rule.reason}")
    return lines

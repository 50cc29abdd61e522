"""Judges how a job ended: times, messages, exit code, and what it has left."""

from __future__ import annotations

import re
from pathlib import Path

import draw
from draw import KINDS, LIMIT, Job
from driver import Ended

from aristos import errors, reference
from aristos.config import OVERDUE, MoEConfig
from aristos.layer import saved_files, saving
from aristos.primitives import npz
from aristos.results import hdf5

EVERYWHERE = ("ctrl_c", "time_limit")  # these faults end every rank, so no rank is left to report them
REPORTED = ("word",)  # the rank that has the fault reports it
UNNAMED = (
    "unplugged",
    "link_lost",
    "memory",
)  # messages name no lost rank: no rank is lost, or it hangs in Python, which other ranks cannot see
LAST = r"^aristos: rank \d+ (?:ends the job, because |.*; aborting the job$)"
GRACE = 5.0  # seconds beyond a wait's limit
OWN = (
    r"^(?:aristos\.errors\.)?"
    r"(?P<kind>WaitTimeout|PoisonedError|CorruptionError|ClosedError|PeerInputError|MismatchError): (?P<text>.*)"
)
DOG = r"^aristos: (?P<text>rank \d+ (?:waited|ends:).*aborting the job)$"
KILLED = (
    r"BAD TERMINATION|EXIT STRING|KILLED BY SIGNAL|exited on signal|terminated without|non-zero status|process rank"
)
REMEDY = (
    r"see the (?:message|output) of (?:all ranks|rank)|raise (?:absent_)?timeout=|look at|make a new layer"
    r"|start again from the last checkpoint"
)
PHASE = r"in epoch \d+|MPI_\w+|\(\w[^)]*\)|to close|to make a layer|to load|in call \d+"


def judge(job: Job, ended: Ended) -> list[str]:
    """Everything that was wrong with the end of a job."""
    kind = KINDS[job.faults[0]["kind"]]
    found = [f"{ended.processes} processes are left"] if ended.processes else []
    if ended.files:
        found.append(f"files are left: {', '.join(sorted(ended.files)[:5])}")
    if any("WRONG:" in out for out in ended.out):
        found.append("a wrong result")
    if ended.code is None:
        return [*found, f"a hang: the job has not ended; ranks ended after {ended.seconds} s"]
    survives = kind.outcome == draw.SURVIVES or (kind.outcome == draw.EITHER and ended.code == 0)
    found += survived(ended) if survives else failed(job, ended)
    return found + stored(ended.folder)


def survived(ended: Ended) -> list[str]:
    """Everything that was wrong with a job that should have gone on."""
    found = [] if ended.code == 0 else [f"exit code {ended.code} where the job should have survived"]
    found += [f"rank {r} has not come to its end" for r, done in enumerate(ended.done) if not done]
    return found


def failed(job: Job, ended: Ended) -> list[str]:
    """Everything that was wrong with a job that should have ended by errors on all remaining ranks."""
    if ended.fault_at is None:
        return ["the fault did not happen"]
    found = [] if ended.code else ["exit code 0 after a fault that ends the job"]
    victim, late = job.faults[0]["rank"], GRACE + ended.late
    if job.faults[0]["kind"] in EVERYWHERE:
        return found + [f"rank {r} ended after {s} s" for r, s in enumerate(ended.seconds) if s is None or s > late]
    last_words = any(re.search(LAST, out, re.MULTILINE) for out in ended.out)
    # Then the launcher ended the other ranks before they could print a message.
    by_launcher = last_words or bool(re.search(KILLED, ended.launcher))
    for rank, out in enumerate(ended.out):
        if rank == victim and job.faults[0]["kind"] not in REPORTED:
            continue
        messages = own_messages(out)
        bound = OVERDUE * job.options["timeout"] if patient(job, out) else job.options["timeout"]
        spent = ended.seconds[rank]
        if spent is None or spent > bound + late:
            found.append(f"rank {rank} ended after {spent} s, not within {bound + late:.1f} s")
        if messages:
            missing = lacks(messages[-1], rank, -1 if unnamed(job) else victim)
            found += [f"rank {rank}'s message lacks {what}: {messages[-1]}" for what in missing]
            if len(messages) > 1:
                found.append(f"rank {rank} has {len(messages)} messages: {messages}")
        elif not by_launcher:
            found.append(f"rank {rank} has no message: {out[-300:]!r}")
    return found


def unnamed(job: Job) -> bool:
    """Whether messages need not name the rank of the fault.

    With two levels a damaged word may be one that the rank's neighbours read too, and any of them may find it.
    """
    kind = job.faults[0]["kind"]
    return kind in UNNAMED or (kind == "word" and job.levels == 2)


def own_messages(out: str) -> list[str]:
    """The error that a rank printed last and the error of its watchdog, without repetitions."""
    found = [m["text"] for m in re.finditer(OWN, out, re.MULTILINE)] + [
        m["text"] for m in re.finditer(DOG, out, re.MULTILINE)
    ]
    return list(dict.fromkeys(found))


def patient(job: Job, out: str) -> bool:
    """Whether a rank waited for a living rank that was in user code: such a wait may last ten times as long.

    A rank without memory may hang in Python: `Thread.start` waits for ever for a thread that had no memory to start.
    """
    words = (
        "outside a call",
        "is still in user code",
        "has not made its call",
        f"absent_timeout {OVERDUE * LIMIT:g} s",
    )
    return job.faults[0]["kind"] in ("stop", "unplugged", "link_lost", "memory") and any(each in out for each in words)


def lacks(text: str, rank: int, victim: int) -> list[str]:
    """What a message leaves out. victim: the lost rank, -1 if there is none."""
    found = []
    if f"rank {rank}" not in text:
        found.append("its rank")
    if victim >= 0 and not re.search(rf"\brank {victim}\b|ranks [\d, and]*\b{victim}\b", text):
        found.append("the lost rank")
    if not re.search(PHASE, text):
        found.append("the phase")
    if not re.search(REMEDY, text):
        found.append("a remedy")
    return found


def stored(folder: Path) -> list[str]:
    """What is wrong on a job's disk: it must hold all earlier runs, and a checkpoint that is old or new."""
    found = []
    if (folder / "results.log").exists():
        wanted = (folder / "results.log").read_text().split()
        try:
            runs = {run.name for run in hdf5.read(folder / "disk/results.h5").runs}
            if missing := set(wanted) - runs:
                found.append(f"results lack the runs {missing}")
        except errors.ResultsError as error:
            found.append(f"the results do not open: {error}")
    if (folder / "saved.log").exists():
        found += checkpoint(folder)
    return found


def checkpoint(folder: Path) -> list[str]:
    """What is wrong with the saved weights: they must be those of the last complete save, or of a later one."""
    last = int((folder / "saved.log").read_text().split()[-1])
    cfg = MoEConfig(hidden=24, ffn=40, experts=5, top_k=2, max_tokens=48)
    try:
        about = saving.read_manifest(folder / "disk/saved")
        names = [saved_files.name_of(0, e) for e in (*range(cfg.experts), saved_files.COMMON)]
        arrays = [npz.load(str(folder / "disk/saved" / about.folder / name), "saved") for name in names]
    except errors.AristosError as error:
        return [f"the checkpoint does not open: {error}"]
    for seed in range(last, 256):
        w = reference.weights(cfg, seed=seed)
        same = all((arrays[e][n] == w[n][e]).all() for e in range(cfg.experts) for n in ("up", "down"))
        if same and (arrays[-1]["router"] == w["router"]).all():
            return []
    return [f"the checkpoint is neither that of save {last} nor a later one"]

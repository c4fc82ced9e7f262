"""The history of a run, and its audit: was every image used exactly once in every epoch?

A run directory holds `history.jsonl`, to which one JSON object a line is appended:

    {"kind": "segment", "position": p, "sampler": {...}, "data": [paths], "resolution": r, "change": null or text}
        when training starts or resumes at position p, with the sampler's state there
    {"kind": "epoch", "epoch": e, "start": p, "end": q, "sum": hexadecimal, "exact": true or null}
        when an epoch has ended, as `Sampler.advance` reports it
    {"kind": "end", "position": p}
        when training stops in good order

Lines are never changed. A run that was killed resumes from a checkpoint, at an earlier position than the last lines
may speak of; what a segment line says from its position on supersedes all lines before it. A line that was torn when
the machine died is skipped.

`audit_run` replays these segments, draws every image again, and counts. Natural sampling needs no data file for that;
quotas need the labels.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from biggan.data.balance import QuotaSegment
from biggan.data.dataset import ImageData, open_data
from biggan.data.sampler import Sampler, Segment, restore_segments, segment_at
from biggan.data.segments import Part, Population
from data_tools.schema import DatasetError

HISTORY_FILE = "history.jsonl"
_CHUNK = 65536


def record_segment(sampler: Sampler, data: ImageData, change: str | None = None) -> dict:
    """The line for a start or resumption; `change` is what `Sampler.load_state_dict` returned."""
    return {
        "kind": "segment",
        "position": sampler.position,
        "sampler": sampler.state_dict(),
        "data": list(data.paths),
        "resolution": data.resolution,
        "change": change,
    }


def record_epoch(record: dict) -> dict:
    """The line for an epoch that ended: `record` is one of those that `Sampler.advance` returned."""
    return {"kind": "epoch", **record}


def record_end(sampler: Sampler) -> dict:
    """The line for the end of a session, at the position of its last checkpoint."""
    return {"kind": "end", "position": sampler.position}


def append(run: str | os.PathLike, record: dict) -> None:
    """Add a line to a run's history; it is on the disk when this returns."""
    with open(Path(run) / HISTORY_FILE, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
            file.write(b"\n" * torn)
        file.write(json.dumps(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


@dataclass(frozen=True)
class EpochAudit:
    """What a replay found about one epoch. `verdict` is "exact", "in progress", "cut short" or "wrong"."""

    epoch: int
    start: int
    end: int
    verdict: str
    detail: str
    sum: str  # of the hashes of the rows, as `Sampler.advance` reports it

    def __str__(self) -> str:
        return f"epoch {self.epoch}: images {self.start:,} to {self.end:,}: {self.verdict}: {self.detail}"


@dataclass
class AuditReport:
    """What a replay found about a run."""

    epochs: list[EpochAudit]
    sessions: int
    changes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems and all(epoch.verdict != "wrong" for epoch in self.epochs)

    def lines(self) -> list[str]:
        """The report as text, a finding a line."""
        exact = sum(epoch.verdict == "exact" for epoch in self.epochs)
        sessions = "1 session" if self.sessions == 1 else f"{self.sessions} sessions"
        summary = f"{sessions}, {exact} of {len(self.epochs)} epochs exact"
        return [*map(str, self.epochs), *self.changes, *self.problems, summary]


@dataclass(frozen=True)
class _Span:
    """Positions [start, end) whose images came from these segments."""

    start: int
    end: int
    segments: tuple[Segment, ...]


def read_history(run: str | os.PathLike) -> list[dict]:
    """The lines of a run's history that are whole. Raises ValueError if there are none."""
    path = Path(run) / HISTORY_FILE
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); is {run} a run directory?") from error
    lines = []
    for line in raw.split(b"\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "kind" in entry:
            lines.append(entry)
    if not any(entry["kind"] == "segment" for entry in lines):
        raise ValueError(f"{path} does not record where the run began.")
    return lines


def audit_run(run: str | os.PathLike, position: int | None = None) -> AuditReport:
    """Replay a run's history and count how often each image was used in each epoch.

    `position` is where the run is now, by its newest checkpoint; without it, the last position that the history
    speaks of counts. Raises ValueError if the history cannot be replayed.
    """
    history = read_history(run)
    sessions = [entry for entry in history if entry["kind"] == "segment"]
    report = AuditReport([], len(sessions))
    report.changes = [f"resumed at image {s['position']:,}: {s['change']}" for s in sessions if s.get("change")]
    if sessions[0]["position"] != 0:
        report.problems.append(f"the history begins at image {sessions[0]['position']:,}, not at the first")
    eras = list(_eras(history, position))
    for spans in eras:
        report.epochs.extend(_replay(spans, goes_on=spans is eras[-1]))
    _compare_sums(history, report)
    return report


def _eras(history: list[dict], position: int | None) -> Iterator[list[_Span]]:
    """The spans of positions that were kept, in order; a new list wherever other data or another seed took over."""
    sessions: list[dict] = []
    last = 0
    for entry in history:
        if entry["kind"] == "segment":
            sessions = [s for s in sessions if s["position"] < entry["position"]] + [entry]
            last = entry["position"]
        else:
            last = max(last, entry["end"] if entry["kind"] == "epoch" else entry["position"])
    ends = [s["position"] for s in sessions[1:]] + [last if position is None else position]
    era: list[tuple[dict, int]] = []
    for session, end in zip(sessions, ends, strict=True):
        if era and session["position"] in session["sampler"].get("overrides", ()):
            yield _spans(era)
            era = []
        era.append((session, end))
    yield _spans(era)


def _spans(era: list[tuple[dict, int]]) -> list[_Span]:
    newest = era[-1][0]
    states = [session["sampler"] for session, _ in era]
    parts = tuple(Part(rows, fingerprint) for rows, fingerprint in states[-1]["segments"][-1]["sets"])
    quotas = any(e["mode"] != "natural" or "weights" in e for state in states for e in state["segments"])
    population = Population(parts, _labels(newest, parts) if quotas else None)
    return [_Span(session["position"], end, restore_segments(population, session["sampler"])) for session, end in era]


def _labels(session: dict, parts: tuple[Part, ...]) -> np.ndarray:
    """The labels of the data that a session used; the files may have grown since."""
    data = open_data(session["data"], session["resolution"], verify=False)
    try:
        labels = []
        offset = 0
        for part, now in zip(parts, data.parts, strict=True):
            if not now.extends(part.rows, part.fingerprint):
                raise DatasetError(f"{data.name} is not the data that the run was trained on: put that back first.")
            labels.append(data.labels[offset : offset + part.rows])
            offset += now.rows
        return np.concatenate(labels)
    finally:
        data.close()


class _Tally:
    """How often each image was used in an epoch, and in the quota segment that the epoch belongs to."""

    def __init__(self, epoch: int, start: int, segment: Segment):
        self.epoch, self.start, self.end = epoch, start, start
        self.segment, self.sum = segment, 0
        self.counts = np.zeros(int(segment.population.offsets[-1]), dtype=np.uint32)

    def add(self, rows: np.ndarray, segment: Segment) -> None:
        self.counts += np.bincount(rows, minlength=len(self.counts)).astype(np.uint32)
        self.sum = (self.sum + int(segment.population.hashes(rows).sum())) % 2**64
        self.end += len(rows)
        self.segment = segment

    def verdict(self, complete: bool, over: bool, uses: np.ndarray) -> EpochAudit:
        """`uses` counts the whole segment, not only this epoch."""
        check = _check_quotas if isinstance(self.segment, QuotaSegment) else _check_once
        problem, detail = check(self, complete, uses)
        begin = self.segment.bounds(self.epoch)[0]
        if begin != self.start:
            problem = f"its first image is {begin:,}, but the history has it from {self.start:,} on"
        verdict = "wrong" if problem else "exact" if complete else "cut short" if over else "in progress"
        return EpochAudit(self.epoch, self.start, self.end, verdict, problem or detail, f"{self.sum:016x}")


def _check_once(tally: _Tally, complete: bool, uses: np.ndarray) -> tuple[str | None, str]:
    used, repeated = int((tally.counts > 0).sum()), int((tally.counts > 1).sum())
    n = tally.segment.plan.n
    if repeated:
        return f"{repeated:,} images were used more than once", ""
    if complete and used != n:
        return f"{n - used:,} of {n:,} images were not used", ""
    return None, f"each of {n:,} images once" if complete else f"{used:,} of {n:,} images, none twice"


def _check_quotas(tally: _Tally, complete: bool, uses: np.ndarray) -> tuple[str | None, str]:
    segment = tally.segment
    for members, quota in zip(segment.members(), segment.quotas.tolist(), strict=True):
        used = int(tally.counts[members].sum())
        due = quota * segment.blocks_per_epoch
        if complete and used != due:
            return f"a class with a quota of {due:,} was drawn {used:,} times", ""
        if np.ptp(uses[members]) > 1:
            return f"images of one class were used {uses[members].min()} to {uses[members].max()} times", ""
    return None, f"{'exact quotas' if complete else 'quotas'}, images of one class alike to within one use"


def _replay(spans: list[_Span], goes_on: bool) -> Iterator[EpochAudit]:
    tally: _Tally | None = None
    uses = np.zeros(0, dtype=np.uint32)
    segment_start = -1
    for span in spans:
        position = span.start
        while position < span.end:
            segment, segment_end = segment_at(span.segments, position)
            epoch = segment.epoch(position)
            epoch_end = int(min(segment.bounds(epoch)[1], segment_end))
            if tally is not None and tally.epoch != epoch:
                yield tally.verdict(False, True, uses)
                tally = None
            if segment.start != segment_start:
                segment_start = segment.start
                uses = np.zeros(int(segment.population.offsets[-1]), dtype=np.uint32)
            tally = tally or _Tally(epoch, position, segment)
            stop = min(span.end, epoch_end, position + max(_CHUNK, len(uses) // 4))  # counting costs n per chunk
            rows = segment.rows(np.arange(position, stop))
            tally.add(rows, segment)
            uses += np.bincount(rows, minlength=len(uses)).astype(np.uint32)
            position = stop
            if position == epoch_end:
                yield tally.verdict(segment.bounds(epoch)[1] == epoch_end, True, uses)
                tally = None
    if tally is not None:
        yield tally.verdict(False, not goes_on, uses)


def _compare_sums(history: list[dict], report: AuditReport) -> None:
    """Hold the epochs that the run reported against those of the replay."""
    found = {(audit.epoch, audit.start, audit.end, audit.sum) for audit in report.epochs}
    reported = {}
    for entry in history:
        if entry["kind"] == "segment":
            reported = {key: e for key, e in reported.items() if e["end"] <= entry["position"]}
        elif entry["kind"] == "epoch":
            reported[entry["epoch"]] = entry
    for entry in reported.values():
        if (entry["epoch"], entry["start"], entry["end"], entry["sum"]) not in found:
            report.problems.append(
                f"the run reported epoch {entry['epoch']} as images {entry['start']:,} to {entry['end']:,} with audit "
                f"sum {entry['sum']}, which the replay does not confirm"
            )

"""The sampler: a run's cursor and the images at every position.

A run's position is the number of real images it has consumed. `Sampler.rows` maps positions to rows of the data as a
pure function, so batch size, accumulation, number of processes and prefetching can change at any update without an
image being lost or seen twice: whoever needs positions [start, start + count) asks for them.

    sampler = Sampler(len(images), seed=0)
    while training:
        rows = sampler.rows(sampler.position, batch_size)    # or any part of them, in any process
        update(images[rows])
        for epoch in sampler.advance(batch_size):            # only now has it happened
            print(epoch)
        state = sampler.state_dict()                         # under 1 kB of JSON, whatever n

The state holds the position of completed updates, never of prefetched ones. It also holds the sum of the hashes of
the rows used so far in the epoch; at the epoch's end this must be the sum over what the epoch should have held, which
`advance` verifies and reports.

When sampling mode, weights or data sets differ from those of the state that is loaded, a new segment begins (see
`biggan.data.segments`): with `join="next"` at the end of the epoch, so that every epoch is whole; with
`join="current"` as soon as possible. Images added to a data set that is sampled naturally then join the epoch in
progress, each exactly once; a change of mode cuts a natural epoch short, but never a block of quotas.
"""

import json
import math

import numpy as np

from biggan.data.balance import QuotaSegment
from biggan.data.order import ALGORITHM
from biggan.data.segments import NaturalSegment, Part, Plan, Population

STATE_BYTES = 1000
_CHUNK = 65536
_KEPT_OVERRIDES = 8

Segment = NaturalSegment | QuotaSegment


class StateMismatch(ValueError):
    """A saved state that does not belong to this seed, algorithm or data; the message is for the user."""


class Sampler:
    """Positions to rows, with a cursor, an audit, and a small state.

    `labels_or_n`: int64 [n] labels, or n alone (natural sampling needs no more). `mode`: "natural" (each image once
    per epoch), "balanced" (each class alike) or "tempered" (classes ~ size^alpha). `parts` and `weights` describe
    several data sets that follow each other in row order; by default there is one with this `fingerprint`.
    """

    def __init__(
        self,
        labels_or_n: int | np.ndarray,
        seed: int,
        mode: str = "natural",
        alpha: float = 0.5,
        *,
        fingerprint: str = "",
        parts: tuple[Part, ...] | None = None,
        weights: tuple[float, ...] | None = None,
        join: str = "next",
    ):
        if join not in ("current", "next"):
            raise ValueError(f'changes join the "current" or the "next" epoch, not "{join}"')
        labels = None if np.ndim(labels_or_n) == 0 else np.asarray(labels_or_n, dtype=np.int64)
        n = int(labels_or_n) if labels is None else len(labels)
        parts = tuple(parts or (Part(n, fingerprint),))
        if n < 1 or any(part.rows < 1 for part in parts):
            raise ValueError("there are no images to sample from")
        if sum(part.rows for part in parts) != n:
            raise ValueError(f"the data sets hold {sum(part.rows for part in parts)} rows, but {n} were given")
        self.seed, self.join = int(seed), join
        self.plan = Plan.of(parts, mode, alpha, weights)
        self.position = 0
        self._population = Population(parts, labels)
        # The segment in progress, and the one that follows it if a change is waiting for the end of the epoch. The
        # prefetching thread reads this while `advance` moves on, so the tuple is replaced, never changed.
        self._segments: tuple[Segment, ...] = (self._begin(self.plan, 0, 0),)
        self._sum = 0  # of the hashes of the epoch in progress
        self._overrides: list[int] = []

    @classmethod
    def over(cls, data, seed: int, mode: str = "natural", alpha: float = 0.5, join: str = "next") -> "Sampler":
        """A sampler over an `ImageData`: its labels, parts and weights."""
        return cls(data.labels, seed, mode, alpha, parts=data.parts, weights=data.weights, join=join)

    @property
    def n(self) -> int:
        """Rows of the data as it is now."""
        return self.plan.n

    def rows(self, start: int, count: int) -> np.ndarray:
        """The rows at positions [start, start + count), int64 [count]; a pure function."""
        segments = self._segments
        pieces = []
        while count > 0:
            segment, end = segment_at(segments, start)
            size = min(count, _CHUNK, end - start)
            pieces.append(segment.rows(np.arange(start, start + size, dtype=np.int64)))
            start, count = start + size, count - size
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def epoch(self, position: int) -> int:
        """The number of the epoch that a position lies in."""
        return segment_at(self._segments, position)[0].epoch(position)

    def epoch_bounds(self, epoch: int) -> tuple[int, int]:
        """First position of an epoch and of the next one, from the segment in progress on."""
        for segment in self._segments:
            begin, end = segment.bounds(epoch)
            segment_end = segment_at(self._segments, segment.start)[1]
            if epoch >= segment.first_epoch and begin < segment_end:
                return begin, int(min(end, segment_end))
        raise ValueError(f"epoch {epoch} belongs to an earlier part of the run than this sampler knows")

    def advance(self, count: int) -> list[dict]:
        """Count `count` images as used. Returns a record of each epoch that ended, for the run log.

        Raises RuntimeError if an epoch's images were not those it should have held.
        """
        records = []
        target = self.position + count
        while self.position < target:
            epoch = self.epoch(self.position)
            begin, end = self.epoch_bounds(epoch)
            stop = min(target, end, self.position + _CHUNK)
            rows = self.rows(self.position, stop - self.position)
            self._sum = (self._sum + int(self._population.hashes(rows).sum())) % 2**64
            self.position = stop
            if stop == end:
                records.append(self._close_epoch(epoch, begin, end))
        return records

    def _close_epoch(self, epoch: int, begin: int, end: int) -> dict:
        segment, _ = segment_at(self._segments, end - 1)
        whole = segment.bounds(epoch)[1] == end
        record = {"epoch": epoch, "start": begin, "end": end, "sum": f"{self._sum:016x}", "exact": None}
        if whole:
            expected = segment.expected_sum(epoch)
            if self._sum != expected:
                raise RuntimeError(
                    f"epoch {epoch} (positions {begin} to {end}) did not use each image as often as it should: its "
                    f"audit sum is {self._sum:016x} instead of {expected:016x}; resume from an earlier checkpoint"
                )
            record["exact"] = True
        self._sum = 0
        if self._segments[-1].start <= self.position:
            self._segments = self._segments[-1:]
        return record

    def state_dict(self) -> dict:
        """Everything needed to go on, as plain JSON values."""
        state = {
            "algorithm": ALGORITHM,
            "seed": self.seed,
            "position": self.position,
            "epoch": self.epoch(self.position),
            "sum": f"{self._sum:016x}",
            "segments": [_describe(segment) for segment in self._segments],
        }
        if self._overrides:
            state["overrides"] = self._overrides
        return state

    def begin_at(self, position: int) -> None:
        """Begin epoch 0 at a position, for a run whose images until there are not known."""
        self.position = position
        self._sum = 0
        self._segments = (self._begin(self.plan, position, 0),)

    def load_state_dict(self, state: dict, override: bool = False) -> str | None:
        """Go on from a saved state. Returns a sentence if something changes, and from which position on, or None.

        Raises `StateMismatch` if the algorithm, the seed or the data are others than those of the state, except that
        data sets may have grown, or been added at the end. With `override`, a new segment then begins at once, the
        epoch in progress stays incomplete, and the position is kept in the state's "overrides".
        """
        try:
            position, epoch, audit_sum = int(state["position"]), int(state["epoch"]), int(state["sum"], 16)
            overrides = [int(p) for p in state.get("overrides", ())]
            problem = self._mismatch(state)
            if problem is None:
                segments = restore_segments(self._population, state)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise StateMismatch(f"the saved state of the sampler is damaged: {error!r}") from error
        if problem and not override:
            raise StateMismatch(f"{problem}, or begin another order of images here with --new-order")
        self.position = position
        if problem:
            self._sum, self._overrides = 0, [*overrides, position][-_KEPT_OVERRIDES:]
            self._segments = (self._begin(self.plan, position, epoch + 1),)
            return f"overridden at image {position:,}, whose epoch {epoch} stays incomplete: {problem}"
        self._sum, self._overrides, self._segments = audit_sum, overrides, segments
        return self._join_plan(epoch)

    def _mismatch(self, state: dict) -> str | None:
        """Why a state cannot be continued, as the beginning of a sentence, or None."""
        if state["algorithm"] != ALGORITHM:
            return (
                f"the run was made with image order {state['algorithm']}, but this version makes order {ALGORITHM}: "
                "resume it with the version that began it"
            )
        if state["seed"] != self.seed:
            return f"the run has seed {state['seed']}, but the seed is now {self.seed}: set it back"
        parts = self._population.parts
        for index, (rows, fingerprint) in enumerate(state["segments"][-1]["sets"]):
            if index >= len(parts):
                return f"the run had {len(state['segments'][-1]['sets'])} data sets, now there are {len(parts)}"
            part = parts[index]
            if not part.extends(rows, fingerprint):
                return (
                    f"data set {index + 1} is neither the one that the run was trained on nor one that grew from it "
                    f"(then {rows:,} images, fingerprint {fingerprint[:12]}; now {part.rows:,}, "
                    f"{part.fingerprint[:12]}): put the old one back"
                )
        return None

    def _begin(self, plan: Plan, start: int, epoch: int, carried: NaturalSegment | None = None) -> Segment:
        return begin_segment(self._population, plan, self.seed, start, epoch, carried)

    def _join_plan(self, epoch: int) -> str | None:
        """Let a plan that differs from that of the restored state come into force."""
        current, _ = segment_at(self._segments, self.position)
        planned = self._segments[-1].plan
        if planned == self.plan:
            return None
        if current.plan == self.plan:
            self._segments = (current,)
            return f"the sampling stays {current.plan}; a change to {planned} was waiting for the end of the epoch"
        self._segments = self._change(current, epoch)
        start = self._segments[-1].start
        when = "now" if start <= self.position else f"from image {start:,} on"
        return f"the sampling changes {when}: {current.plan} -> {self.plan}"

    def _change(self, current: Segment, epoch: int) -> tuple[Segment, ...]:
        """The segments from here on, if the plan changes in the given epoch of the current one."""
        begin, end = current.bounds(epoch)
        if self.position == begin:
            return (self._begin(self.plan, begin, epoch),)
        waiting = current, self._begin(self.plan, end, epoch + 1)
        if self.join == "next":
            return waiting
        if current.plan.in_quotas or self.plan.in_quotas:
            cut = current.change_point(self.position)
            changed = self._begin(self.plan, cut, epoch + 1)
            if cut > self.position:
                return current, changed
            self._sum = 0
            return (changed,)
        joined = self._begin(self.plan, self.position, epoch, current)
        # One that grew again and again within an epoch would make a long state; then it waits for the next epoch.
        room = STATE_BYTES - len(json.dumps(self.state_dict()))
        return (joined,) if len(json.dumps(_describe(joined))) - len(json.dumps(_describe(current))) < room else waiting


def begin_segment(
    population: Population,
    plan: Plan,
    seed: int,
    start: int,
    epoch: int,
    carried: NaturalSegment | None = None,
) -> Segment:
    """The segment in which `plan` is in force from `start` on."""
    if plan.in_quotas:
        return QuotaSegment(population, plan, seed, start, epoch)
    return NaturalSegment(population, plan, seed, start, epoch, carried)


def restore_segments(population: Population, state: dict) -> tuple[Segment, ...]:
    """The segments that a saved state describes, over the rows there are now."""

    def restore(entry: dict) -> Segment:
        carried = restore(entry["carried"]) if "carried" in entry else None
        plan = Plan.from_json(entry)
        return begin_segment(population, plan, state["seed"], int(entry["start"]), int(entry["epoch"]), carried)

    return tuple(restore(entry) for entry in state["segments"])


def segment_at(segments: tuple[Segment, ...], position: int) -> tuple[Segment, float]:
    """The segment that a position lies in, and where that ends."""
    end = math.inf
    for segment in reversed(segments):
        if segment.start <= position:
            return segment, end
        end = segment.start
    raise ValueError(f"position {position} lies before {segments[0].start}, where the sampler's memory begins")


def _describe(segment: Segment) -> dict:
    entry = {"start": segment.start, "epoch": segment.first_epoch, **segment.plan.to_json()}
    if segment.carried:
        entry["carried"] = _describe(segment.carried)
    return entry

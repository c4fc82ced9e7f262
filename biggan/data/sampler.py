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
        self._segments: list[Segment] = [self._begin(self.plan, 0, 0)]
        self._sum = 0  # of the hashes of the epoch in progress

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
        if start < self._segments[0].start or count < 0:
            raise ValueError(f"positions start at {self._segments[0].start} here, but {start} was asked for")
        pieces = []
        while count > 0:
            index = self._segment_index(start)
            end = self._segment_end(index)
            size = min(count, _CHUNK, end - start)
            pieces.append(self._segments[index].rows(np.arange(start, start + size, dtype=np.int64)))
            start, count = start + size, count - size
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def epoch(self, position: int) -> int:
        """The number of the epoch that a position lies in."""
        return self._segments[self._segment_index(position)].epoch(position)

    def epoch_bounds(self, epoch: int) -> tuple[int, int]:
        """First position of an epoch and of the next one, from the segment in progress on."""
        for index, segment in enumerate(self._segments):
            begin, end = segment.bounds(epoch)
            if epoch >= segment.first_epoch and begin < self._segment_end(index):
                return begin, min(end, self._segment_end(index))
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
        segment = self._segments[self._segment_index(end - 1)]
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
        while len(self._segments) > 1 and self._segments[1].start <= self.position:
            del self._segments[0]
        return record

    def state_dict(self) -> dict:
        """Everything needed to go on, as plain JSON values."""
        return {
            "algorithm": ALGORITHM,
            "seed": self.seed,
            "position": self.position,
            "sum": f"{self._sum:016x}",
            "segments": [_describe(segment) for segment in self._segments],
        }

    def load_state_dict(self, state: dict, override: bool = False) -> None:
        """Go on from a saved state.

        Raises `StateMismatch` if the algorithm, the seed or the data are others than those of the state, except that
        data sets may have grown, or been added at the end. With `override`, a new segment then begins at once and
        the epoch in progress stays incomplete.
        """
        try:
            if state["algorithm"] != ALGORITHM:
                raise StateMismatch(
                    f"the saved run used image order {state['algorithm']}, this program makes order {ALGORITHM}; "
                    "resume with the version that began the run, or override to start another order here"
                )
            if state["seed"] != self.seed:
                raise StateMismatch(
                    f"the saved run has seed {state['seed']}, but the seed is now {self.seed}; set it back, or "
                    "override to start another order here"
                )
            segments: list[Segment] = []
            for entry in state["segments"]:
                segments.append(self._restore(entry))
        except StateMismatch:
            if not override:
                raise
            self._restart(int(state["position"]), self._last_epoch(state) + 1)
            return
        except (KeyError, TypeError, AttributeError) as error:
            raise StateMismatch(f"the saved state of the sampler is damaged: {error!r}") from error
        self.position, self._sum = int(state["position"]), int(state["sum"], 16)
        self._segments = segments
        self._join_plan()

    @staticmethod
    def _last_epoch(state: dict) -> int:
        return max((int(entry.get("epoch", 0)) for entry in state.get("segments", [])), default=0)

    def _restart(self, position: int, epoch: int) -> None:
        self.position, self._sum = position, 0
        self._segments = [self._begin(self.plan, position, epoch)]

    def _begin(self, plan: Plan, start: int, epoch: int, carried: NaturalSegment | None = None) -> Segment:
        if plan.in_quotas:
            return QuotaSegment(self._population, plan, self.seed, start, epoch)
        return NaturalSegment(self._population, plan, self.seed, start, epoch, carried)

    def _restore(self, entry: dict) -> Segment:
        plan = Plan.from_json(entry)
        parts = self._population.parts
        for index, (rows, fingerprint) in enumerate(plan.sets):
            if index >= len(parts) or not parts[index].extends(rows, fingerprint):
                now = f"{parts[index].rows} rows, {parts[index].fingerprint[:12]}" if index < len(parts) else "gone"
                raise StateMismatch(
                    f"data set {index + 1} is not the one the run was trained on nor one that grew from it (then "
                    f"{rows} rows, fingerprint {fingerprint[:12]}; now {now}); put the old file back, or override "
                    "to go on with the new one from here"
                )
        carried = self._restore(entry["carried"]) if "carried" in entry else None
        return self._begin(plan, int(entry["start"]), int(entry["epoch"]), carried)

    def _join_plan(self) -> None:
        """Let a plan that differs from that of the restored state come into force."""
        index = self._segment_index(self.position)
        if self._segments[-1].plan == self.plan:
            return
        del self._segments[index + 1 :]  # planned, but superseded before they began
        current = self._segments[index]
        if current.plan == self.plan:
            return
        epoch = current.epoch(self.position)
        begin, end = current.bounds(epoch)
        if self.position == begin:
            self._segments = [self._begin(self.plan, begin, epoch)]
        elif self.join == "current" and not current.plan.in_quotas and self._grown_from(current.plan):
            self._segments = [self._begin(self.plan, self.position, epoch, current)]
            if len(json.dumps(self.state_dict())) >= STATE_BYTES:  # it grew again and again within one epoch
                self._segments = [current, self._begin(self.plan, end, epoch + 1)]
        elif self.join == "current":
            cut = current.change_point(self.position)
            ended = current.epoch(cut) != epoch
            self._segments = [current, self._begin(self.plan, cut, epoch + 1)]
            if cut == self.position:
                self._segments = self._segments[1:]
                self._sum = 0
            assert ended or cut < end
        else:
            self._segments = [current, self._begin(self.plan, end, epoch + 1)]

    def _grown_from(self, plan: Plan) -> bool:
        return self.plan.mode == plan.mode and not self.plan.in_quotas

    def _segment_index(self, position: int) -> int:
        index = len(self._segments) - 1
        while index > 0 and self._segments[index].start > position:
            index -= 1
        return index

    def _segment_end(self, index: int) -> float:
        return self._segments[index + 1].start if index + 1 < len(self._segments) else math.inf


def _describe(segment: Segment) -> dict:
    entry = {"start": segment.start, "epoch": segment.first_epoch, **segment.plan.to_json()}
    if segment.carried:
        entry["carried"] = _describe(segment.carried)
    return entry

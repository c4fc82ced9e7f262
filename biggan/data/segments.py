"""Segments: stretches of a run's positions in which nothing changes but the position.

A `Plan` says what images are drawn from and how. A segment is a plan in force from a start position on; it maps every
position to a row, without a state. Changing the sampling mode, or adding images, ends one segment and begins another
at a recorded position, so that a run is described by a short list of segments however often it was interrupted.

Rows are numbered through all data sets of the run, one after the other, as they are now. A plan made before a data
set grew still names the same images, because appending keeps each data set's own row numbers.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from biggan.data.order import Order

MODES = ("natural", "balanced", "tempered")
_FIXED_ALPHA = {"natural": 1.0, "balanced": 0.0}
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FINGERPRINT_DIGITS = 32  # of 64: enough to tell files apart, and states stay small
_NATURAL_STREAM, _CARRY_STREAM = 0, 1


class Part(NamedTuple):
    """One data set as a sampler knows it: its rows, fingerprint, and what it was before it grew."""

    rows: int
    fingerprint: str
    ancestors: tuple[tuple[int, str], ...] = ()  # (rows, fingerprint) of earlier generations

    def extends(self, rows: int, fingerprint: str) -> bool:
        """Whether this data set is, or once was, the one with these rows and this fingerprint."""
        mine = ((self.rows, self.fingerprint), *self.ancestors)
        return any(rows == r and _short(fingerprint) == _short(f) for r, f in mine)


def _short(fingerprint: str) -> str:
    return fingerprint[:_FINGERPRINT_DIGITS]


@dataclass(frozen=True)
class Plan:
    """What is drawn from, and how: the mode, and rows, fingerprint and weight of each data set."""

    mode: str
    alpha: float
    sets: tuple[tuple[int, str], ...]
    weights: tuple[float, ...]

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f'sampling must be one of {", ".join(MODES)}, not "{self.mode}"')
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be between 0 (balanced) and 1 (natural), not {self.alpha}")
        if len(self.weights) != len(self.sets):
            raise ValueError(f"{len(self.sets)} data sets need as many weights, not {len(self.weights)}")
        if not all(0 < weight < float("inf") for weight in self.weights):
            raise ValueError(f"the weights of data sets must be positive numbers, not {list(self.weights)}")

    @classmethod
    def of(cls, parts: tuple[Part, ...], mode: str, alpha: float, weights: tuple[float, ...] | None) -> "Plan":
        """The plan for data sets as they are now; alpha counts in the mode "tempered" only."""
        alpha = _FIXED_ALPHA.get(mode, float(alpha))
        weights = tuple(float(w) for w in weights or (1.0,) * len(parts))
        return cls(mode, alpha, tuple((part.rows, _short(part.fingerprint)) for part in parts), weights)

    @property
    def n(self) -> int:
        return sum(rows for rows, _ in self.sets)

    @property
    def in_quotas(self) -> bool:
        """Whether images are drawn by quotas; otherwise each is drawn once per epoch."""
        return self.mode != "natural" or len(set(self.weights)) > 1

    def __str__(self) -> str:
        how = f"tempered({self.alpha:g})" if self.mode == "tempered" else self.mode
        sets = " + ".join(
            f"{rows:,}" + (f" x {weight:g}" if self.in_quotas and weight != 1 else "")
            for (rows, _), weight in zip(self.sets, self.weights, strict=True)
        )
        return f"{how} over {sets} images"

    def to_json(self) -> dict:
        data = {"mode": self.mode, "sets": [list(entry) for entry in self.sets]}
        if self.mode == "tempered":
            data["alpha"] = self.alpha
        if len(set(self.weights)) > 1:
            data["weights"] = list(self.weights)
        return data

    @classmethod
    def from_json(cls, data: dict) -> "Plan":
        sets = tuple((int(rows), str(fingerprint)) for rows, fingerprint in data["sets"])
        alpha = _FIXED_ALPHA.get(data["mode"], data.get("alpha"))
        return cls(data["mode"], alpha, sets, tuple(data.get("weights", (1.0,) * len(sets))))


class Population:
    """The rows there are now, and how the rows of an older plan are found among them."""

    def __init__(self, parts: tuple[Part, ...], labels: np.ndarray | None):
        self.parts = parts
        self.labels = labels
        self.offsets = np.cumsum([0] + [part.rows for part in parts])  # int64 [sets + 1]

    def now(self, plan: Plan, rows: np.ndarray) -> np.ndarray:
        """Rows of `plan`, numbered as they were then, as they are numbered now: int64 -> int64."""
        before = np.cumsum([0] + [size for size, _ in plan.sets])
        shifts = self.offsets[: len(before) - 1] - before[:-1]
        if not shifts.any():
            return rows
        return rows + shifts[np.searchsorted(before[1:], rows, side="right")]

    def added(self, old: Plan, new: Plan, index: np.ndarray) -> np.ndarray:
        """The index-th row, as numbered now, that `new` has and `old` had not."""
        old_sizes = [size for size, _ in old.sets] + [0] * (len(new.sets) - len(old.sets))
        gains = np.array([size - before for (size, _), before in zip(new.sets, old_sizes, strict=True)])
        ends = np.cumsum(gains)
        owner = np.searchsorted(ends, index, side="right")
        return index - (ends - gains)[owner] + np.array(old_sizes)[owner] + self.offsets[owner]

    def hashes(self, rows: np.ndarray) -> np.ndarray:
        """A 64-bit hash of each row that growth does not change: SplitMix64 of (data set, row in it)."""
        owner = np.zeros(1, dtype=np.int64)
        if len(self.parts) > 1:
            owner = np.searchsorted(self.offsets[1:], rows, side="right")
        h = (rows - self.offsets[owner]).astype(np.uint64) + (owner.astype(np.uint64) << np.uint64(48))
        h = (h + np.uint64(1)) * _GOLDEN
        h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return h ^ (h >> np.uint64(31))

    def hash_sum(self, plan: Plan) -> int:
        """The sum, modulo 2^64, of the hashes of all rows of a plan; a pass over row numbers only."""
        total = 0
        for start in range(0, plan.n, 65536):
            rows = np.arange(start, min(start + 65536, plan.n))
            total += int(self.hashes(self.now(plan, rows)).sum())
        return total % 2**64


class NaturalSegment:
    """Epochs in which each row of the plan comes exactly once.

    With `carried`, the segment takes over in mid-epoch from an earlier one whose data sets have since grown: what is
    left of that epoch, and the rows that are new, are shuffled together and finish it.
    """

    def __init__(
        self,
        population: Population,
        plan: Plan,
        seed: int,
        start: int,
        first_epoch: int,
        carried: "NaturalSegment | None" = None,
    ):
        self.population, self.plan, self.seed = population, plan, seed
        self.start, self.first_epoch, self.carried = start, first_epoch, carried
        self._order = Order(plan.n, seed, _NATURAL_STREAM)
        self._head = 0  # positions of the carried epoch
        if carried:
            self._left = carried.bounds(first_epoch)[1] - start
            self._head = self._left + plan.n - carried.plan.n
            self._mix = Order(self._head, seed, _CARRY_STREAM + self.depth)

    @property
    def depth(self) -> int:
        """How many segments back the epoch in progress at the start began."""
        return self.carried.depth + 1 if self.carried else 0

    def epoch(self, position: int) -> int:
        """The number of the epoch that a position of this segment lies in."""
        past = position - self.start - self._head
        if self.carried is None:
            return self.first_epoch + past // self.plan.n
        return self.first_epoch if past < 0 else self.first_epoch + 1 + past // self.plan.n

    def bounds(self, epoch: int) -> tuple[int, int]:
        """First position of an epoch, and of the next one; a carried epoch began in an earlier segment."""
        if self.carried is None:
            begin = self.start + (epoch - self.first_epoch) * self.plan.n
            return begin, begin + self.plan.n
        head_end = self.start + self._head
        if epoch == self.first_epoch:
            return self.carried.bounds(epoch)[0], head_end
        begin = head_end + (epoch - self.first_epoch - 1) * self.plan.n
        return begin, begin + self.plan.n

    def change_point(self, position: int) -> int:
        """The first position from `position` on where this segment may be cut short."""
        return position

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Rows at any positions from the start on: int64 -> int64."""
        places = positions - self.start
        if self.carried is None:
            return self.population.now(self.plan, self._order[places + self.first_epoch * self.plan.n])
        out = np.empty_like(places)
        head = places < self._head
        later = (self.first_epoch + 1) * self.plan.n - self._head
        out[~head] = self.population.now(self.plan, self._order[places[~head] + later])
        slots = self._mix[self.first_epoch * self._head + places[head]]
        old = slots < self._left
        mixed = np.empty_like(slots)
        mixed[old] = self.carried.rows(self.start + slots[old])
        mixed[~old] = self.population.added(self.carried.plan, self.plan, slots[~old] - self._left)
        out[head] = mixed
        return out

    @cached_property
    def _hash_sum(self) -> int:
        return self.population.hash_sum(self.plan)

    def expected_sum(self, epoch: int) -> int:
        """What the hashes of the rows of any whole epoch must add up to, modulo 2^64."""
        return self._hash_sum

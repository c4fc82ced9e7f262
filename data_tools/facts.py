"""What is known about a data set beyond its file: what a build saw, and which images are there twice."""

from dataclasses import dataclass, field

import numpy as np

from data_tools.classes import LeftOut, Merge
from data_tools.folders import Problem

SIDE_EDGES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class SourceSizes:
    """The sizes of the images that the last build or append read, by the side that the square was made from."""

    counts: list[int]  # below the first of SIDE_EDGES, between each and the next, from the last on
    sides: tuple[int, int]  # the smallest and the largest
    enlarged: int  # images that had fewer pixels than the data file has


@dataclass(frozen=True)
class Facts:
    """What a build saw that its file does not tell."""

    skipped: list[Problem] = field(default_factory=list)
    remarks: list[Problem] = field(default_factory=list)
    merged: list[Merge] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    sizes: SourceSizes | None = None
    over_limit: int = 0  # files beyond the limit per class


@dataclass(frozen=True)
class Duplicates:
    """Rows that are there more than once; `near` is None where nobody searched."""

    within: list[list[int]]  # groups of identical images of one class
    across: list[list[int]]  # groups of identical images of several classes: some of their labels are wrong
    near: list[tuple[int, int]] | None

    @property
    def exact(self) -> list[list[int]]:
        """All groups of identical images, in order of their first rows."""
        return sorted(self.within + self.across)

    @property
    def copies(self) -> int:
        """How many images equal an earlier one."""
        return sum(len(group) - 1 for group in self.exact)


def sort_duplicates(groups: list[list[int]], near: list[tuple[int, int]] | None, labels: np.ndarray) -> Duplicates:
    """Tell the groups of identical images that lie within a class from those in several."""
    across = [group for group in groups if (labels[group] != labels[group[0]]).any()]
    within = [group for group in groups if (labels[group] == labels[group[0]]).all()]
    return Duplicates(within, across, near)


def summarise_sizes(sizes: np.ndarray, size: int) -> SourceSizes:
    """Summarise int32 [n, 3], width, height and used side of each source image, for a data file of `size` px."""
    counts = np.bincount(np.searchsorted(SIDE_EDGES, sizes[:, 2], side="right"), minlength=len(SIDE_EDGES) + 1)
    sides = sizes[:, 2]
    return SourceSizes(counts.tolist(), (int(sides.min()), int(sides.max())), int((sides < size).sum()))

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
    smallest: tuple[int, int]  # width, height
    largest: tuple[int, int]
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

    exact: list[list[int]]
    near: list[tuple[int, int]] | None


def summarise_sizes(sizes: np.ndarray, size: int) -> SourceSizes:
    """Summarise int32 [n, 3], width, height and used side of each source image, for a data file of `size` px."""
    counts = np.bincount(np.searchsorted(SIDE_EDGES, sizes[:, 2], side="right"), minlength=len(SIDE_EDGES) + 1)
    area = sizes[:, 0].astype(np.int64) * sizes[:, 1]
    smallest, largest = (tuple(sizes[index, :2].tolist()) for index in (area.argmin(), area.argmax()))
    return SourceSizes(counts.tolist(), smallest, largest, int((sizes[:, 2] < size).sum()))

"""The report beside a data file: tables, contact sheets and one page with all of it."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_tools.classes import LeftOut, Merge
from data_tools.folders import Problem
from data_tools.schema import Layout


@dataclass(frozen=True)
class Facts:
    """What a build saw that its file does not tell."""

    skipped: list[Problem] = field(default_factory=list)
    remarks: list[Problem] = field(default_factory=list)
    merged: list[Merge] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    sizes: np.ndarray | None = None  # int32 [n, 3]: width, height and used side of each source image, pixels
    over_limit: int = 0  # files beyond the limit per class


def write_report(folder: Path, layout: Layout, facts: Facts, title: str, near_duplicates: bool) -> None:
    """Write the report of a data file to a new folder."""
    folder.mkdir(parents=True)
    rows = zip(range(layout.header.classes), layout.class_names, layout.class_counts, strict=True)
    _write_table(folder / "classes.tsv", ("id", "name", "images"), rows)
    _write_table(folder / "skipped.tsv", ("file", "reason"), facts.skipped)


def _write_table(path: Path, columns: tuple[str, ...], rows) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for row in [columns, *rows]:
            file.write("\t".join(str(cell).replace("\t", " ").replace("\n", " ") for cell in row) + "\n")

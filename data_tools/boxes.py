"""Boxes given from outside, such as the output of a portrait detector: the part of each image to use."""

from pathlib import Path

from data_tools.classes import RuleError
from data_tools.folders import composed
from data_tools.labels import csv_rows, normal_path

COLUMNS = ["path", "x0", "y0", "x1", "y1"]


def read_boxes(path: Path) -> dict[str, tuple[int, int, int, int]]:
    """Path below the source -> (x0, y0, x1, y1) in pixels of the upright image, from a CSV file of those columns.

    Paths are in composed Unicode, without "./".
    """
    try:
        rows = list(csv_rows(path.read_text(encoding="utf-8-sig")))
    except (OSError, ValueError) as error:
        raise RuleError(f"box file {path} cannot be read: {error}.") from error
    boxes: dict[str, tuple[int, int, int, int]] = {}
    for number, cells in rows:
        if number == 1 and [cell.lower() for cell in cells] == COLUMNS:
            continue
        try:
            box = _box(cells)
        except ValueError as error:
            raise RuleError(f"box file {path}, line {number}: {error}, found {','.join(cells)!r}.") from error
        if boxes.setdefault(composed(normal_path(cells[0])), box) != box:
            raise RuleError(f"box file {path}, line {number}: a second box for {cells[0]!r}.")
    return boxes


def _box(cells: list[str]) -> tuple[int, int, int, int]:
    """The box of a line, in whole pixels; `ValueError` with the rule that it breaks."""
    try:
        x0, y0, x1, y1 = (round(float(cell)) for cell in cells[1:])
    except (ValueError, OverflowError) as error:
        raise ValueError(f"expected {','.join(COLUMNS)}") from error
    for low, high, names in ((x0, x1, "x0 < x1"), (y0, y1, "y0 < y1")):
        if low >= high:
            raise ValueError(f"expected {names} in whole pixels")
    return x0, y0, x1, y1

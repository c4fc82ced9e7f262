"""Boxes given from outside, such as the output of a portrait detector: the part of each image to use."""

import csv
from pathlib import Path

from data_tools.classes import RuleError

COLUMNS = ["path", "x0", "y0", "x1", "y1"]


def read_boxes(path: Path) -> dict[str, tuple[int, int, int, int]]:
    """Path below the source -> (x0, y0, x1, y1) in pixels of the upright image, from a CSV file of those columns."""
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise RuleError(f"box file {path} cannot be read: {error}.") from error
    boxes: dict[str, tuple[int, int, int, int]] = {}
    for number, row in enumerate(rows, 1):
        cells = [cell.strip() for cell in row]
        if not cells or (number == 1 and [cell.lower() for cell in cells] == COLUMNS):
            continue
        boxes_of_line = _box(cells)
        if boxes_of_line is None:
            raise RuleError(f"box file {path}, line {number}: expected {','.join(COLUMNS)}, found {','.join(row)!r}.")
        if boxes.setdefault(cells[0], boxes_of_line) != boxes_of_line:
            raise RuleError(f"box file {path}, line {number}: a second box for {cells[0]}.")
    return boxes


def _box(cells: list[str]) -> tuple[int, int, int, int] | None:
    try:
        x0, y0, x1, y1 = (round(float(cell)) for cell in cells[1:])
    except (ValueError, OverflowError):
        return None
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None

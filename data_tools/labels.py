"""Files that say which image is of which class: CSV, JSON lines, and the dataset.json of NVIDIA's tools."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from data_tools.folders import SourceError, class_name_of

LABEL_FILE = "dataset.json"
LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")


def read_label_file(content: bytes) -> dict[str, str] | None:
    """Path -> class name from the text of a dataset.json, or None if it holds no labels.

    Its labels are numbers; their names are padded with zeros, so that the order of names is the order of numbers.
    """
    try:
        labels = json.loads(content)["labels"]
        if labels is None:
            return None
        pairs = list(labels.items() if isinstance(labels, dict) else labels)
        numbers = [int(label) for _, label in pairs]
        names = [str(name) for name, _ in pairs]
    except (ValueError, TypeError, KeyError) as error:
        problem = 'it should read {"labels": [["path.png", 3], ...]} or {"labels": null}'
        raise SourceError(f"{LABEL_FILE} cannot be understood: {problem}.") from error
    width = len(str(max(numbers, default=0)))
    return {name: f"{number:0{width}d}" for name, number in zip(names, numbers, strict=True)}


def read_list(path: Path) -> dict[str, str]:
    """Path -> class name from a list.

    A CSV or TSV has the columns path and class, or a header that says which ones these are; each JSON line is an
    object with these two fields. They may be called file, file_name, filename or image, and label.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read as UTF-8 text: {error}.") from error
    rows = _json_lines(path, text) if path.suffix.lower() in (".jsonl", ".ndjson") else _csv_lines(path, text)
    labels: dict[str, str] = {}
    for number, name, label in rows:
        if "\0" in name + label or not (name + label).isprintable():
            raise SourceError(f"{path}, line {number}: {name!r} or {label!r} holds characters that no name can hold.")
        label = class_name_of(label)
        if labels.setdefault(name, label) != label:
            raise SourceError(f"{path}, line {number}: {name} is of class {label!r} here and {labels[name]!r} before.")
    return labels


PATH_NAMES = ("path", "file", "file_name", "filename", "image")
CLASS_NAMES = ("class", "label")


def csv_rows(text: str, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Line number and stripped cells of each line of a CSV text that is not empty. Raises `ValueError`."""
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for row in lines:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield lines.line_num, cells
    except csv.Error as error:
        raise ValueError(f"line {lines.line_num}: {error}") from error


def _csv_lines(path: Path, text: str) -> list[tuple[int, str, str]]:
    try:
        rows = list(csv_rows(text, "\t" if path.suffix.lower() == ".tsv" else ","))
    except ValueError as error:
        raise SourceError(f"{path}, {error}.") from error
    columns = (0, 1)
    if rows:
        head = [cell.lower() for cell in rows[0][1]]
        path_column, class_column = _column(head, PATH_NAMES), _column(head, CLASS_NAMES)
        if path_column is not None and class_column is not None:
            columns, rows = (path_column, class_column), rows[1:]
    pairs = []
    for number, cells in rows:
        pair = [cells[column] if column < len(cells) else "" for column in columns]
        if not all(pair):
            raise SourceError(f"{path}, line {number}: expected path,class but found {','.join(cells)!r}.")
        pairs.append((number, *pair))
    return pairs


def _column(head: list[str], names: tuple[str, ...]) -> int | None:
    return next((head.index(name) for name in names if name in head), None)


def _json_lines(path: Path, text: str) -> list[tuple[int, str, str]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            rows.append((number, _field(record, PATH_NAMES), _field(record, CLASS_NAMES)))
        except (ValueError, TypeError, KeyError) as error:
            problem = 'expected {"path": "...", "class": "..."}'
            raise SourceError(f"{path}, line {number}: {problem} but found {line[:80]!r}.") from error
    return rows


def _field(record: dict, names: tuple[str, ...]) -> str:
    for name in names:
        if name in record:
            return str(record[name])
    raise KeyError(names[0])

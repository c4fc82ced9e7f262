"""Files that say which image is of which class: CSV, JSON lines, and the dataset.json of NVIDIA's tools."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from data_tools.folders import SourceError, class_name_of

LABEL_FILE = "dataset.json"
LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
NO_LABEL = f"has no label in {LABEL_FILE}"
NO_NAME = re.compile("\0|[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]|[\ud800-\udfff]")


def read_label_file(content: bytes, shown: str) -> dict[str, str] | None:
    """Path -> class name from the text of a dataset.json, or None if it holds no labels.

    Its labels are numbers; their names are padded with zeros, so that the order of names is the order of numbers.
    `shown` is what messages call the file.
    """
    try:
        pairs = dict(json.loads(content, object_pairs_hook=list))["labels"]  # objects as pairs: {"path.png": 3} too
        if pairs is None:
            return None
        pairs = [(name, label) for name, label in pairs]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        problem = 'it should read {"labels": [["path.png", 3], ...]} or {"labels": null}'
        raise SourceError(f"{shown} cannot be understood: {problem}.") from error
    numbers: dict[str, int] = {}
    for entry, (name, number) in enumerate(pairs, 1):
        where = f"{shown}, label {entry}"
        if type(number) is not int or number < 0:
            raise SourceError(f"{where}: the label of {name!r} is {number!r}, but labels are whole numbers from 0 on.")
        name = _checked_path(name, where)
        if numbers.setdefault(name, number) != number:
            raise SourceError(f"{where}: {name!r} has label {number} here and {numbers[name]} before.")
    width = len(str(max(numbers.values(), default=0)))
    return {name: f"{number:0{width}d}" for name, number in numbers.items()}


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
        where = f"{path}, line {number}"
        name, label = _checked_path(name, where), class_name_of(_checked(label, where))
        if labels.setdefault(name, label) != label:
            raise SourceError(f"{where}: {name} is of class {label!r} here and {labels[name]!r} before.")
    return labels


def normal_path(name: str) -> str:
    """A path in its one spelling: without "./" and doubled slashes."""
    return str(PurePosixPath(name))


def _checked_path(name: object, where: str) -> str:
    return normal_path(_checked(name, where))


def _checked(name: object, where: str) -> str:
    """A path or class name that files and tables can hold. Raises `SourceError`."""
    if not isinstance(name, str) or not name.strip():
        raise SourceError(f"{where}: {name!r} is not a name.")
    found = NO_NAME.search(name)
    if found:
        letter = found[0]
        kind = "NUL" if letter == "\0" else "a surrogate" if "\ud800" <= letter <= "\udfff" else "a line break"
        raise SourceError(f"{where}: {name!r} holds {kind} ({letter!r}), which is not allowed in names.")
    return name


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
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            problem = 'expected {"path": "...", "class": "..."}, text or whole numbers,'
            raise SourceError(f"{path}, line {number}: {problem} but found {line[:80]!r}.") from error
    return rows


def _field(record: dict, names: tuple[str, ...]) -> str:
    value = record[next((name for name in names if name in record), names[0])]
    if type(value) not in (str, int):  # a bool is an int, too
        raise TypeError(f"{value!r} is no name")
    return str(value)

"""Files that say which image is of which class: CSV, JSON lines, and the dataset.json of NVIDIA's tools."""

import csv
import json
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
    """Path -> class name from a CSV or TSV (columns path, class; a header line is optional) or JSON-lines list."""
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


def _csv_lines(path: Path, text: str) -> list[tuple[int, str, str]]:
    lines = csv.reader(text.splitlines(), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    rows = []
    for number, row in enumerate(lines, 1):
        if not row or (number == 1 and [cell.strip().lower() for cell in row[:2]] in HEADERS):
            continue
        if len(row) < 2 or not row[0].strip() or not row[1].strip():
            raise SourceError(f"{path}, line {number}: expected path,class but found {','.join(row)!r}.")
        rows.append((number, row[0].strip(), row[1].strip()))
    return rows


HEADERS = tuple([path, label] for path in ("path", "file", "image", "filename") for label in ("class", "label"))


def _json_lines(path: Path, text: str) -> list[tuple[int, str, str]]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            rows.append((number, str(record["path"]), str(record["class"])))
        except (ValueError, KeyError, TypeError) as error:
            problem = 'expected {"path": "...", "class": "..."}'
            raise SourceError(f"{path}, line {number}: {problem} but found {line[:80]!r}.") from error
    return rows

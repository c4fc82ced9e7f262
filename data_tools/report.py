"""The report beside a data file: tables, contact sheets, and one page with all of it.

classes.tsv          id, name and images of every class
skipped.tsv          every file that was left out, and why
remarks.tsv          images that were taken with a reservation, such as the first frame of an animation
merges.tsv           found classes whose files were given to another
left-out.tsv         found classes that are not in the file, and why
duplicates.tsv       rows whose stored images are identical
near-duplicates.tsv  rows that look alike, each with one before it, if asked for; at most `duplicates.MOST_PAIRS`
sheets/              a contact sheet per twenty classes
facts.json           what the build saw and the data file does not tell
index.html           all of it on one page that needs nothing else
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from data_tools.classes import LeftOut, Merge
from data_tools.duplicates import exact_groups, near_pairs
from data_tools.facts import Duplicates, Facts, SourceSizes, sort_duplicates
from data_tools.folders import Problem
from data_tools.page import write_page
from data_tools.schema import Layout
from data_tools.sheets import sheet_names, write_sheets

TABLES = ("classes.tsv", "skipped.tsv", "remarks.tsv", "merges.tsv", "left-out.tsv", "duplicates.tsv")


def write_report(
    folder: Path, layout: Layout, facts: Facts, title: str, near: bool, workers: int, progress: Callable | None = None
) -> Duplicates:
    """Write the report of a data file to a new folder. `near` asks for near duplicates, which reads every image."""
    folder.mkdir(parents=True)
    pairs = near_pairs(layout, workers, progress) if near else None
    duplicates = sort_duplicates(exact_groups(layout.digests), pairs, layout.labels)
    write_tables(folder, layout, facts, duplicates)
    sheets = write_sheets(folder / "sheets", layout)
    write_page(folder / "index.html", layout, facts, duplicates, title, [path.name for path in sheets])
    content = {"fingerprint": layout.header.fingerprint, **asdict(facts)}
    (folder / "facts.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return duplicates


def write_tables(folder: Path, layout: Layout, facts: Facts, duplicates: Duplicates) -> None:
    """Write the tab-separated tables."""
    counts, sources = layout.class_counts.tolist(), layout.sources
    rows = zip(range(layout.header.classes), layout.class_names, counts, strict=True)
    _write_table(folder / "classes.tsv", ("id", "name", "images"), rows)
    _write_table(folder / "skipped.tsv", ("file", "reason"), facts.skipped)
    _write_table(folder / "remarks.tsv", ("file", "remark"), facts.remarks)
    _write_table(folder / "merges.tsv", ("alias", "class", "files"), facts.merged)
    _write_table(folder / "left-out.tsv", ("class", "files", "reason"), facts.left_out)
    classes = [layout.class_names[label] for label in layout.labels.tolist()]
    columns = ("row", "file", "class", "row of the same", "its file", "its class")

    def write_pairs(name: str, pairs: Iterable[tuple[int, int]]) -> None:
        rows = ((j, sources[j], classes[j], i, sources[i], classes[i]) for i, j in pairs)
        _write_table(folder / name, columns, rows)

    write_pairs("duplicates.tsv", ((group[0], row) for group in duplicates.exact for row in group[1:]))
    if duplicates.near is not None:
        write_pairs("near-duplicates.tsv", duplicates.near)


def _write_table(path: Path, columns: tuple[str, ...], rows: Iterable[tuple]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for row in (columns, *rows):
            file.write("\t".join(" ".join(str(cell).split()) for cell in row) + "\n")


def is_complete(folder: Path, layout: Layout) -> bool:
    """Whether a folder has all that the report of a data file always has."""
    sheets = (f"sheets/{name}" for name in sheet_names(layout.header.classes))
    return all((folder / name).is_file() for name in ("index.html", "facts.json", *TABLES, *sheets))


def read_facts(folder: Path, layout: Layout) -> Facts | None:
    """The facts of an earlier report of this very file, or None."""
    try:
        content = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        if content.pop("fingerprint") != layout.header.fingerprint:
            return None
        for name, kind in (("skipped", Problem), ("remarks", Problem), ("merged", Merge), ("left_out", LeftOut)):
            content[name] = [kind(*row) for row in content[name]]
        content["sizes"] = SourceSizes(**content["sizes"]) if content["sizes"] else None
        return Facts(**content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None

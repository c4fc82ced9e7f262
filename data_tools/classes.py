"""Which classes a data set has: merges, exclusions and limits on the classes that were found."""

import difflib
import fnmatch
import hashlib
import tomllib
from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from data_tools.folders import ImageFile, Listing, class_name_of, composed
from data_tools.labels import csv_rows


class RuleError(ValueError):
    """A rule that cannot be applied; the message is one sentence for the user."""


@dataclass(frozen=True)
class ClassRules:
    """How found classes become the classes of the data set, in this order."""

    merges: dict[str, str] = field(default_factory=dict)  # alias -> class
    exclude: tuple[str, ...] = ()  # names or patterns with * and ?
    min_images: int = 1
    max_classes: int | None = None  # the largest ones
    limit_per_class: int | None = None


class Merge(NamedTuple):
    """A found class whose files were given to another."""

    alias: str
    class_name: str
    files: int


class LeftOut(NamedTuple):
    """A class that did not make it into the data set."""

    name: str
    files: int
    reason: str


@dataclass
class Selection:
    """The classes and files that the data set is to be made of; files are in order of class id, then path."""

    class_names: list[str]
    files: list[ImageFile]
    merged: list[Merge] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    over_limit: int = 0  # files beyond the limit per class
    warnings: list[str] = field(default_factory=list)


def select(
    listing: Listing, rules: ClassRules, established: Sequence[str] = (), known: Container[str] = ()
) -> Selection:
    """Apply the rules to what a source holds.

    New classes get ids in order of their names. Classes that a growing file has already (`established`) keep their
    ids and are subject to merges, exclusions and the limit per class only; its images (`known`, by path) come first
    in the limit.
    """
    selection = Selection([], [])
    targets = _resolved(rules.merges)
    found = listing.class_counts
    names = sorted(set(found) | set(listing.empty_classes))
    for alias in sorted(rules.merges):
        if alias in found:
            selection.merged.append(Merge(alias, targets[alias], found[alias]))
        elif alias not in listing.empty_classes:
            selection.warnings.append(f"--merge: no class {alias!r}{near(alias, names)}.")
    _warn_of_new_names(selection.merged, set(found) | set(established), selection.warnings)
    by_class: dict[str, list[ImageFile]] = defaultdict(list)
    for file in listing.files:
        name = targets.get(file.class_name, file.class_name)
        by_class[name].append(file._replace(class_name=name))
    selection.left_out = [LeftOut(name, 0, "no images") for name in listing.empty_classes if name not in targets]
    _exclude(by_class, rules.exclude, selection)
    _limit_classes(by_class, rules, set(established), selection)
    if not by_class:
        reasons = ", ".join(sorted({row.reason for row in selection.left_out}))
        raise RuleError(f"no class is left of {len(names)}: {reasons}.")
    added = sorted(set(by_class) - set(established))
    selection.class_names = [*established, *added]
    if added:
        _warn_of_numbers(selection.class_names, selection.warnings)
    for name in selection.class_names:
        files = by_class.get(name, [])
        kept = _limited(files, rules.limit_per_class, known)
        selection.over_limit += len(files) - len(kept)
        selection.files += sorted(kept, key=lambda file: file.path)
    return selection


def _warn_of_new_names(merged: Sequence[Merge], known: set[str], warnings: list[str]) -> None:
    """A merge may make a class of a new name, but one that is nearly that of another class is probably a mistake."""
    others = sorted(known - {merge.alias for merge in merged})
    for name in sorted({merge.class_name for merge in merged} - known):
        if hint := near(name, others):
            warnings.append(f"--merge: class {name!r} is new, made by the merge alone{hint}.")


def _warn_of_numbers(names: Sequence[str], warnings: list[str]) -> None:
    """Whoever names classes 0 to 999 may expect these as ids."""
    if all(name.isdecimal() for name in names):
        for index, name in enumerate(names):
            if int(name) != index:
                warnings.append(
                    f"class names are numbers, but not the ids: class {name!r} gets id {index}; ids count the classes "
                    "from 0 in alphabetical order (zeros in front keep the order of numbers)."
                )
                return


def _exclude(by_class: dict[str, list[ImageFile]], patterns: Sequence[str], selection: Selection) -> None:
    for pattern in patterns:
        pattern = composed(pattern)
        hits = [name for name in by_class if name == pattern] or fnmatch.filter(by_class, pattern)
        if not hits:
            selection.warnings.append(f"--exclude: no class {pattern!r}{near(pattern, sorted(by_class))}.")
        for name in sorted(hits):
            selection.left_out.append(LeftOut(name, len(by_class.pop(name)), "excluded"))


def _limit_classes(
    by_class: dict[str, list[ImageFile]], rules: ClassRules, established: set[str], selection: Selection
) -> None:
    new = [name for name in by_class if name not in established]
    for name in sorted(new):
        if len(by_class[name]) < rules.min_images:
            reason = f"fewer than {rules.min_images} images"
            selection.left_out.append(LeftOut(name, len(by_class.pop(name)), reason))
    if rules.max_classes is not None:
        room = max(0, rules.max_classes - len(established))
        largest = sorted(set(by_class) - established, key=lambda name: (-len(by_class[name]), name))
        for name in sorted(largest[room:]):
            reason = f"not among the {rules.max_classes} largest"
            selection.left_out.append(LeftOut(name, len(by_class.pop(name)), reason))


def _limited(files: list[ImageFile], limit: int | None, known: Container[str]) -> list[ImageFile]:
    """Known files, then a choice that depends on paths alone, so that it neither follows dates nor changes."""
    if limit is None or len(files) <= limit:
        return files
    return sorted(files, key=lambda file: (file.path not in known, hashlib.sha256(file.path.encode()).digest()))[:limit]


def _resolved(merges: dict[str, str]) -> dict[str, str]:
    """Follow chains of merges to their ends; a circle is an error."""
    resolved = {}
    for alias in merges:
        name, passed = alias, [alias]
        while name in merges:
            name = merges[name]
            passed.append(name)
            if name in passed[:-1]:
                raise RuleError(f"the merges go in a circle: {' -> '.join(passed)}.")
        resolved[alias] = name
    return resolved


def read_merges(path: Path) -> dict[str, str]:
    """Alias -> class from a TOML file (`"alias" = "class"`) or a CSV file (alias,class)."""
    try:
        if path.suffix.lower() == ".toml":
            pairs = list(tomllib.loads(path.read_text(encoding="utf-8-sig")).items())
        else:
            pairs = [tuple(cells) for _, cells in csv_rows(path.read_text(encoding="utf-8-sig"))]
    except OSError as error:
        raise RuleError(f"merge file {path} cannot be read: {error.strerror}.") from error
    except tomllib.TOMLDecodeError as error:
        message = f'merge file {path} cannot be understood: {error}; a line is "alias" = "class", quotes included.'
        raise RuleError(message) from error
    except ValueError as error:  # of CSV or UTF-8
        raise RuleError(f"merge file {path} cannot be understood: {error}.") from error
    if pairs and [str(cell).lower() for cell in pairs[0]] == ["alias", "class"]:
        del pairs[0]
    merges: dict[str, str] = {}
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(cell, str) and cell for cell in pair):
            raise RuleError(f"merge file {path}: expected alias and class, found {pair!r}.")
        alias, name = map(class_name_of, pair)
        if merges.setdefault(alias, name) != name:
            raise RuleError(f"merge file {path}: {alias!r} is merged into {merges[alias]!r} and into {name!r}.")
    return {alias: name for alias, name in merges.items() if alias != name}


def near(name: str, names: Sequence[str]) -> str:
    """A hint at similar names, as the end of a sentence, or nothing."""
    matches = difflib.get_close_matches(name, names, n=3)
    return f" (did you mean {' or '.join(map(repr, matches))}?)" if matches else ""

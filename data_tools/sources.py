"""Where images come from: class folders, archives of them, or lists of paths and classes."""

import contextlib
import difflib
import errno
import itertools
import os
import posixpath
import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data_tools.archives import TarReader, ZipReader, list_tar, list_zip
from data_tools.direct import ask_ahead
from data_tools.folders import (
    ImageFile,
    Listing,
    Problem,
    SourceError,
    composed,
    files_below,
    gone,
    head,
    scan,
    without_others,
)
from data_tools.images import ImageError, read_file
from data_tools.labels import LABEL_FILE, LIST_SUFFIXES, NO_LABEL, read_label_file, read_list

MANY_NAMES = 10_000  # to compare one with each takes 20 microseconds


class Reader(Protocol):
    """Gives the bytes of a listed file; it travels to worker processes, so it can be pickled."""

    def read(self, file: ImageFile) -> bytes:
        """The bytes of a file; raises `ImageError`, or `SourceError` if the whole source is gone."""

    def prefetch(self, files: Iterable[ImageFile]) -> None:
        """Ask the disk, without waiting, for files that will be read soon."""


class FolderReader:
    """Reads files of the file system."""

    def read(self, file: ImageFile) -> bytes:
        """The bytes of a file; `ImageError` with a short reason where that fails, `SourceError` if all would."""
        try:
            return read_file(file.where)
        except ImageError:
            _check_folder(os.path.dirname(os.path.realpath(file.where)))
            raise

    def prefetch(self, files: Iterable[ImageFile]) -> None:
        """Ask the disk, without waiting, for files that will be read soon."""
        for file in files:
            with contextlib.suppress(OSError):  # which `read` will report
                descriptor = os.open(file.where, os.O_RDONLY | os.O_NONBLOCK)
                try:
                    ask_ahead(descriptor, 0, file.size)
                finally:
                    os.close(descriptor)


def _check_folder(folder: str) -> None:
    """Raise `SourceError` if a folder that held files is gone; that of a disk is still there, but empty."""
    try:
        with os.scandir(folder) as entries:
            if next(entries, None) is None:
                raise gone(folder, "it is empty")
    except OSError as error:
        raise gone(folder, (error.strerror or str(error)).lower()) from error


@dataclass
class Source:
    """A source of labelled images: what it is called, what it holds, and how to read it."""

    path: Path
    name: str  # for default file names, and recorded as the origin of the images
    listing: Listing
    reader: Reader


def open_source(path: str | os.PathLike) -> Source:
    """List a folder of class folders, a zip or tar of them, a CSV or JSON-lines list, or a dataset.json.

    A path that goes on behind an archive, such as x.zip/train, is that of a folder in it. Raises `SourceError` with
    one sentence when it cannot be used.
    """
    path = Path(path)
    if not _split(path)[0].exists():
        what = "a folder of class folders, an archive of them, or a list"
        raise SourceError(f"{path} does not exist{_similar_names(path)}: pass {what}.")
    if path.name == LABEL_FILE:
        path = path.parent
    if path.is_dir():
        return Source(path, path.resolve().name, _list_folder(path), FolderReader())
    file, folder = _split(path)
    name = (posixpath.basename(folder) or file.resolve().stem).removesuffix(".tar")
    if file.suffix.lower() in LIST_SUFFIXES and not folder:
        return Source(path, name, _listed(read_list(path), path.parent, path.name), FolderReader())
    if file.is_file() and zipfile.is_zipfile(file):
        reader = ZipReader(file.resolve())
        return Source(path, name, list_zip(file, folder, reader), reader)
    if file.is_file() and tarfile.is_tarfile(file):
        reader = TarReader(file.resolve())
        return Source(path, name, list_tar(file, folder, reader), reader)
    raise _not_a_source(path, file)


def _similar_names(path: Path) -> str:
    """What of similar names lies where a path should be, as a part of a sentence."""
    names: list[str] = []
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        names = [entry.name for entry in itertools.islice(entries, MANY_NAMES)]
    similar = difflib.get_close_matches(path.name, names) if len(names) < MANY_NAMES else []
    shown = " and ".join(str(path.with_name(name)) for name in similar)
    return f", but {shown} {'does' if len(similar) == 1 else 'do'}" if similar else ""


def _not_a_source(path: Path, file: Path) -> SourceError:
    """What to raise for a path that leads to or through a file of another kind, or to an archive that is damaged."""
    try:
        start = read_file(file, 512)
    except ImageError as error:
        return SourceError(f"{file}: {error}.")
    signatures = {".zip": start.startswith(b"PK\3\4"), ".tar": start[257:262] == b"ustar"}
    for suffix, signed in signatures.items():
        if signed or file.suffix.lower() == suffix:
            return SourceError(f"{file} is a damaged or incomplete {suffix[1:]} file: copy or download it again.")
    return SourceError(f"{path} is not a folder, a zip, a tar, or a list that ends in {', '.join(LIST_SUFFIXES)}.")


def _split(path: Path) -> tuple[Path, str]:
    """The file that a path leads to or through, and the rest of it."""
    for parent in path.parents:
        if parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return path, ""


def _list_folder(path: Path) -> Listing:
    label_file = path / LABEL_FILE
    if not label_file.is_file():
        return scan(path)
    try:
        labels = read_label_file(label_file.read_bytes(), str(label_file))
    except OSError as error:
        raise SourceError(f"{label_file} cannot be read: {error.strerror}.") from error
    if labels is None:
        return scan(path)
    listing = _listed(labels, path, LABEL_FILE)
    known = {composed(name) for name in (LABEL_FILE, *labels)}
    others = [file for file in files_below(path) if composed(file.path) not in known]
    listing.problems += [Problem(file.path, NO_LABEL) for file in without_others(others, listing.problems, head)]
    return listing


def _listed(labels: dict[str, str], root: Path, list_name: str) -> Listing:
    """The files of a list whose paths are relative to a folder (or absolute)."""
    files, problems = [], []
    for name, label in labels.items():
        try:
            where, status = _found(root, name)
        except OSError as error:
            problems.append(Problem(name, f"{(error.strerror or str(error)).lower()}, though in {list_name}"))
            continue
        if stat.S_ISREG(status.st_mode):
            files.append(ImageFile(name.replace(os.sep, "/"), label, status.st_size, status.st_mtime_ns, str(where)))
        else:
            problems.append(Problem(name, "not a regular file"))
    if not files:
        raise SourceError(
            f"{root / list_name} names no file that exists ({len(labels)} lines; paths are below {root})."
        )
    return Listing(files, problems)


def _found(root: Path, name: str) -> tuple[Path, os.stat_result]:
    """A file of a list, also where the file system spells its accents in the other form of Unicode."""
    for spelling in (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)):
        with contextlib.suppress(FileNotFoundError):
            return root / spelling, (root / spelling).stat()
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

"""Where images come from: class folders, archives of them, or lists of paths and classes."""

import contextlib
import errno
import os
import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data_tools.archives import ArchiveReader, list_tar, list_zip
from data_tools.direct import ask_ahead
from data_tools.folders import ImageFile, Listing, Problem, SourceError, scan
from data_tools.images import read_file
from data_tools.labels import LABEL_FILE, LIST_SUFFIXES, read_label_file, read_list


class Reader(Protocol):
    """Gives the bytes of a listed file; it travels to worker processes, so it can be pickled."""

    def read(self, file: ImageFile) -> bytes:
        """The bytes of a file; raises `ImageError`."""

    def prefetch(self, files: Iterable[ImageFile]) -> None:
        """Ask the disk, without waiting, for files that will be read soon."""


class FolderReader:
    """Reads files of the file system."""

    def read(self, file: ImageFile) -> bytes:
        """The bytes of a file; `ImageError` with a short reason where that fails."""
        return read_file(file.where)

    def prefetch(self, files: Iterable[ImageFile]) -> None:
        """Ask the disk, without waiting, for files that will be read soon."""
        for file in files:
            with contextlib.suppress(OSError):  # which `read` will report
                descriptor = os.open(file.where, os.O_RDONLY | os.O_NONBLOCK)
                try:
                    ask_ahead(descriptor, 0, file.size)
                finally:
                    os.close(descriptor)


@dataclass
class Source:
    """A source of labelled images: what it is called, what it holds, and how to read it."""

    path: Path
    name: str  # for default file names, and recorded as the origin of the images
    listing: Listing
    reader: Reader


def open_source(path: str | os.PathLike) -> Source:
    """List a folder of class folders, a zip or tar of them, a CSV or JSON-lines list, or a dataset.json.

    Raises `SourceError` with one sentence when it cannot be used.
    """
    path = Path(path)
    if not path.exists():
        raise SourceError(f"{path} does not exist: pass a folder of class folders, an archive of them, or a list.")
    if path.name == LABEL_FILE:
        path = path.parent
    name = path.resolve().name
    if path.is_dir():
        label_file = path / LABEL_FILE
        labels = read_label_file(label_file.read_bytes()) if os.path.isfile(label_file) else None
        listing = scan(path) if labels is None else _listed(labels, path, LABEL_FILE)
        return Source(path, name, listing, FolderReader())
    name = name.removesuffix(path.suffix)
    if path.suffix.lower() in LIST_SUFFIXES:
        return Source(path, name, _listed(read_list(path), path.parent, path.name), FolderReader())
    reader = ArchiveReader(path.resolve())
    if zipfile.is_zipfile(path):
        return Source(path, name, list_zip(path, reader), reader)
    if tarfile.is_tarfile(path):
        return Source(path, name.removesuffix(".tar"), list_tar(path, reader), reader)
    raise SourceError(f"{path} is not a folder, a zip, a tar, or a list that ends in {', '.join(LIST_SUFFIXES)}.")


def _listed(labels: dict[str, str], root: Path, list_name: str) -> Listing:
    """The files of a list whose paths are relative to a folder (or absolute)."""
    files, problems = [], []
    for name, label in labels.items():
        try:
            where, status = _found(root, name)
        except OSError as error:
            problems.append(Problem(name, f"in {list_name}, but {(error.strerror or str(error)).lower()}"))
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

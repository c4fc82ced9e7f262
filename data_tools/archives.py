"""Zip and tar archives of class folders, read in place, without unpacking."""

import contextlib
import errno
import os
import posixpath
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, TypeVar

from data_tools.direct import ask_ahead
from data_tools.folders import (
    HIDDEN,
    IGNORED_NAMES,
    LOOSE,
    ImageFile,
    Listing,
    Problem,
    SourceError,
    check_depth,
    class_name_of,
    composed,
    gone,
    is_ignored,
    readable,
    without_others,
    without_repeats,
)
from data_tools.images import MAX_FILE_BYTES, ImageError
from data_tools.labels import LABEL_FILE, NO_LABEL, read_label_file

ENCRYPTED, UTF_8_NAME = 0x1, 0x800  # flags of zip members
Entry = TypeVar("Entry", ImageFile, Problem)


class ArchiveReader:
    """Reads members of an archive that must stay as it was when the reader was made.

    It travels to other processes, each of which opens the archive for itself.
    """

    def __init__(self, path: Path):
        status = os.stat(path)
        self.path, self.size, self.modified = path, status.st_size, status.st_mtime_ns

    def __getstate__(self) -> dict:
        return {"path": self.path, "size": self.size, "modified": self.modified}

    def read(self, file: ImageFile) -> bytes:
        """The bytes of a member; `ImageError` with a short reason where that fails, `SourceError` if all would."""
        if file.size > MAX_FILE_BYTES:
            raise ImageError("larger than 1 GiB")
        return self.head(file, file.size)

    def head(self, file: ImageFile, count: int = 16) -> bytes:
        """The first bytes of a member."""
        try:
            data = self._member(file.where, count)
        except MemoryError:
            raise
        except Exception as error:  # a damaged member can raise nearly anything, as do the decoders of zip files
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # these two are of its making
                raise gone(self.path, (error.strerror or str(error)).lower()) from error
            self._check_unchanged()
            raise ImageError(f"cannot be read from the archive: {str(error)[:100]}") from error
        self._check_unchanged()
        return data

    def prefetch(self, files: Iterable[ImageFile]) -> None:
        """Ask the disk, without waiting, for members that will be read soon."""
        for file in files:
            with contextlib.suppress(Exception):  # which `read` will report
                ask_ahead(self._file.fileno(), *self._stretch(file.where))

    @cached_property
    def _file(self) -> BinaryIO:
        return open(self.path, "rb")

    def _check_unchanged(self) -> None:
        status = os.fstat(self._file.fileno())
        if (status.st_size, status.st_mtime_ns) != (self.size, self.modified):
            raise SourceError(
                f"{self.path} has changed since it was listed: give the same command again when it is complete."
            )

    def _member(self, where: str | tuple[int, int], count: int) -> bytes:
        raise NotImplementedError

    def _stretch(self, where: str | tuple[int, int]) -> tuple[int, int]:
        """Offset and length of a member in the file, about."""
        raise NotImplementedError


class TarReader(ArchiveReader):
    """Reads members of a tar, each a plain stretch of the file: their `where` is offset and length."""

    def _member(self, where: tuple[int, int], count: int) -> bytes:
        offset, length = where
        count = min(count, length)
        data = os.pread(self._file.fileno(), count, offset)
        if len(data) != count:
            raise EOFError("the archive is cut short")
        return data

    def _stretch(self, where: tuple[int, int]) -> tuple[int, int]:
        return where


class ZipReader(ArchiveReader):
    """Reads members of a zip file: their `where` is their name in it."""

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self._file)

    def _member(self, where: str, count: int) -> bytes:
        with self._archive.open(where) as member:
            return member.read(count)

    def _stretch(self, where: str) -> tuple[int, int]:
        member = self._archive.getinfo(where)
        return member.header_offset, member.compress_size


def list_zip(path: Path, folder: str, reader: ZipReader) -> Listing:
    """The class folders of a zip file, or of a folder in it, or the images that its dataset.json gives a class to."""
    problems: list[Problem] = []
    files = []
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = _zip_name(info)
                if info.flag_bits & ENCRYPTED:
                    problems.append(Problem(name, "encrypted"))
                elif not info.is_dir():
                    files.append(ImageFile(name, "", info.file_size, reader.modified, info.filename))
    except Exception as error:  # a damaged one can raise nearly anything
        raise SourceError(f"{path} is a damaged or incomplete zip file: {error}.") from error
    if not any("/" in file.path for file in files):  # some programs on Windows write their own separators
        files = [file._replace(path=file.path.replace("\\", "/")) for file in files]
    return _listing(path, folder, files, problems, reader)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name of a member. macOS and others write UTF-8 without saying so, which would be read as code page 437."""
    if not info.flag_bits & UTF_8_NAME:
        with contextlib.suppress(UnicodeError):
            return info.filename.encode("cp437").decode("utf-8")
    return info.filename


def list_tar(path: Path, folder: str, reader: TarReader) -> Listing:
    """The class folders of a tar file, or of a folder in it, the classes of a tar of tars, one per class, as ImageNet
    comes, or the images that its dataset.json gives a class to.
    """
    problems: list[Problem] = []
    try:
        with _open_tar(path) as archive:
            files = [file._replace(modified=reader.modified) for file in _tar_members(archive, problems)]
    except (tarfile.TarError, OSError) as error:
        raise SourceError(f"{path} is a damaged or incomplete tar file: {error}.") from error
    return _listing(path, folder, files, problems, reader)


def _open_tar(path: Path) -> tarfile.TarFile:
    """Open what `tarfile.is_tarfile` takes for a tar: if it does not begin as one, it is compressed."""
    try:
        return tarfile.open(path, "r:")
    except tarfile.TarError as error:
        advice = "its images cannot be reached one by one: unpack it, or pass it uncompressed"
        raise SourceError(f"{path} is a compressed tar file, so {advice}.") from error


def _tar_members(
    archive: tarfile.TarFile, problems: list[Problem], prefix: str = "", base: int = 0
) -> Iterator[ImageFile]:
    """Regular files of a tar and of the tars directly inside it, whose names become folders."""
    for member in archive:
        name = prefix + readable(member.name)
        if member.islnk() or member.issym():
            problems.append(Problem(name, "a link inside an archive"))
        elif member.isfile() and not prefix and name.lower().endswith(".tar"):
            yield from _inner_members(archive, member, name, problems)
        elif member.isfile():
            yield ImageFile(name, "", member.size, 0, (base + member.offset_data, member.size))


def _inner_members(
    archive: tarfile.TarFile, member: tarfile.TarInfo, name: str, problems: list[Problem]
) -> Iterator[ImageFile]:
    try:
        with tarfile.open(fileobj=archive.extractfile(member), mode="r:") as inner:
            yield from _tar_members(inner, problems, name[: -len(".tar")] + "/", member.offset_data)
    except tarfile.TarError as error:
        problems.append(Problem(name, f"not a readable tar file: {error}"))


def _listing(
    path: Path, folder: str, files: list[ImageFile], problems: list[Problem], reader: ArchiveReader
) -> Listing:
    """What a folder of an archive holds, or the whole archive if `folder` is ""; all paths become relative to it."""
    files, problems = (_below(map(_normal, entries), folder) for entries in (files, problems))
    if folder and not files and not problems:
        raise SourceError(f"{path} holds no folder {folder!r}.")
    problems += [Problem(file.path, "its path leads out of its folder") for file in files if _leads_out(file)]
    files = without_repeats((file for file in files if not _leads_out(file)), problems)
    shown = [file for file in files if not _is_hidden(file)]
    tops = {file.path.split("/")[0] for file in shown}
    top = tops.pop() if len(tops) == 1 and not folder else ""  # a folder around everything
    for place in dict.fromkeys(("", top)):
        label_file = next((file for file in shown if file.path == posixpath.join(place, LABEL_FILE)), None)
        if label_file:
            files.remove(label_file)
            labels = _labels(path, label_file, reader)
            if labels is not None:
                return _as_labelled(path, _below(files, place), labels, problems, reader)
    return _as_classes(path, folder, files, problems, reader)


def _normal(entry: Entry) -> Entry:
    """A file or problem with its path in one spelling: relative, without "./"; one that has ".." stays as it is."""
    return entry if _leads_out(entry) else entry._replace(path=posixpath.normpath(entry.path.lstrip("/")))


def _below(entries: Iterable[Entry], folder: str) -> list[Entry]:
    """The files or problems in a folder of the archive, with their paths below it; all of them if it is ""."""
    start = folder + "/" if folder else ""
    return [entry._replace(path=entry.path[len(start) :]) for entry in entries if entry.path.startswith(start)]


def _leads_out(entry: Entry) -> bool:
    return ".." in entry.path.split("/")


def _is_hidden(file: ImageFile) -> bool:
    return any(is_ignored(part) for part in file.path.split("/"))


def _labels(path: Path, label_file: ImageFile, reader: ArchiveReader) -> dict[str, str] | None:
    shown = f"{label_file.path} of {path}"
    try:
        return read_label_file(reader.read(label_file), shown)
    except ImageError as error:
        raise SourceError(f"{shown} {error}.") from error


def _as_labelled(
    path: Path, files: list[ImageFile], labels: dict[str, str], problems: list[Problem], reader: ArchiveReader
) -> Listing:
    """The images that a label file gives a class to; its paths are below the folder that it lies in."""
    labels = {composed(name): label for name, label in labels.items()}
    known = {composed(file.path): file for file in files}
    problems += [Problem(name, f"not in the archive, though in {LABEL_FILE}") for name in labels if name not in known]
    others = [file for name, file in known.items() if name not in labels and not _is_hidden(file)]
    problems += [Problem(file.path, NO_LABEL) for file in without_others(others, problems, reader.head)]
    found = {name: file for name, file in known.items() if name in labels}
    if not found:
        raise SourceError(f"{LABEL_FILE} of {path} names no file of the archive ({len(labels)} labels).")
    return Listing([file._replace(path=name, class_name=labels[name]) for name, file in found.items()], problems)


def _as_classes(
    path: Path, folder: str, files: list[ImageFile], problems: list[Problem], reader: ArchiveReader
) -> Listing:
    """Name the class of each member after its first folder, below a single folder around everything if there is one."""
    images = without_others((file for file in files if not _is_hidden(file)), problems, reader.head)
    tops = {file.path.split("/")[0] for file in images}
    around = tops.pop() if len(tops) == 1 and not folder and all(file.path.count("/") > 1 for file in images) else ""
    placed = []
    for file in _below(images, around):
        first, *rest = file.path.split("/")
        if rest:
            placed.append(file._replace(class_name=class_name_of(first)))
        else:
            problems.append(Problem(file.path, LOOSE))
    folders = {name for name, *below in (file.path.removeprefix(around + "/").split("/") for file in files) if below}
    problems += [Problem(name, HIDDEN) for name in sorted(folders - IGNORED_NAMES) if is_ignored(name)]
    listing = Listing(placed, problems)
    check_depth(listing, str(path / (folder or around)))
    return listing

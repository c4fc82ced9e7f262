"""Zip and tar archives of class folders, read in place, without unpacking."""

import contextlib
import os
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_tools.direct import ask_ahead
from data_tools.folders import (
    LOOSE,
    ImageFile,
    Listing,
    Problem,
    SourceError,
    check_depth,
    class_name_of,
    composed,
    is_ignored,
    readable,
    without_others,
    without_repeats,
)
from data_tools.images import MAX_FILE_BYTES, ImageError
from data_tools.labels import LABEL_FILE, read_label_file

ENCRYPTED, UTF_8_NAME = 0x1, 0x800  # flags of zip members


class ArchiveReader:
    """Reads members of an archive by number of bytes, from any process or thread.

    A tar member is a plain stretch of the file. Of a zip, members are read by name through `zipfile`.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: int | zipfile.ZipFile | None = None

    def __getstate__(self) -> dict:
        return {"path": self.path, "_file": None}  # each process opens the archive for itself

    def read(self, file: ImageFile) -> bytes:
        """The bytes of a member; `ImageError` with a short reason where that fails."""
        if file.size > MAX_FILE_BYTES:
            raise ImageError("larger than 1 GiB")
        return self.head(file, file.size)

    def prefetch(self, files: Iterable[ImageFile]) -> None:
        """Ask the disk, without waiting, for members that will be read soon."""
        for file in files:
            with contextlib.suppress(OSError, zipfile.BadZipFile, KeyError):  # which `read` will report
                if isinstance(file.where, str):
                    archive = self._opened_zip()
                    member = archive.getinfo(file.where)
                    ask_ahead(archive.fp.fileno(), member.header_offset, member.compress_size)
                else:
                    ask_ahead(self._opened_tar(), *file.where)

    def head(self, file: ImageFile, count: int = 16) -> bytes:
        """The first bytes of a member."""
        try:
            if isinstance(file.where, str):
                return self._read_zip(file.where, count)
            return self._read_tar(*file.where, count)
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
            raise ImageError(f"cannot be read from the archive: {str(error)[:100]}") from error

    def _read_tar(self, offset: int, length: int, count: int) -> bytes:
        count = min(count, length)
        data = os.pread(self._opened_tar(), count, offset)
        if len(data) != count:
            raise EOFError("the archive is cut short")
        return data

    def _read_zip(self, name: str, count: int) -> bytes:
        with self._opened_zip().open(name) as member:
            return member.read(count)

    def _opened_tar(self) -> int:
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY)
        return self._file

    def _opened_zip(self) -> zipfile.ZipFile:
        if self._file is None:
            self._file = zipfile.ZipFile(self.path)
        return self._file


def list_zip(path: Path, reader: ArchiveReader) -> Listing:
    """The class folders of a zip file, or the images that its dataset.json gives a class to."""
    problems: list[Problem] = []
    files = []
    changed = path.stat().st_mtime_ns
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = _zip_name(info)
                if info.flag_bits & ENCRYPTED:
                    problems.append(Problem(name, "encrypted"))
                elif not info.is_dir():
                    files.append(ImageFile(name, "", info.file_size, changed, info.filename))
    except (zipfile.BadZipFile, OSError) as error:
        raise SourceError(f"{path} is not a readable zip file: {error}.") from error
    if not any("/" in file.path for file in files):  # some programs on Windows write their own separators
        files = [file._replace(path=file.path.replace("\\", "/")) for file in files]
    return _listing(path, files, problems, reader)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name of a member. macOS and others write UTF-8 without saying so, which would be read as code page 437."""
    if not info.flag_bits & UTF_8_NAME:
        with contextlib.suppress(UnicodeError):
            return info.filename.encode("cp437").decode("utf-8")
    return info.filename


def list_tar(path: Path, reader: ArchiveReader) -> Listing:
    """The class folders of a tar file, the classes of a tar of tars, one per class, as ImageNet comes, or the images
    that its dataset.json gives a class to.
    """
    problems: list[Problem] = []
    try:
        with tarfile.open(path, "r:") as archive:
            changed = path.stat().st_mtime_ns
            files = [file._replace(modified=changed) for file in _tar_members(archive, problems)]
    except tarfile.TarError as error:
        if path.suffix.lower() != ".tar":
            advice = "its images cannot be reached one by one: unpack it, or pass it uncompressed"
            raise SourceError(f"{path} is a compressed tar file, so {advice}.") from error
        raise SourceError(f"{path} is not a readable tar file: {error}.") from error
    return _listing(path, files, problems, reader)


def _tar_members(
    archive: tarfile.TarFile, problems: list[Problem], prefix: str = "", base: int = 0
) -> Iterator[ImageFile]:
    """Regular files of a tar and of the tars directly inside it, whose names become folders."""
    for member in archive:
        name = prefix + readable(member.name).removeprefix("./")
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


def _listing(path: Path, files: list[ImageFile], problems: list[Problem], reader: ArchiveReader) -> Listing:
    files = [file for file in files if not any(is_ignored(part) for part in file.path.split("/"))]
    files = without_repeats(files, problems)
    tops = {file.path.split("/")[0] for file in files}
    top = f"{tops.pop()}/" if len(tops) == 1 else ""  # a folder around everything, or ""
    for name in dict.fromkeys((LABEL_FILE, top + LABEL_FILE)):
        label_file = next((file for file in files if file.path == name), None)
        if label_file:
            files.remove(label_file)
            labels = _labels(path, label_file, reader)
            if labels is not None:
                return _as_labelled(files, name.removesuffix(LABEL_FILE), labels, problems)
    return _as_classes(path, files, problems, reader)


def _labels(path: Path, label_file: ImageFile, reader: ArchiveReader) -> dict[str, str] | None:
    try:
        return read_label_file(reader.read(label_file))
    except ImageError as error:
        raise SourceError(f"{label_file.path} of {path} {error}.") from error


def _as_labelled(files: list[ImageFile], top: str, labels: dict[str, str], problems: list[Problem]) -> Listing:
    """The images that a label file gives a class to; its paths are below the folder that it lies in."""
    labels = {composed(name): label for name, label in labels.items()}
    known = {composed(file.path.removeprefix(top)): file for file in files}
    problems += [Problem(name, f"in {LABEL_FILE}, but not in the archive") for name in labels if name not in known]
    problems += [Problem(name, f"has no label in {LABEL_FILE}") for name in known if name not in labels]
    found = {name: file for name, file in known.items() if name in labels}
    return Listing([file._replace(path=name, class_name=labels[name]) for name, file in found.items()], problems)


def _as_classes(path: Path, files: list[ImageFile], problems: list[Problem], reader: ArchiveReader) -> Listing:
    """Name the class of each member after its first folder, below a single folder around everything if there is one."""
    files = without_others(files, problems, reader.head)
    folders = {file.path.split("/")[0] for file in files}
    depth = 0
    if len(folders) == 1 and all(file.path.count("/") > 1 for file in files):
        depth = 1
    placed = []
    for file in files:
        parts = file.path.split("/")
        if len(parts) > depth + 1:
            placed.append(file._replace(path="/".join(parts[depth:]), class_name=class_name_of(parts[depth])))
        else:
            problems.append(Problem(file.path, LOOSE))
    listing = Listing(placed, problems)
    check_depth(listing, str(path))
    return listing

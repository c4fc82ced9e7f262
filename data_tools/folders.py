"""Class folders: which images there are, of which class, and what is wrong with the rest."""

import contextlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from data_tools.images import HEIC, NOT_IMAGE, ImageError, looks_like_image, read_file

IMAGE_SUFFIXES = frozenset(
    {".avif", ".avifs", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".mpo"}
    | {".apng", ".png", ".pbm", ".pgm", ".pnm", ".ppm", ".qoi", ".tif", ".tiff", ".webp"}
)
HEIC_SUFFIXES = (".heic", ".heif", ".hif")
PACKED_SUFFIXES = (".tar", ".zip", ".tar.gz", ".tgz")
IGNORED_NAMES = frozenset({"Thumbs.db", "desktop.ini", "__MACOSX", "lost+found"})
TRAIN_NAMES = ("train", "training")
SPLIT_NAMES = frozenset({*TRAIN_NAMES, "val", "valid", "validation", "test", "testing", "dev", "images", "data"})


class SourceError(ValueError):
    """A source of images that cannot be used; the message is one sentence for the user."""

    def __init__(self, message: str):
        super().__init__(printable(message))  # names in it may hold anything


def gone(path: str | os.PathLike, reason: str) -> SourceError:
    """What to raise in mid-build for a folder or archive that could be read when it was listed."""
    advice = "bring it back and give the same command again, it goes on from here"
    return SourceError(f"{os.fspath(path)} can no longer be read: {reason}; {advice}.")


class ImageFile(NamedTuple):
    """A file that may hold an image."""

    path: str  # below the source, with forward slashes; its identity in reports and in the data file
    class_name: str
    size: int  # bytes
    modified: int  # nanoseconds
    where: str | tuple[int, int]  # how its reader finds it: a file system path, or offset and length in an archive


class Problem(NamedTuple):
    """A file or folder that is left out, and why."""

    path: str
    reason: str


@dataclass
class Listing:
    """What a source holds. Files are in order of class name, then path."""

    files: list[ImageFile]
    problems: list[Problem] = field(default_factory=list)
    empty_classes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.files.sort(key=lambda file: (file.class_name, file.path))

    @property
    def class_counts(self) -> Counter[str]:
        """Files of each class name."""
        return Counter(file.class_name for file in self.files)

    @property
    def class_names(self) -> list[str]:
        """Class names in order; a class id is an index into this list."""
        return sorted(self.class_counts)

    @property
    def loose(self) -> int:
        """How many images lie outside any class folder."""
        return sum(problem.reason == LOOSE for problem in self.problems)

    @property
    def entries(self) -> list[tuple[str, int]]:
        """(path below the source, class id) of every file."""
        ids = {name: index for index, name in enumerate(self.class_names)}
        return [(file.path, ids[file.class_name]) for file in self.files]


def scan(root: str | os.PathLike) -> Listing:
    """List a folder of class folders; files may lie at any depth below their class.

    Files with the suffix of an image are candidates; others are so if they begin like one, since suffixes lie. Links
    are followed, but a folder that was already read under another name is not read again. Raises `SourceError` when
    there is nothing to use or when the folder is one level too high or too low.
    """
    root = Path(root)
    if not root.exists():
        raise SourceError(f"{root} does not exist.")
    if not root.is_dir():
        raise SourceError(f"{root} is not a folder of class folders.")
    walk = _Walk(root)
    walk.run()
    files = without_others(walk.files, walk.problems, head)
    walk.problems += [Problem(file.path, LOOSE) for file in without_others(walk.loose, walk.problems, head)]
    listing = Listing(files, walk.problems, sorted(walk.classes - {file.class_name for file in files}))
    check_depth(listing, str(root))
    return listing


def check_depth(listing: Listing, source: str) -> None:
    """Refuse a source whose classes are not where they should be, or warn of it, and say what to pass instead."""
    names = listing.class_names
    if not names:
        raise _unusable(listing, source)
    if len(names) > 1 and not {name.lower() for name in names} <= SPLIT_NAMES:
        return
    deeper = sorted({parts[1] for file in listing.files if len(parts := file.path.split("/")) > 2})
    classes = "one class" if len(names) == 1 else f"{len(names)} classes"
    what = f"{classes}, {' and '.join(map(repr, names[:3]))}"
    if deeper:
        what += f", whose folder holds folders ({', '.join(map(repr, deeper[:3]))}{' ...' if len(deeper) > 3 else ''})"
    best = next((name for name in names if name.lower() in TRAIN_NAMES), names[0])
    inner, outer = os.path.join(source, best), os.path.normpath(os.path.join(source, os.pardir))
    # One image beside a folder may be its cover, several are rather a class; an archive has no folder above it.
    too_low = len(names) == 1 and listing.loose > 1 and not os.path.isfile(source)
    outward = f"pass {outer} instead if {source} is itself a class (images lie directly in it: {listing.loose})"
    if deeper:
        outward += f", or {inner} if those folders are the classes"
    if deeper and all(file.path.count("/") > 1 for file in listing.files):
        inward = f"pass {inner} instead, and merge those folders with --merge if they are one class"
        raise SourceError(f"{source} would give {what}: {outward if too_low else inward}.")
    if too_low:
        listing.warnings.append(printable(f"{source} gives {what}: {outward}."))
    elif len(deeper) > 1 or (deeper and best.lower() in SPLIT_NAMES):
        listing.warnings.append(printable(f"{source} gives {what}; if these are the classes, pass {inner} instead."))


def _unusable(listing: Listing, source: str) -> SourceError:
    """What to raise for a source without a class."""
    unreadable = next((problem.reason for problem in listing.problems if problem.path == "."), None)
    if unreadable:
        return SourceError(f"{source}: {unreadable}.")
    if listing.loose:
        return SourceError(
            f"{source} holds images ({listing.loose}) but no class folders: move the files of each class into a folder "
            "of its own (one folder makes a data set of one class)."
        )
    packed = sorted(problem.path for problem in listing.problems if problem.path.lower().endswith(PACKED_SUFFIXES))
    if packed:
        together = "pack them into one tar file and pass that, or " if packed[0].lower().endswith(".tar") else ""
        return SourceError(
            f"{source} holds archives ({len(packed)}, such as {packed[0]!r}) but no images: if each holds one class, "
            f"{together}unpack each into a folder of its own; if one holds class folders, pass that one."
        )
    empty = f" (its {len(listing.empty_classes)} folders are empty)" if listing.empty_classes else ""
    return SourceError(f"{source} holds no images{empty}.")


LOOSE = "outside any class folder"
HIDDEN = "hidden folder: rename it if it is a class"


class _Walk:
    """One pass over a folder tree: real folders first, then linked ones, each folder once."""

    def __init__(self, root: Path):
        self.root = root
        self.files: list[ImageFile] = []
        self.loose: list[ImageFile] = []  # outside any class folder
        self.problems: list[Problem] = []
        self.classes: set[str] = set()
        self.seen: dict[tuple[int, int], str] = {}
        self.links: list[tuple[str, str | None]] = []
        self.linked_files: list[tuple[ImageFile, tuple[int, int]]] = []

    def run(self) -> None:
        self._visit("", None)
        # A link must not take a folder away from its real place, so links wait until all real folders are known.
        while self.links:
            links, self.links = self.links, []
            for path, class_name in sorted(links):
                self._visit(path, class_name)
        self._add_linked_files()

    def _add_linked_files(self) -> None:
        """Add each file that links lead to, but to no class twice: neither beside itself nor through two links."""
        classes = {file.class_name for file, _ in self.linked_files}
        known: dict[tuple[str, tuple[int, int]], str] = {}
        for file in self.files if classes else ():
            if file.class_name in classes:
                with contextlib.suppress(OSError):
                    known[file.class_name, _identity(os.stat(file.where))] = file.path
        for file, identity in sorted(self.linked_files):
            first = known.setdefault((file.class_name, identity), file.path)
            if first == file.path:
                self.files.append(file)
            else:
                self.problems.append(Problem(file.path, f"the same file as {first}, read once"))

    def _visit(self, path: str, class_name: str | None) -> None:
        """Read a folder and all below it; `path` is relative to the root, "" for the root itself."""
        pending = [(path, class_name)]
        while pending:
            path, class_name = pending.pop()
            shown = readable(path) or "."
            try:
                identity = _identity(os.stat(self.root / path))
                if identity in self.seen:
                    self.problems.append(Problem(shown, f"the same folder as {self.seen[identity]}, read once"))
                    continue
                self.seen[identity] = shown
                with os.scandir(self.root / path) as entries:
                    listed = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                self.problems.append(Problem(shown, f"folder cannot be read: {(error.strerror or str(error)).lower()}"))
                continue
            for entry in listed:
                if is_ignored(entry.name):
                    if class_name is None and entry.name not in IGNORED_NAMES and entry.is_dir():
                        self.problems.append(Problem(readable(entry.name), HIDDEN))
                    continue
                below = f"{path}/{entry.name}" if path else entry.name
                self._sort_entry(entry, below, class_name, pending)

    def _sort_entry(self, entry: os.DirEntry, path: str, class_name: str | None, pending: list) -> None:
        try:
            is_folder = entry.is_dir()
            status = entry.stat()
        except OSError as error:
            broken = entry.is_symlink()
            reason = "broken link" if broken else f"cannot be read: {(error.strerror or str(error)).lower()}"
            self.problems.append(Problem(readable(path), reason))
            return
        if is_folder:
            inner_class = class_name or class_name_of(entry.name)
            self.classes.add(inner_class)
            (self.links if entry.is_symlink() else pending).append((path, inner_class))
        elif not entry.is_file():
            self.problems.append(Problem(readable(path), "not a regular file"))
        else:
            where = str(self.root / path)
            file = ImageFile(readable(path), class_name or "", status.st_size, status.st_mtime_ns, where)
            if class_name is None:
                self.loose.append(file)
            elif entry.is_symlink():
                self.linked_files.append((file, _identity(status)))
            else:
                self.files.append(file)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def is_ignored(name: str) -> bool:
    """Whether a name is clutter of an operating system or hidden, and passed over without a word."""
    return name.startswith(".") or name in IGNORED_NAMES


def class_name_of(name: str) -> str:
    """A class name from a file or folder name: composed Unicode, so that one name has one spelling."""
    return composed(readable(name))


def composed(text: str) -> str:
    """Composed Unicode (NFC). macOS spells the accents of file names as letters of their own, keyboards do not."""
    return unicodedata.normalize("NFC", text)


def readable(path: str) -> str:
    """A path as valid Unicode: bytes that are not UTF-8 become \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """A name or path with control characters, which a terminal would obey, written out."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def files_below(root: Path) -> Iterator[ImageFile]:
    """The regular files below a folder, by place alone; hidden ones, clutter and links to folders are passed over."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not is_ignored(name)]
        for name in names:
            where = os.path.join(folder, name)
            if not is_ignored(name) and os.path.isfile(where):
                yield ImageFile(readable(os.path.relpath(where, root)), "", 0, 0, where)


def without_others(
    files: Iterable[ImageFile], problems: list[Problem], read_head: Callable[[ImageFile], bytes]
) -> list[ImageFile]:
    """Keep the files that have the suffix of an image or, by `read_head`, begin like one, and list the others."""
    kept = []
    for file in files:
        try:
            suffix = os.path.splitext(file.path)[1].lower()
            # A tar begins with the name of its first member, and so may seem to be any image.
            if suffix in IMAGE_SUFFIXES or (suffix != ".tar" and looks_like_image(read_head(file))):
                kept.append(file)
            else:
                problems.append(Problem(file.path, HEIC if suffix in HEIC_SUFFIXES else NOT_IMAGE))
        except ImageError as error:
            problems.append(Problem(file.path, str(error)))
    return kept


def head(file: ImageFile) -> bytes:
    """The first bytes of a file of the file system; `ImageError` with a short reason where that fails."""
    return read_file(file.where, 16)


def without_repeats(files: Iterable[ImageFile], problems: list[Problem]) -> list[ImageFile]:
    """Keep the last of several members of one path, as unpacking an archive would, and list the others."""
    kept: dict[str, ImageFile] = {}
    for file in files:
        if file.path in kept:
            problems.append(Problem(file.path, "twice in the archive: the last one is used"))
        kept[file.path] = file
    return list(kept.values())

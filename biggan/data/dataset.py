"""Data sets as the trainer reads them: built files, class folders, or several of these as one.

`open_data` checks everything that can be checked before training starts. `ImageData.read` is safe to call from many
threads at once, uses no shared memory, and several processes that read one file share the page cache.

Raw files are memory-mapped. A file that was cut short under the map would end the process with a bus error, so every
read first looks whether the file is still what it was, and gives an error that names it if not.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from biggan.data.segments import Part
from data_tools import schema
from data_tools.folders import scan
from data_tools.images import ImageError, decode_stored, load_image
from data_tools.schema import DatasetError

VERIFY_BYTES = 2**28  # files up to this size are read and verified whole when opened
MEMORY_BYTES = 2**31  # class folders up to this size, as pixels, are kept in memory
_SAMPLED_ROWS = 64  # verified in larger files


class ImageData:
    """Images of one size with labels. Subclasses say how rows are read.

    Attributes: `name`; `resolution` in pixels; `labels` int64 [N]; `class_names`; `fingerprint`, which changes with
    any label, name or pixel; `parts` and `weights`, which describe the data sets it is joined from to a `Sampler`;
    `paths`, absolute, of these; `problems`, a sentence on each file that was left out.
    """

    def __init__(
        self,
        name: str,
        resolution: int,
        labels: np.ndarray,
        class_names: list[str],
        parts: tuple[Part, ...],
        paths: tuple[str, ...],
    ):
        self.name, self.resolution, self.paths = name, resolution, paths
        self.labels, self.class_names = labels, class_names
        self.parts, self.weights = parts, (1.0,) * len(parts)
        self.fingerprint = parts[0].fingerprint
        self.problems: list[str] = []

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def class_counts(self) -> np.ndarray:
        """Images of each class, int64 [K]."""
        return np.bincount(self.labels, minlength=len(self.class_names))

    decodes = False  # whether reading is work for several threads, or only copying

    def read(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Images of the given rows, in that order: uint8 [m, H, W, 3], into `out` if given. Raises `DatasetError`."""
        rows = np.asarray(rows)
        if out is None:
            out = np.empty((len(rows), self.resolution, self.resolution, 3), dtype=np.uint8)
        self.read_into(out, np.arange(len(rows)), rows)
        return out

    def read_into(self, out: np.ndarray, places: np.ndarray, rows: np.ndarray) -> None:
        """out[places[i]] = image rows[i], for each i in turn. `out` is uint8 [m, H, W, 3], C-contiguous."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what is held open."""


_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
_PROBED_ROWS = 4  # of a batch: if these are in memory, the others are taken to be


class _Watch:
    """Notices when a file that is being read vanishes or changes."""

    def __init__(self, path: Path):
        self.path = path
        self._opened = os.stat(path)

    def check(self) -> None:
        """Raise `DatasetError` unless the file is as it was. One that replaced it whole does no harm."""
        try:
            now = os.stat(self.path)
        except OSError as error:
            raise DatasetError(
                f"{self.path} has vanished during the run ({error.strerror}): put it back, then resume."
            ) from error
        opened = self._opened
        same_file = (now.st_dev, now.st_ino) == (opened.st_dev, opened.st_ino)
        if same_file and (now.st_size, now.st_mtime_ns) != (opened.st_size, opened.st_mtime_ns):
            raise DatasetError(
                f"{self.path} was changed during the run ({opened.st_size} bytes at its start, now {now.st_size}): "
                "put the original back, then resume."
            )


class _FileData(ImageData):
    """What raw and encoded data files have in common."""

    def __init__(self, layout: schema.Layout):
        generations = [(g.rows, g.fingerprint) for g in layout.generations]
        part = Part(*generations[-1], tuple(generations[:-1]))
        paths = (str(layout.path.resolve()),)
        super().__init__(layout.path.stem, layout.header.size, layout.labels, layout.class_names, (part,), paths)
        self.path = layout.path
        self._watch = _Watch(layout.path)


class RawData(_FileData):
    """A data file with the store "raw", memory-mapped: all processes share the system's page cache.

    The file is looked at before every copy. One that is cut short in the fraction of a millisecond that a copy takes
    ends the process with a bus error; reading instead of mapping would not, but takes twice as long.
    """

    def __init__(self, layout: schema.Layout):
        super().__init__(layout)
        self._images = layout.open_images()
        self._offset, self._stride = layout.image_offset, self.resolution**2 * 3
        self._descriptor = os.open(layout.path, os.O_RDONLY)

    def read(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """See `ImageData.read`."""
        rows = np.asarray(rows)
        self._watch.check()
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self.labels):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self.labels)}")
        if not self._in_memory(rows[:: max(1, len(rows) // _PROBED_ROWS)]):
            self._announce(rows)
        return np.take(self._images, rows, axis=0, out=out, mode="clip")

    def _in_memory(self, rows: np.ndarray) -> bool:
        """Whether images are in the page cache, as far as the system can tell without waiting."""
        try:
            return _NOWAIT != 0 and all(
                os.preadv(self._descriptor, [bytearray(1)], at, _NOWAIT) for at in self._places(rows)
            )
        except OSError:
            return False

    def _announce(self, rows: np.ndarray) -> None:
        """Let the system fetch all rows at once, in the order of the disk."""
        if hasattr(os, "posix_fadvise"):
            for place in self._places(np.sort(rows)):
                os.posix_fadvise(self._descriptor, place, self._stride, os.POSIX_FADV_WILLNEED)

    def _places(self, rows: np.ndarray) -> list[int]:
        return (self._offset + rows.astype(np.int64) * self._stride).tolist()

    def read_into(self, out: np.ndarray, places: np.ndarray, rows: np.ndarray) -> None:
        out[places] = self.read(rows)

    def close(self) -> None:
        """Close the file; the map goes with its last reader."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class EncodedData(_FileData):
    """A data file whose images are PNG, WebP or JPEG files, decoded as they are read."""

    decodes = True

    def __init__(self, layout: schema.Layout):
        super().__init__(layout)
        self._images = layout.open_images()

    def read_into(self, out: np.ndarray, places: np.ndarray, rows: np.ndarray) -> None:
        self._watch.check()
        for place, row in zip(places.tolist(), rows.tolist(), strict=True):
            try:
                out[place] = decode_stored(self._images[row])
            except (OSError, ValueError, SyntaxError) as error:
                raise DatasetError(f"{self.path} is damaged: image {row} cannot be read ({error}).") from error

    def close(self) -> None:
        """Close the file."""
        self._images.close()


class FolderData(ImageData):
    """Class folders, read without building a file first.

    Every image is decoded once when the folder is opened: files that cannot be used are left out and listed in
    `problems`, and the fingerprint is that of the raw file that build-dataset would make with the same settings, so
    that a run can change over to it. The pixels stay in memory if there are at most `MEMORY_BYTES` of them;
    otherwise images are decoded again whenever they are read.
    """

    def __init__(self, root: Path, resolution: int, crop: str, filter: str):
        listing = scan(root)
        self._root, self._crop, self._filter = root, crop, filter
        self.decodes = len(listing.entries) * resolution * resolution * 3 > MEMORY_BYTES
        self._memory: np.ndarray | None = None
        entries = listing.entries
        self.resolution = resolution
        if not self.decodes:
            self._memory = np.empty((len(entries), resolution, resolution, 3), dtype=np.uint8)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = list(pool.map(self._examine, range(len(entries)), [path for path, _ in entries]))
        good = [i for i, result in enumerate(results) if isinstance(result, bytes)]
        if not good:
            raise DatasetError(f"{root} holds no image that can be read; the first problem is {results[0]}.")
        if self._memory is not None and len(good) < len(entries):
            self._memory = self._memory[good]
        self._paths = [entries[i][0] for i in good]
        present = sorted({entries[i][1] for i in good})
        labels = np.searchsorted(present, [entries[i][1] for i in good]).astype(np.int64)
        names = [listing.class_names[i] for i in present]
        digests = np.frombuffer(b"".join(results[i] for i in good), dtype=np.uint8).reshape(-1, schema.DIGEST_BYTES)
        marks = [(len(good), len(names))]
        fingerprint = schema.fingerprints(resolution, "raw", labels, digests, names, marks)[0]
        part = Part(len(good), fingerprint)
        super().__init__(root.resolve().name, resolution, labels, names, (part,), (str(root.resolve()),))
        self.problems = [f"{problem.path}: {problem.reason}" for problem in listing.problems]
        self.problems += [result for result in results if isinstance(result, str)]

    def _examine(self, index: int, path: str) -> bytes | str:
        """The digest of an image's pixels, or what is wrong with it."""
        try:
            image = load_image(self._root / path, self.resolution, self._crop, self._filter)
        except ImageError as error:
            return f"{path}: {error}"
        if self._memory is not None:
            self._memory[index] = image
        return schema.digest_of(np.ascontiguousarray(image).data)

    def read_into(self, out: np.ndarray, places: np.ndarray, rows: np.ndarray) -> None:
        for place, row in zip(places.tolist(), rows.tolist(), strict=True):
            out[place] = self._decode(row) if self._memory is None else self._memory[row]

    def _decode(self, row: int) -> np.ndarray:
        path = self._root / self._paths[row]
        try:
            return load_image(path, self.resolution, self._crop, self._filter)
        except ImageError as error:
            raise DatasetError(f"{path} could be read before, but not now: {error}.") from error


class JoinedData(ImageData):
    """Several data sets as one: their rows in turn, their classes merged by name.

    Class ids are those of the first data set, followed by the names that only later ones have.
    """

    def __init__(self, members: Sequence[ImageData], weights: Sequence[float]):
        names = list(dict.fromkeys(name for member in members for name in member.class_names))
        ids = {name: index for index, name in enumerate(names)}
        labels = [np.array([ids[name] for name in member.class_names])[member.labels] for member in members]
        parts = tuple(part for member in members for part in member.parts)
        label = " + ".join(member.name for member in members)
        paths = tuple(path for member in members for path in member.paths)
        super().__init__(label, members[0].resolution, np.concatenate(labels), names, parts, paths)
        self.weights = tuple(float(weight) for weight in weights)
        self.fingerprint = hashlib.sha256("".join(part.fingerprint for part in parts).encode()).hexdigest()
        self.problems = [problem for member in members for problem in member.problems]
        self.decodes = any(member.decodes for member in members)
        self._members = list(members)
        self._ends = np.cumsum([len(member) for member in members])

    def read_into(self, out: np.ndarray, places: np.ndarray, rows: np.ndarray) -> None:
        owners = np.searchsorted(self._ends, rows, side="right")
        for owner in np.unique(owners):
            member, here = self._members[owner], owners == owner
            member.read_into(out, places[here], rows[here] - (self._ends[owner] - len(member)))

    def close(self) -> None:
        """Close all members."""
        for member in self._members:
            member.close()


def open_data(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    resolution: int | None = None,
    weights: Sequence[float] | None = None,
    *,
    verify: bool | None = None,
    crop: str = "center",
    filter: str = "lanczos",
) -> ImageData:
    """Open a data file, a folder of class folders, or several of either as one.

    `resolution` is what the model needs; data of another size is refused. Class folders are cropped and resized to
    it with `crop` and `filter`. `weights` makes images of a data set come more or less often. `verify` reads the
    whole file and compares it with its digests; by default files above 256 MiB are sampled. Raises `DatasetError`.
    """
    paths = [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths]
    if not paths:
        raise DatasetError("no data was named; pass a data file or a folder of class folders.")
    if weights and len(weights) != len(paths):
        raise DatasetError(f"{len(paths)} data sets need as many weights, not {len(weights)}.")
    members = []
    for path in paths:
        if path.is_dir():
            if resolution is None:
                raise DatasetError(f"{path} is a folder: say at which resolution its images are to be read.")
            members.append(FolderData(path, resolution, crop, filter))
        else:
            members.append(_open_file(path, resolution or (members[0].resolution if members else None), verify))
    return members[0] if len(members) == 1 else JoinedData(members, weights or (1.0,) * len(members))


def _open_file(path: Path, resolution: int | None, verify: bool | None) -> ImageData:
    layout = schema.open_dataset(path)
    header = layout.header
    if resolution is not None and header.size != resolution:
        raise DatasetError(
            f"{path} holds images of {header.size} px, but {resolution} px are needed; make them with: "
            f"build-dataset {layout.generations[0].origin} --size {resolution}"
        )
    if header.images == 0:
        raise DatasetError(f"{path} holds no images.")
    if verify or (verify is None and path.stat().st_size <= VERIFY_BYTES):
        schema.verify(layout, workers=os.cpu_count() or 1)
    elif verify is None:
        _verify_sample(layout)
    return RawData(layout) if header.store == "raw" else EncodedData(layout)


def _verify_sample(layout: schema.Layout) -> None:
    """Compare labels, names and some evenly spaced images of a file with its fingerprint."""
    stored = layout.stored_bytes()
    for row in np.linspace(0, layout.header.images - 1, _SAMPLED_ROWS).astype(int).tolist():
        if schema.digest_of(stored(row)) != layout.digests[row].tobytes():
            raise DatasetError(
                f"{layout.path} was altered: image {row} does not have the bytes that were written; copy or build "
                "the file again."
            )
    marks = [(generation.rows, generation.classes) for generation in layout.generations]
    found = schema.fingerprints(
        layout.header.size, layout.header.store, layout.labels, layout.digests, layout.class_names, marks
    )
    if found[-1] != layout.header.fingerprint:
        raise DatasetError(f"{layout.path} was altered: its labels or class names do not have its fingerprint.")


def find_data_file(directory: str | os.PathLike, resolution: int) -> Path:
    """The only data file of the given size in a directory. Raises `DatasetError` listing what there is instead."""
    directory = Path(directory)
    found, others = [], []
    for path in sorted(directory.glob("*.h5")) if directory.is_dir() else ():
        try:
            size = schema.read_header(path).size
        except DatasetError as error:
            others.append(f"{path.name} ({error})")
            continue
        if size == resolution:
            found.append(path)
        else:
            others.append(f"{path.name} ({size} px)")
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found)
        raise DatasetError(
            f"{directory} holds {len(found)} data files of {resolution} px, {names}: choose with --data."
        )
    there = f"holds {', '.join(others)}" if others else "holds no data file" if directory.is_dir() else "is missing"
    raise DatasetError(
        f"no data file of {resolution} px: {directory} {there}; make one with: build-dataset FOLDER --size {resolution}"
    )

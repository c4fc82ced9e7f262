"""The HDF5 layout of a data set, version 1. No other module knows it.

    images       uint8 [N, H, W, 3], contiguous and uncompressed    (store "raw"; can be memory-mapped)
                 or variable-length uint8 [N], one encoded file each (store "png", "webp" or "jpeg")
    labels       int64 [N]
    class_names  UTF-8 [K], class id = index
    sources      UTF-8 [N], path below the folder that the images came from
    digests      uint8 [N, 32], SHA-256 of the stored bytes of each image
    generations  a group of columns, one entry per build or append:
        rows          int64 [G], images in the file after it (cumulative, so the last is N)
        classes       int64 [G], classes in the file after it (cumulative, so the last is K)
        fingerprints  UTF-8 [G], the fingerprint of the file as it was then
        origins       UTF-8 [G], name of the folder, archive or list that was read
        recipes       UTF-8 [G], JSON: the settings of the command
        inputs        UTF-8 [G], SHA-256 over the paths and sizes of the files that were read

Within a generation rows are ordered by class, then by source path. The attributes of the root group are the fields
of `Header`. Appending leaves the rows and class ids of earlier generations as they are.

The fingerprint of a file is the SHA-256 of

    b"biggan data set 1\\n", then size and store as ASCII, each followed by a line feed,
    for each row: the label as little-endian int64, then the row's digest (32 bytes),
    for each class: the length of its UTF-8 name as little-endian uint32, then the name.

Rows come before names, so one pass yields the fingerprints of all generations; digests stand for the pixels, so that
hashing can run in parallel and damage can be traced to a row.
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import islice
from pathlib import Path
from queue import SimpleQueue

import h5py
import numpy as np

from data_tools.direct import DirectReader

SCHEMA_VERSION = 1
STORES = ("raw", "png", "webp", "jpeg")
DIGEST_BYTES = 32
VERIFIED_BYTES = 2**20  # of images, read and hashed by a thread at a time
ENCODED_TOGETHER = 64  # images, the same for encoded stores


class DatasetError(ValueError):
    """A data file that is missing, damaged, foreign or too new; the message is one sentence for the user."""


@dataclass(frozen=True)
class Header:
    """What a data file says about itself: the attributes of its root group."""

    schema_version: int
    size: int  # pixels per side
    crop: str
    filter: str
    store: str  # one of STORES
    images: int  # N
    classes: int  # K
    creator: str  # "biggan x.y.z"
    fingerprint: str  # 64 hexadecimal digits, see the module docstring
    background: str = "#ffffff"  # what transparent and padded pixels became
    quality: int = 0  # of lossy JPEG; 0 for the lossless stores


@dataclass(frozen=True)
class Generation:
    """The file as it was after one build or append: the first `rows` rows and `classes` class names."""

    rows: int
    classes: int
    fingerprint: str
    origin: str
    recipe: str = "{}"
    inputs: str = ""


@dataclass(frozen=True)
class Layout:
    """An opened data file: everything but its images in memory, and where the images lie."""

    path: Path
    header: Header
    labels: np.ndarray  # int64 [N]
    class_names: list[str]
    generations: tuple[Generation, ...]
    image_offset: int | None  # byte offset of the contiguous block of store "raw", else None
    image_shape: tuple[int, ...]  # (N, H, W, 3) for "raw", (N,) for encoded stores

    @cached_property
    def sources(self) -> list[str]:
        """Source path of every row; read on first use, since it can be large."""
        with _opened(self.path) as file:
            return list(file["sources"].asstr()[:])

    @cached_property
    def digests(self) -> np.ndarray:
        """SHA-256 of the stored bytes of every image: uint8 [N, 32]; read on first use."""
        with _opened(self.path) as file:
            return file["digests"].astype(np.uint8)[:]

    @property
    def class_counts(self) -> np.ndarray:
        """Images of each class: int64 [K]."""
        return np.bincount(self.labels, minlength=self.header.classes).astype(np.int64)

    def open_images(self) -> "np.ndarray | EncodedImages":
        """The images as a sequence over rows: a read-only memory map for "raw", else `EncodedImages`."""
        if self.image_offset is None:
            return EncodedImages(self.path)
        with _reading(self.path):
            return np.memmap(self.path, np.uint8, "r", self.image_offset, self.image_shape)

    def stored_bytes(self) -> Callable[[int], bytes]:
        """A function from row to the bytes that its digest covers. Both may raise `DatasetError`."""
        if self.image_offset is None:
            return EncodedImages(self.path).__getitem__
        begin, length = self.image_offset, math.prod(self.image_shape[1:])
        with _reading(self.path):
            file = open(self.path, "rb")  # noqa: SIM115 (it ends with the function that holds it)

        @_reading(self.path)
        def read(row: int) -> bytes:
            # Reading, where a map would count the whole file as memory of this process.
            return os.pread(file.fileno(), length, begin + row * length)

        return read


class EncodedImages:
    """Rows of an encoded store as `bytes`, each one PNG, WebP or JPEG file. Threads may share one."""

    def __init__(self, path: Path | str):
        self._path = Path(path)
        self._file = _open_file(self._path)
        with _reading(self._path):
            self._images = self._file["images"]
            self._length = len(self._images)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> bytes:
        with _reading(self._path):
            return self._images[row].tobytes()

    def close(self) -> None:
        """Close the file; reading after that is an error."""
        self._file.close()


def read_header(path: Path | str) -> Header:
    """The header of a data file, after checking that the file is whole. Raises `DatasetError`."""
    return open_dataset(path).header


def open_dataset(path: Path | str) -> Layout:
    """Read labels, class names and generations of a data file and find its images.

    Raises `DatasetError` for a file that is missing, not HDF5, cut short, not made by build-dataset, of a newer
    schema, or inconsistent. Pixels are not read: `verify` does that.
    """
    path = Path(path)
    with _opened(path) as file:
        header = _header_of(file, path)
        images, labels = file["images"], file["labels"].astype(np.int64)[:]
        class_names = list(file["class_names"].asstr()[:])
        generations = _generations_of(file)
        digest_shape, source_shape = file["digests"].shape, file["sources"].shape
        offset = images.id.get_offset() if header.store == "raw" else None
        layout = Layout(path, header, labels, class_names, generations, offset, images.shape)
        problem = _inconsistency(layout, digest_shape, source_shape, images.dtype)
    if problem:
        raise DatasetError(f"{path} is damaged: {problem}; build it again.")
    return layout


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What reading a file raises, and using what was read, becomes `DatasetError`; h5py raises nearly anything."""
    try:
        yield
    except DatasetError:
        raise
    except OSError as error:
        if error.errno is None:  # of HDF5, not of the system
            raise _damaged(path, error) from error
        raise DatasetError(f"{path} cannot be read: {os.strerror(error.errno).lower()}.") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, MemoryError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DatasetError:
    return DatasetError(f"{path} is damaged: {_reason(error)}; copy or build it again.")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """A data file to read from, with all errors that `_reading` knows."""
    with _reading(path), _open_file(path) as file:
        yield file


def _open_file(path: Path) -> h5py.File:
    if not path.exists():
        raise DatasetError(f"{path} does not exist; make it with: build-dataset FOLDER --out {path}")
    if path.is_dir():
        raise DatasetError(f"{path} is a folder, not a data file; make one from it with: build-dataset {path}")
    try:
        try:
            return h5py.File(path, "r")
        except OSError as error:
            if "lock" not in str(error):
                raise
            return h5py.File(path, "r", locking=False)  # some network file systems have no locks
    except PermissionError as error:
        raise DatasetError(f"{path} cannot be read: permission denied.") from error
    except OSError as error:
        if "truncated" in str(error):
            message = f"{path} is cut short (an incomplete copy?): copy or build it again."
        elif "signature not found" in str(error):
            message = f"{path} is not an HDF5 file; make a data file with: build-dataset FOLDER"
        else:
            message = f"{path} cannot be read as HDF5: {_reason(error)}"
        raise DatasetError(message) from error


def _header_of(file: h5py.File, path: Path) -> Header:
    attributes = file.attrs
    if "schema_version" not in attributes:
        raise DatasetError(f"{path} is an HDF5 file of another program; make a data file with: build-dataset FOLDER")
    version = int(attributes["schema_version"])
    if version > SCHEMA_VERSION:
        raise DatasetError(
            f"{path} has schema version {version}, this program reads up to {SCHEMA_VERSION}: upgrade biggan."
        )
    values = {}
    for field in fields(Header):
        if field.name in attributes:
            values[field.name] = field.type(attributes[field.name])
    try:
        return Header(**values)
    except TypeError as error:
        raise DatasetError(
            f"{path} is damaged: its header is incomplete ({_reason(error)}); build it again."
        ) from error


def _generations_of(file: h5py.File) -> tuple[Generation, ...]:
    group = file["generations"]
    texts = [group[name].asstr()[:] for name in ("fingerprints", "origins", "recipes", "inputs")]
    columns = [*(group[name].astype(np.int64)[:].tolist() for name in ("rows", "classes")), *texts]
    return tuple(Generation(*row) for row in zip(*columns, strict=True))


def _inconsistency(layout: Layout, digest_shape: tuple, source_shape: tuple, dtype: np.dtype) -> str | None:
    """The first contradiction between the parts of a file, as a phrase, or None."""
    header, n, k = layout.header, layout.header.images, layout.header.classes
    raw = header.store == "raw"
    expected = {
        "images": (layout.image_shape, (n, header.size, header.size, 3) if raw else (n,)),
        "labels": (layout.labels.shape, (n,)),
        "digests": (digest_shape, (n, DIGEST_BYTES)),
        "sources": (source_shape, (n,)),
        "class_names": ((len(layout.class_names),), (k,)),
    }
    if header.store not in STORES:
        return f"its store is {header.store!r}, not one of {', '.join(STORES)}"
    for name, (found, wanted) in expected.items():
        if tuple(found) != wanted:
            return f"{name} has shape {tuple(found)} where its header asks for {wanted}"
    if raw and (dtype != np.uint8 or layout.image_offset is None):
        return f"images are {dtype} instead of one contiguous block of uint8"
    if n and (layout.labels.min() < 0 or layout.labels.max() >= k):
        return f"labels lie outside 0 .. {k - 1}"
    last = layout.generations[-1] if layout.generations else None
    if last is None or (last.rows, last.classes, last.fingerprint) != (n, k, header.fingerprint):
        return "its generations do not end at its header"
    return None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def fingerprints(
    header_size: int,
    store: str,
    labels: np.ndarray,
    digests: np.ndarray,
    class_names: Sequence[str],
    marks: Sequence[tuple[int, int]],
) -> list[str]:
    """The fingerprint after each generation, in one pass over the rows.

    `labels` int64 [N], `digests` uint8 [N, 32]; `marks` are the generations' cumulative (rows, classes).
    """
    state = hashlib.sha256(f"biggan data set 1\n{header_size}\n{store}\n".encode())
    found, start = [], 0
    for rows, classes in marks:
        for begin in range(start, rows, 65536):
            block = slice(begin, min(begin + 65536, rows))
            records = np.empty(block.stop - begin, [("label", "<i8"), ("digest", "u1", DIGEST_BYTES)])
            records["label"], records["digest"] = labels[block], digests[block]
            state.update(records.tobytes())
        start = rows
        finished = state.copy()
        for name in class_names[:classes]:
            encoded = name.encode()
            finished.update(len(encoded).to_bytes(4, "little") + encoded)
        found.append(finished.hexdigest())
    return found


def digest_of(stored: bytes | memoryview) -> bytes:
    """SHA-256 of an image's stored bytes."""
    return hashlib.sha256(stored).digest()


def verify(
    layout: Layout, workers: int = 2, progress: Callable[[int], None] | None = None, cached: bool = True
) -> None:
    """Read every byte of a data file and compare it with its digests and fingerprints.

    Raises `DatasetError` if they differ, or if a part cannot be read. `progress` is called with the number of rows
    verified so far. Without `cached`, the images of a "raw" file come from the disk, past the page cache.
    """
    header, digests = layout.header, layout.digests
    row = 0
    for found in _hash_again(layout, max(1, workers), cached):
        for digest in found:
            if digest != digests[row].tobytes():
                raise DatasetError(
                    f"{layout.path} is damaged: image {row} ({layout.sources[row]}) does not have the bytes that were "
                    "written; copy or build the file again."
                )
            row += 1
        if progress:
            progress(row)
    marks = [(generation.rows, generation.classes) for generation in layout.generations]
    again = fingerprints(header.size, header.store, layout.labels, digests, layout.class_names, marks)
    if again != [generation.fingerprint for generation in layout.generations]:
        raise DatasetError(f"{layout.path} is damaged: its labels or class names do not have its fingerprint.")


def _hash_again(layout: Layout, workers: int, cached: bool) -> Iterator[list[bytes]]:
    """Digests of the stored images, in blocks of rows, by a few threads (hashing releases the interpreter lock)."""
    raw, row_bytes = layout.image_offset is not None, math.prod(layout.image_shape[1:])
    together = max(1, VERIFIED_BYTES // row_bytes) if raw else ENCODED_TOGETHER
    starts = range(0, layout.header.images, together)
    blocks = (range(start, min(start + together, layout.header.images)) for start in starts)
    stored = layout.stored_bytes()
    readers: SimpleQueue[DirectReader] = SimpleQueue()  # those that no thread uses

    def hash_encoded(rows: range) -> list[bytes]:
        return [digest_of(stored(row)) for row in rows]

    @_reading(layout.path)
    def hash_raw(rows: range) -> list[bytes]:
        reader = readers.get()
        try:
            content = reader.read(layout.image_offset + rows.start * row_bytes, len(rows) * row_bytes)
            return [digest_of(content[row * row_bytes :][:row_bytes]) for row in range(len(rows))]
        finally:
            readers.put(reader)

    with contextlib.ExitStack() as stack:
        if raw:
            for _ in range(workers):
                with _reading(layout.path):
                    reader = DirectReader(layout.path, together * row_bytes, cached)
                readers.put(stack.enter_context(reader))
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        while group := list(islice(blocks, 16 * workers)):  # not all at once, so that memory is bounded
            yield from pool.map(hash_raw if raw else hash_encoded, group)


def recipe_of(generation: Generation) -> dict:
    """The settings of the command that made a generation: "images", "classes", "dedupe" and what else there is."""
    try:
        recipe = json.loads(generation.recipe)
        return {**recipe, "images": dict(recipe["images"]), "classes": dict(recipe["classes"])}
    except (ValueError, TypeError, KeyError) as error:
        message = f"the file does not tell with which settings the images of {generation.origin} were made"
        raise DatasetError(f"{message}: build it again with --overwrite.") from error

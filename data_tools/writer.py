"""Writes files of the layout that `schema` describes.

The pixels of a raw file are written outside HDF5, at the place where HDF5 will look for them: how many images there
will be is known only when the last one has been decoded, and HDF5 cannot resize a contiguous data set. So the block
comes first in the file, at an offset that does not depend on its length, and everything around it is taken from a
skeleton, a file of the right shape whose block was never written.
"""

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np

from data_tools.schema import DIGEST_BYTES, Generation, Header

ALIGNMENT = 4096  # a memory page


@dataclass(frozen=True)
class Contents:
    """Everything in a data file but the images."""

    header: Header
    labels: np.ndarray  # int64 [N]
    class_names: Sequence[str]
    sources: Sequence[str]
    digests: np.ndarray  # uint8 [N, 32]
    generations: Sequence[Generation]


def image_offset(folder: Path, size: int) -> int:
    """Where the image block of a raw file of this size begins, in bytes; tried out with a file in `folder`."""
    probe = folder / "probe.h5"
    with _create(probe) as file:
        offset = _reserve_block(file, (1, size, size, 3))
    probe.unlink()
    return offset


def complete_raw(path: Path, contents: Contents, offset: int) -> None:
    """Turn a file that has the image block at `offset` into a data file, in place."""
    header = contents.header
    block = header.images * header.size * header.size * 3
    skeleton = path.with_name("skeleton.h5")
    with _create(skeleton) as file:
        found = _reserve_block(file, (header.images, header.size, header.size, 3))
        assert found == offset, f"the image block moved from {offset} to {found}"
        _write_contents(file, contents)
    with open(skeleton, "rb") as source, open(path, "r+b") as target:
        target.write(source.read(offset))
        source.seek(offset + block)
        target.seek(offset + block)
        target.write(source.read())
        target.truncate()
        target.flush()
        os.fsync(target.fileno())
    skeleton.unlink()


def write_encoded(path: Path, contents: Contents, stored: Iterable[bytes]) -> None:
    """Write a data file of an encoded store; `stored` gives the bytes of each row in order."""
    with _create(path) as file:
        kind = h5py.vlen_dtype(np.uint8)
        images = file.create_dataset("images", (contents.header.images,), kind)
        for row, data in enumerate(stored):
            images[row] = np.frombuffer(data, np.uint8)
        _write_contents(file, contents)
    with open(path, "rb") as written:
        os.fsync(written.fileno())


@contextlib.contextmanager
def _create(path: Path) -> Iterator[h5py.File]:
    """A new file. What HDF5 says of a disk that fails becomes the `OSError` that it was."""
    try:
        with _new_file(path) as file:
            yield file
    except RuntimeError as error:  # raised by closing, with a page of text
        full = f"errno = {errno.ENOSPC}" in str(error)
        code = errno.ENOSPC if full else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from error


def _new_file(path: Path) -> h5py.File:
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_alignment(1, ALIGNMENT)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_obj_track_times(False)  # the same images give the same bytes, today and tomorrow
    return h5py.File(h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_TRUNC, creation, access))


def _reserve_block(file: h5py.File, shape: tuple[int, ...]) -> int:
    """Give the images their place without writing them; returns its byte offset."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)
    space = h5py.h5s.create_simple(shape)
    return h5py.h5d.create(file.id, b"images", h5py.h5t.NATIVE_UINT8, space, creation).get_offset()


def _write_contents(file: h5py.File, contents: Contents) -> None:
    text = h5py.string_dtype("utf-8")
    file["labels"] = contents.labels.astype(np.int64)
    file["digests"] = contents.digests.reshape(-1, DIGEST_BYTES)
    file.create_dataset("class_names", data=list(contents.class_names), dtype=text)
    sources = file.create_dataset("sources", (len(contents.sources),), text)
    for begin in range(0, len(contents.sources), 4096):
        sources[begin : begin + 4096] = list(contents.sources[begin : begin + 4096])
    timeless = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
    timeless.set_obj_track_times(False)
    columns = h5py.Group(h5py.h5g.create(file.id, b"generations", gcpl=timeless))
    columns["rows"] = np.array([generation.rows for generation in contents.generations], np.int64)
    columns["classes"] = np.array([generation.classes for generation in contents.generations], np.int64)
    for name, field in (("fingerprints", "fingerprint"), ("origins", "origin"), ("recipes", "recipe"), ("inputs",) * 2):
        values = [getattr(generation, field) for generation in contents.generations]
        columns.create_dataset(name, data=values, dtype=text)
    for name, value in asdict(contents.header).items():
        file.attrs[name] = value

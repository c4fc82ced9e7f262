"""Files past the page cache, where the system and the file system can do that (O_DIRECT of Linux).

A build writes what will not be read again soon, and often more than memory holds. To find memory for every page of it,
and to take that from what others keep there, costs more than the writing itself: on a virtual machine, a tenth of the
time of decoding. And what is read past the page cache comes from the disk, so it shows what the disk really holds.
"""

import errno
import fcntl
import io
import mmap
import os
from pathlib import Path

PAGE = 4096  # bytes; offsets, lengths and memory have to be multiples of it
BUFFER_BYTES = 4 * 2**20


class DirectWriter:
    """Appends to a file that exists; `flush` before closing. A context manager.

    After a `flush`, zeros fill the last page, so that the file can be up to a page longer than what was written.
    """

    def __init__(self, path: Path):
        self._file = open(path, "r+b", buffering=0)  # noqa: SIM115 (closed by __exit__)
        end = os.fstat(self.fileno()).st_size
        self._buffer = memoryview(mmap.mmap(-1, BUFFER_BYTES))  # begins at a page of memory
        self._start = end - end % PAGE  # where the buffer lies in the file
        self._filled = os.preadv(self.fileno(), [self._buffer[: end % PAGE]], self._start)
        self._written = 0  # bytes of the buffer that are in the file, whole pages
        _set_direct(self.fileno(), True)

    def __enter__(self) -> "DirectWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def fileno(self) -> int:
        """The descriptor, for `os.fsync`."""
        return self._file.fileno()

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes; they are in the file after the next `flush`. Raises `OSError`."""
        rest = memoryview(data)
        while rest:
            part = rest[: BUFFER_BYTES - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == BUFFER_BYTES:
                self._write_up_to(BUFFER_BYTES)
                self._start, self._filled, self._written = self._start + BUFFER_BYTES, 0, 0

    def flush(self) -> None:
        """Hand everything to the system. May be repeated after an error or an interruption. Raises `OSError`."""
        whole = _round_up(self._filled)
        self._buffer[self._filled : whole] = bytes(whole - self._filled)
        self._write_up_to(whole)
        self._written = self._filled - self._filled % PAGE

    def _write_up_to(self, end: int) -> None:
        place = self._written
        while place < end:
            try:
                place += os.pwrite(self.fileno(), self._buffer[place:end], self._start + place)
            except OSError as error:
                _accept(error, self._file)


class DirectReader:
    """Reads stretches of up to `longest` bytes of a file, each into the same memory. A context manager.

    `cached` goes through the page cache nevertheless, for what will be used again.
    """

    def __init__(self, path: Path, longest: int, cached: bool = False):
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed by __exit__)
        self._buffer = memoryview(mmap.mmap(-1, _round_up(longest) + PAGE))
        if not cached:
            _set_direct(self._file.fileno(), True)

    def __enter__(self) -> "DirectReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, begin: int, length: int) -> memoryview:
        """The bytes from `begin` on, fewer than `length` at the end of the file; valid until the next call."""
        before = begin % PAGE
        wanted, found = before + length, 0
        while found < wanted:
            part = self._buffer[found : _round_up(wanted)]
            try:
                count = os.preadv(self._file.fileno(), [part], begin - before + found)
            except OSError as error:
                _accept(error, self._file)
                continue
            if not count:
                break
            found += count
        return self._buffer[before : min(found, wanted)]


def ask_ahead(descriptor: int, begin: int, length: int) -> None:
    """Have a stretch of a file read into the page cache, without waiting for it, where the system can."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, begin, length, os.POSIX_FADV_WILLNEED)


def _round_up(length: int) -> int:
    return -(-length // PAGE) * PAGE


def _set_direct(descriptor: int, direct: bool) -> bool:
    """Turn direct access on or off, where there is such a thing; whether that changed anything."""
    flag = getattr(os, "O_DIRECT", 0)
    before = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    after = before | flag if direct else before & ~flag
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, after)
    except OSError:
        return False
    return after != before


def _accept(error: OSError, file: io.FileIO) -> None:
    """Go on without direct access where a file system asks for other multiples; raise any other error."""
    if error.errno != errno.EINVAL or not _set_direct(file.fileno(), False):
        error.filename = file.name
        raise error

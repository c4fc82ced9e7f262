"""Files past the page cache: the same bytes as without it, on any file system, after any error."""

import errno
import fcntl
import mmap
import os
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import direct
from data_tools.direct import PAGE, DirectReader, DirectWriter

LENGTHS = st.one_of(st.integers(0, 300), st.integers(PAGE - 2, PAGE + 2), st.integers(0, 6 * PAGE))
STEPS = st.lists(st.one_of(LENGTHS, st.sampled_from(["flush", "reopen"])), max_size=12)


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path: Path) -> Iterator[Path]:
    """A folder on the disk, and one in memory, where direct access may be refused."""
    if request.param == "disk":
        yield tmp_path
        return
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no file system in memory")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def gave_up(file: DirectWriter | DirectReader) -> bool:
    """Whether direct access was turned off, on a file system that has it for whole pages."""
    descriptor = file._file.fileno()
    is_off = not fcntl.fcntl(descriptor, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0)
    return is_off and works_here(os.fstat(descriptor).st_dev)


@lru_cache
def works_here(device: int) -> bool:
    """Whether pages can be written to a file of the temporary folder directly, and it is on that device."""
    with tempfile.NamedTemporaryFile() as file:
        try:
            fcntl.fcntl(file.fileno(), fcntl.F_SETFL, os.O_DIRECT)
            return os.write(file.fileno(), mmap.mmap(-1, PAGE)) == PAGE and os.fstat(file.fileno()).st_dev == device
        except (OSError, AttributeError):
            return False


def content(length: int, seed: int) -> bytes:
    return bytes((seed * 7 + place * 31 + place // 251) % 256 for place in range(length))


@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, 3 * PAGE), steps=STEPS)
def test_what_is_appended_in_any_pieces_is_there(start: int, steps: list, tmp_path_factory):
    path = tmp_path_factory.mktemp("direct") / "file"
    expected = content(start, 1)
    path.write_bytes(expected)
    writer = DirectWriter(path)
    for number, step in enumerate([*steps, "flush"]):
        if isinstance(step, int):
            piece = content(step, number)
            writer.write(memoryview(piece))
            expected += piece
            continue
        writer.flush()
        written = path.read_bytes()
        assert written[: len(expected)] == expected
        assert len(written) - len(expected) < PAGE
        assert not any(written[len(expected) :])
        assert not gave_up(writer)
        if step == "reopen":  # as a build does that goes on: cut to what is vouched for
            os.truncate(path, len(expected))
            writer = DirectWriter(path)


@pytest.fixture
def small_buffer(monkeypatch) -> None:
    monkeypatch.setattr(direct, "BUFFER_BYTES", 2 * PAGE)


def test_more_than_the_buffer_holds(folder: Path, small_buffer):
    path, data = folder / "file", content(11 * PAGE + 77, 5)
    path.touch()
    with DirectWriter(path) as writer:
        for begin in range(0, len(data), 3001):
            writer.write(data[begin : begin + 3001])
        writer.flush()
    assert path.read_bytes()[: len(data)] == data
    with DirectReader(path, len(data)) as reader:
        assert reader.read(0, len(data)) == data


@settings(max_examples=60, deadline=None)
@given(
    stretches=st.lists(st.tuples(st.integers(0, 9 * PAGE), st.integers(0, 3 * PAGE)), max_size=8), cached=st.booleans()
)
def test_any_stretch_can_be_read(stretches: list, cached: bool, tmp_path_factory):
    data = content(8 * PAGE + 1234, 3)
    path = tmp_path_factory.mktemp("direct") / "file"
    path.write_bytes(data)
    with DirectReader(path, 3 * PAGE, cached) as reader:
        for begin, length in stretches:
            assert reader.read(begin, length) == data[begin : begin + length]
        assert cached or not gave_up(reader)


def test_a_file_system_that_asks_for_other_multiples(tmp_path: Path, monkeypatch):
    """It takes the flag, and refuses whatever is read or written with it."""

    def refusing(original):
        def call(descriptor, *args):
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return original(descriptor, *args)

        return call

    path, data = tmp_path / "file", content(3 * PAGE + 5, 9)
    path.touch()
    with DirectWriter(path) as writer, DirectReader(path, len(data)) as reader:
        monkeypatch.setattr(os, "pwrite", refusing(os.pwrite))
        monkeypatch.setattr(os, "preadv", refusing(os.preadv))
        writer.write(data)
        writer.flush()
        assert reader.read(0, len(data)) == data


@pytest.mark.parametrize("flush", [False, True])
def test_after_a_full_disk_a_flush_writes_what_is_missing(flush: bool, tmp_path: Path, monkeypatch, small_buffer):
    path, data = tmp_path / "file", content(5 * PAGE + 100, 2)
    path.touch()
    original, room = os.pwrite, [PAGE]

    def limited(descriptor, piece, place):
        """Writes a page, as a system may, and then finds the disk full."""
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = original(descriptor, piece[: room[0]], place)
        room[0] -= count
        return count

    with DirectWriter(path) as writer:
        monkeypatch.setattr(os, "pwrite", limited)
        if flush:
            writer.write(data[: PAGE + 100])
            with pytest.raises(OSError, match="No space left"):
                writer.flush()
            rest = data[PAGE + 100 :]
        else:
            with pytest.raises(OSError, match="No space left"):
                writer.write(data[: 2 * PAGE])
            rest = data[2 * PAGE :]
        room[0] = 10**9
        writer.flush()
        writer.write(rest)
        writer.flush()
    assert path.read_bytes()[: len(data)] == data

"""Reading sources: asking the disk ahead, and files, folders and archives that go away meanwhile."""

import errno
import itertools
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools import archives, commands, processing, sources
from data_tools.folders import SourceError, scan
from data_tools.images import ImageError
from data_tools.sources import FolderReader, open_source
from tests.data_tools.conftest import write_classes
from tests.data_tools.packing import ARCHIVES, PNG, write_archive


def in_another_process(reader):
    """A reader as a process that was started late gets it."""
    return pickle.loads(pickle.dumps(reader))


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_that_is_gone_or_changed_ends_the_build(kind: str, tmp_path: Path, monkeypatch):
    path = write_archive(tmp_path / f"x.{kind}", {"cat/a.png": PNG})
    source = open_source(path)
    file, status, content = source.listing.files[0], path.stat(), path.read_bytes()
    path.rename(tmp_path / "away")
    with pytest.raises(SourceError, match=r"can no longer be read: no such file or directory; .* it goes on from here"):
        in_another_process(source.reader).read(file)
    (tmp_path / "away").rename(path)
    assert in_another_process(source.reader).read(file) == PNG
    os.utime(path, ns=(0, 0))
    for reader in (source.reader, in_another_process(source.reader)):
        with pytest.raises(SourceError, match="has changed since it was listed"):
            reader.read(file)
    path.write_bytes(content[:100])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    for reader in (source.reader, in_another_process(source.reader)):
        with pytest.raises(SourceError, match="has changed since it was listed"):
            reader.read(file)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source.reader.read(file) == PNG

    def failing(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", failing)
    monkeypatch.setattr(zipfile.ZipFile, "open", failing)
    with pytest.raises(SourceError, match="can no longer be read: input/output error"):
        source.reader.read(file)


def test_files_that_are_gone_end_the_build_only_with_their_folder(pets: Path):
    (pets / "link").symlink_to(pets.parent / "outside", target_is_directory=True)
    write_classes(pets.parent, {"outside": 2})
    source = open_source(pets)
    files = {file.path: file for file in source.listing.files}
    (pets / "cat" / "0000.png").unlink()
    with pytest.raises(ImageError, match="no such file or directory"):
        source.reader.read(files["cat/0000.png"])
    for path in (pets / "cat").iterdir():
        path.unlink()
    with pytest.raises(SourceError, match=r"cat can no longer be read: it is empty; bring it back"):
        source.reader.read(files["cat/0000.png"])
    (pets.parent / "outside").rename(pets.parent / "elsewhere")
    with pytest.raises(SourceError, match=r"outside can no longer be read: no such file"):
        source.reader.read(files["link/0000.png"])


def build_with_a_mishap(arguments: tuple, mishap: Callable[[], object], command, monkeypatch) -> tuple[int, str, str]:
    """Run build-dataset, with few files under way at once, and have something happen after the twentieth."""
    advance, calls = commands.Progress.advance, itertools.count(1)

    def advancing(progress) -> None:
        advance(progress)
        if next(calls) == 20:
            mishap()

    with monkeypatch.context() as patch:
        patch.setattr(processing, "CHUNK_BYTES", 5 * 8 * 8 * 3)
        patch.setattr(commands.Progress, "advance", advancing)
        return command(*arguments)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_that_goes_away_stops_the_build_until_it_is_back(
    workers: int, crowd: Path, tmp_path: Path, command, monkeypatch
):
    source, away = shutil.copytree(crowd, tmp_path / "crowd"), tmp_path / "away"
    settings = (source, "--size", 8, "--workers", workers, "--no-report", "--out")
    arguments = (*settings, tmp_path / "f.h5")
    code, _, err = build_with_a_mishap(arguments, lambda: source.rename(away), command, monkeypatch)
    assert (code, err.count("\n")) == (1, 1)
    assert re.search(r"crowd/[ab] can no longer be read: no such file or directory; bring it back and give", err)
    assert not (tmp_path / "f.h5").exists()
    assert command(*arguments)[0] == 1  # there is nothing to list yet
    away.rename(source)
    code, out, err = command(*arguments)
    assert (code, err) == (0, "")
    assert re.search(r"Going on after [2-9]\d of 150 files", out)
    assert command(*settings, tmp_path / "whole.h5")[0] == 0
    assert (tmp_path / "f.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize(("kind", "workers"), [("zip", 1), ("tar", 2)])
def test_an_archive_that_is_cut_stops_the_build_until_it_is_whole(
    kind: str, workers: int, crowd: Path, tmp_path: Path, command, monkeypatch
):
    members = {str(path.relative_to(crowd)): path.read_bytes() for path in crowd.glob("*/*.png")}
    source = write_archive(tmp_path / f"crowd.{kind}", members)
    content, modified = source.read_bytes(), source.stat().st_mtime_ns
    arguments = (source, "--size", 8, "--workers", workers, "--no-report", "--out", tmp_path / "f.h5")
    code, _, err = build_with_a_mishap(arguments, lambda: os.truncate(source, 1000), command, monkeypatch)
    assert code == 1
    assert f"{source} has changed since it was listed" in err
    source.write_bytes(content)
    os.utime(source, ns=(modified, modified))
    code, out, _ = command(*arguments)
    assert code == 0
    assert re.search(r"Going on after [2-9]\d of 150 files", out)
    assert command(*arguments[:-1], tmp_path / "whole.h5")[0] == 0
    assert (tmp_path / "f.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


class RecordingReader(FolderReader):
    """Notes in a file, from any process, what it is asked for."""

    def __init__(self, notes: Path):
        self.notes = notes

    def note(self, *words: str) -> None:
        with open(self.notes, "a") as file:
            file.write(" ".join(words) + "\n")

    def read(self, file):
        self.note("read", file.path)
        return super().read(file)

    def prefetch(self, files):
        files = list(files)
        self.note("ahead", *[file.path for file in files])
        super().prefetch(files)


def test_the_disk_is_asked_ahead_for_every_file_but_the_first(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(processing, "CHUNK_BYTES", 5 * 16 * 16 * 3)
    files = scan(write_classes(tmp_path / "src", {"a": 50, "b": 63})).files
    reader, settings = RecordingReader(tmp_path / "notes"), processing.ImageSettings(size=16)
    outcomes = processing.process_all(((file, None) for file in files), settings, reader, 2, tmp_path / "scratch")
    assert sum(not outcome.reason for outcome in outcomes) == 113
    asked, read = [], []
    for line in (tmp_path / "notes").read_text().splitlines():
        kind, *paths = line.split(" ")
        if kind == "read":
            read += paths
            assert paths[0] in asked or paths[0] in [file.path for file in files[:40]]
        else:
            asked += paths
    assert sorted(asked) == sorted(file.path for file in files[40:])  # eight groups of five are under way at once
    assert sorted(read) == sorted(file.path for file in files)


@pytest.mark.parametrize("name", ["stored.zip", "pets.tar", "of-tars.tar", ""])
def test_what_is_asked_for_ahead_is_what_will_be_read(name: str, pets: Path, tmp_path: Path, monkeypatch):
    source = open_source(ARCHIVES[name](pets, tmp_path / name) if name else pets)
    asked: list[bytes] = []

    def ask_ahead(descriptor: int, begin: int, length: int) -> None:
        asked.append(os.pread(descriptor, length + 100, begin))  # a zip has a header before each member

    monkeypatch.setattr(archives, "ask_ahead", ask_ahead)
    monkeypatch.setattr(sources, "ask_ahead", ask_ahead)
    files = source.listing.files
    missing = files[0]._replace(where="none" if isinstance(files[0].where, str) else (10**9, 5))
    source.reader.prefetch([missing, *files])
    assert len(asked) in (12, 13)
    for file, stretch in zip(files, asked[-12:], strict=True):
        assert (pets / file.path).read_bytes() in stretch

"""Zip and tar archives as sources: what is in them, and what is wrong with them."""

import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools import archives
from data_tools.folders import SourceError
from data_tools.images import ImageError
from data_tools.schema import open_dataset
from data_tools.sources import open_source
from tests.data_tools.conftest import encoded, picture, write_classes
from tests.data_tools.packing import ARCHIVES, PNG, add_to_tar, tar_of, write_archive, zip_of


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_gives_what_its_folder_gives(name: str, workers: int, tmp_path: Path, command):
    pets = write_classes(tmp_path / "pets", {"cat": 30, "axolotl": 20, "dog": 20})
    archive = ARCHIVES[name](pets, tmp_path / name)
    for source, out in ((pets, "folder.h5"), (archive, "archive.h5")):
        code, _, err = command(source, "--size", 8, "--workers", workers, "--out", tmp_path / out, "--no-report")
        assert (code, err) == (0, "")
    folder, archived = open_dataset(tmp_path / "folder.h5"), open_dataset(tmp_path / "archive.h5")
    assert archived.header == folder.header
    assert archived.sources == folder.sources
    assert list(tmp_path.glob("*/axolotl")) == [pets / "axolotl"]  # nothing was unpacked


def test_damaged_and_compressed_archives_are_named(pets: Path, tmp_path: Path, command):
    packed = tar_of(pets, tmp_path / "pets.tar.gz", mode="w:gz")
    with pytest.raises(SourceError, match="compressed tar"):
        open_source(packed)
    archive = zip_of(pets, tmp_path / "pets.zip", method=zipfile.ZIP_STORED)
    data = bytearray(archive.read_bytes())
    at = data.index((pets / "dog" / "0003.png").read_bytes())
    data[at + 50] ^= 0xFF
    archive.write_bytes(data)
    code, out, _ = command(archive, "--size", 8, "--out", tmp_path / "f.h5")
    assert code == 0
    assert "dog/0003.png: cannot be read from the archive: Bad CRC-32" in out


@pytest.mark.parametrize("pack", [shutil.copytree, zip_of, tar_of])
def test_one_image_beside_the_classes_does_not_hide_that_they_lie_too_deep(pack: Callable, tmp_path: Path):
    source = pack(write_classes(tmp_path / "up", {"photos": 1, "photos/cat": 2, "photos/dog": 2}), tmp_path / "source")
    assert open_source(source).listing.warnings == [
        f"{source} gives one class, 'photos', whose folder holds folders ('cat', 'dog'); if these are the classes, "
        f"pass {source / 'photos'} instead."
    ]


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("top", ["", "top/", "./top/"])
def test_a_folder_of_an_archive_is_a_source(kind: str, top: str, tmp_path: Path, command):
    folders = ("test/cat", "test/dog", "train/cat", "train/dog")
    members = {f"{top}{folder}/{name}.png": PNG for folder in folders for name in "ab"}
    archive = write_archive(tmp_path / f"x.{kind}", members | {f"{top}loose.txt": b"notes"})
    whole = archive / top.removeprefix("./")
    code, _, err = command(archive, "--dry-run")
    assert code == 1
    assert f"pass {whole / 'train'} instead" in err
    source = open_source(whole / "train")
    assert source.name == "train"
    assert source.listing.entries == [("cat/a.png", 0), ("cat/b.png", 0), ("dog/a.png", 1), ("dog/b.png", 1)]
    assert source.listing.problems == []
    assert source.reader.read(source.listing.files[0]) == PNG
    with pytest.raises(SourceError, match=r"holds images \(2\) but no class folders"):
        open_source(whole / "train" / "cat")
    with pytest.raises(SourceError, match="holds no folder 'tra'"):
        open_source(archive / "tra")


def test_a_folder_of_an_archive_is_not_looked_into_for_another(tmp_path: Path):
    archive = write_archive(tmp_path / "x.zip", {"train/cat/young/a.png": PNG, "test/cat/young/a.png": PNG})
    with pytest.raises(SourceError, match="would give one class, 'cat', whose folder holds folders"):
        open_source(archive / "train")
    labels = b'{"labels": [["a.png", 3]]}'
    archive = write_archive(tmp_path / "y.zip", {"train/cat/a.png": PNG, "train/cat/dataset.json": labels})
    assert open_source(archive / "train").listing.class_names == ["cat"]
    assert open_source(archive / "train" / "cat").listing.class_names == ["3"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_of_an_archive_have_one_spelling(kind: str, tmp_path: Path):
    names = ("./cat/a.png", "/cat/b.png", "dog//c.png", "dog/./d.png", "../e.png", "cat/../dog/f.png", "./cat//b.png")
    listing = open_source(write_archive(tmp_path / f"x.{kind}", dict.fromkeys(names, PNG))).listing
    assert listing.entries == [("cat/a.png", 0), ("cat/b.png", 0), ("dog/c.png", 1), ("dog/d.png", 1)]
    assert sorted(map(tuple, listing.problems)) == [
        ("../e.png", "its path leads out of its folder"),
        ("cat/../dog/f.png", "its path leads out of its folder"),
        ("cat/b.png", "twice in the archive: the last one is used"),
    ]


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("top", ["", "top/"])
def test_clutter_of_archives_is_passed_over_and_hidden_classes_are_listed(kind: str, top: str, tmp_path: Path):
    clutter = (".DS_Store", "cat/._a.png", "cat/Thumbs.db", "__MACOSX/cat/._a.png", "cat/.git/b.png")
    names = ("cat/a.png", ".hack/a.png", ".hack/b.png", *clutter)
    listing = open_source(write_archive(tmp_path / f"x.{kind}", {top + name: PNG for name in names})).listing
    assert listing.entries == [("cat/a.png", 0)]
    assert [tuple(problem) for problem in listing.problems] == [(".hack", "hidden folder: rename it if it is a class")]


def test_links_and_damaged_tars_in_a_tar_are_listed(tmp_path: Path):
    inner = tar_of(write_classes(tmp_path / "dog", {"x": 1}), tmp_path / "dog.tar").read_bytes()
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add_to_tar(archive, "cat/a.png", PNG)
        add_to_tar(archive, "./cat/soft.png", b"", type=tarfile.SYMTYPE, linkname="a.png")
        add_to_tar(archive, "cat/hard.png", b"", type=tarfile.LNKTYPE, linkname="cat/a.png")
        add_to_tar(archive, "rubbish.tar", b"rubbish" * 200)
        add_to_tar(archive, "dog.tar", inner)
        add_to_tar(archive, "out.tar", write_archive(tmp_path / "out.tar", {"../dog/a.png": PNG}).read_bytes())
    listing = open_source(tmp_path / "x.tar").listing
    assert listing.entries == [("cat/a.png", 0), ("dog/x/0000.png", 1)]
    problems = {problem.path: problem.reason for problem in listing.problems}
    assert problems.pop("rubbish.tar").startswith("not a readable tar file: ")
    assert problems == {
        "cat/soft.png": "a link inside an archive",
        "cat/hard.png": "a link inside an archive",
        "out/../dog/a.png": "its path leads out of its folder",
    }


def test_encrypted_members_are_listed(tmp_path: Path):
    write_archive(tmp_path / "x.zip", {"cat/a.png": PNG, "cat/secret.png": PNG})
    data = bytearray((tmp_path / "x.zip").read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1  # a flag of the last member in the list at the end
    (tmp_path / "x.zip").write_bytes(data)
    listing = open_source(tmp_path / "x.zip").listing
    assert listing.entries == [("cat/a.png", 0)]
    assert [tuple(problem) for problem in listing.problems] == [("cat/secret.png", "encrypted")]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_member_of_a_zip_is_left_out_alone(method: int, pets: Path, tmp_path: Path, command):
    picture(99).save(pets / "dog" / "readme", "PNG")
    archive = zip_of(pets, tmp_path / "pets.zip", method=method)
    with zipfile.ZipFile(archive, "a", method) as opened:
        opened.write(pets / "dog" / "readme", "dog/readme")
        places = [opened.getinfo(name).header_offset + 30 + len(name) for name in ("dog/0003.png", "dog/readme")]
    data = bytearray(archive.read_bytes())
    for place in places:
        data[place + 5 : place + 45] = b"\xff" * 40
    archive.write_bytes(data)
    code, out, _ = command(archive, "--size", 8, "--out", tmp_path / "f.h5", "--no-report")
    assert code == 0
    assert "dog/0003.png: cannot be read from the archive: " in out
    assert "dog/readme: " in out
    assert open_dataset(tmp_path / "f.h5").header.images == 11


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_of_more_than_a_gib_are_left_out(kind: str, tmp_path: Path, monkeypatch):
    source = open_source(write_archive(tmp_path / f"x.{kind}", {"cat/a.png": PNG}))
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", len(PNG))
    assert source.reader.read(source.listing.files[0]) == PNG
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", len(PNG) - 1)
    with pytest.raises(ImageError, match="larger than 1 GiB"):
        source.reader.read(source.listing.files[0])


def test_a_member_of_a_tar_that_ends_early_is_left_out(tmp_path: Path):
    source = open_source(write_archive(tmp_path / "x.tar", {"cat/a.png": PNG}))
    late = source.listing.files[0]._replace(where=(source.reader.size - 10, 20), size=20)
    with pytest.raises(ImageError, match="cut short"):
        source.reader.read(late)


def test_a_zip_whose_list_is_damaged_is_named(tmp_path: Path):
    write_archive(tmp_path / "x.zip", {"cat/\u00e9.png": PNG})
    data = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(data.replace("\u00e9".encode(), b"\xff\xff"))
    with pytest.raises(SourceError, match="is a damaged or incomplete zip file"):
        open_source(tmp_path / "x.zip")


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "zip", "tar"])
@pytest.mark.parametrize("part", [0, 300, 1000, 5000])
def test_an_archive_that_is_cut_short_is_called_damaged(name: str, part: int, tmp_path: Path):
    kind = name.removeprefix("x.")
    pack = zip_of if kind == "zip" else tar_of
    path = pack(write_classes(tmp_path / "pets", {"cat": 9}), tmp_path / name)
    assert path.stat().st_size > 6000
    os.truncate(path, part)
    message = f"{name} is a damaged or incomplete {kind} file"
    if part == 0 and name == kind:
        message = "is not a folder, a zip, a tar, or a list"  # nothing says what it was
    with pytest.raises(SourceError, match=message):
        open_source(path)
    if name != kind:
        with pytest.raises(SourceError, match=message):
            open_source(path / "cat")


def test_a_path_twice_in_an_archive_counts_once(tmp_path: Path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for seed in (1, 2):
            add_to_tar(archive, "cat/same.png", encoded(picture(seed), "PNG"))
    source = open_source(tmp_path / "x.tar")
    assert [problem.reason for problem in source.listing.problems] == ["twice in the archive: the last one is used"]
    assert source.reader.read(source.listing.files[0]) == encoded(picture(2), "PNG")


def test_a_zip_with_separators_of_windows(tmp_path: Path, pets: Path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in pets.rglob("*.png"):
            info = zipfile.ZipInfo("x")
            info.filename = f"{path.parent.name}\\{path.name}"
            archive.writestr(info, path.read_bytes())
    assert open_source(tmp_path / "x.zip").listing.class_counts == {"axolotl": 3, "cat": 5, "dog": 4}


class UnmarkedName(zipfile.ZipInfo):
    """A member whose name is UTF-8 although no flag says so, as macOS writes them."""

    def _encodeFilenameFlags(self):
        return self.filename.encode(), self.flag_bits & ~0x800


def test_names_in_a_zip_may_be_unmarked_utf_8(tmp_path: Path, command):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for seed, name in enumerate(("ネコ/a.png", "caf\u00e9/b.png", "cat/c.png")):
            archive.writestr(UnmarkedName(name), encoded(picture(seed), "PNG"))
    assert open_source(tmp_path / "x.zip").listing.class_names == ["caf\u00e9", "cat", "ネコ"]
    assert command(tmp_path / "x.zip", "--size", 8, "--out", tmp_path / "f.h5")[0] == 0
    assert open_dataset(tmp_path / "f.h5").header.images == 3

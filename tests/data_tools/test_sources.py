"""Where images come from: folders and their mistakes, archives, lists."""

import errno
import io
import itertools
import json
import os
import pickle
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_tools import archives, commands, processing, sources
from data_tools.boxes import read_boxes
from data_tools.classes import RuleError
from data_tools.folders import SourceError, scan
from data_tools.images import HEIC, ImageError
from data_tools.schema import open_dataset
from data_tools.sources import FolderReader, open_source
from tests.data_tools.conftest import encoded, picture, write_classes

EXPECTED = ["axolotl"] * 3 + ["cat"] * 5 + ["dog"] * 4


def test_classes_are_in_alphabetical_order_and_files_below_them_in_order_of_path(pets: Path):
    (pets / "cat" / "deep" / "deeper").mkdir(parents=True)
    picture(1).save(pets / "cat" / "deep" / "deeper" / "x.png")
    listing = scan(pets)
    assert listing.class_names == ["axolotl", "cat", "dog"]
    assert listing.entries == sorted(listing.entries, key=lambda entry: (entry[1], entry[0]))
    assert ("cat/deep/deeper/x.png", 1) in listing.entries


@pytest.mark.parametrize(
    ("folders", "instead"),
    [
        (["train/cat", "train/dog"], "train"),
        (["images/cat"], "images"),
        (["train/cat", "train/dog", "val/cat", "val/dog"], "train"),
        (["dev/cat", "test/cat", "Training/cat"], "Training"),
    ],
)
def test_a_folder_one_level_too_high_is_refused_with_the_right_one(folders, instead, tmp_path: Path, command):
    write_classes(tmp_path / "src", dict.fromkeys(folders, 2))
    code, _, err = command(tmp_path / "src", "--out", tmp_path / "f.h5")
    assert code == 1
    assert f"pass {tmp_path / 'src' / instead} instead" in err
    assert len(err.strip().splitlines()) == 1


def test_one_class_with_images_of_its_own_and_folders_is_fine(tmp_path: Path):
    write_classes(tmp_path / "src", {"cat": 2, "cat/kittens": 2})
    listing = scan(tmp_path / "src")
    assert listing.class_names == ["cat"]
    assert listing.warnings == []


def test_a_stray_image_beside_the_classes_of_a_training_folder_is_a_warning(tmp_path: Path, command):
    write_classes(tmp_path / "src", {"train": 1, "train/cat": 2, "train/dog": 2})
    _, _, err = command(tmp_path / "src", "--dry-run")
    assert "gives one class, 'train', whose folder holds folders ('cat', 'dog')" in err
    assert f"if these are the classes, pass {tmp_path / 'src' / 'train'} instead" in err


@pytest.mark.parametrize(("below", "refused"), [({"2019": 2}, False), ({"2019/a": 2, "2019/b": 2}, True)])
def test_of_a_class_that_is_passed_itself_the_folder_above_is_advised(below: dict, refused: bool, tmp_path: Path):
    source = write_classes(tmp_path / "places" / "Zürich", {"": 3, **below})
    advice = f"pass {tmp_path / 'places'} instead if {source} is itself a class (images lie directly in it: 3)"
    if refused:
        with pytest.raises(SourceError) as caught:
            open_source(source)
        assert f"{advice}, or {source / '2019'} if those folders are the classes." in str(caught.value)
    else:
        assert open_source(source).listing.warnings == [f"{source} gives one class, '2019': {advice}."]


def test_only_images_are_called_loose(pets: Path):
    (pets / "README.md").write_text("pets")
    picture(0).save(pets / "cover", "PNG")
    problems = open_source(pets).listing.problems
    assert sorted(map(tuple, problems)) == [("README.md", "not an image"), ("cover", "outside any class folder")]


@pytest.mark.parametrize("place", ["", "train"])
@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_a_folder_of_archives_is_told_what_to_do_with_them(suffix: str, place: str, tmp_path: Path):
    (tmp_path / "source" / place).mkdir(parents=True)
    for name in ("n01", "n02"):  # a tar begins with the name of its first member, here as a bitmap does
        write_archive(tmp_path / "source" / place / f"{name}{suffix}", {"BM.png": PNG})
    with pytest.raises(SourceError) as caught:
        open_source(tmp_path / "source")
    first = os.path.join(place, f"n01{suffix}")
    message = f"source holds archives (2, such as {first!r}) but no images: if each holds one class, "
    assert message in str(caught.value)
    assert ("pack them into one tar file and pass that" in str(caught.value)) == (suffix == ".tar")


def test_heic_is_called_so_by_its_name_too_but_what_is_an_image_is_kept(pets: Path):
    (pets / "cat" / "unread.HEIC").write_bytes(b"no header")
    picture(0).save(pets / "cat" / "good.heic", "PNG")
    listing = open_source(pets).listing
    assert [tuple(problem) for problem in listing.problems] == [("cat/unread.HEIC", HEIC)]
    assert ("cat/good.heic", 1) in listing.entries


def test_wrong_folders_are_named(tmp_path: Path):
    with pytest.raises(SourceError, match="does not exist"):
        open_source(tmp_path / "missing")
    (tmp_path / "flat").mkdir()
    picture(0).save(tmp_path / "flat" / "a.png")
    with pytest.raises(SourceError, match=r"holds images \(1\) but no class folders"):
        open_source(tmp_path / "flat")
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    with pytest.raises(SourceError, match=r"holds no images \(its 1 folders are empty\)"):
        open_source(tmp_path / "hollow")
    (tmp_path / "text.bin").write_text("?")
    with pytest.raises(SourceError, match="is not a folder, a zip, a tar"):
        open_source(tmp_path / "text.bin")


def test_links_are_followed_once_and_real_folders_come_first(tmp_path: Path):
    source = write_classes(tmp_path / "src", {"zebra": 2, "cat": 1})
    outside = write_classes(tmp_path / "outside", {"owl": 2})
    (source / "alias").symlink_to(source / "zebra", target_is_directory=True)
    (source / "owl").symlink_to(outside / "owl", target_is_directory=True)
    (source / "zebra" / "again").symlink_to(source, target_is_directory=True)
    (source / "cat" / "linked.png").symlink_to(outside / "owl" / "0000.png")
    (source / "cat" / "linked-again.png").symlink_to(outside / "owl" / "0000.png")
    (source / "cat" / "myself.png").symlink_to("0000.png")
    (source / "zebra" / "cat.png").symlink_to("../cat/0000.png")
    listing = scan(source)
    assert listing.class_counts == {"zebra": 3, "cat": 2, "owl": 2}
    reasons = {problem.path: problem.reason for problem in listing.problems}
    assert reasons == {
        "alias": "the same folder as zebra, read once",
        "zebra/again": "the same folder as ., read once",
        "cat/linked.png": "the same file as cat/linked-again.png, read once",
        "cat/myself.png": "the same file as cat/0000.png, read once",
    }


def test_names_in_any_script_and_two_spellings_of_one_name(tmp_path: Path):
    write_classes(tmp_path / "src", {"ネコ": 1, "собака": 1, "cafe\u0301": 1, "caf\u00e9": 1, "🦎": 1, "a b\t": 1})
    listing = scan(tmp_path / "src")
    assert listing.class_names == sorted(["ネコ", "собака", "caf\u00e9", "🦎", "a b\t"])
    assert listing.class_counts["caf\u00e9"] == 2


def test_clutter_is_passed_over(pets: Path):
    for name in (".DS_Store", "cat/._0000.png", "cat/Thumbs.db", "__MACOSX/cat/._x.png"):
        (pets / name).parent.mkdir(parents=True, exist_ok=True)
        (pets / name).write_bytes(b"clutter")
    (pets / ".hack").mkdir()
    listing = scan(pets)
    assert len(listing.files) == 12
    assert [tuple(problem) for problem in listing.problems] == [(".hack", "hidden folder: rename it if it is a class")]


def zip_of(folder: Path, target: Path, prefix: str = "", method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(target, "w", method) as archive:
        for path in sorted(folder.rglob("*.png"), reverse=True):
            archive.write(path, prefix + str(path.relative_to(folder)))
    return target


def tar_of(folder: Path, target: Path, prefix: str = "", mode: str = "w") -> Path:
    with tarfile.open(target, mode) as archive:
        for path in sorted(folder.rglob("*.png"), reverse=True):
            archive.add(path, prefix + str(path.relative_to(folder)))
    return target


def tar_of_tars(folder: Path, target: Path) -> Path:
    with tarfile.open(target, "w") as outer:
        for class_folder in sorted(folder.iterdir(), reverse=True):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                for path in sorted(class_folder.iterdir()):
                    archive.add(path, path.name)
            info = tarfile.TarInfo(class_folder.name + ".tar")
            info.size = inner.tell()
            inner.seek(0)
            outer.addfile(info, inner)
    return target


ARCHIVES = {
    "pets.zip": zip_of,
    "stored.zip": lambda folder, target: zip_of(folder, target, method=zipfile.ZIP_STORED),
    "with-a-top-folder.zip": lambda folder, target: zip_of(folder, target, "top/"),
    "pets.tar": tar_of,
    "with-a-dot.tar": lambda folder, target: tar_of(folder, target, "./top/"),
    "of-tars.tar": tar_of_tars,
}


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


def add_to_tar(archive: tarfile.TarFile, name: str, data: bytes, **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(data))


def write_archive(path: Path, members: dict[str, bytes]) -> Path:
    """A zip or tar, by the suffix of the path."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w") as archive:
            for name, data in members.items():
                add_to_tar(archive, name, data)
    return path


PNG = encoded(picture(1), "PNG")


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


def test_nothing_lies_behind_a_list(pets: Path):
    with pytest.raises(SourceError, match=r"list.csv/cat is not a folder, a zip"):
        open_source(write_list(pets, "csv") / "cat")


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


def test_a_pipe_is_no_source(tmp_path: Path):
    os.mkfifo(tmp_path / "pets.zip")
    with pytest.raises(SourceError, match=r"pets.zip: not a regular file\."):
        open_source(tmp_path / "pets.zip")


def test_a_source_that_does_not_exist_is_told_what_does(tmp_path: Path, monkeypatch):
    for name in ("danbooru1k", "notes", "pets.zip"):
        (tmp_path / name).mkdir()
    for wrong, right in (("danbooru2k", "danbooru1k"), ("pet.zip", "pets.zip")):
        with pytest.raises(SourceError, match=f"{wrong} does not exist, but {tmp_path / right} does: pass a folder"):
            open_source(tmp_path / wrong)
    monkeypatch.setattr(sources, "MANY_NAMES", 3)
    for wrong in ("danbooru2k", "else", "none/danbooru2k"):
        with pytest.raises(SourceError, match=f"{wrong} does not exist: pass a folder"):
            open_source(tmp_path / wrong)


@pytest.mark.parametrize(
    ("box", "rule"),
    [
        ("9,0,3,9", "x0 < x1 in whole pixels"),
        ("0,4.1,9,4.4", "y0 < y1 in whole pixels"),
        ("0,0,9", "path,x0,y0,x1,y1"),
        ("0,0,9,nan", "path,x0,y0,x1,y1"),
        ("0,0,9,inf", "path,x0,y0,x1,y1"),
    ],
)
def test_a_wrong_box_is_told_its_rule(box: str, rule: str, tmp_path: Path):
    (tmp_path / "boxes.csv").write_text(f"path,x0,y0,x1,y1\na.png,{box}\n")
    with pytest.raises(RuleError) as caught:
        read_boxes(tmp_path / "boxes.csv")
    assert str(caught.value) == f"box file {tmp_path / 'boxes.csv'}, line 2: expected {rule}, found 'a.png,{box}'."


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


def test_names_do_harm_in_no_message(tmp_path: Path):
    name = "\x1b[2J\nred"
    write_classes(tmp_path / "src", {f"{name}/{name}": 1})
    write_classes(tmp_path / name, {"train": 1, f"train/{name}": 1})
    (tmp_path / f"{name}.csv").write_text("a.png\n")
    write_archive(tmp_path / f"{name}.zip", {f"{name}/{name}/{name}/a.png": PNG})
    warnings = open_source(tmp_path / name).listing.warnings
    assert [warning.isprintable() for warning in warnings] == [True]
    for source in (tmp_path / "src", tmp_path / f"{name}.csv", tmp_path / f"{name}.zip", tmp_path / f"{name}.none"):
        with pytest.raises(SourceError) as caught:
            open_source(source)
        assert str(caught.value).isprintable()
        assert str(in_another_process(caught.value)) == str(caught.value)


def test_a_path_twice_in_an_archive_counts_once(tmp_path: Path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for seed in (1, 2):
            add_to_tar(archive, "cat/same.png", encoded(picture(seed), "PNG"))
    source = open_source(tmp_path / "x.tar")
    assert [problem.reason for problem in source.listing.problems] == ["twice in the archive: the last one is used"]
    assert source.reader.read(source.listing.files[0]) == encoded(picture(2), "PNG")


def write_list(pets: Path, kind: str) -> Path:
    pairs = [(f"{path.parent.name}/{path.name}", path.parent.name) for path in sorted(pets.rglob("*.png"))]
    target = pets / f"list.{kind}"
    if kind == "jsonl":
        target.write_text("\n".join(json.dumps({"path": path, "class": label}) for path, label in pairs))
    else:
        mark = "\t" if kind == "tsv" else ","
        head = "" if kind == "tsv" else f"path{mark}class\n"
        target.write_text(head + "\n".join(mark.join(pair) for pair in pairs), encoding="utf-8-sig")
    return target


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_lists_name_paths_and_classes(kind: str, pets: Path):
    source = open_source(write_list(pets, kind))
    assert [file.class_name for file in source.listing.files] == EXPECTED
    assert source.reader.read(source.listing.files[0]) == (pets / "axolotl" / "0000.png").read_bytes()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "cat/0000.png\n", "line 1: expected path,class"),
        ("x.csv", "cat/0000.png,a\ncat/0000.png,b\n", "line 2: .* is of class 'b' here and 'a' before"),
        ("x.csv", "nowhere.png,a\n", "names no file that exists"),
        ("x.csv", "./cat/0000.png,a\ncat//0000.png,b\n", "line 2: cat/0000.png is of class 'b' here and 'a' before"),
        ("x.csv", 'cat/0000.png,"a\ncat/0001.png,b\n', "line 2: .* holds a line break"),
        ("x.jsonl", '{"path": 3}\n', "line 1: expected"),
        ("x.jsonl", '"path class"\n', "line 1: expected"),
        ("x.jsonl", '{"path": "a\\u0000", "class": "b"}\n', r"line 1: 'a\\x00' holds NUL"),
        ("x.jsonl", '{"path": "a", "class": "\\ud800"}\n', "line 1: .* holds a surrogate"),
        ("x.jsonl", '{"path": "a", "class": "b\\u2029"}\n', "line 1: .* holds a line break"),
        ("x.jsonl", '{"path": "a", "class": null}\n', "line 1: expected .*null"),
        ("x.jsonl", '{"path": "a", "class": ["a"]}\n', "line 1: expected"),
        ("x.jsonl", '{"path": "a", "class": true}\n', "line 1: expected"),
        ("x.jsonl", '{"path": "a", "class": 0.5}\n', "line 1: expected"),
        ("x.jsonl", '{"path": "a", "class": "a"}\n{"path": "a", "class": " "}\n', "line 2: ' ' is not a name"),
        ("x.jsonl", "[" * 100_000, "line 1: expected"),
    ],
)
def test_wrong_lists_name_the_line(name: str, text: str, message: str, pets: Path):
    (pets / name).write_text(text)
    with pytest.raises(SourceError, match=message):
        open_source(pets / name)


def test_lists_hold_all_names_that_folders_can_have(tmp_path: Path):
    names = ("wide\u3000space", "no\u00a0break", "👩\u200d🎨", "soft\u00adhyphen", "a\tb")
    write_classes(tmp_path, dict.fromkeys(names, 1))
    lines = [json.dumps({"path": f"{name}/0000.png", "class": name}) for name in names]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    assert open_source(tmp_path / "x.jsonl").listing.class_names == scan(tmp_path).class_names == sorted(names)


def test_a_path_spelled_twice_in_a_list_is_one_image(pets: Path):
    (pets / "x.csv").write_text("cat/0000.png,a\n./cat/0000.png,a\ncat/./0001.png,a\n")
    assert open_source(pets / "x.csv").listing.entries == [("cat/0000.png", 0), ("cat/0001.png", 0)]


def test_a_list_tells_which_files_are_missing(pets: Path):
    (pets / "x.csv").write_text("cat/0000.png,a\ncat/gone.png,a\n")
    listing = open_source(pets / "x.csv").listing
    assert [tuple(problem) for problem in listing.problems] == [
        ("cat/gone.png", "no such file or directory, though in x.csv")
    ]


@pytest.mark.parametrize("packed", ["folder", "zip", "zip with a top folder", "tar"])
def test_label_files_keep_their_numbers_in_order(packed: str, tmp_path: Path, command):
    folder = tmp_path / "set"
    (folder / "00000").mkdir(parents=True)
    labels = [[f"00000/img{index:08d}.png", 11 - index] for index in range(12)]
    for seed, (name, _) in enumerate(labels):
        picture(seed, 8, 8).save(folder / name)
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    source = folder
    if packed.startswith("zip"):
        top = "set/" if "top" in packed else ""
        source = zip_of(folder, tmp_path / "set.zip", top)
        with zipfile.ZipFile(source, "a") as archive:
            archive.write(folder / "dataset.json", top + "dataset.json")
    elif packed == "tar":
        source = tmp_path / "set.tar"
        with tarfile.open(source, "w") as archive:
            archive.add(folder, "set")
    assert command(source, "--size", 8, "--out", tmp_path / "f.h5")[0] == 0
    layout = open_dataset(tmp_path / "f.h5")
    assert layout.class_names == [f"{number:02d}" for number in range(12)]
    assert layout.labels.tolist() == list(range(12))
    np.testing.assert_array_equal(layout.open_images()[0], np.asarray(picture(11, 8, 8)))


def test_a_label_file_without_labels_leaves_the_folders_to_speak(pets: Path):
    (pets / "dataset.json").write_text('{"labels": null}')
    assert open_source(pets).listing.class_names == ["axolotl", "cat", "dog"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"labels": 3}', "cannot be understood"),
        ('{"labels": [["a.png"]]}', "cannot be understood"),
        ('["labels"]', "cannot be understood"),
        ("[" * 100_000, "cannot be understood"),
        ('{"labels": [["a.png", "x"]]}', "label 1: the label of 'a.png' is 'x', but labels are whole numbers"),
        ('{"labels": [["a.png", 0], ["b.png", 0.9]]}', "label 2: the label of 'b.png' is 0.9, but"),
        ('{"labels": [["a.png", true]]}', "is True, but labels are whole numbers"),
        ('{"labels": [["a.png", -1]]}', "is -1, but labels are whole numbers"),
        ('{"labels": [["a.png", 1], ["./a.png", 2]]}', "label 2: 'a.png' has label 2 here and 1 before"),
        ('{"labels": {"a.png": 1, "a.png": 2}}', "label 2: 'a.png' has label 2 here and 1 before"),
        ('{"labels": [["a\\u0000", 1]]}', "label 1: .* holds NUL"),
        ('{"labels": [["a\\ud800", 1]]}', "label 1: .* holds a surrogate"),
        ('{"labels": [[3, 1]]}', "label 1: 3 is not a name"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_wrong_label_file_is_refused(text: str, message: str, packed: bool, pets: Path, tmp_path: Path):
    (pets / "dataset.json").write_text(text)
    source = pets
    if packed:
        source = tmp_path / "x.zip"
        with zipfile.ZipFile(source, "w") as archive:
            archive.write(pets / "dataset.json", "dataset.json")
    with pytest.raises(SourceError, match=message):
        open_source(source)


@pytest.mark.parametrize("packed", [False, True])
def test_a_label_file_may_be_an_object_and_images_that_it_lacks_are_listed(packed: bool, pets: Path, tmp_path: Path):
    labels = {"cat/0000.png": 1, "./dog/0000.png": 0, "dog/none.png": 0, ".hidden/labelled.png": 1}
    (pets / ".hidden").mkdir()
    for name in ("labelled.png", "unlabelled.png"):
        picture(1).save(pets / ".hidden" / name)
    for name in {path.parent.name for path in pets.glob("*/0001.png")}:
        (pets / name / "0001.png").unlink()
    (pets / "cat" / "notes.txt").write_text("notes")
    os.mkfifo(pets / "cat" / "pipe.png")
    (pets / "cat" / "._clutter.png").write_bytes(b"clutter")
    source = pets
    if packed:
        (pets / "cat" / "pipe.png").unlink()
        source = zip_of(pets, tmp_path / "x.zip", "top/")
        with zipfile.ZipFile(source, "a") as archive:
            archive.write(pets / "cat" / "notes.txt", "top/cat/notes.txt")
            archive.writestr("top/dataset.json", json.dumps({"labels": labels}))
    (pets / "dataset.json").write_text(json.dumps({"labels": labels}))
    listing = open_source(source).listing
    assert listing.entries == [("dog/0000.png", 0), (".hidden/labelled.png", 1), ("cat/0000.png", 1)]
    reasons = {problem.path: problem.reason for problem in listing.problems}
    assert reasons.pop("dog/none.png").endswith(", though in dataset.json")
    assert reasons.pop("cat/notes.txt") == "not an image"
    rest = ["axolotl/0000.png", "axolotl/0002.png", "cat/0002.png", "cat/0003.png", "cat/0004.png"]
    rest += ["dog/0002.png", "dog/0003.png"]
    assert reasons == dict.fromkeys(rest, "has no label in dataset.json")


@pytest.mark.parametrize("packed", [False, True])
def test_a_label_file_of_other_images_is_refused(packed: bool, pets: Path, tmp_path: Path):
    (pets / "dataset.json").write_text('{"labels": [["none.png", 3]]}')
    source = pets
    if packed:
        source = zip_of(pets, tmp_path / "x.zip")
        with zipfile.ZipFile(source, "a") as archive:
            archive.write(pets / "dataset.json", "dataset.json")
    with pytest.raises(SourceError, match=r"dataset.json.* names no file"):
        open_source(source)


def test_a_folder_that_cannot_be_read_is_listed(pets: Path):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (pets / "dog").chmod(0)
    assert any("permission denied" in problem.reason for problem in scan(pets).problems)


def test_columns_of_a_list_are_found_by_their_header(pets: Path):
    (pets / "x.csv").write_text('id,label,image\n7,"b, or\u2028c",cat/0000.png\n8,a,cat/0001.png\n', encoding="utf-8")
    with pytest.raises(SourceError, match=r"line 2: .* holds a line break \('\\u2028'\)"):
        open_source(pets / "x.csv")
    (pets / "x.csv").write_text('id,label,image\n7,"b, or c",cat/0000.png\n8,a,cat/0001.png\n')
    assert open_source(pets / "x.csv").listing.entries == [("cat/0001.png", 0), ("cat/0000.png", 1)]
    (pets / "x.jsonl").write_text('{"file_name": "cat/0000.png", "label": 3}')
    assert open_source(pets / "x.jsonl").listing.class_names == ["3"]


def test_lists_and_boxes_may_spell_accents_otherwise_than_the_file_system(tmp_path: Path, command):
    composed, apart = "caf\u00e9", "cafe\u0301"
    write_classes(tmp_path, {apart: 2})
    (tmp_path / "x.csv").write_text(f"{composed}/0000.png,{composed}\n{apart}/0001.png,{composed}\n", encoding="utf-8")
    (tmp_path / "boxes.csv").write_text(f"{composed}/0000.png,0,0,9,9\n", encoding="utf-8")
    arguments = ("--boxes", tmp_path / "boxes.csv", "--dry-run")
    _, out, err = command(tmp_path / "x.csv", *arguments, "--exclude", apart)
    assert "no class is left" in err
    _, out, err = command(tmp_path / "x.csv", *arguments)
    assert "2 files in 1 class" in out
    assert "1 of 2 files have no box" in err
    assert "not in use" not in err


def test_boxes_may_spell_paths_otherwise_than_a_list(tmp_path: Path):
    (tmp_path / "boxes.csv").write_text("./cat/a.png,0,0,9,9\ncat//b.png,0,0,9,9\n")
    assert list(read_boxes(tmp_path / "boxes.csv")) == ["cat/a.png", "cat/b.png"]


def test_a_zip_with_separators_of_windows(tmp_path: Path, pets: Path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in pets.rglob("*.png"):
            info = zipfile.ZipInfo("x")
            info.filename = f"{path.parent.name}\\{path.name}"
            archive.writestr(info, path.read_bytes())
    assert open_source(tmp_path / "x.zip").listing.class_counts == {"axolotl": 3, "cat": 5, "dog": 4}


def test_classes_named_by_numbers_come_with_a_warning(tmp_path: Path, command):
    write_classes(tmp_path / "src", dict.fromkeys(("0", "1", "2", "10"), 1))
    assert "class '10' gets id 2" in command(tmp_path / "src", "--dry-run")[2]
    write_classes(tmp_path / "padded", dict.fromkeys(("00", "01", "02"), 1))
    assert command(tmp_path / "padded", "--dry-run")[2] == ""
    (tmp_path / "padded" / "01").rename(tmp_path / "padded" / "03")
    assert "class '02' gets id 1" in command(tmp_path / "padded", "--dry-run")[2]


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

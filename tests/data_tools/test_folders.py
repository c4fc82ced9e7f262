"""Class folders: what is found in them, and the advice where they are not what was meant."""

import os
import pickle
from pathlib import Path

import pytest

from data_tools import sources
from data_tools.folders import SourceError, scan
from data_tools.images import HEIC
from data_tools.sources import open_source
from tests.data_tools.conftest import picture, write_classes
from tests.data_tools.packing import PNG, write_archive


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
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_folder_that_cannot_be_read_is_listed(pets: Path):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (pets / "dog").chmod(0)
    assert any("permission denied" in problem.reason for problem in scan(pets).problems)


def test_classes_named_by_numbers_come_with_a_warning(tmp_path: Path, command):
    write_classes(tmp_path / "src", dict.fromkeys(("0", "1", "2", "10"), 1))
    assert "class '10' gets id 2" in command(tmp_path / "src", "--dry-run")[2]
    write_classes(tmp_path / "padded", dict.fromkeys(("00", "01", "02"), 1))
    assert command(tmp_path / "padded", "--dry-run")[2] == ""
    (tmp_path / "padded" / "01").rename(tmp_path / "padded" / "03")
    assert "class '02' gets id 1" in command(tmp_path / "padded", "--dry-run")[2]

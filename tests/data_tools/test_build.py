"""Building: what is stored, which classes and images, and errors."""

import os
import shutil
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from data_tools import build, cli, commands, journal
from data_tools.folders import Problem
from data_tools.schema import open_dataset
from data_tools.tables import problem_lines
from tests.data_tools.conftest import LOSSLESS, encoded, picture, pixels, write_classes

STORES = ("raw", "png", "webp", "jpeg")


@pytest.mark.parametrize("store", STORES)
def test_any_number_of_workers_gives_the_same_bytes(store: str, crowd: Path, tmp_path: Path, command):
    files = []
    for workers in (1, 2, 3):
        files.append(tmp_path / f"{workers}.h5")
        code, _, err = command(crowd, "--out", files[-1], "--size", 16, "--store", store, "--workers", workers)
        assert (code, err) == (0, "")
    assert len({path.read_bytes() for path in files}) == 1
    assert open_dataset(files[0]).header.images == 147


@pytest.mark.parametrize("crop", ["center", "top", "pad", "none"])
@pytest.mark.parametrize("store", LOSSLESS)
def test_stored_pixels_are_those_of_pillows_resize(store: str, crop: str, tmp_path: Path, command):
    image = picture(5, 50, 31)
    (tmp_path / "src" / "one").mkdir(parents=True)
    image.save(tmp_path / "src" / "one" / "wide.png")
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "src" / "one" / "tall.png")
    command(tmp_path / "src", "--out", tmp_path / "f.h5", "--size", 20, "--store", store, "--crop", crop)
    tall, wide = image.transpose(Image.Transpose.ROTATE_90), image
    lanczos = Image.Resampling.LANCZOS
    if crop == "pad":
        expected = [Image.new("RGB", (20, 20), "white") for _ in range(2)]
        expected[0].paste(tall.resize((12, 20), lanczos), (4, 0))
        expected[1].paste(wide.resize((20, 12), lanczos), (0, 4))
    elif crop == "none":
        expected = [tall.resize((20, 20), lanczos), wide.resize((20, 20), lanczos)]
    else:
        top = 0 if crop == "top" else 9
        expected = [tall.crop((0, top, 31, top + 31)), wide.crop((9, 0, 40, 31))]
        expected = [part.resize((20, 20), lanczos) for part in expected]
    np.testing.assert_array_equal(pixels(tmp_path / "f.h5"), np.stack([np.asarray(part) for part in expected]))


def test_the_same_command_again_does_nothing(pets: Path, tmp_path: Path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("pets", "--size", 16)[0] == 0
    out = tmp_path / "data" / "pets-16.h5"
    before = out.stat()
    code, text, _ = command("pets/", "--size", 16)
    assert code == 0
    assert "up to date" in text
    assert "train.py --config" in text or "--size 32" in text
    assert out.stat().st_mtime_ns == before.st_mtime_ns
    code, _, err = command("pets", "--size", 16, "--crop", "top")
    assert code == 1
    assert "crop center instead of top" in err
    assert "--overwrite" in err
    assert command("pets", "--size", 16, "--crop", "top", "--overwrite")[0] == 0
    picture(99).save(pets / "cat" / "new.png")
    code, _, err = command("pets", "--size", 16, "--crop", "top")
    assert (code, "other files" in err) == (1, True)


def test_a_changed_picture_of_equal_size_is_noticed(tmp_path: Path, command):
    source = write_classes(tmp_path / "src", {"a": 3})
    command(source, "--size", 8, "--out", tmp_path / "f.h5")
    changed = source / "a" / "0001.png"
    data = bytearray(changed.read_bytes())
    changed.write_bytes(bytes(data))
    os.utime(changed, ns=(time.time_ns() + 10**9,) * 2)
    code, _, err = command(source, "--size", 8, "--out", tmp_path / "f.h5")
    assert (code, "a/0001.png is newer" in err) == (1, True)


def test_too_little_space_is_noticed_before_the_start(pets: Path, tmp_path: Path, command, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
    code, _, err = command(pets, "--size", 64, "--out", tmp_path / "f.h5")
    assert (code, "more, but" in err, "5.0 kB free" in err) == (1, True, True)
    assert sorted(tmp_path.iterdir()) == [pets]


def test_an_output_that_cannot_be_written_is_one_sentence(pets: Path, tmp_path: Path, command):
    (tmp_path / "file").write_text("in the way")
    code, _, err = command(pets, "--size", 16, "--out", tmp_path / "file" / "f.h5")
    assert code == 1
    assert len(err.strip().splitlines()) == 1
    assert "file" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_sentence(pets: Path, tmp_path: Path, command):
    (tmp_path / "locked").mkdir(mode=0o500)
    code, _, err = command(pets, "--size", 16, "--out", tmp_path / "locked" / "f.h5")
    assert (code, "permission denied" in err) == (1, True)


def test_two_builds_of_one_file_do_not_mix(pets: Path, tmp_path: Path, command):
    out = tmp_path / "f.h5"
    with journal.Workspace(out):
        code, _, err = command(pets, "--size", 16, "--out", out)
    assert (code, "another build" in err) == (1, True)


def test_damage_between_building_and_verifying_is_found(pets: Path, tmp_path: Path, command, monkeypatch):
    original = build.complete_raw

    def complete_and_damage(path: Path, contents, offset: int) -> None:
        original(path, contents, offset)
        with open(path, "r+b") as file:
            file.seek(offset + 1000)
            file.write(b"\0\1\2\3")

    monkeypatch.setattr(build, "complete_raw", complete_and_damage)
    code, _, err = command(pets, "--size", 16, "--out", tmp_path / "f.h5")
    assert (code, "was not written correctly" in err) == (1, True)
    assert not (tmp_path / "f.h5").exists()


def test_dedupe_leaves_out_later_copies_and_says_of_what(pets: Path, tmp_path: Path, command):
    shutil.copy(pets / "cat" / "0001.png", pets / "dog" / "copy.png")
    image = Image.open(pets / "cat" / "0002.png")
    (pets / "dog" / "other-file-same-pixels.bmp").write_bytes(encoded(image, "BMP"))
    shutil.copy(pets / "cat" / "0001.png", pets / "cat" / "copy.png")
    code, text, _ = command(pets, "--size", 16, "--out", tmp_path / "all.h5")
    assert "3 exact duplicates" in text
    assert "2 images in more than one class" in text
    for workers in (1, 2):
        code, text, _ = command(
            pets, "--size", 16, "--dedupe", "--out", tmp_path / f"{workers}.h5", "--workers", workers
        )
        assert code == 0
        assert "dog/copy.png: exact duplicate of cat/0001.png, of another class" in text
        assert "cat/copy.png: exact duplicate of cat/0001.png\n" in text
        assert open_dataset(tmp_path / f"{workers}.h5").header.images == 12
    picture(5).save(pets / "zzz.png")
    shutil.copy(pets / "cat" / "0003.png", pets / "dog" / "later.png")
    before = (tmp_path / "1.h5").read_bytes()
    code, text, _ = command(pets, "--append", "--out", tmp_path / "1.h5")
    assert (code, "stays as it is: none of the new files is usable" in text) == (0, True)
    assert "dog/later.png: exact duplicate of cat/0003.png, of another class" in text
    assert (tmp_path / "1.h5").read_bytes() == before
    assert not (tmp_path / "1.h5.partial").exists()


def test_classes_without_a_usable_image_get_no_id(pets: Path, tmp_path: Path, command):
    (pets / "broken").mkdir()
    (pets / "broken" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    code, _, err = command(pets, "--size", 16, "--out", tmp_path / "f.h5")
    assert code == 0
    assert "1 class without a usable image got no id: 'broken'" in err
    assert "broken\t1\tno usable image\n" in (tmp_path / "f.h5.report" / "left-out.tsv").read_text()
    assert open_dataset(tmp_path / "f.h5").class_names == ["axolotl", "cat", "dog"]


def test_boxes_choose_the_part_of_an_image(tmp_path: Path, command):
    source = tmp_path / "src"
    (source / "a").mkdir(parents=True)
    image = picture(3, 60, 40)
    image.save(source / "a" / "boxed.png")
    image.save(source / "a" / "outside.png")
    image.save(source / "a" / "whole.png")
    lines = ["path,x0,y0,x1,y1", "a/boxed.png,10,5,34,29", "a/outside.png,100,100,120,120", "a/bxed.png,0,0,1,1"]
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    code, out, err = command(source, "--size", 24, "--boxes", tmp_path / "boxes.csv", "--out", tmp_path / "f.h5")
    assert code == 0
    assert "'a/bxed.png' (did you mean 'a/boxed.png'" in err
    assert "1 of 3 files have no box" in err
    assert "a/outside.png: its box is outside: (100, 100, 120, 120) of 60 x 40 pixels" in out
    stored = pixels(tmp_path / "f.h5")
    np.testing.assert_array_equal(stored[0], np.asarray(image)[5:29, 10:34])


def test_min_size_leaves_out_what_would_be_enlarged_too_much(tmp_path: Path, command):
    source = tmp_path / "src"
    (source / "a").mkdir(parents=True)
    for size in (8, 12, 40):
        picture(size, size, size + 5).save(source / "a" / f"{size:02d}.png")
    _, out, _ = command(source, "--size", 16, "--min-size", 10, "--out", tmp_path / "f.h5")
    assert "a/08.png: too small: 8 x 13 pixels" in out
    assert "1 image of fewer than 16 px enlarged" in out
    assert open_dataset(tmp_path / "f.h5").sources == ["a/12.png", "a/40.png"]


def test_a_file_is_read_by_plain_h5py(pets: Path, tmp_path: Path, command):
    command(pets, "--size", 16, "--out", tmp_path / "f.h5")
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["images"].shape == (12, 16, 16, 3)
        assert file["images"].chunks is None
        assert file["labels"][:].tolist() == [0] * 3 + [1] * 5 + [2] * 4
        assert list(file["class_names"].asstr()) == ["axolotl", "cat", "dog"]
        assert file["sources"].asstr()[3] == "cat/0000.png"
        assert file.attrs["size"] == 16
        np.testing.assert_array_equal(file["images"][:], pixels(tmp_path / "f.h5"))


def test_places_where_a_data_file_does_not_belong(pets: Path, tmp_path: Path, command, monkeypatch):
    monkeypatch.chdir(pets)
    code, _, err = command(".")
    assert (code, "would lie inside ." in err, "--out ../pets-256.h5" in err) == (2, True, True)
    code, _, err = command(pets, "--out", tmp_path)
    assert (code, f"such as {tmp_path / 'pets.h5'}" in err) == (2, True)


def test_another_build_that_ends_while_the_source_is_listed_is_noticed(
    pets: Path, tmp_path: Path, command, monkeypatch
):
    out, original = tmp_path / "f.h5", commands._execute
    other = write_classes(tmp_path / "other", {"a": 3})

    def meanwhile(*arguments):
        monkeypatch.setattr(commands, "_execute", original)
        assert commands_of_another(other, out, append=out.exists()) == 0
        return original(*arguments)

    for action, state in ((["--size", 16], "has appeared"), (["--append"], "has changed")):
        monkeypatch.setattr(commands, "_execute", meanwhile)
        picture(70).save(pets / "cat" / f"{state}.png")
        code, _, err = command(pets, *action, "--out", out)
        assert (code, f"{state} while its source was listed" in err) == (1, True)
        other = write_classes(tmp_path / "third", {"b": 3})
    assert open_dataset(out).header.images == 6


def commands_of_another(source: Path, out: Path, append: bool) -> int:
    return cli.main([str(source), *(["--append"] if append else ["--size", "16"]), "--no-report", "--out", str(out)])


def test_a_lock_in_a_folder_that_was_removed_is_none(tmp_path: Path, monkeypatch):
    """A build that ends removes the folder, perhaps just as the next one takes the lock in it."""
    out, original, removed = tmp_path / "f.h5", journal.fcntl.flock, []

    def slow(descriptor, operation):
        if not removed:
            removed.append(True)
            shutil.rmtree(tmp_path / "f.h5.partial")
        return original(descriptor, operation)

    monkeypatch.setattr(journal.fcntl, "flock", slow)
    with journal.Workspace(out), pytest.raises(journal.BusyError):
        journal.Workspace(out).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_report_stays_where_it_is(pets: Path, tmp_path: Path, command):
    mine = tmp_path / "f.h5.report"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    code, _, err = command(pets, "--size", 16, "--out", tmp_path / "f.h5")
    assert (code, "is in the way and is no report" in err) == (0, True)
    assert (mine / "notes.txt").read_text() == "mine"
    assert open_dataset(tmp_path / "f.h5").header.images == 12
    (mine / "notes.txt").unlink()
    mine.rmdir()
    mine.write_text("a file")
    code, _, err = command(pets, "--size", 16, "--out", tmp_path / "f.h5", "--overwrite")
    assert (code, "is in the way" in err, mine.read_text()) == (0, True, "a file")


def test_a_report_of_near_duplicates_can_be_asked_for_later(pets: Path, tmp_path: Path, command):
    out = tmp_path / "f.h5"
    command(pets, "--size", 16, "--out", out)
    assert not (tmp_path / "f.h5.report" / "near-duplicates.tsv").exists()
    code, text, _ = command(pets, "--size", 16, "--out", out, "--report")
    assert (code, "up to date" in text, "report:" in text) == (0, True, True)
    assert (tmp_path / "f.h5.report" / "near-duplicates.tsv").exists()


def test_a_foreign_file_in_the_way_is_named(pets: Path, tmp_path: Path, command):
    (tmp_path / "f.h5").write_text("notes")
    code, _, err = command(pets, "--size", 16, "--out", tmp_path / "f.h5")
    assert (code, "It is in the way" in err, "--overwrite" in err) == (1, True, True)
    assert command(pets, "--size", 16, "--out", tmp_path / "f.h5", "--overwrite")[0] == 0


def test_reasons_for_files_left_out_add_up(tmp_path: Path):
    reasons = [f"reason {letter}" for letter in "abcdefghijklmn"] + ["reason a: again"] * 3
    lines = problem_lines([Problem(f"{index}.png", reason) for index, reason in enumerate(reasons)])
    assert lines[0].startswith("17 files left out: 4 reason a, 1 reason b")
    assert lines[0].endswith("1 reason l, 2 for other reasons")
    assert [line.split(":")[1] for line in lines[1:7]] == [f" reason {letter}" for letter in "abcdef"]
    assert lines[7] == "    ... and 11 more"


def test_the_limit_per_class_is_no_reason_to_warn_of_small_classes(pets: Path, tmp_path: Path, command):
    code, _, err = command(
        pets, "--size", 16, "--min-images", 3, "--limit-per-class", 2, "--out", tmp_path / "f.h5", "--no-report"
    )
    assert (code, err) == (0, "")


def test_the_name_of_a_picture_is_none_for_a_data_file(pets: Path, tmp_path: Path, command):
    code, _, err = command(pets, "--size", 16, "--out", tmp_path / "f.png")
    assert (code, f"such as {tmp_path / 'f.h5'}" in err) == (2, True)


def test_the_background_fills_what_is_padded(tmp_path: Path, command):
    (tmp_path / "src" / "a").mkdir(parents=True)
    Image.new("RGB", (20, 10), "red").save(tmp_path / "src" / "a" / "x.png")
    command(tmp_path / "src", "--size", 8, "--crop", "pad", "--background", "navy", "--out", tmp_path / "f.h5")
    stored = open_dataset(tmp_path / "f.h5").open_images()[0]
    assert stored[0].tolist() == [[0, 0, 128]] * 8
    assert stored[4].tolist() == [[255, 0, 0]] * 8

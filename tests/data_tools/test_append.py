"""Data files that grow."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from data_tools import schema
from data_tools.schema import open_dataset
from tests.data_tools.conftest import LOSSLESS, picture, pixels, write_classes
from tests.data_tools.dying import dies_after_30, run_and_die


@pytest.mark.parametrize("store", LOSSLESS)
def test_appending_keeps_rows_ids_and_the_old_fingerprint(store: str, pets: Path, tmp_path: Path, command):
    out = tmp_path / "f.h5"
    options = ["--out", out, "--workers", 1]
    assert command(pets, "--size", 16, "--store", store, *options)[0] == 0
    old, old_pixels = open_dataset(out), pixels(out)
    old_sources = list(old.sources)
    write_classes(tmp_path / "more", {"cat": 2, "bee": 2, "zebu": 1}, size=30)
    for path in (tmp_path / "more").rglob("*.png"):
        target = pets / path.parent.name / f"later-{path.name}"
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    code, _, err = command(pets, "--append", *options)
    assert (code, err) == (0, "")
    grown = open_dataset(out)
    schema.verify(grown)
    assert grown.class_names == ["axolotl", "cat", "dog", "bee", "zebu"]
    assert grown.sources[:12] == old_sources
    assert [path.split("/")[0] for path in grown.sources[12:]] == ["cat", "cat", "bee", "bee", "zebu"]
    np.testing.assert_array_equal(grown.labels, [*old.labels, 1, 1, 3, 3, 4])
    np.testing.assert_array_equal(pixels(out)[:12], old_pixels)
    assert [generation.rows for generation in grown.generations] == [12, 17]
    assert [generation.classes for generation in grown.generations] == [3, 5]
    assert grown.generations[0].fingerprint == old.header.fingerprint
    code, text, _ = command(pets, "--append", *options)
    assert (code, "up to date" in text) == (0, True)
    assert command(pets, "--size", 16, "--store", store, *options)[0] == 0


def test_a_killed_append_leaves_the_old_file_and_goes_on(pets: Path, tmp_path: Path, command):
    out = tmp_path / "f.h5"
    command(pets, "--size", 16, "--out", out)
    before = out.read_bytes()
    write_classes(pets, {"zebu": 40})
    arguments = [str(pets), "--append", "--workers", "1", "--out", str(out)]
    assert os.WIFSIGNALED(run_and_die(arguments, dies_after_30))
    assert out.read_bytes() == before
    shutil.copy(out, tmp_path / "g.h5")
    code, text, _ = command(*arguments)
    assert (code, "Going on after 29 of 40 files." in text) == (0, True)
    command(pets, "--append", "--workers", 1, "--out", tmp_path / "g.h5")
    assert out.read_bytes() == (tmp_path / "g.h5").read_bytes()


def test_appending_refuses_other_image_settings(pets: Path, tmp_path: Path, command):
    command(pets, "--size", 16, "--out", tmp_path / "f.h5")
    code, _, err = command(pets, "--size", 16, "--crop", "pad", "--append", "--out", tmp_path / "f.h5")
    assert (code, "--crop pad differs from center" in err) == (2, True)


def test_appending_another_source_with_equal_paths_adds_its_images(pets: Path, tmp_path: Path, command):
    command(pets, "--size", 16, "--out", tmp_path / "f.h5")
    (tmp_path / "others" / "cat").mkdir(parents=True)
    picture(77).save(tmp_path / "others" / "cat" / "0000.png")
    assert command(tmp_path / "others", "--append", "--out", tmp_path / "f.h5")[0] == 0
    assert open_dataset(tmp_path / "f.h5").header.images == 13


def test_an_append_killed_at_random_moments_keeps_the_old_file_until_the_new_one_is_whole(tmp_path: Path, command):
    source = write_classes(tmp_path / "src", {"a": 30, "b": 30})
    out = tmp_path / "out.h5"
    command(source, "--size", 16, "--out", out)
    old = out.read_bytes()
    write_classes(source, {"a/more": 40, "c": 40})
    shutil.copy(out, tmp_path / "whole.h5")
    began = time.monotonic()
    arguments = [str(source), "--append", "--workers", "1", "--out"]
    assert run_and_die([*arguments, str(tmp_path / "whole.h5")], lambda: None) == 0
    duration, moments = time.monotonic() - began, random.Random(0)
    whole = (tmp_path / "whole.h5").read_bytes()
    for _ in range(10):
        moment = moments.uniform(0, duration)

        def die(moment=moment) -> None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, max(moment, 1e-3))

        run_and_die([*arguments, str(out)], die)
        assert out.read_bytes() in (old, whole)
    assert command(*arguments, out)[0] == 0
    assert out.read_bytes() == whole


def test_append_finds_the_file_of_its_source(pets: Path, tmp_path: Path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command("pets", "--size", 16)
    picture(70).save(pets / "cat" / "new.png")
    code, out, _ = command("pets", "--append")
    assert (code, "Appending 1 file; 12 paths of this source are in data/pets-16.h5 already." in out) == (0, True)
    command("pets", "--size", 8)
    code, _, err = command("pets", "--append")
    assert (code, "data/pets-16.h5 and data/pets-8.h5 are there" in err) == (2, True)


def test_another_source_of_the_same_name_is_refused(pets: Path, tmp_path: Path, command):
    out = tmp_path / "f.h5"
    command(pets, "--size", 16, "--out", out)
    other = tmp_path / "elsewhere" / "pets"
    for seed, path in enumerate(sorted(pets.rglob("*.png")), 500):
        target = other / path.relative_to(pets)
        target.parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(target)
    picture(900).save(other / "cat" / "new.png")
    before = out.read_bytes()
    code, _, err = command(other, "--append", "--out", out)
    assert (code, "has other pictures under the same names, such as axolotl/0000.png" in err) == (2, True)
    assert out.read_bytes() == before


@pytest.mark.parametrize("store", ["raw", "webp"])
def test_a_moved_source_is_known_and_what_changed_in_it_is_told(store: str, pets: Path, tmp_path: Path, command):
    out = tmp_path / "f.h5"
    command(pets, "--size", 16, "--store", store, "--out", out)
    moved = tmp_path / "disk" / "pets"
    moved.parent.mkdir()
    pets.rename(moved)
    picture(901).save(moved / "cat" / "0001.png")
    os.utime(moved / "cat" / "0001.png", ns=(time.time_ns() + 10**9,) * 2)
    (moved / "dog" / "0000.png").unlink()
    picture(900).save(moved / "cat" / "new.png")
    code, text, err = command(moved, "--append", "--out", out)
    assert (code, "Appending 1 file" in text) == (0, True)
    assert "1 image of" in err
    assert "is no longer in the source" in err
    assert "1 file may have changed since, such as cat/0001.png" in err
    assert open_dataset(out).header.images == 13


def test_a_source_that_grows_keeps_its_rules(pets: Path, tmp_path: Path, command):
    out, merges = tmp_path / "f.h5", tmp_path / "merges.csv"
    merges.write_text("axolotl,cat\n")
    rules = ["--merge", merges, "--exclude", "dog", "--limit-per-class", 6, "--dedupe"]
    assert command(pets, "--size", 16, *rules, "--out", out)[0] == 0
    kept = set(open_dataset(out).sources)
    write_classes(pets, {"axolotl/more": 9, "bee": 4, "dog/more": 7, "cat/more": 20}, size=30)
    shutil.copy(pets / "bee" / "0000.png", pets / "bee" / "copy.png")
    code, text, err = command(pets, "--append", "--out", out)
    assert (code, err) == (0, "")
    assert "As before: --exclude, --limit-per-class, --merge, --dedupe." in text
    grown = open_dataset(out)
    assert grown.class_names == ["cat", "bee"]
    assert grown.class_counts.tolist() == [6, 4]
    assert set(grown.sources[:6]) == kept
    code, text, _ = command(pets, "--append", "--out", out)
    assert (code, "up to date" in text) == (0, True)
    code, text, _ = command(pets, "--append", "--limit-per-class", 8, "--exclude", "nobody", "--out", out, "--dry-run")
    assert (code, "would append 11 files" in text) == (0, True)  # 2 of class cat, bee's copy, 8 of class dog


def test_a_source_with_boxes_needs_them_again(pets: Path, tmp_path: Path, command):
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("cat/0000.png,0,0,9,9\n")
    command(pets, "--size", 16, "--boxes", boxes, "--out", tmp_path / "f.h5")
    picture(900).save(pets / "cat" / "new.png")
    code, _, err = command(pets, "--append", "--out", tmp_path / "f.h5")
    assert (code, "cut by --boxes: give these for the new images, too" in err) == (2, True)
    assert command(pets, "--append", "--boxes", boxes, "--out", tmp_path / "f.h5")[0] == 0


@pytest.mark.parametrize("store", ["raw", "png"])
def test_nothing_is_appended_to_a_damaged_file(store: str, pets: Path, tmp_path: Path, command):
    out = tmp_path / "f.h5"
    command(pets, "--size", 16, "--store", store, "--out", out)
    whole = out.read_bytes()
    stored = bytes(open_dataset(out).stored_bytes()(3))
    picture(900).save(pets / "cat" / "new.png")
    damaged = whole.replace(stored, stored[:50] + bytes([stored[50] ^ 1]) + stored[51:], 1)
    out.write_bytes(damaged)
    code, _, err = command(pets, "--append", "--out", out)
    assert (code, "is damaged, so nothing was appended: image 3 (cat/0000.png)" in err) == (1, True)
    assert out.read_bytes() == damaged
    out.write_bytes(whole)
    assert command(pets, "--append", "--out", out)[0] == 0
    schema.verify(open_dataset(out))


def test_a_file_that_grew_from_what_is_gone_is_not_called_the_same_without_a_word(pets: Path, tmp_path: Path, command):
    out = tmp_path / "f.h5"
    command(pets, "--size", 16, "--out", out)
    picture(900).save(pets / "cat" / "new.png")
    (pets / "dog" / "0000.png").unlink()
    command(pets, "--append", "--out", out)
    code, text, err = command(pets, "--size", 16, "--out", out)
    assert (code, "up to date" in text) == (0, True)
    assert "1 image of" in err
    assert "is no longer in the source" in err

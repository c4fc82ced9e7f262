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
    assert schema.extends(grown, old.header.fingerprint) == grown.generations[0]
    assert schema.extends(grown, "0" * 64) is None
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

"""A data file back to class folders."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from data_tools.export import UNFINISHED, folder_names
from data_tools.schema import open_dataset


@pytest.mark.parametrize("store", ["raw", "png", "webp", "jpeg"])
def test_export_and_build_again_give_the_same_file(store: str, pets: Path, tmp_path: Path, command):
    command(pets, "--size", 16, "--store", store, "--out", tmp_path / "f.h5")
    assert command("--export", tmp_path / "f.h5", tmp_path / "back")[0] == 0
    code, _, _ = command(tmp_path / "back", "--size", 16, "--store", store, "--out", tmp_path / "g.h5")
    assert code == 0
    first, second = open_dataset(tmp_path / "f.h5"), open_dataset(tmp_path / "g.h5")
    np.testing.assert_array_equal(first.labels, second.labels)
    assert first.class_names == second.class_names
    if store == "jpeg":
        exported = sorted((tmp_path / "back").rglob("*.jpg"))
        assert [path.read_bytes() for path in exported] == [first.open_images()[row] for row in range(12)]
    else:
        assert first.header.fingerprint == second.header.fingerprint
    code, _, err = command("--export", tmp_path / "f.h5", tmp_path / "back")
    assert (code, "is not an empty folder" in err) == (1, True)


def damage_image(path: Path, row: int) -> None:
    layout = open_dataset(path)
    with open(path, "r+b") as file:
        file.seek(layout.image_offset + row * 16 * 16 * 3)
        file.write(b"\0\1\2\3")


@pytest.mark.parametrize("there", [True, False])
def test_an_export_is_whole_or_not_there(there: bool, pets: Path, tmp_path: Path, command):
    command(pets, "--size", 16, "--out", tmp_path / "f.h5")
    damage_image(tmp_path / "f.h5", 5)
    back = tmp_path / "back"
    if there:
        back.mkdir()
    before = sorted(tmp_path.iterdir())
    code, _, err = command("--export", tmp_path / "f.h5", back)
    assert (code, "image 5 (cat/0002.png) is not what was written" in err) == (1, True)
    assert sorted(tmp_path.iterdir()) == before
    assert not there or list(back.iterdir()) == []
    command(pets, "--size", 16, "--out", tmp_path / "f.h5", "--overwrite")
    assert command("--export", tmp_path / "f.h5", back)[0] == 0
    assert sorted(path.name for path in back.iterdir()) == ["axolotl", "cat", "dog"]
    assert len(list(back.rglob("*.png"))) == 12


def test_an_export_removes_what_an_interrupted_one_left_and_nothing_else(pets: Path, tmp_path: Path, command):
    command(pets, "--size", 16, "--out", tmp_path / "f.h5")
    (tmp_path / "back.partial").mkdir()
    (tmp_path / "back.partial" / "precious").write_text("of someone else")
    (tmp_path / "back" / UNFINISHED / "cat").mkdir(parents=True)
    (tmp_path / "back" / UNFINISHED / "cat" / "half.png").write_bytes(b"half")
    assert command("--export", tmp_path / "f.h5", tmp_path / "back")[0] == 0
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["axolotl", "cat", "dog"]
    assert not list((tmp_path / "back").rglob("half.png"))
    assert (tmp_path / "back.partial" / "precious").exists()
    (tmp_path / "back" / UNFINISHED).mkdir()
    assert "is not an empty folder" in command("--export", tmp_path / "f.h5", tmp_path / "back")[2]


def test_an_export_to_the_current_folder(pets: Path, tmp_path: Path, command, monkeypatch):
    command(pets, "--size", 16, "--out", tmp_path / "f.h5")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert command("--export", "../f.h5", ".")[0] == 0
    assert sorted(path.name for path in Path().iterdir()) == ["axolotl", "cat", "dog"]  # not in a deleted folder


def test_folder_names_are_unique_and_allowed():
    names = folder_names(["a/b", "a_b", "A_B", "..", "", ".hidden", "é" * 300, "a\0b"])
    assert len({name.casefold() for name in names}) == 8
    assert not any("/" in name or name.startswith(".") or len(name.encode()) > 250 for name in names)
    assert not any("\0" in name for name in names)


def test_folder_names_differ_by_more_than_the_spelling_of_accents():
    names = folder_names(["caf\u00e9", "cafe\u0301", "CAFE\u0301"])
    assert len({unicodedata.normalize("NFC", name.casefold()) for name in names}) == 3

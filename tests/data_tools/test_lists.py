"""Lists of paths and classes, label files, and boxes."""

import json
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data_tools.boxes import read_boxes
from data_tools.classes import RuleError
from data_tools.folders import SourceError, scan
from data_tools.schema import open_dataset
from data_tools.sources import open_source
from tests.data_tools.conftest import picture, write_classes
from tests.data_tools.packing import zip_of

EXPECTED = ["axolotl"] * 3 + ["cat"] * 5 + ["dog"] * 4


def test_nothing_lies_behind_a_list(pets: Path):
    with pytest.raises(SourceError, match=r"list.csv/cat is not a folder, a zip"):
        open_source(write_list(pets, "csv") / "cat")


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

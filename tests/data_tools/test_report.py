"""The report, near duplicates, inspecting and exporting, and the command line itself."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_tools.duplicates import close_pairs, exact_groups, near_pairs
from data_tools.export import folder_names
from data_tools.schema import open_dataset
from data_tools.sheets import rows_by_class
from tests.data_tools.conftest import picture, write_classes


def table(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]


class Page(HTMLParser):
    """Checks that tags nest, and collects what the page refers to and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.links, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href") and value]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_else_and_escapes_names(pets: Path, tmp_path: Path, command):
    write_classes(pets, {"<script>alert(1)</script>".replace("/", "∕"): 2, "猫 & 'dog'": 1})
    (pets / "cat" / "<b>.png").write_bytes(b"no picture")
    assert command(pets, "--size", 16, "--out", tmp_path / "f.h5", "--report")[0] == 0
    text = (tmp_path / "f.h5.report" / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "猫 & 'dog'" in page.text
    assert "<script>alert" in page.text
    assert "cat/<b>.png" in page.text
    assert all(f'id="{link[1:]}"' in text for link in page.links if link.startswith("#"))
    outside = [link for link in page.links if not link.startswith(("data:image/", "#"))]
    assert all(re.fullmatch(r"[\w/.-]+", link) for link in outside)
    assert all((tmp_path / "f.h5.report" / link).exists() for link in outside)
    assert "http" not in text


def test_a_thousand_uneven_classes(tmp_path: Path, command):
    source = tmp_path / "many"
    data = [p.read_bytes() for p in sorted(write_classes(tmp_path / "seed", {"x": 9}, size=8).rglob("*.png"))]
    sizes = [max(1, 66 // (1 + index)) for index in range(1000)]
    for index, size in enumerate(sizes):
        (source / f"{index:04d}").mkdir(parents=True)
        for number in range(size):
            (source / f"{index:04d}" / f"{number}.png").write_bytes(data[(index + number) % 9])
    code, out, _ = command(source, "--size", 8, "--out", tmp_path / "f.h5")
    assert code == 0
    lines = [line for line in out.splitlines() if "▇" in line]
    assert len(lines) == 16
    assert "(984 more classes)" in out
    rows = table(tmp_path / "f.h5.report" / "classes.tsv")
    assert [int(row[2]) for row in rows[1:]] == sizes
    assert len(list((tmp_path / "f.h5.report" / "sheets").iterdir())) == 50
    text = (tmp_path / "f.h5.report" / "index.html").read_text()
    assert "66.0 times" in Page(text).text
    assert text.count("data:image/webp") == 1000


@given(st.lists(st.integers(0, 5), max_size=30))
def test_exact_groups_are_the_equal_rows(keys: list[int]):
    digests = np.zeros((len(keys), 32), np.uint8)
    digests[:, 0] = keys
    expected = [[row for row, key in enumerate(keys) if key == wanted] for wanted in range(6)]
    assert exact_groups(digests) == sorted(group for group in expected if len(group) > 1)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=20, unique=True), st.data())
def test_close_pairs_misses_none(values: list[int], data: st.DataObject):
    bits = data.draw(st.sets(st.integers(0, 63), max_size=6))
    values.append(values[0] ^ sum(1 << bit for bit in bits))
    values = list(dict.fromkeys(values))
    hashes = np.array(values, np.uint64)
    n = len(values)
    expected = [(i, j) for i in range(n) for j in range(i + 1, n) if (values[i] ^ values[j]).bit_count() <= 6]
    assert close_pairs(hashes, 6) == expected


def test_near_duplicates_are_found_and_others_are_not(tmp_path: Path, command):
    source = tmp_path / "src"
    (source / "a").mkdir(parents=True)
    for seed in range(12):
        picture(seed, 64, 64).save(source / "a" / f"{seed:02d}.png")
    picture(3, 64, 64).save(source / "a" / "again.jpg", quality=60)
    picture(4, 64, 64).resize((50, 50)).save(source / "a" / "smaller.png")
    command(source, "--size", 48, "--out", tmp_path / "f.h5", "--report")
    layout = open_dataset(tmp_path / "f.h5")
    assert near_pairs(layout, 2) == [(3, 12), (4, 13)]
    rows = table(tmp_path / "f.h5.report" / "near-duplicates.tsv")
    assert rows[1:] == [["12", "a/again.jpg", "3", "a/03.png"], ["13", "a/smaller.png", "4", "a/04.png"]]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 6))
def test_sheets_show_rows_of_the_class_and_no_class_is_dropped(labels: list[int], most: int):
    chosen = rows_by_class(np.array(labels), 5, most)
    assert len(chosen) == 5
    for index, rows in enumerate(chosen):
        assert all(labels[row] == index for row in rows)
        assert len(set(rows.tolist())) == min(most, labels.count(index))


def test_inspect_makes_the_report_again_without_forgetting(pets: Path, tmp_path: Path, command):
    (pets / "cat" / "broken.png").write_bytes(b"nothing")
    command(pets, "--size", 16, "--out", tmp_path / "f.h5")
    report = tmp_path / "f.h5.report"
    before = table(report / "skipped.tsv")
    code, out, _ = command("--inspect", tmp_path / "f.h5", "--report")
    assert (code, "is whole" in out) == (0, True)
    assert open_dataset(tmp_path / "f.h5").header.fingerprint in out
    assert table(report / "skipped.tsv") == before
    assert (report / "near-duplicates.tsv").exists()
    shutil.rmtree(report)
    assert command("--inspect", tmp_path / "f.h5", "--no-report")[0] == 0
    assert not report.exists()
    assert command("--inspect", tmp_path / "f.h5")[0] == 0
    assert len(list((report / "sheets").iterdir())) == 1


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


def test_an_export_is_whole_or_not_there(pets: Path, tmp_path: Path, command):
    command(pets, "--size", 16, "--out", tmp_path / "f.h5")
    layout = open_dataset(tmp_path / "f.h5")
    with open(tmp_path / "f.h5", "r+b") as file:
        file.seek(layout.image_offset + 5 * 16 * 16 * 3)
        file.write(b"\0\1\2\3")
    (tmp_path / "back").mkdir()
    code, _, err = command("--export", tmp_path / "f.h5", tmp_path / "back")
    assert (code, "image 5 (cat/0002.png) is not what was written" in err) == (1, True)
    assert list((tmp_path / "back").iterdir()) == []
    command(pets, "--size", 16, "--out", tmp_path / "f.h5", "--overwrite")
    assert command("--export", tmp_path / "f.h5", tmp_path / "back")[0] == 0
    assert len(list((tmp_path / "back").rglob("*.png"))) == 12
    assert not (tmp_path / "back.partial").exists()


def test_folder_names_are_unique_and_allowed():
    names = folder_names(["a/b", "a_b", "A_B", "..", "", ".hidden", "é" * 300])
    assert len({name.casefold() for name in names}) == 7
    assert not any("/" in name or name.startswith(".") or len(name.encode()) > 250 for name in names)


USAGE = {
    "no source": [],
    "two sources": ["a", "b"],
    "size": ["a", "--size", "0"],
    "quality of lossless": ["a", "--quality", "90"],
    "quality range": ["a", "--store", "jpeg", "--quality", "101"],
    "colour": ["a", "--background", "no-colour"],
    "append and overwrite": ["a", "--append", "--overwrite"],
    "export without folder": ["--export", "f.h5"],
    "inspect and export": ["--inspect", "f.h5", "--export", "f.h5", "x"],
    "unknown option": ["a", "--sise", "3"],
}


@pytest.mark.parametrize("name", USAGE)
def test_wrong_commands_exit_with_2(name: str, command):
    code, _, err = command(*USAGE[name])
    assert code == 2
    assert "Traceback" not in err


def test_the_debug_option_shows_where(tmp_path: Path, command):
    assert "Traceback" not in command(tmp_path / "missing")[2]
    code, _, err = command(tmp_path / "missing", "--debug")
    assert (code, "Traceback" in err) == (1, True)


def test_a_dry_run_writes_nothing(pets: Path, tmp_path: Path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = command("pets", "--dry-run")
    assert code == 0
    assert "axolotl" in out
    assert "would write data/pets-256.h5" in out
    assert not (tmp_path / "data").exists()


def test_the_next_command_is_said(tmp_path: Path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "pets", {"a": 2})
    assert "train.py --config deep64" in command("pets", "--size", 64)[1]
    assert "train.py --config deep64 --data x.h5" in command("pets", "--size", 64, "--out", "x.h5")[1]
    assert "build it again with --size 32" in command("pets", "--size", 40)[1]


def test_the_background_fills_what_is_padded(tmp_path: Path, command):
    (tmp_path / "src" / "a").mkdir(parents=True)
    Image.new("RGB", (20, 10), "red").save(tmp_path / "src" / "a" / "x.png")
    command(tmp_path / "src", "--size", 8, "--crop", "pad", "--background", "navy", "--out", tmp_path / "f.h5")
    stored = open_dataset(tmp_path / "f.h5").open_images()[0]
    assert stored[0].tolist() == [[0, 0, 128]] * 8
    assert stored[4].tolist() == [[255, 0, 0]] * 8


def test_control_characters_of_names_do_not_reach_the_terminal(tmp_path: Path, command):
    write_classes(tmp_path / "src", {"red\x1b[31m": 1, "two\nlines": 1})
    (tmp_path / "src" / "bell\x07.txt").write_text("?")
    _, out, _ = command(tmp_path / "src", "--size", 8, "--out", tmp_path / "f.h5")
    assert r"red\x1b[31m" in out
    assert r"two\nlines" in out
    assert r"bell\x07.txt" in out
    assert not {"\x1b", "\x07"} & set(out)

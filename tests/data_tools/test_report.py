"""The report, near duplicates, inspecting and exporting, and the command line itself."""

import re
import shutil
import time
import tracemalloc
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont

from data_tools import duplicates, page
from data_tools.duplicates import close_pairs, exact_groups, near_pairs, perceptual_hashes
from data_tools.export import UNFINISHED, folder_names
from data_tools.report import is_complete, read_facts
from data_tools.schema import Layout, open_dataset
from data_tools.sheets import LABEL_WIDTH, in_two_lines
from data_tools.thumbnails import rows_by_class
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
    assert text.count('loading="lazy"') == 1000
    assert re.search('data-id="999".*?<a href="(.*?)"', text)[1] == "sheets/classes-00980-00999.jpg"
    pictured = [int(number) for number in re.findall(r"and (\d+) more files", text)]
    assert sum(pictured) == sum(sizes) - 9 * page.MOST_NAMED


@given(st.lists(st.integers(0, 5), max_size=30))
def test_exact_groups_are_the_equal_rows(keys: list[int]):
    digests = np.zeros((len(keys), 32), np.uint8)
    digests[:, 0] = keys
    expected = [[row for row, key in enumerate(keys) if key == wanted] for wanted in range(6)]
    assert exact_groups(digests) == sorted(group for group in expected if len(group) > 1)


FLIPS = st.lists(st.tuples(st.integers(0, 4), st.sets(st.integers(0, 63), max_size=9)), max_size=25)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=5, max_size=5), FLIPS, st.integers(1, 3))
@pytest.mark.parametrize("together", [1, 30, 2**20])
def test_close_pairs_are_the_first_in_reach(together: int, seeds: list[int], flips: list, most: int):
    values = [seeds[index] ^ sum(1 << bit for bit in bits) for index, bits in flips]
    expected = []
    for row, value in enumerate(values):
        near = [earlier for earlier in range(row) if (values[earlier] ^ value).bit_count() <= 6]
        expected += [[earlier, row] for earlier in near[:most]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "COMPARED_TOGETHER", together)
        assert close_pairs(np.array(values, np.uint64), 6, most).tolist() == expected


@pytest.mark.parametrize("bits", [0, 3, 9])
def test_very_many_look_alikes_take_neither_long_nor_much_memory(bits: int):
    """Equal hashes, almost equal ones, and ones of which some are in reach of each other; no pair counts twice."""
    hashes = np.random.default_rng(0).integers(0, 2**bits, 20_000, dtype=np.uint64) | np.uint64(2**63)
    began = time.process_time()
    tracemalloc.start()
    pairs = close_pairs(hashes, 6, 4)
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - began < 10
    assert memory < 200 * 2**20
    assert 4 * 19_000 < len(pairs) <= 4 * 20_000
    assert set(pairs[:, 1].tolist()) == set(range(1, 20_000))


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
    assert "search ended" not in (tmp_path / "f.h5.report" / "index.html").read_text()
    rows = table(tmp_path / "f.h5.report" / "near-duplicates.tsv")
    expected = [["12", "a/again.jpg", "a", "3", "a/03.png", "a"], ["13", "a/smaller.png", "a", "4", "a/04.png", "a"]]
    assert rows[1:] == expected
    [figures] = re.findall(r"Near duplicates \(2\)(.*?)</section>", (tmp_path / "f.h5.report/index.html").read_text())
    assert figures.count("<img") == 4
    assert all(f"{row[1]}<" in figures and f"{row[4]}<" in figures for row in rows[1:])


def section(text: str, anchor: str) -> str:
    """The HTML of a section of the page, or nothing."""
    found = re.search(f'<section id="{anchor}">(.*?)</section>', text)
    return found[1] if found else ""


def test_the_same_image_in_several_classes_is_told_from_other_duplicates(pets: Path, tmp_path: Path, command):
    shutil.copy(pets / "cat" / "0000.png", pets / "cat" / "again.png")
    for name in ("cat/x.png", "dog/y.png"):
        shutil.copy(pets / "cat" / "0001.png", pets / name)
    command(pets, "--size", 16, "--out", tmp_path / "f.h5")
    rows = table(tmp_path / "f.h5.report" / "duplicates.tsv")
    assert [row[1:3] + row[4:] for row in rows[1:]] == [
        ["cat/again.png", "cat", "cat/0000.png", "cat"],
        ["cat/x.png", "cat", "cat/0001.png", "cat"],
        ["dog/y.png", "dog", "cat/0001.png", "cat"],
    ]
    text = (tmp_path / "f.h5.report" / "index.html").read_text()
    conflicts, others = section(text, "label-conflicts"), section(text, "duplicates")
    files = "<div>cat/0001.png<span>cat</span></div><div>dog/y.png<span>dog</span></div><div>cat/x.png<span>cat</span>"
    assert files in conflicts
    assert conflicts.count("<img") == others.count("<img") == 1
    assert "cat/again.png" in others
    assert "y.png" not in others
    assert text.index("label-conflicts") < text.index('id="duplicates"')
    assert '<a href="#label-conflicts"><b>1</b>' in text
    assert '<a href="#duplicates"><b>3</b>' in text


def test_without_contradictions_there_is_no_word_of_them(pets: Path, tmp_path: Path, command):
    shutil.copy(pets / "cat" / "0000.png", pets / "cat" / "again.png")
    command(pets, "--size", 16, "--out", tmp_path / "f.h5")
    assert section((tmp_path / "f.h5.report" / "index.html").read_text(), "label-conflicts") == ""


def test_equal_classes_and_sizes_are_told_in_one_number(tmp_path: Path, command):
    (tmp_path / "src").mkdir()
    for index in range(4):
        (tmp_path / "src" / f"{index}").mkdir()
        picture(index, 30, 30).save(tmp_path / "src" / f"{index}" / "x.png")
    command(tmp_path / "src", "--size", 8, "--out", tmp_path / "f.h5")
    text = Page((tmp_path / "f.h5.report" / "index.html").read_text()).text
    assert "all classes have the same number of images" in text
    assert "1images per class" in text
    assert "30 px; 0 enlarged" in text


def test_the_sizes_of_sources_agree_with_their_chart(tmp_path: Path, command):
    """What was used of an image counts: here a box of ten pixels, and of a wide image its height."""
    (tmp_path / "src" / "a").mkdir(parents=True)
    for name, size in {"boxed": (48, 48), "wide": (400, 30), "square": (60, 60)}.items():
        picture(1, *size).save(tmp_path / "src" / "a" / f"{name}.png")
    (tmp_path / "boxes.csv").write_text("path,x0,y0,x1,y1\na/boxed.png,0,0,10,10\n")
    command(tmp_path / "src", "--size", 8, "--boxes", tmp_path / "boxes.csv", "--out", tmp_path / "f.h5")
    text = Page((tmp_path / "f.h5.report" / "index.html").read_text()).text
    assert "10 – 60 px; 0 enlarged" in text
    assert "1< 16116+132+" in text


def build_from(folder: Path, images: list[Image.Image], command, *options: object) -> Layout:
    (folder / "src" / "a").mkdir(parents=True)
    for index, image in enumerate(images):
        image.save(folder / "src" / "a" / f"{index:02d}.png")
    assert command(folder / "src", "--size", 48, "--out", folder / "f.h5", *options)[0] == 0
    return open_dataset(folder / "f.h5")


def brighter(image: Image.Image, amount: int) -> Image.Image:
    """The same forms in other grey levels, which a perceptual hash does not see."""
    return image.point(lambda level: level // 2 + amount)


def test_equal_forms_in_other_colours_are_no_near_duplicates(tmp_path: Path, command):
    """And they are not in the way of one that does look alike."""
    image = picture(3, 48, 48)
    layout = build_from(tmp_path, [brighter(image, amount) for amount in (0, 60, 120, 121)], command)
    assert close_pairs(perceptual_hashes(layout, 1), 6, 4).tolist()[:2] == [[0, 1], [0, 2]]
    assert near_pairs(layout, 1) == [(2, 3)]


def test_copies_of_one_image_do_not_hide_what_looks_like_them(tmp_path: Path, command):
    image = picture(3, 48, 48)
    layout = build_from(tmp_path, [brighter(image, 0)] * 6 + [brighter(image, 90), brighter(image, 91)], command)
    assert near_pairs(layout, 1) == [(6, 7)]


def test_a_list_of_near_duplicates_that_was_cut_says_so(tmp_path: Path, command, monkeypatch):
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 3)
    monkeypatch.setattr(page, "MOST_PAIRS", 3)
    layout = build_from(tmp_path, [brighter(picture(3, 48, 48), amount) for amount in range(6)], command, "--report")
    assert near_pairs(layout, 1) == [(0, 1), (0, 2), (0, 3)]
    text = Page((tmp_path / "f.h5.report" / "index.html").read_text()).text
    assert "3 pairs of images that look alike" in text
    assert "the search ended there" in text


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 6))
def test_sheets_show_rows_of_the_class_and_no_class_is_dropped(labels: list[int], most: int):
    chosen = rows_by_class(np.array(labels), 5, most)
    assert len(chosen) == 5
    for index, rows in enumerate(chosen):
        assert all(labels[row] == index for row in rows)
        assert len(set(rows.tolist())) == min(most, labels.count(index))


@given(st.text("ab _ü猫", max_size=60).filter(lambda text: text == text.strip()), st.integers(40, 200))
def test_a_label_has_two_lines_that_fit_and_the_letters_of_the_name(name: str, width: int):
    font = ImageFont.load_default(14)
    lines = in_two_lines(name, font, width)
    assert all(font.getlength(line) <= width for line in lines)
    assert len(lines) == (1 if font.getlength(name) <= width else 2)
    letters, whole = "".join(lines).replace(" ", ""), name.replace(" ", "")
    assert letters == whole or (letters.endswith("...") and whole.startswith(letters[:-3]))


def test_labels_break_between_words():
    font = ImageFont.load_default(14)
    assert in_two_lines("hatsune miku (vocaloid) (cosplay)", font, 168) == ["hatsune miku (vocaloid)", "(cosplay)"]
    assert in_two_lines("a_name_of_many_words_without_spaces", font, 168) == ["a_name_of_many_words_", "without_spaces"]


def test_sheets_show_names_in_other_scripts_and_spellings(tmp_path: Path, command):
    """The label of a class lies left of its images; without its name it would be that of a class without letters."""
    names = ["cafe\u0301", "Привет", "猫" * 40, "ñ\u3000\x1b"]
    write_classes(tmp_path / "src", dict.fromkeys(names, 1), size=8)
    assert command(tmp_path / "src", "--size", 8, "--out", tmp_path / "f.h5")[0] == 0
    [sheet] = (tmp_path / "f.h5.report" / "sheets").iterdir()
    labels = np.asarray(Image.open(sheet).convert("L"))[:, :LABEL_WIDTH]
    name_lines = [labels[74 * index + 20 : 74 * index + 36] for index in range(4)]
    assert all((line < 100).any() for line in name_lines)


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


@pytest.mark.parametrize("content", ["null", "[]", "3", '{"fingerprint": 1}', "{", ""])
def test_facts_that_say_nothing_are_no_facts(content: str, pets: Path, tmp_path: Path, command):
    command(pets, "--size", 16, "--out", tmp_path / "f.h5")
    report, layout = tmp_path / "f.h5.report", open_dataset(tmp_path / "f.h5")
    assert read_facts(report, layout) is not None
    (report / "facts.json").write_text(content)
    assert read_facts(report, layout) is None


def test_a_report_that_lacks_something_is_not_complete(pets: Path, tmp_path: Path, command):
    command(pets, "--size", 16, "--out", tmp_path / "f.h5")
    report, layout = tmp_path / "f.h5.report", open_dataset(tmp_path / "f.h5")
    files = [path for path in report.rglob("*") if path.is_file()]
    assert len(files) == 9
    for path in files:
        assert is_complete(report, layout)
        path.rename(tmp_path / "aside")
        assert not is_complete(report, layout), path
        (tmp_path / "aside").rename(path)
    shutil.rmtree(report / "sheets")
    assert not is_complete(report, layout)


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

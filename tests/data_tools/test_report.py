"""The report of a data file: its page, tables and sheets, and making it again."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont

from data_tools import page
from data_tools.report import is_complete, read_facts
from data_tools.schema import open_dataset
from data_tools.sheets import LABEL_WIDTH, in_two_lines
from data_tools.thumbnails import rows_by_class
from tests.data_tools.conftest import picture, write_classes
from tests.data_tools.pages import Page, table


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

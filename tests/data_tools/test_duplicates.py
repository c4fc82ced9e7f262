"""Exact and near duplicates: which are found, and at what cost."""

import re
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_tools import duplicates, page
from data_tools.duplicates import close_pairs, exact_groups, near_pairs, perceptual_hashes
from data_tools.schema import Layout, open_dataset
from tests.data_tools.conftest import picture
from tests.data_tools.pages import Page, table


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

"""Merges, exclusions and limits."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.classes import ClassRules, RuleError, read_merges, select
from data_tools.folders import ImageFile, Listing
from data_tools.schema import open_dataset


def listing(counts: dict[str, int]) -> Listing:
    files = [ImageFile(f"{name}/{i:03d}.png", name, 1, 1, "") for name, count in counts.items() for i in range(count)]
    return Listing(files)


SAILORS = {"Sailor Venus": 3, "Aino Minako": 2, "Tsukino Usagi": 5, "Luna": 1}


def test_merged_files_count_as_of_the_class():
    selection = select(listing(SAILORS), ClassRules({"Sailor Venus": "Aino Minako"}))
    assert selection.class_names == ["Aino Minako", "Luna", "Tsukino Usagi"]
    assert [tuple(merge) for merge in selection.merged] == [("Sailor Venus", "Aino Minako", 3)]
    paths = [file.path for file in selection.files if file.class_name == "Aino Minako"]
    assert paths == sorted(paths)
    assert len(paths) == 5


def test_unknown_names_come_with_near_ones():
    rules = ClassRules({"Sailor Venu": "Aino Minako"}, exclude=("Lunaa",))
    warnings = select(listing(SAILORS), rules).warnings
    assert warnings[0] == "--merge: no class 'Sailor Venu' (did you mean 'Sailor Venus'?)."
    assert warnings[1] == "--exclude: no class 'Lunaa' (did you mean 'Luna'?)."


def test_merges_chain_and_circles_are_refused():
    assert select(listing({"a": 1, "b": 1, "c": 1}), ClassRules({"a": "b", "b": "c"})).class_names == ["c"]
    with pytest.raises(RuleError, match="circle"):
        select(listing({"a": 1}), ClassRules({"a": "b", "b": "a"}))


def test_limits_apply_after_merging_and_the_largest_stay():
    counts = {"a": 1, "b": 9, "c": 5, "d": 5, "e": 2}
    selection = select(listing(counts), ClassRules({"a": "e"}, min_images=3, max_classes=3))
    assert selection.class_names == ["b", "c", "d"]
    assert {row.name: row.reason for row in selection.left_out} == {"e": "not among the 3 largest"}
    selection = select(listing(counts), ClassRules(min_images=3, exclude=("[cd]",)))
    assert selection.class_names == ["b"]
    assert {row.name for row in selection.left_out} == {"a", "c", "d", "e"}
    with pytest.raises(RuleError, match="no class is left of 5: fewer than 10 images"):
        select(listing(counts), ClassRules(min_images=10))


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 30), min_size=1), st.integers(1, 12))
def test_the_limit_per_class_is_a_choice_that_more_files_hardly_change(counts: dict[str, int], limit: int):
    rules = ClassRules(limit_per_class=limit)
    chosen = {file.path for file in select(listing(counts), rules).files}
    assert len(chosen) == sum(min(limit, count) for count in counts.values())
    grown = {name: count + 5 for name, count in counts.items()}
    after = {file.path for file in select(listing(grown), rules).files}
    old = {file.path for file in listing(counts).files}
    assert after & old <= chosen  # a file leaves only for a new one


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(1, 4), min_size=1))
def test_ids_are_alphabetical_and_files_in_order_of_id_and_path(counts: dict[str, int]):
    selection = select(listing(counts), ClassRules())
    assert selection.class_names == sorted(counts)
    keys = [(selection.class_names.index(file.class_name), file.path) for file in selection.files]
    assert keys == sorted(keys)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.toml", '"Sailor Venus" = "Aino Minako"\nLuna = "Cat"\n'),
        ("m.csv", "alias,class\nSailor Venus,Aino Minako\nLuna,Cat\nCat,Cat\n"),
    ],
)
def test_merge_files(name: str, text: str, tmp_path: Path):
    (tmp_path / name).write_text(text)
    assert read_merges(tmp_path / name) == {"Sailor Venus": "Aino Minako", "Luna": "Cat"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.toml", "a = 3\n", "expected alias and class"),
        ("m.toml", "a = \n", "cannot be understood"),
        ("m.csv", "a,b,c\n", "expected alias and class"),
        ("m.csv", "a,b\na,c\n", "'a' is merged into 'b' and into 'c'"),
    ],
)
def test_wrong_merge_files_are_usage_errors(name: str, text: str, message: str, pets: Path, tmp_path: Path, command):
    (tmp_path / name).write_text(text)
    code, _, err = command(pets, "--merge", tmp_path / name, "--out", tmp_path / "f.h5")
    assert (code, message in err) == (2, True)


def test_merges_reach_the_file_and_the_report(pets: Path, tmp_path: Path, command):
    (tmp_path / "m.csv").write_text("axolotl,dog\naxolotle,dog\n")
    code, out, err = command(pets, "--merge", tmp_path / "m.csv", "--size", 8, "--out", tmp_path / "f.h5")
    assert (code, "1 class merged into others" in out) == (0, True)
    assert "did you mean 'axolotl'" in err
    layout = open_dataset(tmp_path / "f.h5")
    assert dict(zip(layout.class_names, layout.class_counts.tolist(), strict=True)) == {"cat": 5, "dog": 7}
    assert (tmp_path / "f.h5.report" / "merges.tsv").read_text().splitlines()[1] == "axolotl\tdog\t3"


def test_a_merge_into_a_name_that_is_nearly_that_of_a_class_is_doubted():
    warnings = select(listing(SAILORS), ClassRules({"Sailor Venus": "Aino Minakko"})).warnings
    assert warnings == ["--merge: class 'Aino Minakko' is new, made by the merge alone (did you mean 'Aino Minako'?)."]
    assert select(listing(SAILORS), ClassRules({"Luna": "Cats"})).warnings == []


def test_the_limit_chooses_by_path_and_not_by_order():
    """Files are often numbered by date or by scene; the first ones alone would be of one kind."""
    chosen = [file.path for file in select(listing({"a": 100}), ClassRules(limit_per_class=20)).files]
    assert len(chosen) == 20
    assert chosen == sorted(chosen)
    assert chosen[-1] > "a/050.png"
    selection = select(listing({"a": 100, "b": 3}), ClassRules(limit_per_class=20))
    assert selection.over_limit == 80


def test_known_images_come_first_in_the_limit():
    known = {f"a/{number:03d}.png" for number in range(40, 50)}
    chosen = {file.path for file in select(listing({"a": 100}), ClassRules(limit_per_class=15), ["a"], known).files}
    assert len(chosen) == 15
    assert known <= chosen


def test_limits_leave_the_classes_of_a_growing_file_alone():
    rules = ClassRules(min_images=5, max_classes=3)
    selection = select(listing({"old": 1, "a": 9, "b": 8, "c": 7, "small": 2}), rules, ["old"])
    assert selection.class_names == ["old", "a", "b"]  # three with the one that is there
    assert {row.name: row.reason for row in selection.left_out} == {
        "c": "not among the 3 largest",
        "small": "fewer than 5 images",
    }


def test_a_name_counts_before_a_pattern():
    selection = select(listing({"a*": 1, "ab": 1, "b": 1}), ClassRules(exclude=("a*",)))
    assert selection.class_names == ["ab", "b"]
    assert select(listing({"aa": 1, "ab": 1, "b": 1}), ClassRules(exclude=("a*",))).class_names == ["b"]


def test_a_circle_is_shown_as_it_goes():
    with pytest.raises(RuleError, match="z -> a -> z"):
        select(listing({"a": 1}), ClassRules({"z": "a", "a": "z"}))

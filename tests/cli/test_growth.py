"""Data that changes under a run: folders become a file, images are added, other data sets join, classes shift."""

import pytest

from biggan.cli.train import main
from data_tools.cli import main as build_dataset
from small import small_config, write_class_folders


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(small_config().to_toml())
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main([*arguments])
    return end.value.code


def build(source, *more: str) -> None:
    out = f"data/{source}-32.h5"
    assert build_dataset([source, "--size", "32", "--out", out, "--workers", "1", "--no-report", *more]) == 0


def train(images: int, *data: str) -> None:
    assert run("--config", "small.toml", "--run", "r", "--data", *data, "--set", f"train.images={images}") == 0


def epochs(capsys) -> list[str]:
    capsys.readouterr()
    assert run("--audit", "r") == 0
    lines = capsys.readouterr().out.splitlines()
    return [line.partition(": ")[2] for line in lines if line.startswith("epoch")]


def test_a_run_goes_from_folders_to_a_file_and_takes_what_is_added_exactly_once(here, capsys):
    write_class_folders(here / "a", {"cat": 9, "dog": 11})
    write_class_folders(here / "b", {"dog": 5, "emu": 3}, seed=1)
    train(32, "a")
    build("a")
    train(48, "data/a-32.h5")  # the same pixels, so the same fingerprint
    write_class_folders(here / "more", {"cat": 8}, seed=2)
    for path in (here / "more/cat").iterdir():
        path.rename(here / "a/cat" / f"new-{path.name}")
    build("a", "--append")
    train(96, "data/a-32.h5")
    assert "natural over 20 images -> natural over 28 images" in capsys.readouterr().out
    assert epochs(capsys) == [
        "images 0 to 20: exact: each of 20 images once",
        "images 20 to 40: exact: each of 20 images once",
        "images 40 to 60: exact: each of 20 images once",
        "images 60 to 88: exact: each of 28 images once",
        "images 88 to 96: in progress: 8 of 28 images, none twice",
    ]


def test_more_classes_are_another_model(here, capsys):
    write_class_folders(here / "a", {"cat": 9, "dog": 11})
    build("a")
    train(16, "data/a-32.h5")
    write_class_folders(here / "a", {"emu": 3}, seed=1)
    build("a", "--append")
    assert run("--config", "small.toml", "--run", "r", "--data", "data/a-32.h5") == 2
    error = capsys.readouterr().err
    assert "the data has 3 classes" in error
    assert "--init-from r --run NAME" in error


def test_classes_that_change_places_are_refused(here, capsys):
    """Ids of joined data are those of the first, then the names that only later ones have."""
    write_class_folders(here / "a", {"cat": 9})
    write_class_folders(here / "b", {"dog": 5, "emu": 3}, seed=1)
    build("a")
    build("b")
    both = ["--data", "data/a-32.h5", "data/b-32.h5"]
    train(16, *both[1:])
    write_class_folders(here / "a", {"emu": 4}, seed=2)
    build("a", "--append")  # cat, dog, emu becomes cat, emu, dog
    assert run("--config", "small.toml", "--run", "r", *both) == 1
    error = capsys.readouterr().err
    assert "class 1" in error
    assert "dog" in error

"""The same command means the same run, whatever else lies in weights/."""

import json
from pathlib import Path

import pytest
from running import command

from biggan.cli.runs import run_directory
from biggan.cli.weights import main as weights
from small import small_config


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_run(name: str, *data: str) -> None:
    """A directory with a checkpoint for each of these names of its data, oldest first; "" is an import's."""
    for updates, recorded in enumerate(data):
        checkpoint = Path("weights", name, "checkpoints", f"step-{updates:08d}")
        checkpoint.mkdir(parents=True)
        description = {"data": {"name": recorded}} if recorded else {}
        (checkpoint / "state.json").write_text(json.dumps({"format": 1, "description": description}))


def chosen(data: str, fresh: bool = False) -> str:
    return run_directory("tiny", data, 32, fresh).name


def test_fresh_runs_are_numbered_and_the_newest_goes_on(here):
    assert chosen("photos-32") == chosen("photos-32", fresh=True) == "tiny-photos"
    write_run("tiny-photos", "photos-32")
    assert chosen("photos-32") == "tiny-photos"
    assert chosen("photos-32", fresh=True) == "tiny-photos-run2"
    write_run("tiny-photos-run2", "photos-32")
    write_run("tiny-photos-run10", "photos-32")
    assert chosen("photos-32") == "tiny-photos-run10"
    assert chosen("photos-32", fresh=True) == "tiny-photos-run11"


def test_a_run_that_has_saved_nothing_yet_goes_on(here):
    write_run("tiny-photos", "photos-32")
    Path("weights/tiny-photos-run2").mkdir()
    assert chosen("photos-32") == "tiny-photos-run2"
    Path("weights/tiny-photos-7").mkdir()  # may be of data called photos-7
    assert chosen("photos-32") == "tiny-photos-run2"


def test_fresh_runs_with_the_numbers_of_the_first_versions_are_found(here):
    write_run("tiny-photos", "photos-32")
    write_run("tiny-photos-2", "photos-32")
    assert chosen("photos-32") == "tiny-photos-2"
    assert chosen("photos-32", fresh=True) == "tiny-photos-run3"


def test_data_whose_names_end_in_numbers_are_told_apart(here):
    write_run("tiny-photos-2021", "photos-2021-32")
    assert chosen("photos-32") == "tiny-photos"
    write_run("tiny-photos", "photos-32")
    assert chosen("photos-32") == "tiny-photos"
    assert chosen("photos-2021-32") == "tiny-photos-2021"
    assert chosen("photos-32", fresh=True) == "tiny-photos-run2"


def test_folders_and_data_that_joined_later_do_not_change_the_run(here):
    write_run("tiny-photos", "photos", "photos-32", "photos-32 + more-32")
    assert chosen("photos-32") == "tiny-photos"
    assert chosen("photos") == "tiny-photos"


def test_a_directory_of_other_data_is_not_trained_in(here):
    write_run("tiny-photos", "tiny-photos-32")
    write_run("tiny-photos-run2", "")
    assert chosen("photos-32") == "tiny-photos-run3"
    write_run("tiny-photos-run3", "photos-32")
    assert chosen("photos-32") == "tiny-photos-run3"


def test_a_damaged_checkpoint_does_not_hide_the_run(here):
    write_run("tiny-photos", "photos-32")
    write_run("tiny-photos-2", "photos-32", "photos-32")
    Path("weights/tiny-photos-2/checkpoints/step-00000001/state.json").write_text("{")
    assert chosen("photos-32") == "tiny-photos-2"


def test_promoted_weights_are_not_trained_in(here, data_file, capsys):
    (here / "tiny.toml").write_text(small_config().to_toml())
    train = ("--config", "tiny.toml", "--data", data_file, "--set", "train.images=16")
    assert command(*train) == 0
    with pytest.raises(SystemExit) as end:
        weights(["promote", "weights/tiny-shapes", "--size", "64"])
    assert end.value.code == 0
    assert Path("weights/tiny-shapes-64").is_dir()
    capsys.readouterr()
    assert command(*train) == 0
    assert "weights/tiny-shapes is finished" in capsys.readouterr().out
    assert chosen("shapes-64-32") == "tiny-shapes-64-run2"
    assert command(*train, "--rollback", 1, "--dry-run") == 0
    assert "run    weights/tiny-shapes\n" in capsys.readouterr().out

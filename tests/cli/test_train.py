"""What biggan-train says to people who mistype, and what it prints and writes for those who do not."""

import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from biggan.cli.train import main
from small import small_config, write_class_folders


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return end.value.code


def error_of(capsys, *arguments: object, code: int) -> str:
    """The one clear sentence that a command ends with."""
    assert run(*arguments) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) <= 2
    assert "Traceback" not in error
    return error


def small_toml(directory: Path, **sections) -> Path:
    path = directory / "small.toml"
    path.write_text(small_config(**sections).to_toml())
    return path


def test_dry_run_resolves_prints_and_writes_nothing(here, data_file, capsys):
    assert run("--config", "digits32", "--data", data_file, "--set", "train.seed=5", "--dry-run") == 0
    out = capsys.readouterr().out
    resolved = tomllib.loads(out[: out.index("data   ")])
    assert resolved["train"]["seed"] == 5
    assert resolved["model"]["classes"] == 3
    assert "37 images, 3 classes" in out
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "depe256"], "deep256"),
        (["--config", "digits32", "--set", "train.batchsize=3"], "did you mean batch_size"),
        (["--config", "digits32", "--set", "train.batch_size=0"], "at least 1"),
        (["--config", "digits32", "--batch-size", "0"], "--batch-size 0"),
        (["--config", "digits32", "--batch-size", "8", "--d-accumulation", "2"], "twice"),
        (["--config", "nothing.toml"], "does not exist"),
        ([], "--config is missing"),
    ],
)
def test_usage_errors(here, capsys, arguments, message):
    assert message in error_of(capsys, *arguments, code=2)


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({"a": 3}, "3 images, 1 class\n"),
        ({"a": 2, "b": 2}, "2 classes of 2\n"),
        ({"a": 2, "b": 3}, "2 classes of 2 to 3\n"),
    ],
)
def test_the_sizes_of_classes_are_told_briefly(here, capsys, counts, text):
    images = write_class_folders(here / "images", counts)
    assert run("--config", "digits32", "--data", images, "--dry-run") == 0
    assert text in capsys.readouterr().out


def test_no_data_and_data_of_another_size(here, data_file, capsys):
    assert "build-dataset" in error_of(capsys, "--config", "digits32", code=1)
    (here / "data").mkdir()
    (here / "data" / "shapes-32.h5").symlink_to(data_file)
    error = error_of(capsys, "--config", "deep256", code=1)
    assert "32 px" in error
    assert "256" in error
    error = error_of(capsys, "--config", "deep256", "--data", data_file, code=1)
    assert "32 px" in error
    assert "--size 256" in error


def test_a_checkpoint_of_another_data_set_is_refused(here, data_file, capsys):
    toml = small_toml(here)
    assert run("--config", toml, "--data", data_file, "--run", "r", "--set", "train.images=16") == 0
    same_names = write_class_folders(here / "others", {"a": 4, "b": 4, "c": 4}, seed=9)
    capsys.readouterr()
    command = ("--config", toml, "--data", same_names, "--run", "r")
    error = error_of(capsys, *command, code=1)
    assert "data set" in error
    assert "--new-order" in error
    other_names = write_class_folders(here / "more", {"a": 4, "x": 4, "c": 4}, seed=9)
    assert "class 1 was 'b'" in error_of(capsys, "--config", toml, "--data", other_names, "--run", "r", code=1)
    assert run(*command, "--set", "train.images=32", "--new-order") == 0
    assert "16 images seen" in capsys.readouterr().out
    assert run(*command, "--set", "train.images=48") == 0
    assert run("--audit", "r") == 0


def test_a_run_keeps_its_architecture_and_seed(here, data_file, capsys):
    toml = small_toml(here)
    assert run("--config", toml, "--data", data_file, "--run", "r", "--set", "train.images=16") == 0
    capsys.readouterr()
    error = error_of(capsys, "--config", toml, "--data", data_file, "--run", "r", "--set", "model.g_ch=4", code=2)
    assert "model.g_ch" in error
    error = error_of(capsys, "--config", toml, "--data", data_file, "--run", "r", "--set", "train.seed=4", code=1)
    assert "seed" in error


def test_an_unwritable_place_is_named(here, data_file, capsys):
    (here / "weights").write_text("a file where a directory should be")
    assert "weights" in error_of(capsys, "--config", small_toml(here), "--data", data_file, code=1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission_is_named(here, data_file, capsys):
    (here / "weights").mkdir()
    (here / "weights").chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert "weights" in error_of(capsys, "--config", small_toml(here), "--data", data_file, code=1)


def test_a_second_start_of_the_same_run_refuses(here, data_file, capsys):
    holder = "import sys, time\nfrom pathlib import Path\nfrom biggan.training.runlog import exclusive\n"
    holder += "with exclusive(Path('r')):\n    print('held', flush=True)\n    time.sleep(60)\n"
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        error = error_of(capsys, "--config", small_toml(here), "--data", data_file, "--run", "r", code=1)
        process.kill()
    assert str(process.pid) in error


def test_the_same_command_continues_and_fresh_starts_another(here, data_file, capsys):
    command = ("--config", small_toml(here), "--data", data_file, "--set", "train.images=16")
    assert run(*command) == 0
    assert "resuming" not in capsys.readouterr().out
    assert run(*command) == 0
    assert "finished" in capsys.readouterr().out
    assert run(*command, "--fresh") == 0
    assert sorted(p.name for p in (here / "weights").iterdir()) == ["small-shapes", "small-shapes-run2"]
    capsys.readouterr()
    assert run(*command) == 0
    assert "small-shapes-run2 is finished" in capsys.readouterr().out


def test_a_run_directory_holds_what_its_readme_says(here, data_file):
    command = ("--config", small_toml(here), "--data", data_file, "--run", "r")
    assert run(*command, "--set", "train.images=64", "--set", "run.sample_every=2") == 0
    names = {str(p.relative_to(here / "r")) for p in (here / "r").rglob("*")}
    assert {"config.toml", "log.jsonl", "history.jsonl", "checkpoints/latest"} <= names
    assert {"samples/step-00000002.png", "samples/step-00000004.png"} <= names
    assert any(name.startswith("tensorboard/events") for name in names)
    assert not [name for name in names if ".writing" in name]

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from biggan.cli.sample import choose_classes, main
from biggan.cli.train import main as train
from biggan.sampling.figures import read_settings
from small import small_config


@pytest.fixture(scope="module")
def trained(data_file, tmp_path_factory) -> Path:
    """A directory with a trained run in weights/."""
    place = tmp_path_factory.mktemp("trained")
    (place / "small.toml").write_text(small_config().to_toml())
    arguments = ["--config", str(place / "small.toml"), "--data", str(data_file), "--run", str(place / "weights" / "r")]
    with pytest.raises(SystemExit) as end:
        train([*arguments, "--set", "train.images=32"])
    assert end.value.code == 0
    return place


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.chdir(trained)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return end.value.code


def test_one_class_of_the_newest_run(here, capsys):
    assert run("--class", 2) == 0
    out = Path("samples/r-class2-seed0.png")
    assert str(out) in capsys.readouterr().out
    assert Image.open(out).size == (4 * 34 - 2, 4 * 34 - 2)
    settings = read_settings(out)
    assert settings["classes"] == [2]
    assert settings["class_names"] == ["c"]
    assert settings["updates"] == 2


def test_the_same_seed_gives_the_same_picture_and_the_micro_batch_does_not_matter(here):
    for name, more in {"a": [], "b": ["--micro-batch", 3], "c": ["--seed", 1]}.items():
        assert run("--class", 1, "--out", f"{name}.png", *more) == 0
    a, b, c = (np.asarray(Image.open(f"{name}.png")).astype(int) for name in "abc")
    assert abs(a - b).max() <= 1  # rounding of another batch size
    assert abs(a - c).max() > 1


def test_grid_truncation_and_raw_weights(here):
    assert run("--class", "a", "c", "--grid", "2x3", "--truncation", 0.5, "--no-ema", "--out", "g.png") == 0
    settings = read_settings(Path("g.png"))
    assert (settings["per_class"], settings["truncation"], settings["ema"]) == (3, 0.5, False)
    assert "generator.safetensors" in settings["source"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--class", "1000"], 2, "3 classes, 0 to 2"),
        (["--class", "2-5"], 2, "0 to 2"),
        (["--class", "no such"], 2, "no class has this name"),
        (["--class", "0", "--truncation", "0"], 2, "positive"),
        (["--class", "0", "--count", "0"], 2, "at least 1"),
        (["--class", "0", "--grid", "4"], 2, "rows x columns"),
        (["--class", "all", "--grid", "1x2", "--count", "4"], 2, "do not fit"),
        (["--class", "0", "--out", "x.jpg"], 2, ".png"),
        (["--class", "0", "--run", "nowhere"], 1, "nowhere does not exist"),
        (["--class", "0", "--run", "weights"], 1, "no checkpoint"),
        (["--class", "0", "--out", "elsewhere/x.png"], 2, "there is no folder elsewhere"),
        (["--class", "0", "--out", "/proc/x.png"], 1, "/proc/"),
    ],
)
def test_errors_are_one_sentence(here, capsys, arguments, code, message):
    assert run(*arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) <= 2
    assert "Traceback" not in error


def test_statistics_are_told_of_only_when_they_are_measured(here, capsys):
    told = []
    for seed in (0, 1):
        assert run("--class", 0, "--truncation", 0.7, "--seed", seed) == 0
        told.append("batch-norm statistics over 1024 images" in capsys.readouterr().err)
    assert told == [True, False]


def test_the_default_folder_is_made(here, trained):
    shutil.rmtree(trained / "samples", ignore_errors=True)
    assert run("--class", 0, "--statistics", "running", "--out", "samples/mine.png") == 0
    assert Path("samples/mine.png").exists()


def test_weights_that_have_seen_no_image_are_told_of(here, capsys):
    begun, trained = (f"weights/r/checkpoints/step-{updates:08d}" for updates in (0, 2))
    assert run("--class", 0, "--run", begun, "--statistics", "running", "--out", "noise.png") == 0
    assert "trained on 0 images so far; the pictures are noise" in capsys.readouterr().err
    assert run("--class", 0, "--run", trained, "--statistics", "running", "--out", "noise.png") == 0
    assert "noise" not in capsys.readouterr().err


def test_the_help_shows_no_defaults_that_are_none(capsys):
    assert run("--help") == 0
    assert "default: all" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        train(["--help"])
    out = capsys.readouterr().out
    assert "--rollback STEP" in out
    assert "None" not in out
    assert "False" not in out


def test_without_a_run_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("--class", 0) == 2
    assert "no trained run" in capsys.readouterr().err


def test_names_come_before_ids_and_ranges_expand():
    names = ["1", "aqua", "2", "zoe"]
    assert choose_classes(["1", "zoe", "1-2"], names) == [0, 3, 1, 2]
    assert choose_classes(["all"], names) == [0, 1, 2, 3]

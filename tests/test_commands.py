"""The product: three commands typed in a row in an empty directory."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from small import write_class_folders

BIN = Path(sys.executable).parent
SCRIPTS = Path(__file__).parent.parent / "scripts"


def type_in(place: Path, *command: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [str(c) for c in command], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_three_commands_in_an_empty_directory(tmp_path):
    """As typed, but for a model narrow enough to train on a CPU while one waits."""
    write_class_folders(tmp_path / "danbooru1k", {"aqua": 3, "Aino Minako": 3, "綾波レイ": 2}, size=64)
    (tmp_path / "danbooru1k" / "aqua" / "broken.png").write_bytes(b"not an image")
    built = type_in(tmp_path, "build-dataset", "danbooru1k/")
    assert (
        "broken.png"
        in built.stdout + built.stderr + (tmp_path / "data/danbooru1k-256.h5.report/skipped.tsv").read_text()
    )
    small = [
        f"--set={s}"
        for s in ("model.g_ch=4", "model.d_ch=4", "train.images=8", "run.standing_images=8", "run.sample_rows=2")
    ]
    small += ["--batch-size=4", "--micro-batch=4"]
    train = type_in(tmp_path, sys.executable, SCRIPTS / "train.py", "--config", "deep256", *small)
    assert "8 images, 3 classes" in train.stdout
    type_in(
        tmp_path, sys.executable, SCRIPTS / "sample.py", "--class", "綾波レイ", "--count", 1, "--standing-images", 8
    )
    pictures = list((tmp_path / "samples").glob("*.png"))
    assert [Image.open(p).size for p in pictures] == [(256, 256)]


@pytest.mark.parametrize(
    "name", ["build-dataset", "biggan-train", "biggan-sample", "biggan-weights", "train.py", "sample.py"]
)
def test_the_commands_are_on_the_path(name):
    path = shutil.which(name, path=str(BIN))
    assert path
    assert "usage" in type_in(Path.cwd(), path, "--help").stdout.lower()

"""biggan-weights, as typed."""

import json
import re
from pathlib import Path

import pytest
import torch

from biggan.cli.sample import main as sample
from biggan.cli.weights import catalogue, main
from biggan.config import ModelConfig, load_config
from biggan.released.importing import read_released
from biggan.sampling.figures import read_settings
from biggan.training.checkpoint import list_checkpoints, read_state
from foreign import random_model, reference_settings, write_huggingface, write_reference

FIXTURES = Path(__file__).parent.parent / "fixtures"


def run(command, *arguments: object, code: int = 0) -> None:
    with pytest.raises(SystemExit) as exit_info:
        command([str(a) for a in arguments])
    assert exit_info.value.code == code


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_catalogue(capsys):
    names = [entry["name"] for entry in catalogue()]
    assert len(names) == len(set(names)) == 11
    run(main, "list")
    listed = capsys.readouterr().out
    assert all(name in listed for name in names)
    for entry in catalogue():
        assert entry["resolution"] in (128, 256, 512)
        assert all(address.startswith("https://") for address in (entry["page"], *entry["download"]))
        run(main, "list", entry["name"])
        told = capsys.readouterr().out
        assert f"biggan-weights import {entry['file']} --out weights/{entry['name']}" in told
        assert entry["download"][0] in told
    run(main, "list", "biggan-deep-265", code=2)
    assert "did you mean biggan-deep-256" in capsys.readouterr().err


def test_import_show_verify_sample(here, capsys):
    (here / "weights" / ".biggan32_ch8.writing" / "left").mkdir(parents=True)  # by one that was killed
    run(main, "import", FIXTURES / "biggan32_ch8")
    assert "weights/biggan32_ch8: biggan 32 px, 6 classes" in capsys.readouterr().out
    run(main, "show", "weights/biggan32_ch8")
    shown = dict(re.findall(r"^(\w+) +(.*)$", capsys.readouterr().out, re.MULTILINE))
    assert shown["model"].startswith("BigGAN 32 px, ch 8 and 8, z 64 for every block, shared embedding 16")
    assert shown["origin"].startswith("reference trainer, from ")
    assert shown["truncation"].startswith("means scale")
    assert shown["classes"] == "6: without names"
    run(main, "verify", "weights/biggan32_ch8")
    assert capsys.readouterr().out.count("sum right, shapes right, all finite") == 3
    run(sample, "--class", 2, "--count", 2, "--standing-images", 8, "--out", "x.png")
    assert read_settings(Path("x.png"))["truncation_mode"] == "scale"
    assert sorted(p.name for p in (here / "weights").iterdir()) == ["biggan32_ch8"]
    run(main, "import", FIXTURES / "biggan32_ch8", code=2)
    assert "weights/biggan32_ch8 exists already" in capsys.readouterr().err


def test_verify_finds_a_changed_byte_and_numbers_that_are_none(here, capsys):
    run(main, "import", FIXTURES / "hf-biggan-deep-128_ch8", "--out", "w")
    file = here / "w" / "truncation.safetensors"
    content = bytearray(file.read_bytes())
    content[-7] ^= 1
    file.write_bytes(content)
    run(main, "verify", "w", code=1)
    assert "truncation.safetensors is corrupt (its checksum does not match)" in capsys.readouterr().err
    config = ModelConfig(resolution=32, classes=3, g_ch=2, dim_z=8, shared_dim=4, g_attention=(), d_attention=())
    generator = random_model(config)
    with torch.no_grad():
        generator.linear.bias[3] = torch.nan
    write_reference(here / "theirs", {"G_ema": generator}, None)
    run(main, "import", "theirs/G_ema.pth", "--out", "nan")
    run(main, "verify", "nan", code=1)
    assert "tensor linear.bias holds numbers that are not finite" in capsys.readouterr().err


def test_class_names_travel_with_the_weights(here, capsys):
    names = ["Aino Minako", "美", "c"]
    (here / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    config = ModelConfig(
        family="deep", resolution=128, classes=3, g_ch=4, dim_z=4, shared_dim=4, rgb_channels=4, g_attention=()
    )
    write_huggingface(here / "theirs", random_model(config))
    run(main, "import", "theirs", "--out", "w", "--class-names", "names.txt")
    run(sample, "--run", "w", "--class", "美", "--count", 1, "--truncation", 0.31, "--out", "x.png")
    settings = read_settings(Path("x.png"))
    assert (settings["classes"], settings["truncation_mode"], settings["statistics"]) == ([1], "tfhub", "stored")
    run(main, "export", "w", "--format", "huggingface", "--out", "theirs2")
    assert json.loads((here / "theirs2" / "config.json").read_text())["biggan"]["class_names"] == names
    run(main, "import", "theirs2", "--out", "again")
    capsys.readouterr()
    run(main, "show", "again")
    assert "3: Aino Minako, 美, c" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["biggan32_ch8", "biggandeep64_ch8"])
def test_the_settings_of_a_run_are_kept(name, here):
    theirs = json.loads((FIXTURES / name / "config.json").read_text()) | {"G_activation": torch.nn.ReLU()}
    model = read_released(FIXTURES / name).model
    models = {"G": random_model(model), "G_ema": random_model(model), "D": random_model(model, "discriminator")}
    write_reference(here / "theirs", models, theirs, itr=7)
    for player in "GD":
        optimizer = torch.optim.Adam(models[player].parameters())
        torch.save(optimizer.state_dict(), here / "theirs" / f"{player}_optim.pth")
    run(main, "import", "theirs", "--out", "run")
    config = load_config(str(here / "run" / "config.toml"))
    state = read_state(list_checkpoints(here / "run")[0])
    assert config.to_dict() == state["config"]
    train, optim = config.train, config.optim
    d_batch, g_batch = (theirs["batch_size"] * theirs[f"num_{p}_accumulations"] for p in "DG")
    assert (train.batch_size, train.g_batch_size, train.micro_batch) == (d_batch, g_batch, theirs["batch_size"])
    assert (train.d_steps, optim.g_lr, optim.d_lr) == (theirs["num_D_steps"], theirs["G_lr"], theirs["D_lr"])
    assert (optim.beta1, optim.beta2, optim.eps) == (theirs["G_B1"], theirs["G_B2"], theirs["adam_eps"])
    assert (optim.g_ortho, config.ema.decay) == (theirs["G_ortho"], theirs["ema_decay"])
    assert (state["updates"], state["latents_seen"]) == (7, 7 * g_batch)
    assert state["images_seen"] == 7 * theirs["num_D_steps"] * d_batch


def test_a_run_whose_settings_have_no_counterpart_gives_its_weights(here, capsys):
    model = ModelConfig(resolution=32, classes=3, g_ch=2, d_ch=2, dim_z=8, shared_dim=4, g_attention=(), d_attention=())
    models = {"G": random_model(model), "G_ema": random_model(model), "D": random_model(model, "discriminator")}
    write_reference(here / "theirs", models, reference_settings(model, G_B1=0.5))
    for player in "GD":
        torch.save(torch.optim.Adam(models[player].parameters()).state_dict(), here / "theirs" / f"{player}_optim.pth")
    run(main, "import", "theirs", "--out", "w")
    assert "note: the weights alone are imported: its training settings cannot be kept" in capsys.readouterr().out
    assert sorted(path.stem for path in (here / "w").glob("*.safetensors")) == [
        "discriminator",
        "generator",
        "generator_ema",
    ]

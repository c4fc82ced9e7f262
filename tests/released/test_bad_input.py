"""What cannot be imported: one sentence that names it, nothing run, nothing written."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from biggan.cli.weights import main
from biggan.config import ModelConfig
from foreign import random_model, reference_settings, write_huggingface, write_reference
from tfhub_files import plain_crc, tfhub_variables, write_bundle

BIGGAN = ModelConfig(
    resolution=32, classes=3, g_ch=4, d_ch=4, dim_z=8, shared_dim=4, g_attention=(16,), d_attention=(16, 8)
)
DEEP = ModelConfig(
    family="deep", resolution=128, classes=3, g_ch=4, dim_z=6, shared_dim=6, rgb_channels=4, g_attention=(32,)
)


class Bomb:
    """A pickle that leaves a file behind if it is let."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("originals")
    models = {"G": random_model(BIGGAN), "G_ema": random_model(BIGGAN), "D": random_model(BIGGAN, "discriminator")}
    write_reference(place / "reference", models, reference_settings(BIGGAN))
    write_huggingface(place / "huggingface", random_model(DEEP))
    tfhub = ModelConfig(resolution=64, classes=3, g_ch=1, dim_z=10, shared_dim=4, g_attention=())
    write_bundle(place / "tfhub" / "variables" / "variables", tfhub_variables(random_model(tfhub)))
    return place


@pytest.fixture
def source(originals, tmp_path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(originals, tmp_path / "given")


def message(source: Path, capsys, code: int = 1) -> str:
    """What the command says when it refuses; it must leave nothing behind."""
    out = source.parent / "never"
    before = sorted(source.parent.iterdir())
    with pytest.raises(SystemExit) as exit_info:
        main(["import", str(source), "--out", str(out)])
    assert exit_info.value.code == code
    assert sorted(source.parent.iterdir()) == before
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert len(text.strip().splitlines()) == 1
    return text


def change(file: Path, edit) -> None:
    tensors = torch.load(file, weights_only=True)
    edit(tensors)
    torch.save(tensors, file)


def test_what_is_not_there(tmp_path, capsys):
    assert "nowhere.pth does not exist" in message(tmp_path / "nowhere.pth", capsys, code=2)
    assert "biggan-weights list biggan-deep-256 tells where" in message(tmp_path / "biggan-deep-256", capsys, code=2)
    (tmp_path / "empty").mkdir()
    assert "empty holds no weights" in message(tmp_path / "empty", capsys)
    (tmp_path / "x.jpg").write_bytes(b"x")
    assert "x.jpg: this is none of reference trainer" in message(tmp_path / "x.jpg", capsys)


@pytest.mark.parametrize("file", ["reference/G.pth", "reference/D.pth", "huggingface/pytorch_model.bin"])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_truncated_pickles(source, file, share, capsys):
    data = (source / file).read_bytes()
    (source / file).write_bytes(data[: int(share * len(data))])
    assert Path(file).name in message((source / file).parent, capsys)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("file", ["G.pth", "state_dict.pth"])
def test_code_in_a_pickle_is_refused_by_name_and_not_run(source, file, legacy, capsys):
    mark = source / "reference" / "ran"
    content = {"config": {"activation": torch.nn.ReLU(), "z": Bomb(mark)}}
    torch.save(content, source / "reference" / file, _use_new_zipfile_serialization=not legacy)
    text = message(source / "reference", capsys)
    assert f"{file} holds code or objects besides tensors (posix.mkdir); it is refused" in text
    assert not mark.exists()


def test_other_modules_than_the_one_that_the_settings_need_are_refused(source, capsys):
    for legacy in (False, True):
        content = {"config": {"a": torch.nn.ReLU(), "b": torch.nn.Linear(1, 1)}}
        torch.save(content, source / "reference" / "state_dict.pth", _use_new_zipfile_serialization=not legacy)
        assert "(torch.nn.modules.linear.Linear)" in message(source / "reference", capsys)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"n_classes": 7}, "tensor shared.weight is [3, 4], but the model needs [7, 4]"),
        ({"G_ch": 8}, "tensor linear.weight is [256, 2], but the model needs [512, 2]"),
        ({"D_ch": 8}, "tensor blocks.0.0.conv1.weight is [16, 3, 3, 3], but the model needs [32, 3, 3, 3]"),
        ({"resolution": 33}, "model.resolution = 33: it must be one of"),
        ({"norm_style": "in"}, "norm_style = 'in'"),
        ({"BN_eps": "small"}, "model.bn_eps = 'small': it must be a number"),
    ],
    ids=str,
)
def test_settings_that_contradict_the_weights(source, setting, expected, capsys):
    torch.save({"itr": 0, "config": reference_settings(BIGGAN, **setting)}, source / "reference" / "state_dict.pth")
    assert expected in message(source / "reference", capsys)


def test_tensors_of_another_architecture(source, capsys):
    folder = source / "reference"
    change(folder / "D.pth", lambda t: t.pop("embed.weight"))
    assert "tensor embed.weight [3, 16] is missing" in message(folder, capsys)
    change(folder / "G.pth", lambda t: t.update({"blocks.1.0.conv1.weight": torch.zeros(5, 5, 3, 3)}))
    assert "its blocks have the channels 16->16, 5->16, 16->16; no BigGAN of 32 to 512 px" in message(folder, capsys)
    torch.save({"synthesis.b4.conv.weight": torch.zeros(3)}, source / "other.pth")
    assert "no BigGAN that is known here; its first tensor is synthesis.b4" in message(source / "other.pth", capsys)
    torch.save([1, 2], source / "list.pth")
    assert "list.pth holds no weights" in message(source / "list.pth", capsys)


def test_an_optimizer_of_another_model(source, capsys):
    folder = source / "reference"
    for name in ("G", "D"):
        torch.save({"state": {}, "param_groups": [{"params": [0, 1]}]}, folder / f"{name}_optim.pth")
    assert "G_optim.pth has 2 parameters, but the model has" in message(folder, capsys)
    torch.save([], folder / "G_optim.pth")
    assert "G_optim.pth is not the state of an Adam optimizer" in message(folder, capsys)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"num_classes": 5}, "tensor shared.weight is [3, 6], but the model needs [5, 6]"),
        ({"channel_width": 8}, "tensor linear.weight is [1024, 12], but the model needs [2048, 12]"),
        ({"output_dim": 100}, "output_dim = 100: it must be one of (128, 256, 512)"),
        ({"output_dim": 256}, "layers[5] is (True, 8, 4), but BigGAN-deep at 256 px has (True, 8, 8)"),
        ({"attention_layer_position": 3}, "attention_layer_position = 3: attention must follow a whole stage"),
        ({"eps": None}, "is not a config of pytorch-pretrained-biggan"),
    ],
    ids=str,
)
def test_configs_of_huggingface_that_contradict_the_weights(source, setting, expected, capsys):
    file = source / "huggingface" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | setting))
    assert expected in message(file.parent, capsys)


def test_damaged_tfhub_modules(source, capsys):
    folder = source / "tfhub" / "variables"
    data, index = folder / "variables.data-00000-of-00001", folder / "variables.index"
    good_data, good_index = data.read_bytes(), index.read_bytes()
    data.write_bytes(good_data[:-1])
    assert "data-00000-of-00001 is truncated" in message(source / "tfhub", capsys)
    data.write_bytes(bytes([good_data[0] ^ 1]) + good_data[1:])
    assert "is damaged (its checksum does not match)" in message(source / "tfhub", capsys)
    data.unlink()
    assert "data-00000-of-00001 does not exist" in message(source / "tfhub", capsys)
    data.write_bytes(good_data)
    for spoiled in (
        b"",
        good_index[:-1],
        good_index[: len(good_index) // 2],
        bytes([good_index[9] ^ 8]) + good_index[1:],
    ):
        index.write_bytes(spoiled)
        assert "variables.index is damaged or no TensorFlow checkpoint" in message(source / "tfhub", capsys)
    index.unlink()
    assert "holds no weights" in message(source / "tfhub", capsys)


def test_names_of_other_classes(source, capsys):
    (source / "names.txt").write_text("a\nb\n")
    with pytest.raises(SystemExit):
        main(
            [
                "import",
                str(source / "reference"),
                "--out",
                str(source / "out"),
                "--class-names",
                str(source / "names.txt"),
            ]
        )
    assert "2 class names were given, but" in capsys.readouterr().err
    assert not (source / "out").exists()


def test_the_tests_own_checksum_is_the_standard_one():
    assert plain_crc(b"123456789") == 0xE3069283

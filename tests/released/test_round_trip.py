"""Runs of this program to other formats and back."""

import dataclasses
from pathlib import Path

import pytest
import torch

from biggan.config import ModelConfig, config_from_dict
from biggan.models import build_discriminator, build_generator
from biggan.released import reference_export
from biggan.released.directory import write_released
from biggan.released.exporting import export
from biggan.released.importing import read_released
from biggan.sampling.generate import load_generator
from biggan.training.checkpoint import list_checkpoints, read_state, read_tensors, write_tensors
from foreign import outputs, random_model, write_huggingface
from small import small_config

FIXTURES = Path(__file__).parent.parent / "fixtures"


def import_(source, out):
    write_released(read_released(source), out)


def assert_same_files(a, b):
    names = sorted(path.name for path in a.glob("*.safetensors"))
    assert names == sorted(path.name for path in b.glob("*.safetensors"))
    for name in names:
        ours, theirs = read_tensors(a / name)[0], read_tensors(b / name)[0]
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


@pytest.fixture(scope="module")
def trained(data_file, tmp_path_factory) -> Path:
    """A run of a few updates, which repeats the reference trainer's way of updating."""
    return train(data_file, tmp_path_factory.mktemp("runs") / "trained", updates=2)


def train(data_file, run: Path, updates: int, config=None) -> Path:
    """Go on with a run up to so many updates, on latents and images that depend on its position alone."""
    from biggan.cli.train import main

    if config is None:
        model = {"g_attention": [16], "d_attention": [16, 8], "g_ch": 4, "d_ch": 4}
        config = small_config(model=model, train={"statistics": "forward"})
        run.mkdir()
        (run / "config.toml").write_text(config.to_toml())
    images = updates * 2 * config.train.batch_size
    with pytest.raises(SystemExit) as exit_info:
        main(["--run", str(run), "--data", str(data_file), "--set", f"train.images={images}"])
    assert exit_info.value.code == 0
    return run


def test_a_run_survives_the_reference_trainers_format(trained, tmp_path):
    export(trained, "reference", tmp_path / "theirs")
    import_(tmp_path / "theirs", tmp_path / "back")
    before, after = list_checkpoints(trained)[0], list_checkpoints(tmp_path / "back")[0]
    assert before.name == after.name
    assert_same_files(before, after)
    assert read_state(before)["config"] == read_state(after)["config"]
    assert read_state(before)["description"]["class_names"] == read_state(after)["description"]["class_names"]


def test_an_imported_run_goes_on_interrupted_or_not(trained, data_file, tmp_path):
    """Its own order of images begins anew; the latents, the optimizers and all else go on."""
    config = config_from_dict(read_state(list_checkpoints(trained)[0])["config"])
    export(trained, "reference", tmp_path / "theirs")
    for name in ("one", "two"):
        import_(tmp_path / "theirs", tmp_path / name)
    train(data_file, tmp_path / "one", 4, config)
    train(data_file, tmp_path / "two", 3, config)
    train(data_file, tmp_path / "two", 4, config)
    assert_same_files(list_checkpoints(tmp_path / "one")[0], list_checkpoints(tmp_path / "two")[0])
    tensors, _ = read_tensors(list_checkpoints(tmp_path / "one")[0] / "optimizers.safetensors")
    assert {float(t) for name, t in tensors.items() if name.endswith("/step") and name.startswith("g/")} == {4.0}


@pytest.mark.parametrize("name", ["biggan32_ch8", "biggandeep64_ch8"])
@pytest.mark.parametrize("file", ["G", "D"])
def test_parameters_are_numbered_as_the_reference_trainer_numbers_them(name, file):
    """Its Adam knows them by number only."""
    recorded = torch.load(FIXTURES / name / f"{file}.pth", weights_only=True)
    model = read_released(FIXTURES / name).model
    ours = reference_export.from_native((build_generator if file == "G" else build_discriminator)(model), {})
    moving = ("u0", "sv0", "stored_mean", "stored_var")
    assert [k for k in ours if not k.endswith(moving)] == [k for k in recorded if not k.endswith(moving)]


DEEP = {"family": "deep", "resolution": 128, "classes": 3, "g_ch": 4, "dim_z": 6, "shared_dim": 6}


@pytest.mark.parametrize(("rgb_channels", "converged"), [(3, False), (4, True)])
def test_a_deep_generator_survives_huggingfaces_format(rgb_channels, converged, tmp_path):
    config = ModelConfig(
        **DEEP,
        rgb_channels=rgb_channels,
        g_attention=(32,),
        d_attention=(),
        sn_eps=1e-6,
    )
    generator = random_model(config)
    if not converged:  # as in the middle of a training
        for name, buffer in generator.named_buffers():
            if name.endswith(".u"):
                buffer.copy_(torch.nn.functional.normalize(buffer + 0.3 * torch.randn_like(buffer), dim=1))
    (tmp_path / "ours").mkdir()
    description = {"model": dataclasses.asdict(config), "holds": "generator_ema", "class_names": ["a", "b", "c"]}
    write_tensors(tmp_path / "ours" / "generator_ema.safetensors", generator.state_dict(), description)
    export(tmp_path / "ours", "huggingface", tmp_path / "theirs")
    theirs = torch.load(tmp_path / "theirs" / "pytorch_model.bin", weights_only=True)
    weight, u, v = (theirs[f"generator.conv_to_rgb.weight_{kind}"] for kind in ("orig", "u", "v"))
    assert weight.shape == (4, 4, 3, 3)
    sigma = generator.output_conv.weight.flatten(1).norm() / generator.output_conv.effective_weight().flatten(1).norm()
    torch.testing.assert_close(u @ weight.flatten(1) @ v, sigma)
    import_(tmp_path / "theirs", tmp_path / "back")
    again = load_generator(tmp_path / "back")
    assert again.config == config
    assert again.class_names == ["a", "b", "c"]
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in generator.state_dict().items())


def test_what_a_format_cannot_hold_is_said_and_nothing_is_written(tmp_path, trained):
    with pytest.raises(ValueError, match=r"model.family = 'biggan': in pytorch-pretrained-biggan"):
        export(trained, "huggingface", tmp_path / "out")
    generator = random_model(
        ModelConfig(
            **DEEP,
            rgb_channels=4,
            g_attention=(),
            **dict.fromkeys(("sn_eps", "bn_eps", "output_bn_eps"), 1e-4),
        )
    )
    import_(write_huggingface(tmp_path / "theirs", generator), tmp_path / "ours")
    with pytest.raises(ValueError, match=r"model.output_bn_eps = 0.0001: in the reference trainer it is always 1e-5"):
        export(tmp_path / "ours", "reference", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs"]
    assert outputs(load_generator(tmp_path / "ours")).shape == (2, 3, 128, 128)

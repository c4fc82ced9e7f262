import dataclasses
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biggan.config import Config, ConfigError, config_from_dict, load_config, preset_names


def test_the_presets_are_there():
    expected = {f"{family}{size}" for family in ("biggan", "deep") for size in (64, 128, 256, 512)}
    assert set(preset_names()) == expected | {"digits32", "biggan32", "sagan128", "sngan128"}


@pytest.mark.parametrize("name", preset_names())
def test_presets_load_and_survive_the_way_through_toml(name):
    config = load_config(name)
    assert str(config.model.resolution) in name
    assert config_from_dict(tomllib.loads(config.to_toml())) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.batchsize=4"], "batch_size"),
        (["trian.batch_size=4"], "train"),
        (["batch_size=4"], "section.key=value"),
        (["train.batch_size"], "section.key=value"),
        (["train.batch_size=0"], "at least 1"),
        (["train.batch_size=2.5"], "whole number"),
        (["train.batch_size=true"], "whole number"),
        (["optim.g_lr=fast"], "must be a number"),
        (["optim.g_lr=-1e-4"], "positive"),
        (["data.flip=1"], "true or false"),
        (["model.family=depp"], "deep"),
        (["model.resolution=100"], "one of"),
        (["model.dim_z=121"], "multiple of 6"),
        (["model.g_attention=[48]"], "power of two"),
        (["model.shared_dim=0"], "hierarchical"),
        (["ema.decay=1"], "in [0, 1)"),
        (["run.keep=0"], "positive"),
    ],
)
def test_a_wrong_setting_is_named_with_its_rule(overrides, message):
    with pytest.raises(ConfigError) as error:
        load_config("biggan128", overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="deep256"):
        load_config("depe256")


def test_a_missing_and_a_broken_file_are_named(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(str(tmp_path / "none.toml"))
    broken = tmp_path / "broken.toml"
    broken.write_text("[train\nbatch_size = 4")
    with pytest.raises(ConfigError, match="broken.toml"):
        load_config(str(broken))


def test_overrides_take_precedence_and_keep_types():
    config = load_config(
        "biggan128", ["train.batch_size=64", "optim.g_lr=1e-3", "model.g_attention=[32,64]", "data.path=x.h5"]
    )
    assert config.train.batch_size == 64
    assert config.optim.g_lr == 1e-3
    assert config.model.g_attention == (32, 64)
    assert config.data.path == ("x.h5",)


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_config("digits32").train.batch_size = 1


@given(st.integers(1, 10**6), st.floats(1e-8, 1.0), st.booleans())
def test_values_survive_the_way_through_toml(batch, lr, flip):
    config = config_from_dict({"train": {"batch_size": batch}, "optim": {"g_lr": lr}, "data": {"flip": flip}})
    assert config_from_dict(tomllib.loads(config.to_toml())) == config
    assert isinstance(config, Config)

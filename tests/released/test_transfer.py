"""Weights from elsewhere as the beginning of a run: what goes where, and that nothing goes anywhere silently."""

import dataclasses
from pathlib import Path

import pytest
import torch

from biggan.config import ConfigError, ModelConfig, config_from_dict
from biggan.latents import Stream, normal
from biggan.models import build_discriminator, build_generator
from biggan.released.importing import opened
from biggan.released.transfer import begin, carry, match_classes, starting_config, transfer
from biggan.training.checkpoint import CheckpointError, read_tensors, write_tensors
from small import write_weights

THEIRS = ["ant", "bee", "cat", "dog", "eel"]
SMALL = ModelConfig(
    resolution=32, classes=5, g_ch=2, d_ch=2, dim_z=8, shared_dim=4, g_attention=(16,), d_attention=(16,)
)
VARIANTS = {
    "shared": {},
    "tables": {"shared_dim": 0, "hierarchical": False},
    "flat": {"hierarchical": False},
    "deep": {"family": "deep", "g_ch": 4, "d_ch": 4},
    "deep tables": {"family": "deep", "g_ch": 4, "d_ch": 4, "shared_dim": 0, "hierarchical": False},
}


def models(config: ModelConfig, seed: int = 7):
    torch.manual_seed(seed)
    return build_generator(config), build_discriminator(config)


def begun(source: Path, config: ModelConfig, names: list[str], how: str = "name"):
    """New models that began from a source, and the report."""
    g, d = models(dataclasses.replace(config, classes=len(names)))
    with opened(source) as released:
        return g, d, transfer(g, d, released, names, how)


def pictures(generator, labels):
    z = torch.from_numpy(normal(1, Stream.SAMPLING, 0, len(labels), generator.dim_z))
    with torch.no_grad():
        return generator.eval()(z, torch.tensor(labels))


def load(source: Path, config: ModelConfig):
    g, d = models(config)
    for model, file in ((g, "generator_ema"), (d, "discriminator")):
        model.load_state_dict(read_tensors(source / f"{file}.safetensors")[0])
    return g, d


@pytest.mark.parametrize("variant", VARIANTS)
def test_classes_of_the_same_name_make_the_same_pictures(tmp_path, variant):
    config = dataclasses.replace(SMALL, **VARIANTS[variant])
    source = write_weights(tmp_path / "w", config, THEIRS)
    g, d, _ = begun(source, config, ["dog", "yak", "bee"])
    old_g, old_d = load(source, config)
    torch.testing.assert_close(pictures(g, [0, 2]), pictures(old_g, [3, 1]))
    # In the discriminator the classes share a norm, so their scores change by one common factor.
    x = torch.rand(6, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        ours, theirs = (m.eval().embed.effective_weight() for m in (d, old_d))
        torch.testing.assert_close(d.embed.weight[0], old_d.embed.weight[3])
        assert torch.nn.functional.cosine_similarity(ours[2], theirs[1], dim=0) > 0.9999
        embedding, d.embed, old_d.embed = d.embed, None, None
        torch.testing.assert_close(d(x), old_d(x))
    torch.testing.assert_close(embedding.u.norm(), torch.tensor(1.0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_class_without_a_namesake_begins_as_the_mean(tmp_path, variant):
    config = dataclasses.replace(SMALL, **VARIANTS[variant])
    source = write_weights(tmp_path / "w", config, THEIRS)
    g, _, _ = begun(source, config, ["yak", "zebra"])
    old, _ = load(source, config)
    z = torch.from_numpy(normal(1, Stream.SAMPLING, 0, 1, 8))
    with torch.no_grad():
        mean = old.embed(torch.arange(5)).mean(0, keepdim=True)
        torch.testing.assert_close(g.eval()(z, torch.tensor([1])), old.eval()(z, mean))


@pytest.mark.parametrize("variant", ["tables", "deep tables", "flat"])
def test_one_class_is_the_mean_of_all(tmp_path, variant):
    config = dataclasses.replace(SMALL, **VARIANTS[variant])
    source = write_weights(tmp_path / "w", config, THEIRS)
    g, _, _ = begun(source, config, ["only"])
    old, _ = load(source, config)
    z = torch.from_numpy(normal(1, Stream.SAMPLING, 0, 1, 8))
    with torch.no_grad():
        mean = old.embed(torch.arange(5)).mean(0, keepdim=True)
        torch.testing.assert_close(g.eval()(z), old.eval()(z, mean))


@pytest.mark.parametrize("variant", ["shared", "deep", "tables"])
def test_from_a_model_without_classes_every_class_makes_its_pictures(tmp_path, variant):
    config = dataclasses.replace(SMALL, **VARIANTS[variant], classes=1)
    source = write_weights(tmp_path / "w", config, ["all"])
    g, _, report = begun(source, config, ["a", "b", "c"])
    old, _ = load(source, config)
    torch.testing.assert_close(pictures(g, [0, 1, 2]), pictures(old, [0, 0, 0]))
    assert {item.status for item in report["generator"]} >= {"loaded", "adapted"}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("names", "how"), [(["dog", "yak"], "name"), (["only"], "name"), (["dog", "yak"], "fresh")])
def test_every_tensor_of_both_sides_is_reported(tmp_path, variant, names, how):
    config = dataclasses.replace(SMALL, **VARIANTS[variant])
    source = write_weights(tmp_path / "w", config, THEIRS)
    g, d, report = begun(source, config, names, how)
    untouched_g, untouched_d = models(dataclasses.replace(config, classes=len(names)))
    for model, untouched, holds in ((g, untouched_g, "generator"), (d, untouched_d, "discriminator")):
        items = [item for item in report[holds] if item.status != "unused"]
        assert [item.name for item in items] == list(model.state_dict())
        fresh, now = untouched.state_dict(), model.state_dict()
        for item in items:
            if item.numbers == 1 and item.name.endswith(".u"):
                continue  # 1 or -1, whatever it came from
            assert torch.equal(fresh[item.name], now[item.name]) == (item.status == "initialised"), item
        file = "generator_ema" if holds == "generator" else holds
        theirs = read_tensors(source / f"{file}.safetensors")[0]
        for item in items:
            if item.status == "loaded":
                assert torch.equal(now[item.name], theirs[item.name])
        unused = {item.name for item in report[holds] if item.status == "unused"}
        assert unused <= set(theirs)
        tables = {"shared", "embed"}
        assert not [name for name in unused if name.split(".")[0] not in tables and ".gain" not in name
                    and ".bias" not in name]  # fmt: skip


def test_the_moving_average_is_preferred_and_a_plain_generator_is_taken(tmp_path):
    source = write_weights(tmp_path / "w", SMALL, THEIRS, only="generator_ema")
    tensors, description = read_tensors(source / "generator_ema.safetensors")
    plain = tmp_path / "plain"
    plain.mkdir()
    write_tensors(plain / "generator.safetensors", tensors, description)
    write_tensors(source / "generator.safetensors", {n: t + 1 for n, t in tensors.items()}, description)
    for place in (source, plain, source / "generator_ema.safetensors"):
        g, _, report = begun(place, SMALL, THEIRS)
        assert torch.equal(g.linear.weight, tensors["linear.weight"])
        assert {item.status for item in report["discriminator"]} == {"initialised"}


def test_more_singular_values_may_be_tracked_than_the_source_did(tmp_path):
    source = write_weights(tmp_path / "w", SMALL, THEIRS)
    g, _, report = begun(source, dataclasses.replace(SMALL, singular_values=3), THEIRS)
    old, _ = load(source, SMALL)
    assert torch.equal(g.linear.u[:1], old.linear.u)
    assert {item.status for item in report["generator"] if item.name.endswith(".u")} == {"adapted"}


def test_the_order_of_classes_follows_the_names_or_the_map(tmp_path):
    csv, toml = tmp_path / "map.csv", tmp_path / "map.toml"
    csv.write_text("kitten,cat\n\npuppy,3\n")
    toml.write_text('kitten = "cat"\npuppy = 3\n')
    ours = ["bee", "kitten", "puppy", "yak"]
    assert match_classes(ours, THEIRS, "name") == [1, None, None, None]
    assert match_classes(ours, THEIRS, str(csv)) == match_classes(ours, THEIRS, str(toml)) == [1, 2, 3, None]
    assert match_classes(ours, THEIRS, "mean") == [None] * 4
    assert match_classes(ours, THEIRS, "fresh") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kiten,cat\n", "no class 'kiten'; did you mean kitten?"),
        ("kitten,caat\n", "did you mean cat"),
        ("kitten,5\n", "no class '5', of 5 (0 to 4)"),
        ("kitten\n", "row 1: 1 cells"),
        ("kitten,cat,dog\n", "row 1: 3 cells"),
    ],
)
def test_a_wrong_map_names_the_place_and_what_is_near(tmp_path, text, message):
    file = tmp_path / "map.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match="map.csv") as error:
        match_classes(["kitten"], THEIRS, str(file))
    assert message in str(error.value)


def test_a_map_that_is_missing_or_no_map(tmp_path):
    with pytest.raises(ConfigError, match="no such file; it must be name, mean, fresh or a map file"):
        match_classes(["a"], THEIRS, "names")
    (tmp_path / "bad.toml").write_text("= 3")
    with pytest.raises(ConfigError, match="cannot be read"):
        match_classes(["a"], THEIRS, str(tmp_path / "bad.toml"))


def test_settings_come_from_the_source_and_may_be_given(tmp_path):
    source = write_weights(tmp_path / "w", SMALL, THEIRS)
    config = starting_config({"train": {"batch_size": 3}}, source)
    assert dataclasses.replace(config.model, classes=5) == SMALL
    assert (config.train.batch_size, config.ema.start, config.transfer.source) == (3, 0, str(source))
    assert starting_config({"ema": {"start": 9}}, source).ema.start == 9


def test_a_discriminator_that_is_not_there_is_as_wide_as_the_generator(tmp_path):
    source = write_weights(tmp_path / "w", dataclasses.replace(SMALL, d_ch=7), THEIRS, only="generator_ema")
    assert starting_config({}, source).model.d_ch == 2
    assert starting_config({"model": {"d_ch": 5, "d_depth": 3}}, source).model.d_ch == 5


@pytest.mark.parametrize(
    ("settings", "tensor"),
    [
        ({"g_ch": 4}, "linear.weight is [128, 2], here it would be [256, 2]"),
        ({"d_ch": 4}, "blocks.0.0.conv1.weight is [8, 3, 3, 3], here it would be [16, 3, 3, 3]"),
        ({"dim_z": 16}, "linear.weight is [128, 2], here it would be [128, 4]"),
        ({"shared_dim": 8}, "shared.weight is [5, 4], here it would be [5, 8]"),
        ({"norm": "instance"}, "running_mean is [8], here it would be missing"),
        ({"g_spectral": False}, "u is [1, 128], here it would be missing"),
        ({"g_attention": []}, "gamma is [], here it would be missing"),
        ({"family": "deep", "g_ch": 4, "d_ch": 4}, "here it would be"),
    ],
)
def test_a_contradiction_names_the_setting_and_the_first_tensor(tmp_path, settings, tensor):
    source = write_weights(tmp_path / "w", SMALL, THEIRS)
    with pytest.raises(ConfigError) as error:
        starting_config({"model": settings}, source)
    assert f"model.{next(iter(settings))} = " in str(error.value)
    assert tensor in str(error.value)


def test_attention_may_be_added_and_changes_nothing_at_first(tmp_path):
    source = write_weights(tmp_path / "w", SMALL, THEIRS)
    config = starting_config({"model": {"g_attention": [8, 16]}}, source).model
    g, _, report = begun(source, config, THEIRS)
    old, _ = load(source, SMALL)
    torch.testing.assert_close(pictures(g, [0, 1]), pictures(old, [0, 1]))
    new = [item.name for item in report["generator"] if item.status == "initialised"]
    assert all(name.startswith("blocks.0.1.") for name in new)
    assert new


def test_a_source_whose_tensors_are_not_its_own_architecture_s(tmp_path):
    source = write_weights(tmp_path / "w", SMALL, THEIRS)
    tensors, description = read_tensors(source / "discriminator.safetensors")
    write_tensors(source / "discriminator.safetensors", tensors | {"linear.weight": torch.zeros(1, 9)}, description)
    with pytest.raises(CheckpointError, match=r"tensor linear.weight is \[1, 9\], but the model needs \[1, 8\]"):
        begun(source, SMALL, THEIRS)


def test_a_source_that_is_missing(tmp_path):
    with pytest.raises(ConfigError, match="nowhere: it does not exist"):
        starting_config({}, tmp_path / "nowhere")


def test_the_table_says_at_a_glance_what_happened(tmp_path):
    source = write_weights(tmp_path / "w", SMALL, THEIRS)
    g, d = models(dataclasses.replace(SMALL, classes=3))
    origin, lines = begin(g, d, source, ["dog", "yak", "bee"], "name")
    text = "\n".join(lines)
    assert "adapted             1            12   shared: 2 of 3 classes from theirs, 1 as the mean of all" in text
    assert "linear, blocks 0-2, output_norm, output_conv" in text
    assert text.endswith("as the mean of all classes: yak")
    assert origin["source"] == str(source)
    assert "linear.weight" in origin["transferred"]["g"]


def test_class_vectors_that_are_all_new_count_as_new(tmp_path):
    """They learn at the full rate, whatever the rate of transferred parameters."""
    source = write_weights(tmp_path / "w", SMALL, THEIRS)
    for how, known in (("name", True), ("mean", False), ("fresh", False)):
        g, d = models(dataclasses.replace(SMALL, classes=2))
        origin, _ = begin(g, d, source, ["dog", "yak"], how)
        assert ("shared.weight" in origin["transferred"]["g"]) == known
        assert ("embed.weight" in origin["transferred"]["d"]) == known


@pytest.mark.parametrize(
    ("transfer_settings", "message"),
    [
        ({"freeze_g": 5}, "name the weights with --init-from"),
        ({"source": "w", "g_lr_scale": 0.0}, "must be positive"),
        ({"source": "w", "freeze_g_gap": 1.0}, "transfer.freeze_g"),
        ({"source": "w", "freeze_d_layers": -1}, "can't be negative"),
    ],
)
def test_settings_that_cannot_be(transfer_settings, message):
    with pytest.raises(ConfigError, match=message):
        config_from_dict({"transfer": transfer_settings})


def test_carry_keeps_what_the_source_lacks(tmp_path):
    g, _ = models(SMALL)
    before = {name: t.clone() for name, t in g.state_dict().items()}
    result = carry(g, {"linear.bias": torch.ones_like(g.linear.bias)}, None, {})
    assert [item.name for item in result if item.status == "loaded"] == ["linear.bias"]
    assert all(torch.equal(before[n], t) for n, t in g.state_dict().items() if n != "linear.bias")

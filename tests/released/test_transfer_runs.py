"""Runs that begin from other weights: what is held still, how fast the rest learns, and that they resume exactly."""

import dataclasses
from pathlib import Path

import pytest
import torch
from running import STEP, assert_same_checkpoint, command, events, make_trainer, saved_tensors, train

from biggan.config import Config, ConfigError
from biggan.released.inspection import describe
from biggan.released.transfer import begin, starting_config
from biggan.training.checkpoint import list_checkpoints, read_state
from small import small_config, with_train, write_weights

MODEL = dataclasses.replace(small_config().model, classes=4)


@pytest.fixture
def source(tmp_path) -> Path:
    return write_weights(tmp_path / "theirs", MODEL, ["a", "b", "x", "y"])


def config_from(source: Path, images: int = 6 * STEP, **transfer) -> Config:
    raw = small_config(train={"images": images}).to_dict() | {"model": {}}
    config = starting_config(raw | {"transfer": transfer}, source)
    return config.with_model(classes=3)


def start(trainer) -> None:
    """What biggan-train does for a run without a checkpoint."""
    if trainer.origin is None and trainer.config.transfer.source:
        networks, settings = trainer.networks, trainer.config.transfer
        names = trainer.data.class_names
        origin, _ = begin(networks.generator, networks.discriminator, Path(settings.source), names, settings.classes)
        trainer.begin_from(origin)


def tensors_of(run: Path, update: int, phase: int = 0) -> dict[str, torch.Tensor]:
    name = f"step-{update:08d}" + (f".{phase}" if phase else "")
    return saved_tensors(run / "checkpoints" / name)


def every_step(config: Config) -> Config:
    return dataclasses.replace(config, run=dataclasses.replace(config.run, save_every=1, keep=20))


def changed(before: dict, after: dict, prefix: str) -> set[str]:
    return {n for n, t in before.items() if n.startswith(prefix) and not torch.equal(t, after[n])}


@pytest.mark.parametrize("statistics", ["update", "forward"])
def test_a_held_generator_does_not_move_at_all_until_its_time(source, data_file, tmp_path, statistics):
    config = every_step(config_from(source, freeze_g=2 * STEP + 1))
    train(with_train(config, statistics=statistics), data_file, tmp_path / "r", start)
    first, *frozen, released = [tensors_of(tmp_path / "r", u) for u in (0, 1, 2, 3, 4)]
    for after in frozen:
        assert not changed(first, after, "generator")
        assert "discriminator/blocks.0.0.conv1.weight" in changed(first, after, "discriminator")
    moved = changed(first, released, "generator/")
    assert moved >= {"generator/linear.weight", "generator/linear.u", "generator/output_norm.norm.running_mean"}
    assert changed(first, released, "generator_ema/")
    (event,) = events(tmp_path / "r", "generator released")
    assert (event["update"], event["images_seen"]) == (3, 3 * STEP)
    state = read_state(tmp_path / "r" / "checkpoints" / "step-00000004")
    assert state["latents_seen"] == config.train.g_batch_size


@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize("gap", [0.0, 1e-9])
def test_a_resumed_run_is_the_unbroken_one(source, data_file, tmp_path, monkeypatch, stop, gap):
    """Also when it was stopped while the generator was held, at the end of that, and under the other criterion."""
    from biggan.training import freezing

    monkeypatch.setattr(freezing, "LOOK_EVERY", 1)
    monkeypatch.setattr(freezing, "MATURE", 0.05)  # three updates
    limits = {"freeze_g": (50 if gap else 2) * STEP, "freeze_g_gap": gap}
    config = config_from(source, 5 * STEP, g_lr_scale=0.5, d_lr_scale=0.25, freeze_d_layers=1, **limits)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, d_lr=0.05))
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    train(config, data_file, unbroken, start)
    train(with_train(config, images=stop * STEP), data_file, broken, start)
    train(config, data_file, broken)
    assert [event["update"] for event in events(unbroken, "generator released")] == [3 if gap else 2]
    assert_same_checkpoint(list_checkpoints(broken)[0], list_checkpoints(unbroken)[0])
    assert read_state(list_checkpoints(broken)[0])["waiting"] == read_state(list_checkpoints(unbroken)[0])["waiting"]


def test_the_generator_is_let_go_when_the_discriminator_is_good_enough(source, data_file, tmp_path, monkeypatch):
    from biggan.training import freezing
    from biggan.training.freezing import Waiting

    config = config_from(source, freeze_g=10**6, freeze_g_gap=1.0).transfer
    gaps = [0.5] * 100 + [1.6] * 200
    waiting, over = Waiting(config), None
    for i, gap in enumerate(gaps):
        waiting.add({"d_real": torch.tensor(gap), "d_fake": torch.tensor(0.0)})
        if waiting.look(i + 1, i):
            over = i
            break
    # The mean over the last fifty updates or so passes 1.0 some thirty updates after the jump.
    assert 120 <= over <= 160
    early = Waiting(config)
    early.add({"d_real": torch.tensor(9.0), "d_fake": torch.tensor(0.0)})
    assert early.look(freezing.LOOK_EVERY, 1) is None  # one update says little


def test_the_lower_blocks_of_the_discriminator_stay_as_they_are(source, data_file, tmp_path):
    config = every_step(config_from(source, 2 * STEP, freeze_d_layers=2))
    train(config, data_file, tmp_path / "r", start)
    moved = changed(tensors_of(tmp_path / "r", 0), tensors_of(tmp_path / "r", 2), "discriminator/")
    blocks = {name.split("/")[1].split(".")[1] for name in moved if "blocks" in name}
    assert blocks == {"2", "3"}
    assert {"discriminator/embed.weight", "discriminator/embed.u", "discriminator/linear.weight"} <= moved
    optimized = {n for n in tensors_of(tmp_path / "r", 2) if n.startswith("optimizers/d/blocks")}
    assert {name.split(".")[1] for name in optimized} == {"2", "3"}


def test_fixed_blocks_can_be_let_go_in_mid_run_and_fixed_again(source, data_file, tmp_path):
    for images, count in ((STEP, 2), (2 * STEP, 0), (3 * STEP, 1)):
        train(config_from(source, images, freeze_d_layers=count), data_file, tmp_path / "r", start)
    assert read_state(list_checkpoints(tmp_path / "r")[0])["updates"] == 3


@pytest.mark.parametrize("layers", [1, 4])
def test_blocks_that_know_nothing_or_all_blocks_cannot_be_fixed(tmp_path, data_file, layers):
    source = write_weights(tmp_path / "g", MODEL, ["a", "b", "x", "y"], only="generator_ema")
    with pytest.raises(ConfigError, match="transfer.freeze_d_layers"):
        start(make_trainer(config_from(source, freeze_d_layers=layers), data_file, tmp_path / "r"))


def test_transferred_parameters_learn_at_their_own_rate(source, data_file, tmp_path):
    """Adam's first step is as long as the learning rate, whatever the gradient."""
    steps = {}
    for scale in (1.0, 0.25):
        config = every_step(config_from(source, STEP, classes="fresh", d_lr_scale=scale))
        config = with_train(config, d_steps=1, batch_size=STEP)
        run = tmp_path / str(scale)
        train(config, data_file, run, start)
        before, after = tensors_of(run, 0), tensors_of(run, 1)
        steps[scale] = {n: after[n] - before[n] for n in before if n.startswith("discriminator/")}
    for name in ("discriminator/blocks.0.0.conv1.weight", "discriminator/linear.weight"):
        torch.testing.assert_close(4 * steps[0.25][name], steps[1.0][name], rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(steps[0.25]["discriminator/embed.weight"], steps[1.0]["discriminator/embed.weight"])
    logged = events(tmp_path / "0.25", "update")[0]
    assert logged["d_lr"] == pytest.approx(4e-4)


def toml(directory: Path) -> Path:
    path = directory / "small.toml"
    path.write_text(small_config().to_toml())
    return path


def test_the_command_begins_records_and_never_transfers_twice(source, data_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    begin_it = ("--init-from", source, "--data", data_file, "--set", "train.precision=fp32", "--batch-size", 8)
    quick = ("--micro-batch", 4, "--set", "run.log_every=1", "--set", "run.standing_images=8", "--freeze-g", 9)
    assert command(*begin_it, *quick, "--set", "train.images=16") == 0
    out = capsys.readouterr().out
    assert "2 of 3 classes from theirs, 1 as the mean of all" in out
    assert "as the mean of all classes: c" in out
    run = tmp_path / "weights" / "theirs-shapes"
    assert 'source = "' in (run / "config.toml").read_text()
    (event,) = events(run, "transfer")
    assert event["source"] == str(source)
    assert read_state(list_checkpoints(run)[0])["origin"]["source"] == str(source)
    assert f"origin      trained here on shapes-32, from {source}" in describe(run)
    source.rename(tmp_path / "gone")
    assert command("--run", run, "--data", data_file, "--set", "train.images=24") == 0
    out = capsys.readouterr().out
    assert "resuming" in out
    assert "as the mean" not in out
    assert len(events(run, "transfer")) == 1
    assert command(*begin_it, *quick) == 2
    assert "continues with --run" in capsys.readouterr().err


def test_a_run_of_other_origin_is_not_continued(source, data_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = ("--config", toml(tmp_path), "--data", data_file, "--run", "r", "--set", "train.images=16")
    assert command(*config) == 0
    capsys.readouterr()
    assert command(*config, "--init-from", source) == 2
    assert "began from random weights; start another with --fresh" in capsys.readouterr().err


def test_a_first_start_that_was_killed_is_begun_again(source, data_file, tmp_path, monkeypatch):
    """Whatever the killed process left behind, so long as it had not saved yet."""
    from biggan.training.trainer import Trainer

    monkeypatch.chdir(tmp_path)
    arguments = ("--config", toml(tmp_path), "--init-from", source, "--data", data_file, "--set", "train.images=32")

    def killed(self, log):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", killed)
        assert command(*arguments, "--run", "killed") == 130
    assert (tmp_path / "killed" / "config.toml").exists()
    assert command(*arguments, "--run", "killed") == 0
    assert command(*arguments, "--run", "whole") == 0
    assert_same_checkpoint(*(list_checkpoints(tmp_path / run)[0] for run in ("killed", "whole")))


def test_a_dry_run_shows_the_table_and_writes_nothing(source, data_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    assert command("--init-from", source, "--data", data_file, "--dry-run") == 0
    assert "as the mean of all classes: c" in capsys.readouterr().out
    assert set(tmp_path.rglob("*")) == before


def test_a_run_s_settings_come_along(source, data_file, tmp_path, monkeypatch, capsys):
    """All but its data, its architecture's classes, and what it began from itself."""
    monkeypatch.chdir(tmp_path)
    changes = ("--set", "optim.d_lr=3e-3", "--set", "data.flip=false")
    config = ("--config", toml(tmp_path), "--data", data_file, "--run", "first", "--set", "train.images=16")
    assert command(*config, *changes, "--init-from", source) == 0
    config = starting_config({}, Path("first"))
    assert (config.optim.d_lr, config.data.flip, config.data.path) == (3e-3, False, ())
    assert config.transfer == dataclasses.replace(type(config.transfer)(), source="first")
    assert (config.ema.start, config.model.classes) == (0, 0)

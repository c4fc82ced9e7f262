"""Number and memory formats, scalers, compilation, floors."""

import pytest
import torch
from distributed_checks import update
from running import STEP, assert_same_checkpoint, events, make_trainer, train

from biggan.models import build_discriminator, build_generator
from biggan.training.checkpoint import list_checkpoints, read_state
from biggan.training.ema import Ema
from biggan.training.precision import resolve_precision
from biggan.training.updates import Player, Updates
from small import small_config


def config(updates=3, **settings):
    return small_config(train={"images": updates * STEP} | settings)


def all_tensors(trainer):
    return [t for model in trainer.models.values() for t in model.state_dict().values()]


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_weights_statistics_and_averages_stay_float32(tmp_path, data_file, precision):
    trainer = train(config(precision=precision), data_file, tmp_path)
    for t in all_tensors(trainer):
        assert t.dtype == torch.float32
        assert t.isfinite().all()
    assert trainer.precision == precision


def test_auto_is_one_that_this_device_multiplies():
    assert resolve_precision("auto", torch.device("cpu")) in ("fp32", "bf16")
    assert resolve_precision("fp16", torch.device("cpu")) == "fp16"


def test_each_optimizer_has_a_scaler_whose_state_is_saved(tmp_path, data_file):
    """Six float16 updates are three and three, though the scales differ and move."""

    def different(trainer):
        if not trainer.updates:
            for player, scale in ((trainer.networks.g_player, 2.0**4), (trainer.networks.d_player, 2.0**8)):
                player.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)

    for images in (3, 6):
        train(config(images, precision="fp16"), data_file, tmp_path / "parts", different)
        if images == 3:
            saved = read_state(list_checkpoints(tmp_path / "parts")[0])["scalers"]
            assert saved["g"]["scale"] != saved["d"]["scale"]
    train(config(6, precision="fp16"), data_file, tmp_path / "whole", different)
    a, b = (list_checkpoints(tmp_path / run)[0] for run in ("parts", "whole"))
    assert_same_checkpoint(a, b)
    assert read_state(a)["scalers"] == read_state(b)["scalers"]


def test_an_overflow_is_skipped_counted_and_logged(tmp_path, data_file):
    """A scale beyond float16's range: no weight moves, nothing turns infinite, and no alarm is raised."""
    before = {}

    def overflow(trainer):
        for player in (trainer.networks.g_player, trainer.networks.d_player):
            player.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60, backoff_factor=0.9)
        before.update({name: p.clone() for name, p in trainer.networks.generator.named_parameters()})

    trainer = train(config(precision="fp16"), data_file, tmp_path, overflow)
    for name, p in trainer.networks.generator.named_parameters():
        assert torch.equal(p, before[name])
    assert all(t.isfinite().all() for t in all_tensors(trainer))
    lines = events(tmp_path, "update")
    assert [(line["d_overflow"], line["g_overflow"]) for line in lines] == [(1.0, 1.0)] * 3
    assert [(line["d_skipped"], line["g_skipped"]) for line in lines] == [(2, 1), (4, 2), (6, 3)]
    assert read_state(list_checkpoints(tmp_path)[0])["skipped"] == {"d": 6, "g": 3}
    assert not events(tmp_path, "alarm")


@pytest.mark.parametrize(("side", "model"), [("d", "discriminator"), ("g", "generator")])
def test_a_player_below_its_floor_waits(tmp_path, data_file, side, model):
    trainer = make_trainer(config(**{f"{side}_floor": 1e6}), data_file, tmp_path)
    before = {m: [p.clone() for p in getattr(trainer.networks, m).parameters()] for m in ("generator", "discriminator")}
    trainer = train(config(**{f"{side}_floor": 1e6}), data_file, tmp_path / "run")
    for name, parameters in before.items():
        same = all(map(torch.equal, parameters, getattr(trainer.networks, name).parameters()))
        assert same == (name == model)
    assert all(line[f"{side}_waited"] == 1.0 for line in events(tmp_path / "run", "update"))
    free = train(config(**{f"{side}_floor": -1e6}), data_file, tmp_path / "free")
    assert not all(map(torch.equal, before[model], getattr(free.networks, model).parameters()))


def test_where_nothing_can_be_compiled_training_goes_on(tmp_path, data_file, monkeypatch, capsys):
    def broken(function):
        raise OSError("no compiler found\nlong story")

    monkeypatch.setattr(torch, "compile", broken)
    train(config(1, compile=True), data_file, tmp_path)
    assert "torch.compile does not work here (no compiler found); going on without it" in capsys.readouterr().out


def test_compiled_models_compute_the_same(tmp_path, data_file, monkeypatch):
    """Captured, but not turned into machine code, which takes a minute: the weights of an update enter as arguments."""
    plain = train(config(2), data_file, tmp_path / "plain")
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: original(*args, **kwargs | {"backend": "eager"}))
    monkeypatch.setattr(torch._dynamo.config, "suppress_errors", False)
    compiled = train(config(2, compile=True), data_file, tmp_path / "compiled")
    assert compiled.networks.generator._compiled_call_impl is not None
    for a, b in zip(all_tensors(compiled), all_tensors(plain), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("family", ["biggan", "deep"])
def test_the_memory_format_does_not_change_the_update(family):
    """Fused Adam pairs gradients and weights as they lie in memory, so a mismatch would go unseen otherwise."""
    model = small_config(model={"family": family, "classes": 3, "g_ch": 4, "d_ch": 4}).model
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        networks = [build(model).double().to(memory_format=layout) for build in (build_generator, build_discriminator)]
        adams = [torch.optim.Adam(network.parameters(), lr=1e-3, eps=1e-3, fused=True) for network in networks]
        players = [Player(network, adam, ortho=0.1) for network, adam in zip(networks, adams, strict=True)]
        engine = Updates(*players, Ema(networks[0], 0.5))
        for _ in range(2):
            update(engine, 6, 3)
        results.append([t for network in networks for t in network.state_dict().values()])
    assert any(not t.is_contiguous() for t in results[1])
    for contiguous, channels_last in zip(*results, strict=True):
        torch.testing.assert_close(channels_last, contiguous, rtol=1e-9, atol=1e-12)

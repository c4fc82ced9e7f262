"""Trouble, provoked: numbers that are none, saturated scores, samples that are all the same."""

import json
import math

import pytest
import torch
from running import STEP, events, saved_tensors, train
from torch import nn

from biggan.config import HealthConfig
from biggan.data.audit import audit_run
from biggan.models import build_generator
from biggan.training.checkpoint import list_checkpoints, read_state
from biggan.training.health import Probe, Watch, largest_singular_value
from biggan.training.runlog import read_log
from biggan.training.trainer import TrainingError
from small import small_config


def config(updates, action="warn", **health):
    return small_config(
        train={"images": updates * STEP},
        run={"save_every": 1, "keep": 20},
        health={"on_collapse": action, "patience": 2} | health,
    )


def at_update(number, harm, times=1):
    """Do something to the generator at an update of it, and again whenever it comes by once more, `times` in all."""

    def prepare(trainer):
        update, left = trainer.networks.engine.update_generator, [times]

        def harmed(batches, size, updates):
            result = update(batches, size, updates)
            if updates >= number and left[0]:
                left[0] -= 1
                with torch.no_grad():
                    harm(trainer.networks.generator)
            return result

        trainer.networks.engine.update_generator = harmed

    return prepare


def collapse(generator):
    """Every sample is the same grey, and stays so: nothing reaches the weights through a norm with gain 0."""
    generator.output_norm.gain.zero_()
    generator.output_norm.bias.zero_()


def poison(generator):
    generator.linear.bias.fill_(math.nan)


# -- the signs -------------------------------------------------------------------------------------------------------


def means(**values):
    return {"diversity": 0.5, "d_real_saturated": 0.5, "d_fake_saturated": 0.5} | values


def test_saturation_alarms_after_patience():
    watch = Watch(HealthConfig(patience=3, saturation=0.9), saturates=True)
    saturated = means(d_real_saturated=0.95, d_fake_saturated=1.0)
    assert [watch.look(saturated), watch.look(saturated), watch.look(means())] == [None] * 3
    assert watch.healthy
    assert [watch.look(saturated), watch.look(saturated)] == [None] * 2
    assert not watch.healthy
    assert watch.look(saturated).kind == "saturation"
    assert Watch(HealthConfig(patience=1, saturation=0.9), saturates=False).look(saturated) is None
    assert Watch(HealthConfig(patience=1), saturates=True).look(means(d_real_saturated=1.0)) is None  # one side only


def test_collapse_alarms_against_the_best_diversity_so_far():
    watch = Watch(HealthConfig(patience=2, diversity=0.5), saturates=True)
    for value in (0.1, 0.4, 0.21, 0.19, 0.3):
        assert watch.look(means(diversity=value)) is None
    restored = Watch(watch.config, saturates=True)
    assert watch.look(means(diversity=0.1)) is None
    restored.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    assert restored.look(means(diversity=0.1)).kind == "collapse"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_alarms_at_once(value):
    alarm = Watch(HealthConfig(), saturates=True).look(means(g_loss=value))
    assert (alarm.kind, alarm.text) == ("nan", f"g_loss is {value}: training has diverged")


@pytest.mark.parametrize("family", ["biggan", "deep"])
def test_the_probe_measures_diversity_and_leaves_no_trace(family):
    torch.manual_seed(0)
    generator = build_generator(
        small_config(model={"family": family, "classes": 3, "g_ch": 4, "d_ch": 4}).model
    ).train()
    before = {name: t.clone() for name, t in generator.state_dict().items()}
    probe = Probe(0, 8, 3, torch.device("cpu"))
    assert probe.labels.unique().tolist() == [0, 1, 2]
    lively = float(probe.diversity(generator))
    assert lively > 0.01
    assert all(torch.equal(t, before[name]) for name, t in generator.state_dict().items())
    with torch.no_grad():
        collapse(generator)
    assert float(probe.diversity(generator)) == 0.0


def test_the_largest_singular_value_of_a_model():
    generator = build_generator(small_config(model={"classes": 3}).model)
    with torch.no_grad():
        generator.linear.weight.zero_()
        generator.linear.weight[0, 0] = 7.0
        generator.linear.u.zero_()
        generator.linear.u[0, 0] = 1.0
    assert float(largest_singular_value(generator)) == pytest.approx(7.0)
    assert largest_singular_value(nn.Linear(2, 2)) is None


# -- what is done about them -------------------------------------------------------------------------------------------


def test_a_collapse_is_warned_of(tmp_path, data_file, capsys):
    train(config(7), data_file, tmp_path, at_update(3, collapse))
    alarms = events(tmp_path, "alarm")
    assert [a["sign"] for a in alarms] == ["collapse"] * 2
    assert [a["update"] for a in alarms] == [4, 6]
    assert "the generator has collapsed" in capsys.readouterr().out
    healthy = {p.name: read_state(p)["healthy"] for p in list_checkpoints(tmp_path)}
    assert healthy["step-00000002"]
    assert not healthy["step-00000003"]


def test_a_collapse_can_stop_the_run(tmp_path, data_file):
    with pytest.raises(TrainingError, match="stopped and saved at update 4: .* collapsed"):
        train(config(7, "stop"), data_file, tmp_path, at_update(3, collapse))
    assert list_checkpoints(tmp_path)[0].name == "step-00000004"


def test_not_a_number_ends_the_run_and_is_never_saved(tmp_path, data_file):
    with pytest.raises(TrainingError, match="training has diverged at update 3.*smaller optim.g_lr"):
        train(config(7), data_file, tmp_path, at_update(3, poison))
    assert list_checkpoints(tmp_path)[0].name == "step-00000002"


def test_not_a_number_is_found_before_a_save_that_no_log_precedes(tmp_path, data_file):
    rarely = small_config(train={"images": 7 * STEP}, run={"save_every": 1, "keep": 20, "log_every": 100})
    with pytest.raises(TrainingError, match="the weights are not finite"):
        train(rarely, data_file, tmp_path, at_update(3, poison))
    assert all(t.isfinite().all() for t in saved_tensors(list_checkpoints(tmp_path)[0]).values())


def test_saturation_is_provoked_by_a_discriminator_that_is_too_fast(tmp_path, data_file):
    fast = small_config(
        model={"d_ch": 4},
        train={"images": 20 * STEP},
        optim={"d_lr": 2e-2, "g_lr": 1e-9},
        health={"patience": 3, "saturation": 0.9},
    )
    train(fast, data_file, tmp_path)
    assert "saturation" in {alarm["sign"] for alarm in events(tmp_path, "alarm")}


@pytest.mark.parametrize("harm", [collapse, poison])
def test_rolling_back_by_itself(tmp_path, data_file, harm):
    """Back to the last healthy checkpoint, with a lower learning rate and a larger batch, all of it recorded."""
    run = tmp_path / "run"
    rescued = config(7, "rollback", rollback_lr=0.25, rollback_batch=2)
    trainer = train(rescued, data_file, run, at_update(4, harm))
    (event,) = events(run, "rollback")
    assert event["update"] == 3
    assert event["from_update"] == (5 if harm is collapse else 4)
    assert event["lr_factor"] == 0.25
    assert trainer.images_seen == 3 * STEP + 2 * 2 * STEP
    assert trainer.networks.g_player.optimizer.param_groups[0]["lr"] == 0.25 * rescued.optim.g_lr
    newest = read_state(list_checkpoints(run)[0])
    assert (newest["rollbacks"], newest["pace"]["batch_factor"], newest["healthy"]) == (1, 2, True)
    aside = [path.name for path in (run / "checkpoints").glob("set-aside-*")]
    assert aside == (["set-aside-1-step-00000004"] if harm is collapse else [])
    live = [line["update"] for line in read_log(run) if line["event"] == "update" and not line["superseded"]]
    assert live == [1, 2, 3, 4, 5]
    assert audit_run(run).ok
    # The intervention outlives the process.
    again = train(config(9, "rollback"), data_file, run)
    assert again.pace.lr_factor == 0.25
    assert events(run, "rollback") == [event]


def test_rolling_back_has_an_end(tmp_path, data_file):
    with pytest.raises(TrainingError, match="after 2 rollbacks"):
        train(config(9, "rollback", max_rollbacks=2), data_file, tmp_path, at_update(4, poison, times=9))
    assert [e["lr_factor"] for e in events(tmp_path, "rollback")] == [0.5, 0.25]

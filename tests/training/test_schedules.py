"""Batches, learning rates and the average by the number of images seen."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biggan.config import ConfigError, load_config
from biggan.training.pace import Pace
from biggan.training.schedule import Batches, upcoming
from small import small_config


def pace(train=None, **optim) -> Pace:
    sections = {
        "train": {"images": 10_000, "micro_batch": 4} | (train or {}),
        "optim": {"g_lr": 1.0, "d_lr": 2.0} | optim,
    }
    return Pace(small_config(**sections))


def test_batches_step_up_where_the_schedule_says():
    steps = pace({"batch_schedule": "1_000:16 4_000:64/32"})
    expected = {0: (8, 8), 999: (8, 8), 1000: (16, 16), 3999: (16, 16), 4000: (64, 32), 10**9: (64, 32)}
    assert {images: tuple(steps.batches(images)) for images in expected} == expected


@pytest.mark.parametrize("text", ["", "grow", "1000", "1000:0", "2000:16 1000:32", "0:16", "1000:x"])
def test_a_wrong_batch_schedule_is_refused(text):
    with pytest.raises(ConfigError, match=r"train\.batch_schedule"):
        load_config("digits32", [f"train.batch_schedule='{text}'"])


def test_auto_needs_more_than_one_micro_batch():
    with pytest.raises(ConfigError, match=r"train\.batch_size = 4.*two micro-batches"):
        small_config(train={"batch_schedule": "auto", "batch_size": 4, "micro_batch": 4})


def test_what_is_fetched_ahead_follows_the_schedule():
    """Positions join without a gap across steps of the schedule, in the middle of a step of training too."""
    steps = pace({"batch_schedule": "20:12 50:16/20"})
    source = upcoming(images_seen=0, latents_seen=0, phase=0, batches=steps.batches, micro_batch=4, d_steps=2)
    taken = [next(source) for _ in range(60)]
    for player in ("d", "g"):
        place = 0
        for request in (r for r in taken if r.player == player):
            assert request.start == place
            place += request.count
    # D's updates begin at 0, 8 | 16, 24 | 36, 48 | 60, 76, and G's after each pair: at 16, 36, 60, 92.
    batches = {16: 8, 36: 12, 60: 20, 92: 20}
    for end, batch in batches.items():
        assert sum(r.count for r in taken if r.player == "g" and end <= r.partners < end + batch) == batch


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1.0), ("sqrt", 2.0), ("linear", 4.0)])
def test_learning_rates_scale_with_the_batch(scaling, factor):
    steps = pace({"batch_schedule": "1000:32/8"}, lr_scaling=scaling)
    assert steps.learning_rates(0) == (2.0, 1.0)
    assert steps.learning_rates(1000) == (2.0 * factor, 1.0)
    against_a_base = pace({}, lr_scaling=scaling, base_batch=2)
    assert against_a_base.learning_rates(0) == (2.0 * factor, factor)


def test_warmup_is_gradual_at_the_start_and_after_a_change():
    steps = pace({"batch_schedule": "1000:16"}, lr_scaling="linear", warmup_images=80)
    # The first update of 8 images has a tenth of the learning rate, the tenth all of it.
    first = [steps.learning_rates(8 * i)[1] for i in range(12)]
    assert first == pytest.approx([*(0.1 * i for i in range(1, 11)), 1.0, 1.0])
    ramp = [steps.learning_rates(1000 + 16 * i)[1] for i in range(7)]
    assert ramp == pytest.approx([1.2, 1.4, 1.6, 1.8, 2.0, 2.0, 2.0])


def test_the_ramp_goes_on_from_a_saved_state():
    config = {"train": {"batch_schedule": "1000:16"}, "lr_scaling": "sqrt", "warmup_images": 100, "decay": "cosine"}
    whole = pace(**config)
    positions = [*range(0, 1000, 8), *range(1000, 1400, 16)]
    rates = [whole.learning_rates(images) for images in positions]
    for cut in (1, 7, 124, 126, 128, 140):
        first, second = pace(**config), pace(**config)
        for images in positions[:cut]:
            first.learning_rates(images)
        second.load_state_dict(first.state_dict())
        assert [second.learning_rates(images) for images in positions[cut:]] == rates[cut:]


def test_a_batch_changed_by_hand_ramps_too():
    before = pace({}, lr_scaling="linear", base_batch=8, warmup_images=80)
    for images in range(0, 800, 8):
        before.learning_rates(images)
    after = pace({"batch_size": 16}, lr_scaling="linear", base_batch=8, warmup_images=80)
    after.load_state_dict(before.state_dict())
    assert after.learning_rates(800)[0] == pytest.approx(2.0 * 1.2)
    assert after.learning_rates(880)[0] == pytest.approx(4.0)
    assert after.learning_rates(880)[1] == pytest.approx(1.0)


@pytest.mark.parametrize(("decay", "middle"), [("none", 1.0), ("linear", 0.55), ("cosine", 0.55)])
def test_decay_ends_where_it_should(decay, middle):
    steps = pace(decay=decay, decay_start=2000, decay_end=6000, decay_to=0.1)
    ends = 0.1 if decay != "none" else 1.0
    assert [steps.learning_rates(x)[1] for x in (0, 2000, 4000, 6000, 9000)] == pytest.approx(
        [1, 1, middle, ends, ends]
    )
    until_the_end = pace(decay="linear")
    assert until_the_end.learning_rates(5000)[1] == pytest.approx(0.5)


def test_interventions_multiply_and_are_saved():
    steps = pace({"batch_schedule": "1000:16"})
    steps.intervene(0.5, 2)
    steps.intervene(0.5, 1)
    again = pace({"batch_schedule": "1000:16"})
    again.load_state_dict(steps.state_dict())
    for p in (steps, again):
        assert p.batches(0) == Batches(16, 16)
        assert p.batches(1000) == Batches(32, 32)
        assert p.learning_rates(0) == (0.5, 0.25)


@given(st.integers(1, 64), st.integers(1, 3), st.floats(100, 1e5))
def test_the_averages_half_life_means_the_same_at_any_batch(batch, d_steps, half_life):
    """After half_life images, what was there before weighs a half."""
    config = small_config(train={"batch_size": batch, "d_steps": d_steps})
    config = replace(config, ema=replace(config.ema, half_life=half_life, warmup=0.0))
    decay = Pace(config).ema_decay(10**6)
    assert decay ** (half_life / (batch * d_steps)) == pytest.approx(0.5)


def test_the_averages_half_life_warms_up():
    config = small_config()
    config = replace(config, ema=replace(config.ema, half_life=10_000, warmup=0.1))
    steps = Pace(config)
    step = 2 * config.train.batch_size
    assert steps.ema_decay(0) == 0.0
    assert steps.ema_decay(5000) == pytest.approx(math.exp(-math.log(2) * step / 500))
    assert steps.ema_decay(10**6) == pytest.approx(0.5 ** (step / 10_000))
    assert Pace(small_config()).ema_decay(123) == 0.9

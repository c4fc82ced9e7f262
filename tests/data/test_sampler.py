import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biggan.data.order import Order
from biggan.data.sampler import Sampler, StateMismatch
from biggan.training.schedule import micro_batches


def through_json(sampler: Sampler) -> dict:
    text = json.dumps(sampler.state_dict())
    assert len(text) < 1000
    return json.loads(text)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6000), st.integers(0, 2**64 - 1), st.data())
def test_natural_epochs_hold_each_image_once_wherever_batches_end(n, seed, data):
    sampler = Sampler(n, seed)
    used, records = [], []
    while len(used) < 3 * n and len(records) < 3:
        batch = data.draw(st.integers(1, 2 * n))
        used.extend(sampler.rows(sampler.position, batch).tolist())
        records += sampler.advance(batch)
    for record in records:
        epoch = used[record["start"] : record["end"]]
        assert sorted(epoch) == list(range(n))
        assert record["exact"] is True
    assert [record["epoch"] for record in records] == list(range(len(records)))


def test_the_natural_sampler_follows_the_order():
    assert np.array_equal(Sampler(5000, 9).rows(12_345, 700), Order(5000, 9)[12_345 + np.arange(700)])


UPDATE = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 90),
        "micro_batch": st.integers(1, 40),
        "processes": st.integers(1, 7),
        "ahead": st.integers(0, 200),  # images that were fetched early
        "fate": st.sampled_from(["done", "done", "done", "interrupted", "resumed"]),
    }
)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400), st.sampled_from(["natural", "balanced", "tempered"]), st.lists(UPDATE, max_size=40))
def test_any_schedule_uses_the_same_stream(n, mode, updates):
    """Batch, micro-batch, processes and prefetching change at every update; some updates never complete."""
    labels = np.arange(n) % 7 % 3
    reference = Sampler(labels, 5, mode)
    workers = [Sampler(labels, 5, mode) for _ in range(8)]
    stream: dict[int, int] = {}
    exact = []
    for update in updates:
        position = workers[0].position
        used = {}
        for rank in range(update["processes"]):
            worker = workers[rank]
            worker.rows(worker.position, update["batch"] + update["ahead"])
            for start, count in micro_batches(
                position, update["batch"], update["micro_batch"], rank, update["processes"]
            ):
                for offset, row in enumerate(worker.rows(start, count).tolist()):
                    assert start + offset not in used
                    used[start + offset] = row
        assert sorted(used) == list(range(position, position + update["batch"]))
        if update["fate"] == "interrupted":
            continue
        stream.update(used)
        ended = [worker.advance(update["batch"]) for worker in workers]
        assert all(records == ended[0] for records in ended)
        exact += [record["exact"] for record in ended[0]]
        if update["fate"] == "resumed":
            state = through_json(workers[0])
            workers = [Sampler(labels, 5, mode) for _ in workers]
            for worker in workers:
                worker.load_state_dict(state)
    assert [stream[p] for p in range(len(stream))] == reference.rows(0, len(stream)).tolist()
    assert all(exact)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**12), st.integers(1, 500), st.integers(1, 100), st.integers(1, 9))
def test_the_set_of_micro_batches_does_not_depend_on_the_processes(start, batch, micro_batch, processes):
    alone = micro_batches(start, batch, micro_batch)
    shared = [micro_batches(start, batch, micro_batch, rank, processes) for rank in range(processes)]
    assert sorted(span for spans in shared for span in spans) == alone
    sampler = Sampler(1000, 1)
    rows = [sampler.rows(*span).tolist() for span in alone]
    assert [row for some in rows for row in some] == sampler.rows(start, batch).tolist()


def test_fetching_ahead_does_not_move_the_state():
    sampler = Sampler(100, 0)
    before = sampler.state_dict()
    sampler.rows(0, 5000)
    assert sampler.state_dict() == before


def test_epochs_and_their_bounds():
    sampler = Sampler(100, 0)
    assert [sampler.epoch(p) for p in (0, 99, 100, 250)] == [0, 0, 1, 2]
    assert sampler.epoch_bounds(2) == (200, 300)


def test_huge_data_sets_cost_nothing_to_resume():
    fresh = Sampler(300_000_000, 3, fingerprint="f" * 64)
    state = fresh.state_dict() | {"position": 10**10, "epoch": 33}
    tracemalloc.start()
    sampler = Sampler(300_000_000, 3, fingerprint="f" * 64)
    sampler.load_state_dict(state)
    rows = sampler.rows(sampler.position, 256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    assert np.array_equal(rows, Order(300_000_000, 3)[10**10 + np.arange(256)])
    assert len(json.dumps(sampler.state_dict())) < 1000


def test_a_lost_image_is_noticed_at_the_end_of_the_epoch():
    sampler = Sampler(50, 0)
    sampler.advance(20)
    state = through_json(sampler)
    state["position"] += 1
    resumed = Sampler(50, 0)
    resumed.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"epoch 0 \(positions 0 to 50\) did not use each image"):
        resumed.advance(40)


def moved(**changes):
    """A resumption with other arguments than those of the run."""
    run = Sampler(100, 1, fingerprint="a" * 64)
    run.advance(130)
    settings = {"n": 100, "seed": 1, "fingerprint": "a" * 64} | changes
    resumed = Sampler(settings.pop("n"), settings.pop("seed"), **settings)
    return run, resumed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2}, "the run has seed 1, but the seed is now 2"),
        ({"fingerprint": "b" * 64}, "then 100 images, fingerprint aaaaaaaaaaaa; now 100, bbbbbbbbbbbb"),
        ({"n": 101}, "then 100 images"),
    ],
)
def test_a_changed_seed_or_data_set_is_refused_unless_overridden(changes, message):
    run, resumed = moved(**changes)
    with pytest.raises(StateMismatch, match=message):
        resumed.load_state_dict(through_json(run))
    assert resumed.position == 0
    assert "overridden at image 130, whose epoch 1 stays incomplete" in resumed.load_state_dict(
        through_json(run), override=True
    )
    state = through_json(resumed)
    assert (state["position"], state["epoch"], state["overrides"]) == (130, 2, [130])
    assert [record["exact"] for record in resumed.advance(resumed.n)] == [True]
    again = moved(**changes)[1]
    assert again.load_state_dict(through_json(resumed)) is None  # it is the run's own state now


def test_another_algorithm_is_refused():
    run, resumed = moved()
    with pytest.raises(StateMismatch, match="image order 0, but this version makes order 1"):
        resumed.load_state_dict(through_json(run) | {"algorithm": 0})


@pytest.mark.parametrize(
    "damage",
    [
        {"position": None},
        {"sum": "xyz"},
        {"segments": []},
        {"segments": [{}]},
        {"segments": [{"start": 0, "epoch": 0, "mode": "tempered", "sets": [[100, "a" * 32]]}]},
    ],
)
def test_a_damaged_state_is_refused(damage):
    run, resumed = moved()
    with pytest.raises(StateMismatch, match="state of the sampler is damaged"):
        resumed.load_state_dict(through_json(run) | damage)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sampler(0, 0), "no images"),
        (lambda: Sampler(10, 0, "even"), 'natural, balanced, tempered, not "even"'),
        (lambda: Sampler(np.zeros(10), 0, "tempered", 1.5), "alpha must be between 0"),
        (lambda: Sampler(10, 0, "balanced"), 'sampling "balanced" needs the labels'),
        (lambda: Sampler(10, 0, weights=(1.0, 2.0)), "1 data sets need as many weights, not 2"),
        (lambda: Sampler(10, 0, weights=(0.0,)), "weights of data sets must be positive"),
        (lambda: Sampler(10, 0, join="now"), 'the "current" or the "next" epoch, not "now"'),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()

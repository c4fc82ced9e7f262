"""Changes in mid-run: data sets that grow or are added, and other sampling modes."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biggan.data.sampler import Sampler, StateMismatch
from biggan.data.segments import Part


def family(sizes: list[int]) -> list[Part]:
    """One data set at successive sizes."""
    names = [(size, f"fingerprint after {size}") for size in sizes]
    return [Part(*names[i], tuple(names[:i])) for i in range(len(names))]


def go_on(sampler: Sampler, *parts: Part, **settings) -> Sampler:
    """Save, and resume with other data sets or settings."""
    state = json.dumps(sampler.state_dict())
    assert len(state) < 1000
    labels = settings.pop("labels", sum(part.rows for part in parts))
    resumed = Sampler(labels, sampler.seed, parts=parts, **settings)
    resumed.load_state_dict(json.loads(state))
    return resumed


class Images:
    """The images a run used, named by data set and row in it."""

    def __init__(self):
        self.used: list[tuple[int, int]] = []

    def update(self, sampler: Sampler, count: int) -> list[dict]:
        rows = sampler.rows(sampler.position, count)
        offsets = sampler._population.offsets
        owners = np.searchsorted(offsets, rows, side="right") - 1
        self.used += zip(owners.tolist(), (rows - offsets[owners]).tolist(), strict=True)
        return sampler.advance(count)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 150),
    st.lists(st.tuples(st.integers(1, 120), st.integers(1, 80), st.sampled_from(["current", "next"])), max_size=7),
)
def test_images_that_are_added_join_an_epoch_exactly_once(n, history):
    """A data set grows again and again, at any place in an epoch, also several times within one."""
    sizes = list(np.cumsum([n] + [gain for gain, _, _ in history]).tolist())
    versions = family(sizes)
    sampler = Sampler(n, 3, parts=(versions[0],))
    images, records = Images(), []
    for version, (_, count, join) in zip(versions[1:], history, strict=True):
        records += images.update(sampler, count)
        sampler = go_on(sampler, version, join=join)
    records += images.update(sampler, 3 * sizes[-1])
    assert [record["epoch"] for record in records] == list(range(len(records)))
    for record in records:
        assert record["exact"] is True
        epoch = [row for _, row in images.used[record["start"] : record["end"]]]
        assert sorted(epoch) == list(range(len(epoch)))
        assert len(epoch) in sizes
    ends = [record["end"] for record in records]
    assert all(begin == end for begin, end in zip([record["start"] for record in records[1:]], ends, strict=False))
    assert ends[-1] - records[-1]["start"] == sizes[-1]


def test_joining_the_current_epoch_makes_it_longer_and_the_next_epoch_leaves_it():
    small, large = family([100, 130])
    for join, bounds in (("current", (0, 130)), ("next", (0, 100))):
        sampler = Sampler(100, 0, parts=(small,))
        sampler.advance(40)
        sampler = go_on(sampler, large, join=join)
        assert sampler.epoch_bounds(0) == bounds
        assert sampler.epoch_bounds(1) == (bounds[1], bounds[1] + 130)


def test_a_change_is_described_once():
    small, large = family([100, 130])
    sampler = Sampler(100, 0, parts=(small,))
    sampler.advance(40)
    grown = Sampler(130, 0, parts=(large,))
    said = grown.load_state_dict(sampler.state_dict())
    assert said == ("the sampling changes from image 100 on: natural over 100 images -> natural over 130 images")
    again = Sampler(130, 0, parts=(large,))
    assert again.load_state_dict(grown.state_dict()) is None


def test_a_change_that_is_waiting_can_be_taken_back():
    sampler = Sampler(LABELS, 0, parts=(PART,))
    sampler.advance(50)
    waiting = go_on(sampler, PART, labels=LABELS, mode="balanced")
    back = Sampler(LABELS, 0, parts=(PART,))
    assert "stays natural over 120 images" in back.load_state_dict(waiting.state_dict())
    assert np.array_equal(back.rows(50, 400), sampler.rows(50, 400))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 160), st.integers(0, 160), st.sampled_from(["current", "next"]))
def test_each_of_several_data_sets_may_grow_and_others_be_added(first, second, join):
    a, b = family([60, 70]), family([40, 55])
    c = Part(25, "c")
    sampler = Sampler(100, 1, parts=(a[0], b[0]))
    images = Images()
    records = images.update(sampler, first)
    sampler = go_on(sampler, a[1], b[0], join=join)
    records += images.update(sampler, second)
    sampler = go_on(sampler, a[1], b[1], c, join=join)
    records += images.update(sampler, 450)
    assert all(record["exact"] for record in records)
    for record in records:
        epoch = images.used[record["start"] : record["end"]]
        assert len(set(epoch)) == len(epoch)
        assert len(epoch) in (100, 110, 150)
    assert set(images.used[records[-1]["start"] : records[-1]["end"]]) == {
        (d, row) for d, size in enumerate((70, 55, 25)) for row in range(size)
    }


def test_data_that_shrank_or_changed_places_is_refused():
    (small, large), other = family([100, 130]), Part(50, "other")
    sampler = Sampler(180, 0, parts=(large, other))
    for parts, message in (((small, other), "neither the one"), ((other, large), "neither"), ((large,), "had 2 data")):
        with pytest.raises(StateMismatch, match=message):
            Sampler(sum(p.rows for p in parts), 0, parts=parts).load_state_dict(sampler.state_dict())


LABELS = np.repeat(np.arange(4), [10, 40, 5, 65])
PART = Part(120, "x")


@pytest.mark.parametrize("change", [("natural", "balanced"), ("balanced", "tempered"), ("tempered", "natural")])
def test_a_new_mode_waits_for_the_end_of_the_epoch(change):
    old, new = change
    sampler = Sampler(LABELS, 0, old, parts=(PART,))
    sampler.advance(50)
    end = sampler.epoch_bounds(0)[1]
    before = sampler.rows(0, end)
    resumed = go_on(sampler, PART, labels=LABELS, mode=new)
    assert np.array_equal(resumed.rows(50, end - 50), before[50:])
    assert [r["exact"] for r in resumed.advance(end - 50)] == [True]
    assert resumed.epoch_bounds(1)[0] == end
    ahead = resumed.rows(end, 500)
    again = go_on(resumed, PART, labels=LABELS, mode=new)
    assert np.array_equal(again.rows(end, 500), ahead)
    assert all(r["exact"] for r in again.advance(500))


def test_a_new_mode_at_once_cuts_a_natural_epoch_but_no_block():
    natural = Sampler(LABELS, 0, parts=(PART,))
    natural.advance(50)
    balanced = go_on(natural, PART, labels=LABELS, mode="balanced", join="current")
    assert balanced.epoch_bounds(1)[0] == 50
    block = balanced._segments[-1].block
    balanced.advance(block // 2)
    tempered = go_on(balanced, PART, labels=LABELS, mode="tempered", join="current")
    drawn = np.bincount(LABELS[tempered.rows(50 + block // 2, block - block // 2)], minlength=4)
    drawn += np.bincount(LABELS[balanced.rows(50, block // 2)], minlength=4)
    assert len(set(drawn.tolist())) == 1
    assert all(record["exact"] is not False for record in tempered.advance(600))


def test_going_back_to_a_mode_does_not_repeat_its_order():
    sampler = Sampler(LABELS, 0, "balanced", parts=(PART,))
    first = sampler.rows(0, sampler.epoch_bounds(0)[1])
    sampler.advance(len(first))
    for mode in ("natural", "balanced"):
        sampler = go_on(sampler, PART, labels=LABELS, mode=mode)
        start = sampler.position
        rows = sampler.rows(start, len(first))
        assert not np.array_equal(rows, first)
        sampler.advance(sampler.epoch_bounds(sampler.epoch(start))[1] - start)


def test_balanced_data_that_grows_keeps_exact_quotas():
    small, large = family([120, 150])
    labels = np.concatenate([LABELS, np.full(20, 2), np.full(10, 4)])  # also a new class
    for join in ("current", "next"):
        sampler = Sampler(LABELS, 0, "balanced", parts=(small,))
        sampler.advance(30)
        sampler = go_on(sampler, large, labels=labels, mode="balanced", join=join)
        assert all(record["exact"] for record in sampler.advance(700))
        segment = sampler._segments[-1]
        start = segment.change_point(sampler.position)
        drawn = np.bincount(labels[sampler.rows(start, segment.block)], minlength=5)
        assert drawn.tolist() == [segment.quotas[0]] * 5

"""What a run says while its log is silent."""

import pytest
from running import train

from biggan.training import runlog
from biggan.training.pulse import YEAR, Pulse, estimate, span
from small import small_config


class Time:
    """A clock that is set by hand, and everything that was said by it."""

    def __init__(self):
        self.now = 0.0
        self.said: list[tuple[float, str]] = []
        self.pulse = Pulse(lambda text: self.said.append((self.now, text)) or self.pulse.heard(), lambda: self.now)

    def work(self, until: float, every: float = 1.0, left: float = 1e6) -> None:
        while self.now < until:
            self.now += every
            self.pulse.passed(4, left, "update 1: D 8 of 16 images")

    def times(self) -> list[float]:
        return [now for now, _ in self.said]


def test_it_speaks_after_ten_seconds_and_then_ever_more_rarely():
    time = Time()
    time.work(8000)
    assert time.said[0] == (11, "update 1: D 8 of 16 images, 4 images/s")
    gaps = [b - a for a, b in zip(time.times(), time.times()[1:], strict=False)]
    assert gaps[:5] == [21, 29, 41, 81, 161]  # the third is the estimate, which comes after a minute
    assert gaps[-1] == 601


def test_it_is_silent_where_the_log_is_not():
    time = Time()
    for end in range(5, 61, 5):
        time.work(end)
        time.pulse.heard()
    assert time.said == []
    time.work(65)
    assert time.said == [(61, "at this speed the run takes about 3 days more")]


def test_a_micro_batch_that_takes_minutes_is_told_of_with_an_estimate():
    time = Time()
    time.work(300, every=300, left=4e7)
    ((now, text),) = time.said
    assert now == 300
    assert "about 95 years" in text
    assert "too slow" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 seconds"),
        (119, "119 seconds"),
        (120, "2 minutes"),
        (7300, "2 hours"),
        (86400, "24 hours"),
        (YEAR, "365 days"),
    ],
)
def test_times_are_told_in_the_largest_fitting_unit(seconds, text):
    assert span(seconds) == f"about {text}"
    assert ("GPU" in estimate(seconds)) == (seconds >= YEAR)


@pytest.mark.parametrize("done", [False, True])
def test_a_first_micro_batch_that_takes_long_is_told_of(tmp_path, monkeypatch, done):
    monkeypatch.setattr(runlog, "FIRST_WAIT", 0.2)
    said = []
    log = runlog.RunLog(tmp_path, 100, 0, said.append)
    if done:
        log.passed(4, "D", 1, 4, 8, 100)
    log._impatience.join(10)
    log.close()
    assert said == ([] if done else ["the first micro-batch is still under way; from its end on progress is shown"])


def test_a_run_counts_what_passes_through_its_networks(tmp_path, data_file, monkeypatch):
    passed = []
    monkeypatch.setattr(runlog.Pulse, "passed", lambda self, *what: passed.append(what))
    train(small_config(train={"images": 32, "batch_size": 8, "g_batch_size": 6}), data_file, tmp_path / "run")
    assert passed[:6] == [
        (4, 32 * 1.375, "update 1: D 4 of 8 images"),
        (4, 32 * 1.375, "update 1: D 8 of 8 images"),
        (4, 24 * 1.375, "update 1: D 4 of 8 images"),
        (4, 24 * 1.375, "update 1: D 8 of 8 images"),
        (4, 16 * 1.375, "update 1: G 4 of 6 images"),
        (2, 16 * 1.375, "update 1: G 6 of 6 images"),
    ]
    assert sum(images for images, *_ in passed) == 32 * 1.375

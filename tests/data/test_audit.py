import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biggan.data.audit import HISTORY_FILE, append, audit_run, record_end, record_epoch, record_segment
from biggan.data.dataset import open_data
from biggan.data.sampler import Sampler
from biggan.data.segments import Part


class Run:
    """What a trainer does with a sampler: checkpoints now and then, dies, resumes, writes its history."""

    def __init__(self, directory, data):
        self.directory, self.data = directory, data
        self.checkpoint = None

    def session(self, updates: list[int], every: int = 3, killed: bool = False, override: bool = False, **settings):
        seed = settings.pop("seed", 4)
        sampler = Sampler(self.data.labels, seed, parts=self.data.parts, weights=self.data.weights, **settings)
        change = sampler.load_state_dict(self.checkpoint, override) if self.checkpoint else None
        append(self.directory, record_segment(sampler, self.data, change))
        for number, count in enumerate(updates):
            for record in sampler.advance(count):
                append(self.directory, record_epoch(record))
            if number % every == every - 1:
                self.checkpoint = json.loads(json.dumps(sampler.state_dict()))
        if not killed:
            self.checkpoint = sampler.state_dict()
            append(self.directory, record_end(sampler))
        return sampler


class Rows:
    """Just enough of a data set: labels without images."""

    paths, resolution, weights = ("nowhere.h5",), 32, (1.0,)

    def __init__(self, n: int, ancestors: tuple = ()):
        self.labels = np.zeros(n, dtype=np.int64)
        self.parts = (Part(n, f"data of {n}", ancestors),)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path, Rows(100))


def verdicts(report):
    return [epoch.verdict for epoch in report.epochs]


def test_an_unbroken_run_is_exact(run):
    run.session([30] * 10)
    report = audit_run(run.directory)
    assert verdicts(report) == ["exact"] * 3
    assert report.ok
    assert report.lines()[0] == "epoch 0: images 0 to 100: exact: each of 100 images once"
    assert report.lines()[-1] == "1 session, 3 of 3 epochs exact"


def test_the_epoch_in_progress_is_told_apart(run):
    run.session([30] * 5)
    report = audit_run(run.directory)
    assert verdicts(report) == ["exact", "in progress"]
    assert report.epochs[1].detail == "50 of 100 images, none twice"
    assert verdicts(audit_run(run.directory, position=120)) == ["exact", "in progress"]


SESSION = st.tuples(st.lists(st.integers(1, 70), max_size=12), st.integers(1, 5), st.booleans())


@settings(deadline=None, max_examples=40)
@given(st.lists(SESSION, min_size=1, max_size=6))
def test_runs_that_die_and_resume_are_exact(tmp_path_factory, sessions):
    """Lines beyond the checkpoint that the next session starts from are superseded."""
    run = Run(tmp_path_factory.mktemp("run"), Rows(100))
    for updates, every, killed in sessions:
        run.session(updates, every, killed)
    run.session([1])
    report = audit_run(run.directory)
    assert report.ok
    assert verdicts(report)[:-1] == ["exact"] * (len(report.epochs) - 1)
    position = run.checkpoint["position"]
    assert report.epochs[-1].end == position
    assert len(report.epochs) == -(-position // 100)


@pytest.mark.parametrize("join", ["current", "next"])
def test_growth_is_replayed(run, join):
    run.session([30] * 5)
    run.data = Rows(140, ((100, "data of 100"),))
    run.session([30] * 10, join=join)
    report = audit_run(run.directory)
    assert report.ok
    assert verdicts(report)[:2] == ["exact", "exact"]
    assert (report.epochs[1].end == 240) == (join == "current")
    assert "resumed at image 150: the sampling changes" in report.lines()[-2]


@pytest.fixture
def file_run(tmp_path, make_file):
    path, _ = make_file("a-16.h5", [0] * 8 + [1] * 50 + [2] * 22, ["a", "b", "c"])
    return Run(tmp_path, open_data(path))


def test_changes_of_the_mode_are_replayed(file_run):
    for mode in ("natural", "balanced", "tempered", "natural"):
        file_run.session([37] * 8, mode=mode)
    report = audit_run(file_run.directory)
    assert report.ok
    assert verdicts(report)[:-1] == ["exact"] * (len(report.epochs) - 1)
    assert {epoch.detail[:5] for epoch in report.epochs} >= {"each ", "exact"}
    file_run.data.close()


def test_a_mode_that_starts_at_once_leaves_an_epoch_cut_short(file_run):
    file_run.session([37] * 3)
    file_run.session([37] * 8, mode="balanced", join="current")
    assert verdicts(audit_run(file_run.directory))[:3] == ["exact", "cut short", "exact"]


def test_quotas_cannot_be_replayed_without_the_labels(file_run):
    file_run.session([37] * 8, mode="balanced")
    file_run.data.path.unlink()
    with pytest.raises(ValueError, match=r"a-16\.h5 does not exist"):
        audit_run(file_run.directory)


def test_an_override_is_reported(run):
    run.session([30] * 5)
    run.session([30] * 10, seed=5, override=True)
    report = audit_run(run.directory)
    assert verdicts(report)[:3] == ["exact", "cut short", "exact"]
    assert "overridden at image 150" in "\n".join(report.lines())


def test_a_torn_line_is_skipped(run):
    run.session([30] * 5)
    with open(run.directory / HISTORY_FILE, "a") as file:
        file.write('{"kind": "epoch", "epo')
    run.session([30] * 5)
    report = audit_run(run.directory)
    assert report.ok
    assert report.sessions == 2


def rewrite(run, change):
    path = run.directory / HISTORY_FILE
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in change(lines)))


def test_a_session_that_skipped_images_is_found(run):
    """Resumed at the right position, but with an order that begins elsewhere."""
    run.session([30] * 5)
    run.session([30] * 5)

    def shift(lines):
        second = [line for line in lines if line["kind"] == "segment"][1]
        second["sampler"]["segments"][0]["start"] -= 10
        return [line for line in lines if line["kind"] != "epoch"]

    rewrite(run, shift)
    report = audit_run(run.directory)
    assert not report.ok
    assert "wrong" in verdicts(report)


def test_a_reported_sum_that_the_replay_does_not_give_is_found(run):
    run.session([30] * 5)

    def falsify(lines):
        lines[1]["sum"] = "0" * 16
        return lines

    rewrite(run, falsify)
    report = audit_run(run.directory)
    assert not report.ok
    assert "which the replay does not confirm" in report.problems[0]


def test_a_history_that_begins_late_is_found(run):
    run.session([30] * 5)
    run.session([30])
    rewrite(run, lambda lines: lines[lines.index(next(x for x in lines if x["kind"] == "end")) + 1 :])
    report = audit_run(run.directory)
    assert "begins at image 150" in report.problems[0]
    assert str(report.epochs[0]).endswith("wrong: its first image is 100, but the history has it from 150 on")


def test_what_is_not_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="is .* a run directory"):
        audit_run(tmp_path)
    (tmp_path / HISTORY_FILE).write_text("{}\n\nnonsense\n")
    with pytest.raises(ValueError, match="does not record where the run began"):
        audit_run(tmp_path)

"""Checkpoints written beside the training, kept, rolled back to, and refused by the disk."""

import os
import resource
import shutil
import signal
import threading
from collections import namedtuple

import pytest
import torch
from running import STEP, assert_same_checkpoint, command, events, saved_tensors, train
from torch import nn

from biggan.cli.train import save_cadence
from biggan.config import RunConfig
from biggan.data.audit import audit_run
from biggan.training import trainer as trainer_module
from biggan.training.checkpoint import (
    list_checkpoints,
    newest_checkpoint,
    read_scores,
    read_state,
    read_tensors,
    record_scores,
    remove_unfinished,
    save_checkpoint,
    verify_checkpoint,
)
from biggan.training.runlog import read_log
from biggan.training.saving import BackgroundWriter
from small import small_config


def config(updates=4, **sections):
    run = {"save_every": 1} | sections.pop("run", {})
    return small_config(train={"images": updates * STEP} | sections.pop("train", {}), run=run, **sections)


def steps(run):
    return [path.name for path in reversed(list_checkpoints(run))]


EVERYTHING = {
    "train": {
        "loss": "relativistic", "r1": 0.1, "r2": 0.1, "augment": ["colour", "translation", "cutout"],
        "batch_schedule": "40:16/12", "micro_batch": 4, "d_steps": 2,
    },
    "optim": {"lr_scaling": "sqrt", "warmup_images": 50, "decay": "cosine"},
    "ema": {"half_life": 60.0},
}  # fmt: skip
WASSERSTEIN = {"train": {"loss": "wasserstein", "batch_schedule": "auto", "micro_batch": 4}}


@pytest.mark.parametrize("sections", [EVERYTHING, WASSERSTEIN], ids=["everything", "wasserstein"])
def test_a_run_with_every_option_resumes_exactly(tmp_path, data_file, sections):
    def until(images):
        optim = {"decay_end": 150} | sections.get("optim", {})  # the same decay, however far a part of the run goes
        return small_config(**sections | {"train": sections["train"] | {"images": images}, "optim": optim})

    for images in (48, 80, 150):
        train(until(images), data_file, tmp_path / "parts")
    train(until(150), data_file, tmp_path / "whole")
    a, b = (list_checkpoints(tmp_path / run)[0] for run in ("parts", "whole"))
    assert a.name == b.name
    assert_same_checkpoint(a, b)
    for key in ("pace", "noise", "sampler", "health"):
        assert read_state(a)[key] == read_state(b)[key]


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, data_file, monkeypatch):
    """The first save is held up until two updates later; it still holds the weights of its own moment."""
    train(config(3), data_file, tmp_path / "plain")
    go_on, original, reached = threading.Event(), save_checkpoint, []

    def slow(run, name, *rest):
        if name == "step-00000001":
            assert go_on.wait(60)
        return original(run, name, *rest)

    monkeypatch.setattr(trainer_module, "save_checkpoint", slow)

    def watch(trainer):
        update = trainer.networks.engine.update_generator

        def noted(batches, size, number):
            result = update(batches, size, number)
            reached.append(number)
            if number == 2:
                go_on.set()
            return result

        trainer.networks.engine.update_generator = noted

    train(config(3), data_file, tmp_path / "slow", watch)
    assert reached == [1, 2, 3]
    for ours, theirs in zip(list_checkpoints(tmp_path / "slow"), list_checkpoints(tmp_path / "plain"), strict=True):
        assert_same_checkpoint(ours, theirs)
    saves = events(tmp_path / "slow", "save")
    assert all(save["seconds"] >= 0 and save["stalled"] >= 0 for save in saves)


def test_errors_of_the_writer_that_are_not_the_disks_come_out():
    writer = BackgroundWriter()

    def broken():
        raise ZeroDivisionError("ours")

    writer.submit("step", broken, 0.0)
    with pytest.raises(ZeroDivisionError):
        writer.finished(wait=True)
    writer.close()


@pytest.mark.parametrize("how", ["full", "limit"])
def test_a_full_disk_stops_no_training_and_harms_no_checkpoint(tmp_path, data_file, monkeypatch, capsys, how):
    """Once announced by the free space, once by a write that fails in the middle."""
    run = tmp_path / "run"
    train(config(2), data_file, run)
    before = steps(run)
    good = saved_tensors(list_checkpoints(run)[0])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    usage = namedtuple("usage", "total used free")

    def fill(trainer):
        if how == "full":
            monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1000))
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, limits[1]))

    try:
        with pytest.raises(trainer_module.TrainingError, match="last checkpoint could not be written; free some space"):
            train(config(4), data_file, run, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        monkeypatch.undo()
    assert "could not be written" in capsys.readouterr().out
    assert len(events(run, "save failed")) >= 2  # it went on after the first
    assert steps(run) == before
    assert all(torch.equal(t, good[name]) for name, t in saved_tensors(newest_checkpoint(run, pytest.fail)).items())
    assert not list((run / "checkpoints").glob(".*"))
    train(config(4), data_file, run)
    assert steps(run)[-1] == "step-00000004"


def test_the_newest_and_the_best_are_kept(tmp_path):
    model = {"generator": nn.Linear(1, 1)}

    def save(step, metric="fid"):
        return save_checkpoint(tmp_path, f"step-{step:08d}", model, {}, {"scores": {"loss": -step}}, {}, 2, 1, metric)

    for step, fid in enumerate([30.0, 10.0, 20.0, 40.0, 50.0, 60.0]):
        record_scores(save(step), fid=fid, kid=1.0)
    save(6)
    assert steps(tmp_path) == ["step-00000001", "step-00000005", "step-00000006"]
    assert read_scores(list_checkpoints(tmp_path)[-1]) == {"loss": -1, "fid": 10.0, "kid": 1.0}
    save(7, "-fid")  # now the highest counts
    assert steps(tmp_path) == ["step-00000005", "step-00000006", "step-00000007"]


def test_a_score_of_the_log_can_choose_the_best(tmp_path, data_file):
    run = tmp_path / "run"
    train(config(6, run={"keep": 1, "keep_best": 1, "best_metric": "-d_real"}), data_file, run)
    scores = {line["update"]: line["d_real"] for line in events(run, "update")}
    best = max(scores, key=scores.get)
    assert steps(run) == sorted({f"step-{best:08d}", "step-00000006"})


def test_replacing_a_checkpoint_loses_neither(tmp_path, monkeypatch):
    """Killed between the two renames, the old one is put back."""
    models = {"generator": nn.Linear(1, 1)}
    path = save_checkpoint(tmp_path, "step-00000001", models, {}, {"x": 1}, {}, 3)
    rename = type(path).rename

    def dies(self, target):
        if self.name.endswith(".writing"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(type(path), "rename", dies)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, "step-00000001", models, {}, {"x": 2}, {}, 3)
    monkeypatch.undo()
    assert not path.exists()
    remove_unfinished(tmp_path)
    assert verify_checkpoint(path)["x"] == 1
    save_checkpoint(tmp_path, "step-00000001", models, {}, {"x": 2}, {}, 3)
    assert verify_checkpoint(path)["x"] == 2


def test_rolling_back_by_command(tmp_path, data_file, capsys):
    """The newer checkpoints are set aside, the log's lines stay and are marked, and the run comes out the same."""
    run, toml = tmp_path / "run", tmp_path / "small.toml"
    toml.write_text(config(4, run={"keep": 10}).to_toml())
    common = ["--config", toml, "--data", data_file, "--run", run]
    assert command(*common) == 0
    last = saved_tensors(list_checkpoints(run)[0])
    lines = (run / "log.jsonl").read_text()
    assert command(*common, "--rollback", "7") == 1
    assert "no checkpoint of update 7; there are: 0, 1, 2, 3, 4" in capsys.readouterr().err
    assert command(*common, "--rollback", "2") == 0
    assert (run / "log.jsonl").read_text().startswith(lines)
    assert steps(run) == [f"step-{i:08d}" for i in range(5)]
    aside = sorted(p.name for p in (run / "checkpoints").glob("set-aside-*"))
    assert aside == ["set-aside-1-step-00000003", "set-aside-1-step-00000004"]
    updates = [line for line in read_log(run) if line["event"] == "update"]
    assert [(line["update"], line["superseded"]) for line in updates] == [
        (1, False), (2, False), (3, True), (4, True), (3, False), (4, False),
    ]  # fmt: skip
    assert all(torch.equal(t, last[name]) for name, t in saved_tensors(list_checkpoints(run)[0]).items())
    assert audit_run(run).ok


def test_a_damaged_newest_checkpoint_costs_only_what_came_after_the_one_before(tmp_path, data_file, capsys):
    """By command: it is reported, the one before is used, and the run comes out the same."""
    run, toml = tmp_path / "run", tmp_path / "small.toml"
    toml.write_text(config(3, run={"keep": 10}).to_toml())
    common = ["--config", toml, "--data", data_file, "--run", run]
    assert command(*common) == 0
    last = {name: t.clone() for name, t in saved_tensors(list_checkpoints(run)[0]).items()}  # off the file
    file = run / "checkpoints" / "step-00000003" / "optimizers.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)
    with open(run / "log.jsonl", "a") as log:
        log.write('{"event": "upd')  # and the log's last line is torn
    capsys.readouterr()
    assert command(*common) == 0
    printed = capsys.readouterr().out
    assert "step-00000003: optimizers.safetensors is corrupt" in printed
    assert "resuming" in printed
    assert "2 updates, 32 images seen" in printed
    assert all(torch.equal(t, last[name]) for name, t in saved_tensors(list_checkpoints(run)[0]).items())
    live = [line["update"] for line in read_log(run) if line["event"] == "update" and not line["superseded"]]
    assert live == [1, 2, 3]
    assert audit_run(run).ok


def test_saving_by_images_and_minutes(tmp_path, data_file):
    assert save_cadence(RunConfig(), "5000") == RunConfig(save_every=0, save_images=5000, save_minutes=0.0)
    assert save_cadence(RunConfig(), "2.5min") == RunConfig(save_every=0, save_images=0, save_minutes=2.5)
    run, toml = tmp_path / "run", tmp_path / "small.toml"
    toml.write_text(config(6, run={"keep": 10}).to_toml())
    common = ["--config", toml, "--data", data_file, "--run", run]
    assert command(*common, "--save-every", "40") == 0  # steps end at 16, 32, 48, 64, 80, 96
    assert steps(run) == [f"step-{i:08d}" for i in (0, 3, 5, 6)]
    for wrong in ("0", "often", "-5", "1.5", "5h"):
        assert command(*common, f"--save-every={wrong}") == 2


def test_sigusr1_saves_and_goes_on(tmp_path, data_file):
    def signalled(trainer):
        update = trainer.networks.engine.update_generator

        def noted(batches, size, number):
            if number == 2:
                os.kill(os.getpid(), signal.SIGUSR1)
            return update(batches, size, number)

        trainer.networks.engine.update_generator = noted

    train(config(4, run={"save_every": 0}), data_file, tmp_path / "run", signalled)
    assert steps(tmp_path / "run") == [f"step-{i:08d}" for i in (0, 2, 4)]
    header = read_tensors(list_checkpoints(tmp_path / "run")[1] / "generator_ema.safetensors")[1]
    assert header["updates"] == 2

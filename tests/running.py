"""Runs inside the test's own process."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from biggan.config import Config
from biggan.data.dataset import open_data
from biggan.training.checkpoint import list_checkpoints, read_state, read_tensors
from biggan.training.runlog import RunLog
from biggan.training.trainer import Trainer

STEP = 16  # images per step of the small config


def make_trainer(config: Config, data: Path, run: Path) -> Trainer:
    """A trainer without pictures."""
    return Trainer(config, open_data(data), run, Accelerator(), draw=lambda generator, path: None)


def train(config: Config, data: Path, run: Path, prepare=lambda trainer: None) -> Trainer:
    """Continue a run, or begin it, to its end; `prepare` may tamper with the trainer first."""
    run.mkdir(exist_ok=True)
    trainer = make_trainer(config, data, run)
    if saved := list_checkpoints(run):
        trainer.restore(saved[0], read_state(saved[0]))
    prepare(trainer)
    log = RunLog(run, config.train.images, trainer.images_seen)
    try:
        log.event("start", update=trainer.updates, images_seen=trainer.images_seen)
        assert trainer.train(log)
    finally:
        log.close()
    return trainer


def events(run: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def command(*arguments) -> int:
    """The exit code of biggan-train."""
    from biggan.cli.train import main

    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


def saved_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    files = ("generator", "generator_ema", "discriminator", "optimizers")
    return {f"{f}/{n}": t for f in files for n, t in read_tensors(checkpoint / f"{f}.safetensors")[0].items()}


def assert_same_checkpoint(ours: Path, theirs: Path) -> None:
    a, b = saved_tensors(ours), saved_tensors(theirs)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []

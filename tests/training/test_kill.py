"""kill -9, over and over: what a run had saved is continued to exactly what an unbroken run gives."""

import signal
import time
from pathlib import Path

import launching
import numpy as np
import torch

from biggan.data.audit import audit_run
from biggan.data.dataset import open_data
from biggan.data.sampler import Sampler
from biggan.training.checkpoint import list_checkpoints, read_state, read_tensors, verify_checkpoint
from small import small_config

STEP = 16
KILLS, CHANGES = 12, 6
FILES = ("generator", "generator_ema", "discriminator", "optimizers")


def arguments(run: Path, data: Path, *changes: str) -> list[str]:
    toml = run.parent / "config.toml"
    toml.write_text(small_config(train={"micro_batch": 4}, run={"save_every": 1, "keep": 2}).to_toml())
    return ["--config", toml, "--data", data, "--run", run, *(x for c in changes for x in ("--set", c))]


def finish(arguments: list[str], output: Path) -> None:
    process = launching.start(launching.train, *arguments, output=output)
    process.join(100)
    assert process.exitcode == 0, output.read_text()


def position(run: Path) -> int:
    newest = list_checkpoints(run)
    return read_state(newest[0])["sampler"]["position"] if newest else 0


def kill_sometime(process, run: Path, draw: np.random.Generator, before: list[Path]) -> None:
    """Kill it at a random moment after it has saved something that is further on; often, while it saves again."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.is_alive():
        if list_checkpoints(run)[:1] != before:
            break
        time.sleep(0.002)
    in_a_save = draw.random() < 0.6
    while in_a_save and process.is_alive() and not list((run / "checkpoints").glob(".step-*.writing")):
        pass
    time.sleep(draw.uniform(0, 0.01 if in_a_save else 0.05))
    process.kill()
    process.join()


def test_kills_at_random_moments_leave_no_trace(tmp_path, data_file):
    """Every update is saved, so that many kills strike in the middle of a save."""
    updates = 4 * KILLS
    wanted = f"train.images={updates * STEP}"
    finish(arguments(tmp_path / "whole", data_file, wanted), tmp_path / "output")
    run, draw = tmp_path / "killed", np.random.default_rng(0)
    more = arguments(run, data_file, wanted)
    torn = 0
    for _ in range(KILLS):
        before = list_checkpoints(run)[:1]
        process = launching.start(launching.train, *more, output=tmp_path / "output")
        kill_sometime(process, run, draw, before)
        assert process.exitcode == -signal.SIGKILL
        torn += bool(list((run / "checkpoints").glob(".step-*")))
    assert torn > 0
    assert position(run) > 0
    finish(more, tmp_path / "output")
    ours, theirs = list_checkpoints(run)[0], list_checkpoints(tmp_path / "whole")[0]
    assert ours.name == theirs.name == f"step-{updates:08d}"
    verify_checkpoint(ours)
    for file in FILES:
        a, b = (read_tensors(path / f"{file}.safetensors")[0] for path in (ours, theirs))
        assert a.keys() == b.keys()
        assert [name for name in a if not torch.equal(a[name], b[name])] == []
    report = audit_run(run)
    assert report.ok, report.lines()
    assert report.sessions == KILLS + 1


def test_kills_with_changes_in_between_skip_and_repeat_no_image(tmp_path, data_file):
    """The accumulation, the micro-batch and the number of processes change at every start."""
    run, draw = tmp_path / "run", np.random.default_rng(1)
    for _ in range(CHANGES):
        batch, micro, processes = (int(draw.choice(c)) for c in ((4, 8, 12, 20), (2, 4, 5), (1, 1, 2)))
        changes = f"train.batch_size={batch}", f"train.micro_batch={micro}", "train.images=100000"
        more = arguments(run, data_file, *changes)
        port, before = launching.free_port(), list_checkpoints(run)[:1]
        place = {"processes": processes, "port": port, "output": tmp_path / "output"}
        started = [launching.start(launching.train, *more, rank=r, **place) for r in range(processes)]
        kill_sometime(started[-1], run, draw, before)
        for process in started:  # those that are left notice by themselves
            process.join(60)
            assert process.exitcode != 0
    last = position(run)
    assert last > 0
    finish(arguments(run, data_file, f"train.images={last + 60}"), tmp_path / "output")
    report = audit_run(run)
    assert report.ok, report.lines()
    exact = [epoch for epoch in report.epochs if epoch.verdict == "exact"]
    assert len(exact) == position(run) // len(open_data(data_file))
    assert read_state(list_checkpoints(run)[0])["sampler"]["sum"] == _sum_of(data_file, position(run))


def _sum_of(data_file: Path, end: int) -> str:
    """The audit sum of an unbroken sampler at a position."""
    sampler = Sampler.over(open_data(data_file), 0)
    sampler.advance(end)
    return sampler.state_dict()["sum"]


def test_a_second_start_of_the_same_run_refuses(tmp_path, data_file):
    run, output = tmp_path / "run", tmp_path / "second"
    more = arguments(run, data_file, "train.images=100000")
    first = launching.start(launching.train, *more, output=tmp_path / "output")
    while not list_checkpoints(run) and first.is_alive():
        time.sleep(0.01)
    second = launching.start(launching.train, *more, output=output)
    second.join(60)
    assert second.exitcode == 1
    assert f"by process {first.pid}" in output.read_text().splitlines()[-1]
    assert first.is_alive()
    first.terminate()  # SIGTERM saves
    first.join(60)
    assert first.exitcode == 0
    assert "stopped and saved" in (tmp_path / "output").read_text()

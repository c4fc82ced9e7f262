"""Several processes as one run: exactness, a changing number of them, one that dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import distributed_checks
import launching
import pytest
import torch

from biggan.data.audit import audit_run
from biggan.training.checkpoint import list_checkpoints, read_state, read_tensors, verify_checkpoint
from small import small_config

STEP = 16


@pytest.mark.parametrize("processes", [2, 3])
def test_what_processes_compute_does_not_depend_on_how_many_there_are(processes, tmp_path):
    output = tmp_path / "output"
    codes = launching.together(processes, distributed_checks.check_everything, output=output)
    assert codes == [0] * processes, output.read_text()


def arguments(run: Path, data: Path, *more: str) -> list[str]:
    toml = run.parent / "config.toml"
    toml.write_text(small_config(train={"micro_batch": 2}, optim={"eps": 1e-3}).to_toml())
    return ["--config", toml, "--data", data, "--run", run, *more]


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = list_checkpoints(run)[0]
    verify_checkpoint(newest)
    return {
        f"{file}/{name}": t
        for file in ("generator", "generator_ema", "discriminator")
        for name, t in read_tensors(newest / f"{file}.safetensors")[0].items()
    }


def relative_difference(run: Path, other: Path, start: dict[str, torch.Tensor]) -> float:
    """Of two runs' weights, over how far they came from the start."""
    ours, theirs = weights(run), weights(other)
    apart = sum((ours[name] - theirs[name]).double().square().sum() for name in ours)
    came = sum((ours[name] - start[name]).double().square().sum() for name in ours)
    return float((apart / came).sqrt())


def test_one_two_and_three_processes_train_the_same_run(tmp_path, data_file):
    """After 5 updates in float32 the weights differ by less than 1e-5 of their change, however the work was split, also
    when the number of processes changed in between; and every image was used once an epoch.

    Adam's eps is larger than usual here: it divides gradients by their size, so where one is nearly 0 its rounding
    error, and with it the order of a sum, would decide the direction of a whole step.
    """
    for run, stages in {"one": [(1, 5)], "two": [(2, 5)], "mixed": [(3, 2), (1, 3), (2, 5)]}.items():
        for processes, updates in stages:
            more = arguments(tmp_path / run, data_file, "--set", f"train.images={updates * STEP}")
            output = tmp_path / "output"
            codes = launching.together(processes, launching.train, *more, output=output)
            assert codes == [0] * processes, output.read_text()
    start = {
        f"{file}/{name}": t
        for file in ("generator", "generator_ema", "discriminator")
        for name, t in read_tensors(list_checkpoints(tmp_path / "one")[-1] / f"{file}.safetensors")[0].items()
    }
    assert list_checkpoints(tmp_path / "one")[-1].name == "step-00000000"
    for run in ("two", "mixed"):
        assert 0 < relative_difference(tmp_path / "one", tmp_path / run, start) < 1e-5
        assert audit_run(tmp_path / run).ok
    states = [read_state(list_checkpoints(tmp_path / run)[0]) for run in ("one", "two", "mixed")]
    for key in ("updates", "latents_seen", "sampler"):
        assert states[0][key] == states[1][key] == states[2][key]


def test_synchronised_batch_norm_needs_equal_shares(tmp_path, data_file):
    more = ["--set", "train.batch_norm=sync", "--set", "train.micro_batch=3"]
    output = tmp_path / "output"
    codes = launching.together(2, launching.train, *arguments(tmp_path / "run", data_file, *more), output=output)
    assert codes == [2, 2]
    assert "does not share out evenly" in output.read_text()


@pytest.mark.slow
def test_a_process_that_dies_takes_the_run_down_and_the_next_start_resumes(tmp_path, data_file):
    """Through torchrun, as people start it."""
    run = tmp_path / "run"
    common = arguments(run, data_file, "--set", "run.save_every=2")
    script = Path(__file__).parents[2] / "scripts" / "train.py"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--", script]
    command = list(map(str, [*torchrun, *common]))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as agent:
        deadline = time.monotonic() + 100
        while len(list_checkpoints(run)) < 2 and time.monotonic() < deadline and agent.poll() is None:
            time.sleep(0.05)
        os.kill(workers(agent.pid)[1], signal.SIGKILL)
        output, _ = agent.communicate(timeout=100)
    assert agent.returncode == 1
    assert "another process of this run has died" in output
    saved = read_state(list_checkpoints(run)[0])["updates"]
    assert saved >= 2
    more = ["--set", f"train.images={(saved + 3) * STEP}"]
    assert launching.together(3, launching.train, *common, *more, output=tmp_path / "output") == [0] * 3
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    starts = [e for e in events if e["event"] == "start"]
    assert [e["processes"] for e in starts] == [2, 3]
    assert starts[1]["update"] == saved
    assert audit_run(run).ok


def workers(agent: int) -> list[int]:
    """The processes that a torchrun has started."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    return [int(c) for c in children if b"train.py" in Path(f"/proc/{c}/cmdline").read_bytes()]

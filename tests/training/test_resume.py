"""Runs that are interrupted, continued and changed, through the command that people use."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from biggan.cli.train import main
from biggan.data.dataset import open_data
from biggan.data.loader import Loader
from biggan.data.sampler import Sampler
from biggan.training.checkpoint import list_checkpoints, read_state, read_tensors, verify_checkpoint
from biggan.training.schedule import Batches, micro_batches, upcoming
from small import small_config

STEP = 16  # images per step of the small config: two discriminator updates of 8


def train(run: Path, data: Path, *arguments: str, config=None) -> None:
    toml = run.parent / f"{run.name}.toml"
    toml.write_text((config or small_config()).to_toml())
    with pytest.raises(SystemExit) as end:
        main(["--config", str(toml), "--data", str(data), "--run", str(run), *arguments])
    assert end.value.code == 0


def final_tensors(run: Path) -> dict[str, torch.Tensor]:
    newest = list_checkpoints(run)[0]
    verify_checkpoint(newest)
    files = sorted(newest.glob("*.safetensors"))
    assert len(files) == 4
    return {f"{file.stem}/{name}": t for file in files for name, t in read_tensors(file)[0].items()}


def assert_identical(a: Path, b: Path) -> None:
    ours, theirs = final_tensors(a), final_tensors(b)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different
    states = [read_state(list_checkpoints(run)[0]) for run in (a, b)]
    for key in ("updates", "phase", "latents_seen", "sampler"):
        assert states[0][key] == states[1][key]


@pytest.fixture
def fetched(monkeypatch):
    """Positions and rows of all real images that were loaded and used for a whole update."""
    seen: list[tuple[int, list[int]]] = []
    original = Loader.fetch

    def fetch(self, start, count):
        seen.append((start, self.sampler.rows(start, count).tolist()))
        return original(self, start, count)

    monkeypatch.setattr(Loader, "fetch", fetch)
    return seen


def rows_by_position(fetched, end: int) -> list[int]:
    """The rows at positions 0 .. end, each of which must always have been the same."""
    rows: dict[int, int] = {}
    for start, batch in fetched:
        for position, row in enumerate(batch, start):
            assert rows.setdefault(position, row) == row
    return [rows[position] for position in range(end)]


@pytest.mark.parametrize("family", ["biggan", "deep"])
def test_six_updates_are_three_and_three(tmp_path, data_file, fetched, family):
    config = small_config(model={"family": family, "g_ch": 4, "d_ch": 4}, train={"precision": "fp32"})
    train(tmp_path / "whole", data_file, "--set", f"train.images={6 * STEP}", config=config)
    whole = rows_by_position(fetched, 6 * STEP)
    fetched.clear()
    train(tmp_path / "parts", data_file, "--set", f"train.images={3 * STEP}", config=config)
    train(tmp_path / "parts", data_file, "--set", f"train.images={6 * STEP}", config=config)
    assert rows_by_position(fetched, 6 * STEP) == whole
    assert_identical(tmp_path / "whole", tmp_path / "parts")


def test_stopping_between_micro_batches_changes_nothing(tmp_path, data_file, monkeypatch, capfd):
    """SIGTERM in the middle of an update, at several places: that update is done again, whole."""
    train(tmp_path / "whole", data_file, "--set", f"train.images={3 * STEP}")
    original = Loader.fetch
    calls = 0

    def fetch(self, start, count):
        nonlocal calls
        calls += 1
        if calls % 5 == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, start, count)

    monkeypatch.setattr(Loader, "fetch", fetch)
    for _ in range(20):
        train(tmp_path / "parts", data_file, "--set", f"train.images={3 * STEP}")
        if read_state(list_checkpoints(tmp_path / "parts")[0])["updates"] == 3:
            break
    events = [json.loads(line)["event"] for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert events.count("stop") >= 2
    assert "stopping: finishing this micro-batch" in capfd.readouterr().err
    assert_identical(tmp_path / "whole", tmp_path / "parts")


def test_the_accumulation_grows_in_mid_epoch_and_every_image_is_still_seen_once(tmp_path, data_file, fetched, capsys):
    """The history that the reference trainer crashes on: 2 and 2, stopped in mid-epoch, then 5 and 3."""
    run = tmp_path / "grown"
    n = len(open_data(data_file))
    train(run, data_file, "--g-accumulation", "2", "--d-accumulation", "2", "--set", "train.images=40")
    first = read_state(list_checkpoints(run)[0])["sampler"]["position"]
    assert first % n > 0  # in mid-epoch
    train(run, data_file, "--g-accumulation", "5", "--d-accumulation", "3", "--set", f"train.images={4 * n}")
    last = read_state(list_checkpoints(run)[0])["sampler"]["position"]
    rows = rows_by_position(fetched, last)
    for epoch in range(last // n):
        assert sorted(rows[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert rows == Sampler.over(open_data(data_file), 0).rows(0, last).tolist()
    epochs = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines() if '"epoch"' in line]
    epochs = [e for e in epochs if e["event"] == "epoch"]
    assert len(epochs) == last // n
    assert all(e["exact"] for e in epochs)
    with pytest.raises(SystemExit) as end:
        main(["--audit", str(run)])
    assert end.value.code == 0


schedules = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 16), st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=8
)


@given(schedules)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_what_is_asked_for_covers_every_position_once_whatever_changes(schedule):
    """Batch, micro-batch, D steps and processes change at every interruption; the positions join without a gap."""
    images = latents = 0
    for batch, micro, d_steps, processes in schedule:
        wanted = {"d": [], "g": []}
        for rank in range(processes):
            source = upcoming(
                images_seen=images, latents_seen=latents, phase=0,
                batches=lambda position, batch=batch: Batches(batch, batch + 3),
                micro_batch=micro, d_steps=d_steps, rank=rank, processes=processes,
            )  # fmt: skip
            own = d_steps * len(micro_batches(0, batch, micro, rank, processes))
            own += len(micro_batches(0, batch + 3, micro, rank, processes))
            for _ in range(own):
                request = next(source)
                wanted[request.player] += range(request.start, request.start + request.count)
        assert sorted(wanted["d"]) == list(range(images, images + d_steps * batch))
        assert sorted(wanted["g"]) == list(range(latents, latents + batch + 3))
        images, latents = images + d_steps * batch, latents + batch + 3


@given(st.integers(0, 10**9), st.integers(1, 300), st.integers(1, 64), st.integers(1, 9))
def test_the_set_of_micro_batches_does_not_depend_on_the_processes(start, batch, micro, processes):
    alone = micro_batches(start, batch, micro)
    shared = [span for rank in range(processes) for span in micro_batches(start, batch, micro, rank, processes)]
    assert sorted(shared) == alone
    assert sum(span.count for span in alone) == batch

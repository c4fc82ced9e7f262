import resource
import signal
import time

import launching
import pytest
import torch
from torch import nn

from biggan.training import checkpoint
from biggan.training.checkpoint import (
    CheckpointError,
    list_checkpoints,
    load_model,
    load_optimizer,
    newest_checkpoint,
    optimizer_tensors,
    read_state,
    read_tensors,
    save_checkpoint,
    verify_checkpoint,
)


def network(width=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))


def save(run, step=1, model=None, keep=10):
    model = model or network()
    return save_checkpoint(
        run,
        f"step-{step:08d}",
        {"generator": model},
        {"g/x/step": torch.tensor(1.0)},
        {"updates": step},
        {"model": {}},
        keep,
    )


def test_what_is_saved_is_what_is_read(tmp_path):
    model = network()
    path = save(tmp_path, 7, model)
    assert verify_checkpoint(path)["updates"] == 7
    tensors, description = read_tensors(path / "generator.safetensors")
    assert description == {"model": {}, "holds": "generator"}
    other = network()
    nn.init.zeros_(other[0].weight)
    load_model(other, tensors, path)
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000007\n"


def test_only_the_newest_are_kept_and_they_are_listed_newest_first(tmp_path):
    for step in (1, 2, 10, 9):
        save(tmp_path, step, keep=3)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000010", "step-00000009", "step-00000002"]


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 1)
    model = network()
    nn.init.ones_(model[0].weight)
    path = save(tmp_path, 1, model)
    tensors, _ = read_tensors(path / "generator.safetensors")
    assert torch.equal(tensors["0.weight"], model[0].weight)
    assert len(list((tmp_path / "checkpoints").glob("*step*"))) == 1


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "state", "digit", "remove state"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(tmp_path, damage):
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    file = bad / "generator.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[-3] ^= 1
        file.write_bytes(data)
    elif damage == "truncate":
        file.write_bytes(data[:-10])
    elif damage == "remove":
        file.unlink()
    elif damage == "state":
        (bad / "state.json").write_text((bad / "state.json").read_text()[:50])
    elif damage == "digit":  # still valid JSON
        text = (bad / "state.json").read_text()
        (bad / "state.json").write_text(text.replace('"updates": 2', '"updates": 3'))
    else:
        (bad / "state.json").unlink()
    reports = []
    assert newest_checkpoint(tmp_path, reports.append) == good
    assert len(reports) == 1
    assert str(bad) in reports[0]


def test_a_truncated_model_file_gives_one_clear_error(tmp_path):
    path = save(tmp_path)
    file = path / "generator.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="generator.safetensors.*truncated"):
        read_tensors(file)


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path)
    monkeypatch.setattr(checkpoint, "FORMAT", 0)
    with pytest.raises(CheckpointError, match="format 1, this version reads up to 0"):
        read_state(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("0.weight"), "0.weight .* is missing"),
        (lambda t: t.update({"0.weight": torch.zeros(5, 3)}), r"0.weight is \[5, 3\].* needs \[4, 3\]"),
        (lambda t: t.update({"extra": torch.zeros(1)}), "no tensor extra"),
    ],
)
def test_tensors_of_another_architecture_are_refused_by_name(change, message):
    tensors = dict(network().state_dict())
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        load_model(network(), tensors, "x")


def test_adam_goes_on_where_it_was(tmp_path):
    def steps(model, adam, count):
        for _ in range(count):
            model(torch.ones(4, 3)).square().sum().backward()
            adam.step()
            adam.zero_grad()

    def optimizer(model):
        return torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.5, 0.9), fused=True)

    one = network()
    adam = optimizer(one)
    steps(one, adam, 3)
    two = network()
    two.load_state_dict(one.state_dict())
    again = optimizer(two)
    load_optimizer("g", again, two, optimizer_tensors("g", adam, one))
    steps(one, adam, 3)
    steps(two, again, 3)
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(tmp_path):
    save(tmp_path, 1)
    big = nn.Linear(1000, 1000)  # 4 MB
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails like on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(OSError):
            save(tmp_path, 2, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if "step" in p.name] == ["step-00000001"]
    verify_checkpoint(tmp_path / "checkpoints" / "step-00000001")


def save_for_ever(run, output):
    model = nn.Linear(300, 300)
    for step in range(1, 100_000):
        save_checkpoint(run, f"step-{step:08d}", {"generator": model}, {}, {"updates": step}, {}, 2)
        with open(output, "a") as file:
            file.write(f"{step}\n")


def test_kill_9_at_any_moment_of_saving_loses_nothing_saved(tmp_path):
    for i in range(6):
        run, output = tmp_path / str(i), tmp_path / f"{i}.txt"
        process = launching.CONTEXT.Process(target=save_for_ever, args=(run, output))
        process.start()
        while not output.exists():
            time.sleep(0.001)
        time.sleep(0.013 * i)
        process.kill()
        process.join()
        saved = len(output.read_text().split())
        newest = newest_checkpoint(run, report=lambda text: pytest.fail(text))
        assert read_state(newest)["updates"] >= saved

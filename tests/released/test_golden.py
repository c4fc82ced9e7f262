"""Recorded checkpoints of other programs through the real command: the recorded pictures, and back again.

Some are fixtures; BIGGAN_GOLDEN names a folder with more of them.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from biggan.cli.weights import main
from biggan.released.pickles import load_pickle
from biggan.sampling.generate import load_discriminator, load_generator
from biggan.sampling.standing import statistics_at
from biggan.training.checkpoint import list_checkpoints, read_tensors

FIXTURES = Path(__file__).parent.parent / "fixtures"
GOLDEN = Path(os.environ.get("BIGGAN_GOLDEN", "not given"))


def golden(name: str) -> Path:
    if not (GOLDEN / name).exists():
        pytest.skip(f"BIGGAN_GOLDEN names no folder with {name}")
    return GOLDEN / name


def run(*arguments: object) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([str(a) for a in arguments])
    assert exit_info.value.code == 0


def largest_error(found: torch.Tensor, recorded: np.ndarray) -> float:
    return float(np.abs(found.detach().numpy() - recorded).max())


def check_reference(source: Path, out: Path) -> None:
    run("import", source, "--out", out)
    with np.load(source / "trace.npz") as trace:
        z, y = torch.from_numpy(trace["eval_z"]), torch.from_numpy(trace["eval_y"]).long()
        assert largest_error(load_generator(out, ema=False)(z, y), trace["eval_img"]) < 1e-4
        assert largest_error(load_generator(out)(z, y), trace["eval_img_ema"]) < 1e-4
        scores = load_discriminator(out)(torch.from_numpy(trace["eval_img"]), y)
        np.testing.assert_allclose(scores.detach(), trace["eval_d"].ravel(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["biggan32_ch8", "biggandeep64_ch8"])
def test_reference_trainer(name, tmp_path):
    check_reference(FIXTURES / name, tmp_path / name)


@pytest.mark.parametrize("name", ["biggan32_ch8", "biggandeep64_ch8", "biggan128_ch8"])
def test_runs_of_the_reference_trainer_come_back_from_an_export_bit_for_bit(name, tmp_path):
    source, run_directory, back = golden(name), tmp_path / "run", tmp_path / "back"
    check_reference(source, run_directory)
    assert list_checkpoints(run_directory)
    run("verify", run_directory)
    run("export", run_directory, "--format", "reference", "--out", back)
    for file in ("G", "G_ema", "D"):
        theirs, ours = (torch.load(d / f"{file}.pth", weights_only=True) for d in (source, back))
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    for file in ("G_optim", "D_optim"):
        theirs, ours = (torch.load(d / f"{file}.pth", weights_only=True) for d in (source, back))
        assert theirs["param_groups"] == ours["param_groups"]
        assert theirs["state"].keys() == ours["state"].keys()
        for theirs_of, ours_of in zip(theirs["state"].values(), ours["state"].values(), strict=True):
            assert all(torch.equal(theirs_of[key], ours_of[key]) for key in theirs_of)
    theirs, ours = (load_pickle(d / "state_dict.pth") for d in (source, back))
    settings = theirs.pop("config")
    assert {key: ours[key] for key in theirs} == theirs
    assert {key: str(ours["config"][key]) for key in settings} == {key: str(value) for key, value in settings.items()}


@pytest.mark.parametrize("whole", [False, True])
def test_huggingface(whole, tmp_path):
    """The fixture holds every fourth pixel of the recorded pictures."""
    name = "hf-biggan-deep-128_ch8"
    source, step = (golden(name), 1) if whole else (FIXTURES / name, 4)
    run("import", source, "--out", tmp_path / "ours")
    generator = load_generator(tmp_path / "ours")
    with np.load(source / "expected.npz") as expected:
        z, y = torch.from_numpy(expected["z"]), torch.from_numpy(expected["y"]).long()
        for truncation in ("1.0", "0.4", "0.02"):
            with statistics_at(generator, float(truncation), "tfhub"):
                images = generator(z, y)[:, :, ::step, ::step]
            assert largest_error(images, expected[f"img_t{truncation}"]) < 1e-4
    run("export", tmp_path / "ours", "--format", "huggingface", "--out", tmp_path / "back")
    theirs, ours = (torch.load(d / "pytorch_model.bin", weights_only=True) for d in (source, tmp_path / "back"))
    assert theirs.keys() == ours.keys()
    for key in theirs:
        if key.endswith(".weight_v"):  # computed anew from u and the weight
            torch.testing.assert_close(theirs[key], ours[key], atol=1e-4, rtol=0)
        else:
            assert torch.equal(theirs[key], ours[key]), key
    run("import", tmp_path / "back", "--out", tmp_path / "again")
    for file in ("generator_ema.safetensors", "truncation.safetensors"):
        once, twice = (read_tensors(tmp_path / d / file)[0] for d in ("ours", "again"))
        assert all(torch.equal(once[key], twice[key]) for key in once)


def test_tfhub(tmp_path):
    source = golden("tfhub-biggan-128_ch8")
    run("import", source, "--out", tmp_path / "ours")
    with np.load(source / "expected.npz") as expected:
        z, y = torch.from_numpy(expected["z"]), torch.from_numpy(expected["y"]).long()
        assert largest_error(load_generator(tmp_path / "ours")(z, y), expected["img"]) < 1e-4

"""The update code, in the mode that repeats the reference trainer, against what that trainer did."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from biggan.config import ModelConfig
from biggan.models import build_discriminator, build_generator
from biggan.training.ema import Ema
from biggan.training.updates import DiscriminatorBatch, GeneratorBatch, Player, Updates

FIXTURES = Path(__file__).parent.parent / "fixtures"


class Recording(NamedTuple):
    """One recorded run of the reference trainer."""

    directory: Path
    config: dict
    trace: dict

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """A checkpoint under our names."""
        recorded = torch.load(self.directory / f"{name}.pth", weights_only=True)
        names = {"output_layer.0.": "output_norm.", "output_layer.2.": "output_conv.", "stored_": "norm.running_"}
        ours = {}
        for key, tensor in recorded.items():
            if not re.search(r"\.sv\d+$", key):
                for theirs, mine in names.items():
                    key = key.replace(theirs, mine)
                ours[re.sub(r"\.u0$", ".u", key)] = tensor
        return ours

    def model(self) -> ModelConfig:
        config = self.config
        g_attention, d_attention = (tuple(int(s) for s in config[f"{p}_attn"].split("_")) for p in "GD")
        if config["resolution"] == 32 and 16 in d_attention:
            d_attention = (16, 8)  # the reference calls all four blocks of this discriminator 16 px
        return ModelConfig(
            family={"BigGAN": "biggan", "BigGANdeep": "deep"}[config["model"]],
            resolution=config["resolution"],
            classes=config["n_classes"],
            g_ch=config["G_ch"],
            d_ch=config["D_ch"],
            dim_z=config["dim_z_used"],
            shared_dim=config["shared_dim"],
            g_attention=g_attention,
            d_attention=d_attention,
            sn_eps=config["SN_eps"],
            bn_eps=config["BN_eps"],
        )


@pytest.fixture(params=["biggan32_ch8", "biggandeep64_ch8"])
def recording(request) -> Recording:
    directory = FIXTURES / request.param
    with np.load(directory / "trace.npz") as trace:
        return Recording(directory, json.loads((directory / "config.json").read_text()), dict(trace))


def image_error(model, recording, key):
    """The largest difference to the recorded images, in evaluation mode."""
    model.eval()
    z, y = (torch.from_numpy(recording.trace[name]) for name in ("eval_z", "eval_y"))
    with torch.no_grad():
        return float(np.abs(model(z, y.long()).numpy() - recording.trace[key]).max())


def test_checkpoints_of_the_reference_give_its_images_and_scores(recording):
    generator, discriminator = build_generator(recording.model()), build_discriminator(recording.model())
    for name, key in (("G", "eval_img"), ("G_ema", "eval_img_ema")):
        generator.load_state_dict(recording.weights(name))
        assert image_error(generator, recording, key) < 1e-4
    discriminator.load_state_dict(recording.weights("D"))
    discriminator.eval()
    with torch.no_grad():
        x, y = (torch.from_numpy(recording.trace[name]) for name in ("eval_img", "eval_y"))
        scores = discriminator(x, y.long())
    np.testing.assert_allclose(scores, recording.trace["eval_d"].ravel(), rtol=1e-5, atol=1e-4)


class Replay:
    """The recorded micro-batches, through our updates; keeps the losses of each pass, as the reference logs them."""

    def __init__(self, recording: Recording):
        self.config, self.trace = recording.config, recording.trace
        config, arch = recording.config, recording.model()
        self.generator, self.discriminator = build_generator(arch), build_discriminator(arch)
        self.generator.load_state_dict(recording.weights("G_init"))
        self.discriminator.load_state_dict(recording.weights("D_init"))
        self.ema = Ema(self.generator, config["ema_decay"], average_vectors=True)
        self.engine = Updates(
            Player(self.generator, self._adam(self.generator, "G"), config["G_ortho"]),
            Player(self.discriminator, self._adam(self.discriminator, "D"), config["D_ortho"]),
            self.ema,
            statistics="forward",
        )
        self.scores: list[torch.Tensor] = []
        self.discriminator.register_forward_hook(lambda module, args, out: self.scores.append(out.detach()))

    def _adam(self, model, prefix):
        config = self.config
        betas = (config[f"{prefix}_B1"], config[f"{prefix}_B2"])
        return torch.optim.Adam(model.parameters(), lr=config[f"{prefix}_lr"], betas=betas, eps=config["adam_eps"])

    def update(self, u: int) -> tuple[float, float, float]:
        """All updates of one recorded step; returns the losses of the last micro-batches: G, D real, D fake."""
        config, batch = self.config, self.config["batch_size"]
        images, labels, z, fake_labels = (torch.from_numpy(self.trace[k][u]) for k in ("x", "y", "z", "gy"))
        index = 0
        for _ in range(config["num_D_steps"]):
            batches = []
            for _ in range(config["num_D_accumulations"]):
                real = images[index].float() / 127.5 - 1
                batches.append(DiscriminatorBatch(real, labels[index].long(), z[index], fake_labels[index].long()))
                index += 1
            self.engine.update_discriminator(batches, batch * len(batches))
        fake, real = self.scores[-1].split(batch)
        batches = [
            GeneratorBatch(z[index + i], fake_labels[index + i].long()) for i in range(config["num_G_accumulations"])
        ]
        self.engine.update_generator(batches, batch * len(batches), u + 1)
        g_loss = -self.scores[-1].mean() / len(batches)
        return float(g_loss), float((1 - real).relu().mean()), float((1 + fake).relu().mean())


def test_the_reference_trainers_updates_are_reproduced(recording):
    replay = Replay(recording)
    for u in range(recording.config["steps"]):
        expected = [recording.trace[name][u] for name in ("G_loss", "D_loss_real", "D_loss_fake")]
        np.testing.assert_allclose(replay.update(u), expected, rtol=1e-5, atol=1e-5)
    for name, model, tolerance in (("G", replay.generator, 0.05), ("D", replay.discriminator, 0.01)):
        before, after = recording.weights(f"{name}_init"), recording.weights(name)
        parameters = dict(model.named_parameters())
        distance = sum(float((p.detach() - after[k]).square().sum()) for k, p in parameters.items()) ** 0.5
        change = sum(float((before[k] - after[k]).square().sum()) for k in parameters) ** 0.5
        assert distance < tolerance * change
    assert image_error(replay.generator, recording, "eval_img") < 1e-3
    assert image_error(replay.ema.model, recording, "eval_img_ema") < 1e-3

"""The networks of a run with all that trains them: what a checkpoint holds, besides the position."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from biggan.config import Config, ConfigError, TransferConfig
from biggan.models import build_discriminator, build_generator
from biggan.models.norm import synchronise
from biggan.models.spectral import fix, resample_separately
from biggan.training.checkpoint import MODEL_FILES, load_model, load_optimizer, optimizer_tensors, read_tensors
from biggan.training.distributed import Group
from biggan.training.ema import Ema
from biggan.training.losses import LOSSES, Penalties
from biggan.training.precision import autocast, compile_models, grad_scaler
from biggan.training.saving import snapshot
from biggan.training.updates import Player, Updates


class Networks:
    """Generator, discriminator, moving average, optimizers, and the updates over them.

    `warning` holds a sentence for the user if something that the config asks for is not possible here.
    """

    def __init__(self, config: Config, group: Group, precision: str):
        train, device = config.train, group.device
        torch.manual_seed(train.seed)  # only for the initial weights; everything else is addressed by position
        self.generator = build_generator(config.model).to(device, memory_format=torch.channels_last)
        self.discriminator = build_discriminator(config.model).to(device, memory_format=torch.channels_last)
        if train.statistics == "forward":
            resample_separately(self.generator, self.discriminator)
        self.ema = Ema(self.generator, config.ema.decay, config.ema.start, train.statistics == "forward")
        for model in (self.generator, self.discriminator):
            model.checkpointing = train.checkpointing
        if train.batch_norm == "sync" and group.processes > 1:
            synchronise(self.generator)
        self.warning: str | None = None
        if train.compile:
            reason = compile_models(self.generator, self.discriminator)
            self.warning = reason and f"torch.compile does not work here ({reason}); going on without it"
        fix_lower_blocks(self.discriminator, config.transfer.freeze_d_layers)
        optim = config.optim
        self.g_player = self._player(config, self.generator, optim.g_lr, optim.g_ortho, train.g_floor, precision)
        self.d_player = self._player(config, self.discriminator, optim.d_lr, optim.d_ortho, train.d_floor, precision)
        interpolated = train.gradient_penalty if LOSSES[train.loss].interpolated else 0.0
        self.engine = Updates(
            self.g_player,
            self.d_player,
            self.ema,
            loss=train.loss,
            penalties=Penalties(train.r1, train.r2, interpolated),
            policy=train.augment,
            statistics=train.statistics,
            reduce=group.sum if group.processes > 1 else None,
            autocast=partial(autocast, precision, device),
            first=group.first,
        )

    def _player(
        self, config: Config, model: nn.Module, lr: float, ortho: float, floor: float, precision: str
    ) -> Player:
        optim, device = config.optim, next(model.parameters()).device
        trained = [p for p in model.parameters() if p.requires_grad]
        adam = torch.optim.Adam(
            trained, lr=lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=device.type != "mps"
        )
        return Player(model, adam, ortho, grad_scaler(precision, device), floor)

    @property
    def models(self) -> dict[str, nn.Module]:
        return dict(zip(MODEL_FILES, (self.generator, self.ema.model, self.discriminator), strict=True))

    @property
    def players(self) -> dict[str, Player]:
        return {"d": self.d_player, "g": self.g_player}

    def set_learning_rates(self, d: float, g: float) -> None:
        for player, lr in ((self.d_player, d), (self.g_player, g)):
            for parameters in player.optimizer.param_groups:
                parameters["lr"] = lr * parameters.get("lr_scale", 1.0)

    def begin_from(self, names: dict[str, list[str]], config: TransferConfig) -> None:
        """After weights from elsewhere were put into generator and discriminator: into the parameters `names`."""
        for name, p in self.discriminator.named_parameters():
            if not p.requires_grad and name not in names["d"]:
                rule = f"{name} is in these blocks and was not transferred, so it has to learn"
                raise ConfigError(f"transfer.freeze_d_layers = {config.freeze_d_layers}: {rule}")
        self.ema.model.load_state_dict(self.generator.state_dict())
        self.set_transferred(names, config)

    def set_transferred(self, names: dict[str, list[str]], config: TransferConfig) -> None:
        """Give the parameters that came from elsewhere (names by "g" and "d") learning rates of their own."""
        for side, player, scale in (("g", self.g_player, config.g_lr_scale), ("d", self.d_player, config.d_lr_scale)):
            if scale == 1:
                continue
            transferred = {p for name, p in player.model.named_parameters() if name in names[side]}
            groups = player.optimizer.param_groups
            settings = {key: value for key, value in groups[0].items() if key not in ("params", "lr_scale")}
            old = [p for p in player.parameters if p in transferred]
            new = [p for p in player.parameters if p not in transferred]
            groups[:] = [settings | {"params": new}, settings | {"params": old, "lr_scale": scale}]

    def tensors(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
        """Copies of the models' tensors, by file, and of the optimizers'."""
        optimizers = optimizer_tensors("g", self.g_player.optimizer, self.generator)
        optimizers |= optimizer_tensors("d", self.d_player.optimizer, self.discriminator)
        return {name: snapshot(model.state_dict()) for name, model in self.models.items()}, snapshot(optimizers)

    def state_dict(self) -> dict[str, Any]:
        """What is not a tensor."""
        return {
            "scalers": {side: player.scaler.state_dict() for side, player in self.players.items()},
            "noise": {side: player.noise.state_dict() for side, player in self.players.items()},
            "skipped": {side: int(player.skipped) for side, player in self.players.items()},
        }

    def restore(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """Everything from a verified checkpoint; raises CheckpointError if it is another model's."""
        for name, model in self.models.items():
            tensors, _ = read_tensors(checkpoint / f"{name}.safetensors")
            load_model(model, tensors, checkpoint / f"{name}.safetensors")
        tensors, _ = read_tensors(checkpoint / "optimizers.safetensors")
        for side, player in self.players.items():
            player.optimizer.state.clear()
            load_optimizer(side, player.optimizer, player.model, tensors)
            # A run that was fp32, or an imported one, has no scale; an imported one has no noise scale either.
            if player.scaler.is_enabled() and state["scalers"][side]:
                player.scaler.load_state_dict(state["scalers"][side])
            player.noise.load_state_dict(state.get("noise", {}).get(side, [0.0, 0.0, 0.0]))
            player.skipped.fill_(state.get("skipped", {}).get(side, 0))

    def finite(self) -> bool:
        """Whether all weights and statistics are numbers."""
        norms = [torch.nn.utils.get_total_norm(list(model.state_dict().values())) for model in self.models.values()]
        return all(math.isfinite(float(norm)) for norm in norms)


def fix_lower_blocks(discriminator: nn.Module, count: int) -> None:
    """Leave the `count` blocks nearest to the image out of training (FreezeD, Mo et al. 2020, arXiv 2002.10964)."""
    if not count:
        return
    blocks = discriminator.blocks
    if count >= len(blocks):
        rule = f"the discriminator has {len(blocks)} blocks, and one at least must learn"
        raise ConfigError(f"transfer.freeze_d_layers = {count}: {rule}")
    # BigGAN-deep has a convolution before its first block.
    for part in [getattr(discriminator, "input_conv", None), *blocks[:count]]:
        if part is not None:
            part.requires_grad_(False)
            fix(part)

"""How large a micro-batch fits: the activations of one image are counted, not guessed, by a pass on the meta device."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from biggan.config import Config
from biggan.models import build_discriminator, build_generator

SHARE = {"cuda": 0.8, "cpu": 0.5}  # of the device's memory that activations may take
WORKSPACE = 1.3  # gradients of activations and scratch space, beside what is kept for the backward pass
CHECKPOINTED = 0.4  # of the activations are kept with activation checkpointing


def activation_bytes(config: Config) -> int:
    """Bytes that one more image in a micro-batch takes in float32, at the hungrier of the two updates.

    A discriminator update keeps the discriminator's activations of two images, a real and a generated one; a generator
    update those of both networks for one.
    """
    with torch.device("meta"):
        generator, discriminator = build_generator(config.model), build_discriminator(config.model)
        z, y = torch.empty(1, config.model.dim_z), torch.zeros(1, dtype=torch.int64)
        image = torch.empty(1, 3, config.model.resolution, config.model.resolution)
    ours = _kept_for_backward(generator, z, y)
    theirs = _kept_for_backward(discriminator, image, y)
    return max(2 * theirs, ours + theirs)


def _kept_for_backward(model: nn.Module, *inputs: Tensor) -> int:
    weights = {t.untyped_storage()._cdata for t in model.state_dict().values()}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # Weight-sized tensors (normalised weights) do not grow with the batch.
        if storage._cdata not in weights and tensor.ndim == 4 and tensor.shape[0] == 1:
            sizes[storage._cdata] = storage.nbytes()
        kept.append(tensor)  # alive, so that no storage's identity is used twice
        return tensor

    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(*inputs)
    return sum(sizes.values())


def memory_bytes(device: torch.device) -> int:
    """The device's whole memory: what is free at the moment would make the answer a matter of chance."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def fitting_micro_batch(config: Config, device: torch.device, precision: str, processes_here: int = 1) -> int:
    """The configured micro-batch, halved until its activations fit into the device's memory, but at least 1."""
    per_image = activation_bytes(config) * WORKSPACE * (0.5 if precision in ("bf16", "fp16") else 1)
    per_image *= CHECKPOINTED if config.train.checkpointing else 1
    sharing = processes_here if device.type == "cpu" else 1
    budget = memory_bytes(device) * SHARE.get(device.type, 0.5) / sharing
    micro_batch = config.train.micro_batch
    while micro_batch > 1 and micro_batch * per_image > budget:
        micro_batch //= 2
    return micro_batch

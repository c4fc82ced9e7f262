"""Foreign .pth and .bin files, without running anything that is in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from biggan.training.checkpoint import CheckpointError

# The reference trainer's config holds its activation functions as modules.
ALLOWED = [nn.ReLU, nn.LeakyReLU, set]


def load_pickle(path: Path) -> Any:
    """Tensors and plain values of a file that `torch.save` wrote; the tensors stay on disk where the format allows.

    Raises CheckpointError for a file that is missing, truncated, or holds anything but data (nothing of it is run).
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    try:
        with torch.serialization.safe_globals(ALLOWED):
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):  # a file of the format before torch 1.6
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise CheckpointError(
                f"{path} holds code or objects besides tensors ({_culprit(str(error))}); it is refused, and nothing in "
                "it was run"
            ) from None
        raise CheckpointError(f"{path} is not a PyTorch file, or a damaged one") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise CheckpointError(f"{path} cannot be read ({reason}); it may be truncated") from None


def _culprit(message: str) -> str:
    """The name of the forbidden global in torch's long message."""
    for marker in ("Unsupported global: GLOBAL ", "Unsupported class ", "Trying to load unsupported GLOBAL "):
        if marker in message:
            return message.partition(marker)[2].split()[0].rstrip(".")
    return "an unsupported pickle instruction"


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """A state dict. Raises CheckpointError when the file holds something else."""
    tensors = load_pickle(path)
    if isinstance(tensors, dict) and isinstance(tensors.get("state_dict"), dict):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, dict) or not all(isinstance(t, torch.Tensor) for t in tensors.values()) or not tensors:
        raise CheckpointError(f"{path} holds no weights (a dictionary of tensors was expected)")
    return {str(name).removeprefix("module."): tensor for name, tensor in tensors.items()}

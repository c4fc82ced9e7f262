"""Foreign .pth and .bin files, without running anything that is in them."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from biggan.training.checkpoint import CheckpointError, read_tensors

# The reference trainer's settings hold its activation function as a module, its counters the best scores as numpy's
# numbers.
_SCALAR = np.float64(0).__reduce__()[0]
ALLOWED = [
    nn.ReLU,
    set,  # inside of modules
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),  # its name before numpy 2
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64)),
]


def load_pickle(path: Path) -> Any:
    """Tensors and plain values of a file that `torch.save` wrote; the tensors stay on disk where the format allows.

    Raises CheckpointError for a file that is missing, truncated, or holds anything but data (nothing of it is run).
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return _load(path)
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


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
    # A file of the format before torch 1.6.
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "persistent_load" not in str(error):
            raise
        return torch.load(_without_sources(path), map_location="cpu", weights_only=True)


def _without_sources(path: Path) -> io.BytesIO:
    """The file without the source code that old versions of torch stored beside each class of a module.

    They wrote ("module", class, file name, source) and an instruction to look that up; the class alone is left.
    """
    data = path.read_bytes()
    stream = io.BytesIO(data)
    for _ in range(3):  # magic number, version, system
        list(pickletools.genops(stream))
    begin = stream.tell()
    names, arguments, offsets = zip(*((op.name, x, at) for op, x, at in pickletools.genops(data[begin:])), strict=True)
    starts = [begin + at for at in offsets] + [begin + offsets[-1] + 1]
    for name, argument in zip(names, arguments, strict=True):
        if name == "GLOBAL" and argument.startswith("torch.nn.") and not argument.endswith(".activation ReLU"):
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {argument.replace(' ', '.')} ")
    kept, i = data[:begin], 0
    while i < len(names):
        if names[i] == "MARK" and arguments[i + 1] == "module":
            cls = names.index("GLOBAL", i)
            kept += data[starts[cls] : starts[cls + 2]]  # the class, and its place in the memo
            i = names.index("BINPERSID", cls) + 1
        else:
            kept += data[starts[i] : starts[i + 1]]
            i += 1
    return io.BytesIO(kept + data[starts[-1] :])


def _culprit(message: str) -> str:
    """The name of the forbidden global in torch's long message."""
    for marker in ("Unsupported global: GLOBAL ", "Unsupported class ", "Trying to load unsupported GLOBAL "):
        if marker in message:
            return message.partition(marker)[2].split()[0].rstrip(".")
    return "an unsupported pickle instruction"


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """A state dict, of a .safetensors file too. Raises CheckpointError when the file holds something else."""
    tensors = read_tensors(path)[0] if path.suffix == ".safetensors" else load_pickle(path)
    if isinstance(tensors, dict) and isinstance(tensors.get("state_dict"), dict):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, dict) or not all(isinstance(t, torch.Tensor) for t in tensors.values()) or not tensors:
        raise CheckpointError(f"{path} holds no weights (a dictionary of tensors was expected)")
    return {str(name).removeprefix("module."): tensor for name, tensor in tensors.items()}

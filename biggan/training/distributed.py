"""Several processes as one: the few things that they tell each other.

Gradients are summed once per update, as one flat message. Decisions, such as to stop, travel between the hosts alone,
so that no GPU is waited for. Weights are never sent: every process starts from the same and does the same to them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn


class ProcessLost(RuntimeError):
    """Another process of the run has died or cannot be reached."""


def make_accelerator() -> Accelerator:
    """This process's place among those that torchrun or accelerate launched: on CUDA devices, else on the CPU."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    # Without a GPU, several processes are only seen as such if the CPU is asked for.
    accelerator = Accelerator(cpu=launched > 1 and not torch.cuda.is_available())
    if accelerator.num_processes != launched:
        raise RuntimeError(
            f"{launched} processes were launched, but they do not see each other ({accelerator.distributed_type}); "
            "start them with: torchrun --nproc_per_node N -m -- biggan.cli.train ..."
        )
    return accelerator


class Group:
    """All processes of a run. With a single one, everything here is free."""

    def __init__(self, device: torch.device, rank: int = 0, processes: int = 1):
        self.device, self.rank, self.processes = device, rank, processes
        # NCCL only speaks between GPUs; hosts decide among themselves through gloo.
        several = processes > 1
        self._hosts = dist.new_group(backend="gloo") if several and device.type != "cpu" else None

    @classmethod
    def of(cls, accelerator: Accelerator) -> Group:
        return cls(accelerator.device, accelerator.process_index, accelerator.num_processes)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, tensors: list[Tensor]) -> None:
        """Add up over processes, in place."""
        if self.processes == 1:
            return
        with _reporting_losses():
            flat = torch.cat([t.flatten() for t in tensors])
            dist.all_reduce(flat)
        parts = flat.split([t.numel() for t in tensors])
        torch._foreach_copy_(tensors, [part.view_as(t) for part, t in zip(parts, tensors, strict=True)])

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Which of the flags are set in any process."""
        if self.processes == 1:
            return flags
        votes = torch.tensor(flags, dtype=torch.int32)
        with _reporting_losses():
            dist.all_reduce(votes, dist.ReduceOp.MAX, group=self._hosts)
        return tuple(bool(vote) for vote in votes)

    def from_first(self, value: Any) -> Any:
        """The first process's value, in every process."""
        if self.processes == 1:
            return value
        box = [value]
        with _reporting_losses():
            dist.broadcast_object_list(box, group=self._hosts)
        return box[0]

    def require_agreement(self, models: dict[str, nn.Module]) -> None:
        """Raise RuntimeError if the weights are not the same in every process, bit for bit."""
        if self.processes == 1:
            return
        for name, model in models.items():
            sums = torch.stack([_bit_sum(t) for t in model.state_dict().values()]).cpu()
            highest, lowest = sums.clone(), sums.clone()
            with _reporting_losses():
                dist.all_reduce(highest, dist.ReduceOp.MAX, group=self._hosts)
                dist.all_reduce(lowest, dist.ReduceOp.MIN, group=self._hosts)
            if not torch.equal(highest, lowest):
                place = list(model.state_dict())[int((highest != lowest).nonzero()[0])]
                raise RuntimeError(
                    f"the processes of this run no longer agree on {name}'s {place}; nothing was saved. Are their "
                    "machines of different kinds, or their versions of torch? Start again from the last checkpoint"
                )


def _bit_sum(tensor: Tensor) -> Tensor:
    return tensor.detach().float().contiguous().view(torch.int32).sum(dtype=torch.int64)


@contextlib.contextmanager
def _reporting_losses() -> Iterator[None]:
    try:
        yield
    except dist.DistError as error:
        raise ProcessLost(_lost(error)) from error
    except RuntimeError as error:
        if "gloo" in str(error).lower():
            raise ProcessLost(_lost(error)) from error
        raise


def _lost(error: Exception) -> str:
    reason = str(error).strip().splitlines()[0].split(". ")[0][-120:]
    return (
        "another process of this run has died or cannot be reached; the same command line continues from the last "
        f"checkpoint ({reason})"
    )

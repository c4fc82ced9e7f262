"""Number formats of the forward and backward passes. Weights, statistics, losses and averages are always float32."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` is bf16 where the device multiplies it natively, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def set_matrix_precision(precision: str) -> None:
    """Let float32 products of the whole process use TensorFloat-32, unless the precision is fp32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """The context of the forward passes."""
    dtype = _AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def grad_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Each optimizer has its own; it does nothing but for fp16."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def compile_models(*models: nn.Module) -> str | None:
    """Compile the models in place. Returns why not, if this machine cannot compile."""
    try:
        device = next(models[0].parameters()).device
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # a missing compiler, driver or Python header shows up in many ways
        return str(error).strip().splitlines()[0]
    torch._dynamo.config.suppress_errors = True  # what cannot be compiled after all runs as it is
    for model in models:
        model.compile()
    return None

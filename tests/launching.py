"""Training in processes that can be killed: forked from a server that has imported everything, so they start fast."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
# Besides the command, what torch would import at its first optimizer and its first log.
_MODULES = ["biggan.cli.train", "biggan.training.trainer", "biggan.sampling.sheets"]
CONTEXT.set_forkserver_preload([*_MODULES, "torch._dynamo", "torch.utils.tensorboard"])


def start(
    function: Callable, *arguments, rank: int = 0, processes: int = 1, port: int = 0, output: Path | None = None
) -> multiprocessing.Process:
    """Run a function of an importable module as one process of several, its output in a file."""
    process = CONTEXT.Process(target=_enter, args=(function, arguments, rank, processes, port, output))
    process.start()
    return process


def together(processes: int, function: Callable, *arguments, output: Path | None = None) -> list[int]:
    """Run a function in several processes that see each other; their exit codes."""
    port = free_port()
    started = [
        start(function, *arguments, rank=r, processes=processes, port=port, output=output) for r in range(processes)
    ]
    for process in started:
        process.join(120)
        process.kill()
    return [process.exitcode for process in started]


def train(*arguments: str) -> None:
    """The command biggan-train; exits as it does."""
    from biggan.cli.train import main

    main([str(argument) for argument in arguments])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _enter(function: Callable, arguments: Sequence, rank: int, processes: int, port: int, output: Path | None) -> None:
    import torch

    torch.set_num_threads(1)
    if processes > 1:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ |= {name: str(value) for name, value in (address | place).items()}
    if output is not None:
        stream = open(output, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - open as long as the process
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        sys.stdout = sys.stderr = stream
    function(*arguments)

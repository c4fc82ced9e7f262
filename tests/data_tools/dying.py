"""build-dataset in a process that dies."""

import os
import signal
from collections.abc import Callable

from data_tools import cli, journal


def run_and_die(arguments: list[str], die: Callable[[], None]) -> int:
    """Run build-dataset in a child process that dies by `die`; returns its wait status."""
    child = os.fork()
    if child == 0:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        journal.SYNC_SECONDS = 0.0
        die()
        os._exit(cli.main(arguments))
    return os.waitpid(child, 0)[1]


def dies_after_30() -> None:
    original, calls = journal._sync, [0]

    def killer(*args):
        calls[0] += 1
        if calls[0] == 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    journal._sync = killer

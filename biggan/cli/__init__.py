"""The commands. What they share: how errors reach the user."""

from __future__ import annotations

import argparse
import errno
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from biggan.config import ConfigError
from data_tools import usage


class UsageError(ValueError):
    """A command line that cannot be meant; exit code 2."""


class Parser(usage.Parser):
    """A command line whose mistakes are told like all other errors."""

    speaker = "error"


def run_command(main: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser, argv: Sequence[str] | None):
    """Parse, run, and exit: 0 success, 2 usage or config error, 1 data or runtime error.

    Errors are one or two lines on stderr; a traceback only with --debug.
    """
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    args = parser.parse_args(argv)
    try:
        sys.exit(main(args))
    except KeyboardInterrupt:
        _fail(args, "interrupted", 130)
    except (ConfigError, UsageError) as error:
        _fail(args, str(error), 2)
    except (ValueError, RuntimeError, OSError) as error:
        _fail(args, _sentence(error), 1)


def _sentence(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{text}; free some space and give the same command again, it goes on from what is saved"
    if isinstance(error, RuntimeError) and "out of memory" in text:
        return f"{text.splitlines()[0]} Use a smaller micro-batch (--micro-batch), or train.checkpointing = true."
    return text


def _fail(args: argparse.Namespace, message: str, code: int) -> NoReturn:
    if args.debug:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)

"""How commands answer a mistyped command line."""

import argparse
import difflib
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a command line, and which option is near; the full usage takes many."""

    speaker = ""  # what the line begins with; empty for the name of the command

    def error(self, message: str) -> NoReturn:
        """End the process with exit code 2."""
        unknown = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
        near = [n for word in unknown for n in difflib.get_close_matches(word, self._option_string_actions, 2)]
        hint = f"did you mean {' or '.join(near)}?" if near and "unrecognized" in message else f"see {self.prog} --help"
        self.exit(2, f"{self.speaker or self.prog}: {message}; {hint}\n")

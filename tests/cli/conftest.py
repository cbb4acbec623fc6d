"""The fixtures of `command.py` for the tests beside it."""

from tests.cli.command import pairs_file, preftune, tiny_model

__all__ = ["pairs_file", "preftune", "tiny_model"]

"""The fixtures of `command.py` for these tests."""

from tests.cli.command import preftune, tiny_model

__all__ = ["preftune", "tiny_model"]

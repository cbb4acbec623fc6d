"""Command lines and the tiny model, as in the tests of the command line."""

from tests.cli.command import preftune, tiny_model

__all__ = ["preftune", "tiny_model"]

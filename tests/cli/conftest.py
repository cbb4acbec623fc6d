"""The fixtures of `command.py` and `endpoints.py` for the tests beside them."""

from tests.cli.command import pairs_file, preftune, tiny_model
from tests.cli.endpoints import loopback

__all__ = ["loopback", "pairs_file", "preftune", "tiny_model"]

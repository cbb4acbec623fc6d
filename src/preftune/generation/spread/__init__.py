"""Answers from the workers of a cluster.

answers  a generator whose model is held by workers
"""

__all__ = ["answers"]

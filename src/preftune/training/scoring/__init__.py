"""Reference scores of whole datasets without a training (`preftune score`).

beforehand  by the trainer of the training
by_team     by workers of a cluster
"""

__all__ = ["beforehand", "by_team"]

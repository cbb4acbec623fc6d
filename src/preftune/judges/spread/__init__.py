"""Judges whose work is done by the workers of a cluster; verdicts are kept by the caller alone.

chat    a chat model that workers hold
reward  reward models that workers hold
rules   rules that workers call
"""

__all__ = ["chat", "reward", "rules"]

"""The version of the data layer's results. It is part of the key of every cache that keeps pairs or tokens."""

TOKENS_VERSION = 3
"""Increase it when the same rows, tokenizer and settings give other pairs or other tokens than before.

`tests/data/test_tokens_version.py` fails when that happens without a new number.
"""

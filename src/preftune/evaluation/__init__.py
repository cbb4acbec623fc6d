"""Honest evidence: generate, judge, count. Importable without torch; generation imports it when it is used."""

from __future__ import annotations

"""Converts any known format to the canonical one: `preftune convert`.

`filters` decides which pairs are kept, `use_case` by topic, language or rule, and `write` writes the same bytes for
the same pairs.

    convert   the conversion and its manifest
    filters   selection of pairs: duplicates, lengths, margins, samples
    passes    both passes over blocks of rows
    use_case  selection by topic, keyword, language or rule
    write     JSONL and Parquet, byte for byte the same
"""

__all__ = ["convert", "filters", "passes", "write"]

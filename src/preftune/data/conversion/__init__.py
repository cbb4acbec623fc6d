"""Any known format to the canonical one: `preftune convert`.

`filters` decides which pairs are kept, `use_case` by topic, language or rule, and `write` writes the same bytes for
the same pairs.

    convert   the conversion and its manifest
    filters   which pairs are kept: duplicates, lengths, margins, samples
    use_case  by topic, keyword, language or a rule
    write     JSONL and Parquet, byte for byte the same
"""

__all__ = ["convert", "filters", "write"]

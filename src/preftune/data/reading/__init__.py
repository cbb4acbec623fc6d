"""Files, folders, hub ids and lists -> a `datasets.Dataset` of raw rows.

An error names file and line; sizes are bounded (`preftune.bounds`). `load` is the entry point.

    arrow_tables  rows that differ in keys and types -> an Arrow table
    class_names   numbers of classes -> their names
    files         one local file -> rows
    half_pairs    halves of surrogate pairs in text: replaced and counted
    load          any source of data -> datasets.Dataset
    text_files    JSONL, JSON, CSV and TSV, line by line
"""

__all__ = ["arrow_tables", "files", "load"]

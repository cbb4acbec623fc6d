"""Preference pairs, opened, checked, mixed and streamed.

`open.load_pairs` is the entry point; `dataset.PairDataset` makes a pair when it is read. Rows without a pair are
counted by reason in `PairDataset.left`.

    blocks         rows in blocks, read here or sent to workers
    canonical_row  a pair as a row that reads as the same pair
    checks         nulls, missing prompts, columns that nothing reads
    dataset        PairDataset
    mixture        several datasets as one, whole or in proportions
    open           read_pairs and load_pairs
    row_reader     raw rows -> pairs, or the reason why not
    stream         pairs of data larger than memory
"""

__all__ = ["blocks", "canonical_row", "checks", "dataset", "mixture", "open", "row_reader", "stream"]

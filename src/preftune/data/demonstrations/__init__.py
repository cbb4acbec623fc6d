"""Demonstrations for supervised fine-tuning: answers to imitate.

`dataset.load_demonstrations` is the entry point.

    dataset  load_demonstrations and DemonstrationDataset
    mixture  several datasets as one
"""

__all__ = ["dataset", "mixture"]

"""Run directories read with suspicion: files may be missing, torn or written by anyone.

run_files  a run directory, whatever is missing
"""

__all__ = ["run_files"]

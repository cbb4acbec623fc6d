"""Run directories whose files may be missing, incomplete or written by anyone.

run_files  a run directory, as far as it can be read
"""

__all__ = ["run_files"]

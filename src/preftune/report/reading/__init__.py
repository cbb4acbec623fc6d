"""Run directories whose files may be missing, incomplete or written by anyone.

run_files  a run directory, as far as it can be read
seeds      the runs of several seeds, and the figures over them
"""

__all__ = ["run_files", "seeds"]

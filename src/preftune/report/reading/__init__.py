"""Run directories read with suspicion: files may be missing, torn or written by anyone.

run_files       a run directory, whatever is missing
untrusted_json  values of the wanted kind, or nothing
"""

__all__ = ["run_files", "untrusted_json"]

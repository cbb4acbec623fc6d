"""Files that preftune writes and reads again.

`atomic` writes a file whole or not at all; `jsonl` reads lines that a killed process may have torn. `run_directory` is
the contract between training, evaluation and reports, and `cache_folder` determines where caches are.

    atomic         files that are either complete or absent
    cache_folder   where caches are kept
    cache_items    the contents of the cache folder, by kind
    file_hashes    sizes and hashes of files
    freed_memory   memory that was freed, given back to the system
    json_types     predicates on values that were read from JSON
    jsonl          JSON lines that grow by appending; JSON replaced in one move
    key_value      SQLite files of keys and values, shared by processes
    run_directory  paths and writers of a run directory
    run_lock       locks, so that one process at a time writes to a folder or file
    trained_prompts  hashes of the prompts that a model was trained on, next to its weights
    untrusted_json  values of the requested type from JSON that anyone may have written
"""

__all__ = [
    "atomic",
    "cache_folder",
    "cache_items",
    "file_hashes",
    "freed_memory",
    "json_types",
    "jsonl",
    "key_value",
    "run_directory",
    "run_lock",
    "trained_prompts",
    "untrusted_json",
]

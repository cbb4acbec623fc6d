"""Tokenised rows on disk: a second run over the same data with the same tokenizer and limits reads them back.

A file is an Arrow stream of one batch with a row per group (`segments`: the prompt and its completions, `pairs`, `id`,
and where there are any `scored`, `labels` and `scores`), whose buffers are the arrays of a `GroupDataset`: it is mapped
into memory, and nothing of it is held.

A file's key covers everything that the tokens depend on: the rows themselves, how they are read, the tokenizer, the
limits, the libraries, and `TOKENS_VERSION`. So another dataset of the same name or a changed row is a miss, never a
wrong hit. A torn or altered file is detected by its digest, removed, and made again."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import tempfile
import zlib
from array import array
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from preftune.data.labelled import LabelledDataset
from preftune.data.pairs.dataset import PairDataset
from preftune.data.reading.arrow_tables import is_sound, seal
from preftune.data.tokens.flat_arrays import Texts
from preftune.data.tokens.groups import GroupDataset
from preftune.data.tokens.report import AnyReport, DemonstrationReport, LabelledReport, TokenizeReport, report_of
from preftune.data.tokens.tokenize import Rows, tokenize_demonstrations, tokenize_labelled, tokenize_pairs
from preftune.data.tokens_version import TOKENS_VERSION
from preftune.log import warn
from preftune.own_code import own_functions
from preftune.storage.atomic import sweep
from preftune.storage.cache_folder import cache_folder, make_private
from preftune.storage.freed_memory import give_back

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


LEAST_PAIRS = 2000
"""Fewer pairs are tokenised in about a second, and are not kept."""

_MOST_BYTES = 8 * 10**9
"""Maximum size of all files together; the least recently used ones are removed."""

REPORT_VERSION = 2
"""Increase it when a report gets a field that an older file does not have."""

_OF_SEGMENTS = {"scored": 3, "labels": 3, "scores": 2}
"""The arrays of a `GroupDataset` whose rows begin with the number of a segment: the numbers in a row."""


def tokenize_or_recall(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, *, num_proc: int | None = None, **settings: Any
) -> tuple[GroupDataset, AnyReport, bool]:
    """Calls `tokenize_pairs` or `tokenize_demonstrations`, unless the result of the same call is still on disk.

    Args:
        num_proc: number of processes, for pairs.
        settings: the settings of the function, as plain values.
    Returns: the groups, the report, and whether they were on disk.
    Raises: as the function.
    """

    def tokenize() -> tuple[GroupDataset, AnyReport]:
        if isinstance(rows, PairDataset):
            return tokenize_pairs(rows, tokenizer, num_proc=num_proc, **settings)
        if isinstance(rows, LabelledDataset):
            return tokenize_labelled(rows, tokenizer, **settings)
        return tokenize_demonstrations(rows, tokenizer, **settings)

    kinds = {PairDataset: TokenizeReport, LabelledDataset: LabelledReport}

    of_tokenizer = keys_of_tokenizer(tokenizer, settings.get("chat_template"))
    if len(rows) < LEAST_PAIRS or of_tokenizer is None:
        return *tokenize(), False
    facts = [
        type(rows).__name__,
        keys_of_rows(rows.needed, rows.facts),
        of_tokenizer,
        json.dumps(settings, sort_keys=True),
        _version(),
    ]
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]
    file, kind = cache_folder() / "tokens" / f"{key}.arrow", kinds.get(type(rows), DemonstrationReport)
    if (found := _load(file, kind) or _load_earlier(file, kind)) is not None:
        groups, report = found
        report.name, report.notes = rows.name, [*rows.notes, *report.notes]
        return groups, report, True
    groups, report = tokenize()
    kept = _keep(file, groups, report, own_notes=report.notes[len(rows.notes) :])
    give_back()
    return kept or groups, report, False


def keys_of_rows(rows: Dataset, reading: object) -> str:
    """Keys of the cells that are read, and of how they are read.

    Args:
        reading: the settings of reading, as plain values.
    """
    import xxhash

    digest = xxhash.xxh3_128()
    digest.update(repr(reading).encode())
    import pyarrow as pa

    for part in rows.with_format("arrow").iter(batch_size=10_000):
        sink = _Digesting(digest)
        with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), part.schema) as writer:
            writer.write_table(part.combine_chunks())
    return digest.hexdigest()


class _Digesting:
    """A file that only computes the digest of the bytes written to it."""

    def __init__(self, digest: Any) -> None:
        self._digest = digest
        self.closed = False

    def write(self, data: Any) -> int:
        self._digest.update(memoryview(data))
        return memoryview(data).nbytes

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True


def keys_of_tokenizer(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> str | None:
    """Keys of everything that determines ids; None for a tokenizer whose state is not accessible."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    template = str(chat_template or getattr(tokenizer, "chat_template", None))
    today = datetime.date.today().isoformat() if "strftime_now" in template else ""  # some write the date of the day
    facts = [
        type(tokenizer).__name__,
        backend.to_str(),
        template,
        today,
        json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str),
        json.dumps(tokenizer.init_kwargs, sort_keys=True, default=str),
        json.dumps([tokenizer.bos_token_id, tokenizer.eos_token_id]),
        json.dumps(_set_on(tokenizer), sort_keys=True),
        *own_functions(tokenizer),
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _set_on(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Plain values among the tokenizer's attributes, which can be set after loading (`split_special_tokens`). Sides,
    names and warnings do not affect ids.
    """
    sides = {"padding_side", "truncation_side", "in_target_context_manager"}
    left_out = sides | {"name_or_path", "verbose", "chat_template", "model_max_length"}
    return {
        key: value
        for key, value in vars(tokenizer).items()
        if isinstance(value, bool | int | str | None) and key.lstrip("_") not in left_out
    }


@lru_cache(maxsize=1)
def _version() -> str:
    """The versions of everything that tokenises: preftune's code, the fields of a report, and the libraries."""
    packages = [f"{name} {metadata.version(name)}" for name in ("transformers", "tokenizers", "jinja2")]
    return f"tokens {TOKENS_VERSION} {REPORT_VERSION} {' '.join(packages)}"


def _keep(file: Path, groups: GroupDataset, report: Any, *, own_notes: list[str]) -> GroupDataset | None:
    """Writes a file atomically. Returns: the groups in it; None with a full or read-only disk, where nothing is kept,
    which only costs the next run time.
    """
    import pyarrow as pa

    values = {**report.to_json(), "notes": own_notes}
    facts = {
        "report": json.dumps(values, ensure_ascii=False).encode(),
        "prompt_keys": report.prompt_keys.tobytes(),
    }
    temporary = None
    try:
        make_private(file.parent)
        sweep(file.parent)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".writing-")
        os.close(handle)
        batch = _batch_of(groups).replace_schema_metadata(facts)
        with pa.ipc.new_stream(temporary, batch.schema) as writer:
            writer.write_batch(batch)
        seal(temporary)
        os.replace(temporary, file)
        _make_room(file)
        return _mapped(file)[0]
    except OSError as error:
        warn(f"Token ids are not kept for the next run: {file.parent} cannot be written ({error.strerror or error}).")
        return None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _batch_of(groups: GroupDataset) -> pa.RecordBatch:
    """A row per group, made of the arrays as they are."""
    import pyarrow as pa

    def lists(offsets: NDArray[np.int64], values: pa.Array) -> pa.Array:
        return pa.LargeListArray.from_arrays(pa.array(offsets), values)

    def rows(table: NDArray[Any]) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(table.reshape(-1)), table.shape[1])

    ids = groups._ids
    buffers = [None, pa.py_buffer(ids.offsets), pa.py_buffer(ids.content)]
    columns = {
        "segments": lists(groups._groups, lists(groups._segments, pa.array(groups._tokens))),
        "pairs": lists(groups._preference_groups, rows(groups._preferences)),
        "id": pa.Array.from_buffers(pa.large_string(), len(groups), buffers),
    }
    for name in _OF_SEGMENTS:
        table = getattr(groups, f"_{name}")
        if len(table):
            begins = np.searchsorted(table[:, 0], groups._groups)
            columns[name] = lists(begins.astype(np.int64), rows(table))
    return pa.RecordBatch.from_pydict(columns)


def _mapped(file: Path) -> tuple[GroupDataset, dict[bytes, bytes]]:
    """The groups of a file, mapped into memory, and its other facts."""
    import pyarrow as pa

    with pa.memory_map(str(file)) as source:
        batch = pa.ipc.open_stream(source).read_next_batch()

    def table(column: pa.Array, columns: int) -> NDArray[Any]:
        flat: NDArray[Any] = column.values.values.to_numpy()
        return flat.reshape(-1, columns)

    segments, pairs, ids = (batch.column(name) for name in ("segments", "pairs", "id"))
    _, offsets, content = ids.buffers()
    texts = Texts(
        np.frombuffer(offsets, np.int64, len(batch) + 1) if offsets else np.zeros(1, np.int64),
        np.frombuffer(content or b"", np.uint8),
    )
    names = [name for name in _OF_SEGMENTS if name in batch.schema.names]
    groups = GroupDataset(
        segments.values.values.to_numpy(),
        segments.values.offsets.to_numpy(),
        segments.offsets.to_numpy(),
        table(pairs, 4),
        pairs.offsets.to_numpy(),
        texts,
        **{name: table(batch.column(name), _OF_SEGMENTS[name]) for name in names},
    )
    return groups, batch.schema.metadata


def _load(file: Path, kind: type[AnyReport]) -> tuple[GroupDataset, AnyReport] | None:
    """The contents of a file; None if it is missing or damaged."""
    if not file.is_file():
        return None
    try:
        if not is_sound(file):  # Arrow has no checksums
            raise ValueError("its digest differs")
        groups, facts = _mapped(file)
        report = report_of(json.loads(facts[b"report"]), kind)
        report.prompt_keys = array("Q", facts[b"prompt_keys"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        _discard(file, error)
        return None
    os.utime(file)
    return groups, report


def _discard(file: Path, error: Exception) -> None:
    warn(f"The kept token ids in {file.name} are damaged ({error}), and are computed again.")
    file.unlink(missing_ok=True)


def _load_earlier(file: Path, kind: type[AnyReport]) -> tuple[GroupDataset, AnyReport] | None:
    """The contents of the archive of arrays that earlier versions kept, which becomes the file; None without one."""
    earlier = file.with_suffix(".npz")
    if not earlier.is_file():
        return None
    try:
        with earlier.open("rb") as handle, np.load(handle, allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in opened if name != "digest"}
            digest = json.loads(opened["digest"].tobytes())
        if digest != _digest(arrays):  # zipfile looks at its own checksums only where a member is read past its end
            raise ValueError("its digest differs")
        ids, values = (json.loads(arrays.pop(name).tobytes()) for name in ("ids", "report"))
        groups, report = GroupDataset(**arrays, ids=ids), report_of(values, kind)
        report.prompt_keys = array("Q", values["prompt_keys"])
    except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile, zlib.error) as error:
        _discard(earlier, error)
        return None
    kept = _keep(file, groups, report, own_notes=report.notes)
    if kept is not None:
        earlier.unlink(missing_ok=True)
    return kept or groups, report


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    import xxhash

    digest = xxhash.xxh3_128()
    for name in sorted(arrays):
        part = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {part.dtype} {part.shape}".encode())
        digest.update(part.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _make_room(newest: Path) -> None:
    kept = [file for pattern in ("*.arrow", "*.npz") for file in newest.parent.glob(pattern)]
    files = sorted(kept, key=lambda file: file.stat().st_mtime, reverse=True)
    total = 0
    for file in files:
        total += file.stat().st_size
        if total > _MOST_BYTES and file != newest:
            file.unlink(missing_ok=True)

"""Any source of data that a user names -> `datasets.Dataset` of raw rows."""

from __future__ import annotations

import difflib
import io
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from preftune.amounts import counted, of_type
from preftune.data.reading.class_names import with_class_names
from preftune.data.reading.files import KINDS, from_rows, kind_of, read_file
from preftune.data.reading.text_files import READABLE, read_rows
from preftune.errors import DatasetError, did_you_mean
from preftune.hub import unreachable

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Source: TypeAlias = Any
"""A path, "-", a hub id, a `Dataset`, a `DatasetDict`, or a list of dicts."""

_KNOWN = (
    "trl-lib/ultrafeedback_binarized",
    "HuggingFaceH4/ultrafeedback_binarized",
    "argilla/ultrafeedback-binarized-preferences",
    "argilla/ultrafeedback-binarized-preferences-cleaned",
    "argilla/dpo-mix-7k",
    "argilla/distilabel-intel-orca-dpo-pairs",
    "Anthropic/hh-rlhf",
    "OpenAssistant/oasst1",
    "OpenAssistant/oasst2",
    "stanfordnlp/SHP",
    "openbmb/UltraFeedback",
    "Intel/orca_dpo_pairs",
    "Digish/huggingface-smol-course-preference-tuning-dataset",
)
"""Datasets of tutorials, known without a request to the hub."""
_HUB_ID = re.compile(r"[\w.\-]+(/[\w.\-]+)?")


def load_rows(
    source: Source,
    *,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """Loads raw rows.

    Args:
        source: path to a jsonl, json, csv, tsv or parquet file (each also .gz), "-" (JSONL on standard input), a folder
            (of `save_to_disk`, or with one data file per split), a hub id, a `Dataset`, a list of dicts, or a dict
            of these by split (`DatasetDict`).
        split: name of the split; slices as in datasets ("train[:1000]") work for every source. A single file, a list
            or a `Dataset` has the one split "train" (a `Dataset` that knows its split has that name too).
        config, revision: of a hub dataset.
        streaming: return an `IterableDataset`, which reads rows one by one, instead of a `Dataset`.
    Raises:
        DatasetError: the source does not exist, is empty, broken, or of an unknown kind.
    """
    rows = with_class_names(_load(source, split=split, config=config, revision=revision, streaming=streaming))
    if streaming and hasattr(rows, "to_iterable_dataset"):
        return rows.to_iterable_dataset()
    return rows


def load_table(source: Source, name: str | None = None, **where: Any) -> Dataset:
    """`load_rows` for data of known length, called `name` in messages. Raises: DatasetError, also for no rows."""
    name, rows = name or display_name(source), cast("Any", load_rows(source, **where))
    if not hasattr(rows, "select_columns") or not hasattr(rows, "__len__"):
        raise DatasetError(
            f"{name} is streamed, but its length must be known. Load it without streaming, or take a part: "
            "datasets.Dataset.from_list(list(stream.take(10_000)))."
        )
    if len(rows) == 0:
        raise DatasetError(f"{name} has no rows. Give at least one.")
    return rows


def display_name(source: Source) -> str:
    """The name of the source in messages."""
    if isinstance(source, str | os.PathLike):
        return "standard input" if source == "-" else os.fspath(source)
    return "the dataset"


def path_of(source: str | os.PathLike[str]) -> Path:
    """The path of a source. Raises: DatasetError for an empty name, which would be the working directory."""
    if not os.fspath(source).strip():
        raise DatasetError("The name of the data is empty. Name a file, a folder or a hub id.")
    return Path(source).expanduser()


def _load(
    source: Source, *, split: str, config: str | None, revision: str | None, streaming: bool
) -> Dataset | IterableDataset:
    name = display_name(source)
    import datasets

    if isinstance(source, datasets.Dataset | datasets.IterableDataset):
        return _only_split(source, split, name)
    if isinstance(source, Mapping):
        return _pick_split(source, split, name)
    if isinstance(source, str | os.PathLike):
        if source == "-":
            return _only_split(from_rows(_standard_input(name), name), split, name)
        path = path_of(source)
        if path.is_dir():
            return _read_folder(path, split)
        if path.exists():
            return _only_split(read_file(path), split, name)
        if _looks_like_path(os.fspath(source)):
            raise DatasetError(f"{name} does not exist.{_near_names(path)}")
        return _from_hub(os.fspath(source), split=split, config=config, revision=revision, streaming=streaming)
    if isinstance(source, Sequence) and not isinstance(source, bytes):
        return _only_split(from_rows(source, name), split, name)
    if type(source).__module__.startswith("pandas"):
        return _only_split(datasets.Dataset.from_pandas(source, preserve_index=False), split, name)
    raise DatasetError(
        f"Data cannot be read from {of_type(source)}. Give a path ({READABLE}), a hub id, a datasets.Dataset "
        "or a list of dicts."
    )


def _standard_input(name: str) -> Iterator[Mapping[str, Any]]:
    raw = getattr(sys.stdin, "buffer", None)
    file = io.BytesIO(sys.stdin.read().encode()) if raw is None else raw
    return read_rows(file, name, "json")


def _pick_split(parts: Mapping[str, Any], split: str, name: str) -> Dataset:
    import datasets

    base = split.partition("[")[0]
    rows = parts.get(base)
    rows = from_rows(rows, name) if isinstance(rows, list | tuple) else rows
    if isinstance(rows, datasets.Dataset | datasets.IterableDataset):
        return cast("Dataset", _slice(rows, split))
    found = ", ".join(repr(str(key)) for key in parts)
    if base not in parts and any(hasattr(part, "column_names") for part in parts.values()):
        hint = did_you_mean(base, map(str, parts), cutoff=0.5, otherwise="Name one of them as the split.")
        raise DatasetError(f"{name} has no split {base!r} (found: {found}). {hint}")
    holds = f"{of_type(rows)} as {base!r}" if base in parts else f"no {base!r} (found: {found})"
    raise DatasetError(
        f"{name} is a dict with {holds}, but a dict must hold a dataset or a list of rows for each split. Put a single "
        "row in a list, [row]; make a dataset of columns with datasets.Dataset.from_dict(columns)."
    )


def _only_split(rows: Any, split: str, name: str) -> Any:
    """Returns `rows` if `base` is "train" or their own name, so that a missing test split never becomes the training
    data.
    """
    base = split.partition("[")[0]
    own = str(rows.split or "train").partition("[")[0]
    if base not in ("train", "all", own):
        raise DatasetError(
            f"{name} has only the split {own!r}, not {base!r}. Leave the split out, or give the {base} data as another "
            "file or dataset."
        )
    return _slice(rows, split)


def _slice(rows: Any, split: str) -> Any:
    """Applies the slice of "train[:100]"; a bare name means the whole split."""
    import datasets

    base, bracket, _ = split.partition("[")
    if not bracket:
        return rows
    if not isinstance(rows, datasets.Dataset):
        raise DatasetError(f"The split {split!r} cannot be taken from streamed data. Use .take(n) on it instead.")
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute({base: len(rows)})
    except (ValueError, AssertionError) as error:
        raise DatasetError(
            f"The split {split!r} cannot be read: {error} (the data have {counted(len(rows), 'row')}). Write it like "
            f"'{base}[:1000]' or '{base}[10%:20%]'."
        ) from error
    if len(parts) == 1:
        return rows.select(range(parts[0].from_, parts[0].to))
    return rows.select([number for part in parts for number in range(part.from_, part.to)])


def _read_folder(path: Path, split: str) -> Dataset:
    import datasets

    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        try:
            saved = datasets.load_from_disk(str(path))
        except Exception as error:
            raise DatasetError(f"{path} is a damaged save_to_disk folder: {error}. Save it again.") from error
        name = str(path)
        return _only_split(saved, split, name) if hasattr(saved, "select") else _pick_split(saved, split, name)

    chosen, of_split = _files_of(path, split)
    parts = [read_file(file) for file in chosen]
    rows = datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    return _slice(rows, split) if of_split else _only_split(rows, split, str(path))


def shards_of(path: Path, split: str) -> list[Path]:
    """The files of a whole split in a folder, in order; empty for a part of one, and for a folder of `save_to_disk`.

    Raises: DatasetError for a folder without data of the split.
    """
    saved = any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
    if saved or "[" in split:
        return []
    files, of_split = _files_of(path, split)
    return files if of_split or split in ("train", "all") else []


def _files_of(path: Path, split: str) -> tuple[list[Path], bool]:
    """The data files of a split in a folder, and whether they are named after it."""
    files = [file for folder in (path, path / "data") if folder.is_dir() for file in sorted(folder.iterdir())]
    files = [file for file in files if file.is_file() and kind_of(file) and not file.name.startswith(".")]
    if not files:
        raise DatasetError(
            f"{path} is a folder without data: it holds no save_to_disk dataset and no {', '.join(KINDS)} file. Name "
            "the file itself."
        )
    base = split.partition("[")[0]
    of_split = [file for file in files if re.match(rf"{re.escape(base)}([-._]|$)", file.name)]
    if not of_split and len(files) > 1:
        found = ", ".join(file.name for file in files[:8])
        raise DatasetError(
            f"{path} has several data files and none is named after the split {base!r} ({found}). Name the file itself."
        )
    return of_split or files, bool(of_split)


def _looks_like_path(source: str) -> bool:
    return (
        not _HUB_ID.fullmatch(source)
        or source.startswith((".", "~", "/"))
        or kind_of(Path(source)) is not None
        or source.endswith(".gz")
        or ("/" in source and Path(source).parent.is_dir())
    )


def _near_names(path: Path) -> str:
    folder = path.parent
    while not folder.is_dir():
        if folder == folder.parent:
            return " Check the path."
        folder = folder.parent
    if folder != path.parent:
        return f" There is no folder {path.parent} either (the nearest that exists is {folder})."
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError:
        return " Check the path."
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    if near:
        return f" Did you mean {' or '.join(repr(str(folder / name)) for name in near)}?"
    return f" Check the path (looked in {folder.resolve()})."


def _from_hub(source: str, *, split: str, config: str | None, revision: str | None, streaming: bool) -> Any:
    import datasets

    _ask_hub(source)
    try:
        return datasets.load_dataset(source, name=config, split=split, revision=revision, streaming=streaming)
    except Exception as error:  # the library raises some twenty classes here; each becomes one paragraph
        cause = " ".join(str(error.__cause__ or error).split())
        raise DatasetError(
            f"The hub dataset {source!r} (split {split!r}{f', config {config!r}' if config else ''}) cannot be loaded: "
            f"{type(error).__name__}: {cause[:400]}"
        ) from error


def _ask_hub(source: str) -> None:
    """Asks the hub once before the download, whose five retries take half a minute without a network."""
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    local = f"There is no file or folder {source!r} on this machine{_near_here(source)}, and"
    try:
        HfApi().dataset_info(source, timeout=10)
    except GatedRepoError as error:
        raise DatasetError(
            f"The hub dataset {source!r} is gated: accept its terms at https://huggingface.co/datasets/{source} and "
            "run `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        near = _near_on_hub(source)
        raise DatasetError(
            f"{local} the hub has no dataset of that name.{near} If it is private, run `hf auth login`."
        ) from error
    except (
        Exception
    ) as error:  # offline mode, no network, a proxy's answer, a server's fault: whatever the HTTP client raises
        cached = Path(datasets.config.HF_DATASETS_CACHE) / source.replace("/", "___")
        if cached.is_dir():
            return  # load_dataset falls back on what it has
        found = unreachable(error)
        raise DatasetError(
            f"{local} the hub cannot be asked for it ({found.why}).{_near_known(source)} Check the path. "
            f"{found.fix}, or give the file or folder of a dataset that was downloaded elsewhere."
        ) from error


def _near_here(source: str) -> str:
    path = Path(source)
    if not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1, cutoff=0.6)
    return f" (there is {str(path.parent / near[0])!r})" if near else ""


def _near_known(source: str) -> str:
    """The dataset of a tutorial that was probably meant; empty if the name is exactly one of them."""
    lower = {known.lower(): known for known in _KNOWN}
    if source.lower() in lower:
        return ""
    near = difflib.get_close_matches(source.lower(), lower, n=2, cutoff=0.8)
    return f" Did you mean {' or '.join(repr(lower[name]) for name in near)}?" if near else ""


def _near_on_hub(source: str) -> str:
    from huggingface_hub import HfApi

    try:
        found = [info.id for info in HfApi().list_datasets(search=source.partition("/")[2] or source, limit=50)]
    except Exception:
        return ""  # only a courtesy
    return f" {did_you_mean(source, found, most=3, cutoff=0.4)}".rstrip()

"""Pairs and demonstrations -> token ids within limits, and a report on all dropped and cut rows."""

from __future__ import annotations

import tempfile
import uuid
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from preftune.amounts import counted
from preftune.data.demonstrations.dataset import DemonstrationDataset, question_key
from preftune.data.labelled import LabelledDataset
from preftune.data.pairs.dataset import PairDataset
from preftune.data.pairs.row_reader import RowReader
from preftune.data.row_dataset import rows_of
from preftune.data.tokens.encode import Encoder
from preftune.data.tokens.encode_demonstrations import Covered, DemonstrationEncoder
from preftune.data.tokens.encoded import Encoded
from preftune.data.tokens.flat_arrays import GrowingArray
from preftune.data.tokens.groups import GroupDataset
from preftune.data.tokens.report import AnyReport, DemonstrationReport, LabelledReport, TokenizeReport
from preftune.data.tokens.shorten import shortening
from preftune.errors import ConfigError, DatasetError
from preftune.storage.run_directory import PLAIN_TEXT
from preftune.types import Example, PreferencePair, TokenizedGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Truncation = Literal["error", "drop", "truncate"]
Rows = PairDataset | DemonstrationDataset | LabelledDataset
Report = TypeVar("Report", bound=AnyReport)

_BATCH = 500
_EXAMPLES = 5
"""Rows that a message lists."""
_SHOW_PROGRESS = 2000
"""Minimum number of rows for a progress bar (on a terminal only)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Maximum length of a row in tokens, and the treatment of longer rows."""

    max_length: int | None = 1024
    max_prompt_length: int | None = None
    truncation: Truncation = "truncate"

    def __post_init__(self) -> None:
        if self.truncation not in get_args(Truncation):
            known = ", ".join(map(repr, get_args(Truncation)))
            raise ConfigError(f"truncation is {self.truncation!r}; it can be {known}.")
        if self.max_length is not None and (not _is_int(self.max_length) or self.max_length < 2):
            raise ConfigError(f"max_length is {self.max_length!r}; it must be a whole number of at least 2, or None.")
        if self.max_prompt_length is None:
            return
        if not _is_int(self.max_prompt_length) or self.max_prompt_length < 1:
            raise ConfigError(
                f"max_prompt_length is {self.max_prompt_length!r}; it must be a whole number of at least 1, or None."
            )
        if self.max_length is not None and self.max_prompt_length >= self.max_length:
            raise ConfigError(
                f"max_prompt_length={self.max_prompt_length} leaves no room for an answer within "
                f"max_length={self.max_length}. Raise max_length or lower max_prompt_length."
            )


def tokenize_pairs(
    pairs: PairDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = 1024,
    max_prompt_length: int | None = None,
    truncation: Truncation = "truncate",
    num_proc: int | None = None,
    chat_template: str | None = None,
) -> tuple[GroupDataset, TokenizeReport]:
    """Tokenises preference pairs, one group per pair: completions (chosen, rejected), one preference.

    Ids equal those of TRL 1.16 wherever TRL trains the row unchanged; an answer's end is trained exactly once. If two
    conversations diverge before the last answer, every turn of the assistant from there on is scored, and the other
    turns are context (`TokenizedGroup.scored`).

    Args:
        max_length: maximum number of tokens of prompt + completion, for each side separately; None for no limit.
        max_prompt_length: maximum number of tokens of the prompt; None for no separate limit.
        truncation: treatment of longer rows. "error" raises; "drop" leaves the row out; "truncate" cuts a prompt above
            max_prompt_length from the left (a bos in front stays) and a completion from the right.
        num_proc: number of processes. One is often enough: the tokeniser itself is multi-threaded, only templates are
            not.
        chat_template: a Jinja template to use instead of the tokeniser's own.
    Returns: the groups, and the report; rows that cannot train are left out and counted by reason.
    Raises:
        ConfigError: an impossible limit.
        DatasetError: a row that is not a preference; conversations without a chat template; with truncation="error",
            rows beyond the limits; nothing left to train on.
    """
    limits = Limits(max_length, max_prompt_length, truncation)
    if num_proc is not None and (not _is_int(num_proc) or num_proc < 1):
        raise ConfigError(f"num_proc is {num_proc!r}; it must be a whole number of at least 1, or None.")
    report = TokenizeReport(name=pairs.name, rows_in=len(pairs), notes=list(pairs.notes))
    return Run(Encoder(tokenizer, chat_template=chat_template), limits, report, num_proc or 1).over(pairs)


def tokenize_labelled(
    rows: LabelledDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = 1024,
    max_prompt_length: int | None = None,
    truncation: Truncation = "truncate",
    chat_template: str | None = None,
) -> tuple[GroupDataset, LabelledReport]:
    """Tokenises answers with labels: one group of one completion per row. Args, Returns and Raises: as for
    `tokenize_pairs`.
    """
    report = LabelledReport(name=rows.name, rows_in=len(rows), notes=list(rows.notes))
    report.count_left(rows.left)
    limits = Limits(max_length, max_prompt_length, truncation)
    return Run(Encoder(tokenizer, chat_template=chat_template), limits, report).over(rows)


def tokenize_demonstrations(
    rows: DemonstrationDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = 1024,
    truncation: Truncation = "truncate",
    completion_only_loss: bool | None = None,
    assistant_only_loss: bool | None = None,
    chat_template: str | None = None,
) -> tuple[GroupDataset, DemonstrationReport]:
    """Tokenises demonstrations: one group of one completion per row, without pairs.

    The tokens before the first trained one are the group's prompt; tokens between trained ones are context
    (`TokenizedGroup.scored`). The ids are those of the whole row's text, independent of the trained part.

    Args:
        max_length: maximum number of tokens of a row; None for no limit.
        truncation: treatment of longer rows. "error" raises; "drop" leaves the row out; "truncate" cuts off its end.
        completion_only_loss: train the text after the prompt (True; None: if the data have prompts), or everything
            (False).
        assistant_only_loss: in conversations train the assistant's turns (None, True), or everything (False).
        chat_template: a Jinja template to use instead of the tokeniser's own.
    Returns: the groups, and the report; rows that cannot train are left out and counted by reason.
    Raises:
        ConfigError: an impossible limit, or a loss that the data cannot have.
        DatasetError: conversations without a chat template; with truncation="error", rows beyond the limit; nothing
            left to train on.
    """
    report = DemonstrationReport(name=rows.name, rows_in=len(rows), notes=list(rows.notes))
    report.count_left(rows.left)
    encoder = DemonstrationEncoder(tokenizer, chat_template=chat_template)
    encoder.covered = Covered(completion_only_loss, assistant_only_loss)
    return Run(encoder, Limits(max_length, None, truncation), report).over(rows)


class Run(Generic[Report]):
    """One pass over the rows of a dataset."""

    def __init__(self, encoder: Encoder, limits: Limits, report: Report, processes: int = 1) -> None:
        self.encoder = encoder
        self.limits = limits
        self.report = report
        encoder.name = report.name
        encoder.shorten = shortening(encoder.tokenizer, limits.max_length)
        self.processes = processes
        self.plain = 0
        self.details: dict[str, str] = {}
        self.prompt_keys: GrowingArray | array[int] = GrowingArray("Q")
        self.over_limit: list[tuple[int, int]] = []
        """(row, tokens) of the first rows beyond the limits, if that is an error."""
        self.beyond = 0
        """The number of such rows."""

    def over(self, rows: Rows) -> tuple[GroupDataset, Report]:
        groups = GroupDataset.from_groups(self._groups(rows))
        if self.beyond:
            raise self.too_long()
        self.report.measure(groups)
        assert isinstance(self.prompt_keys, GrowingArray)
        self.report.prompt_keys = array("Q", np.unique(self.prompt_keys.done()).tobytes())
        self.report.notes += self.notes()
        if not len(groups):
            raise DatasetError(f"Nothing is left to train on. {' '.join(self.report.lines())}")
        return groups, self.report

    def _groups(self, rows: Rows) -> Iterator[TokenizedGroup]:
        groups = (self.group(example, encoded) for example, encoded in self._encoded(rows))
        return (group for group in groups if group is not None)

    def group(self, example: Example, encoded: Encoded) -> TokenizedGroup | None:
        """The group of an example within the limits, counted in the report; None for one that is dropped."""
        self.plain += not example.is_chat
        if encoded.reason is None:
            self.report.see(encoded)
            cut = self._limit(encoded)
        if encoded.reason is None:
            self.report.keep(encoded, cut)
            if example.prompt or len(example.completions) == 1:
                self.prompt_keys.append(question_key(example))
            return encoded.group(example)
        self.report.drop(encoded.reason, encoded.row)
        if encoded.detail:
            self.details.setdefault(encoded.reason, encoded.detail)
        return None

    def _encoded(self, rows: Rows) -> Iterator[tuple[Example, Encoded]]:
        if self.processes > 1 and isinstance(rows, PairDataset):
            yield from _encode_in_processes(rows, self.encoder, self.processes)
            return
        from tqdm.auto import tqdm

        show = None if len(rows) >= _SHOW_PROGRESS else True  # None: on a terminal only
        batches = (list(map(example_of, batch)) for batch in rows.batches(_BATCH))
        with tqdm(total=len(rows), desc=f"Tokenizing {rows.name}", unit="row", disable=show) as bar:
            for batch, encoded in encode_ahead(self.encoder, batches):
                yield from zip(batch, encoded, strict=True)
                bar.update(len(batch))

    def _limit(self, encoded: Encoded) -> list[str]:
        """Applies the limits in place: cuts, or sets the reason to drop. Returns: the parts that were cut."""
        limits, prompt, longest_prompt = self.limits, encoded.prompt, self.limits.max_prompt_length
        over_prompt = longest_prompt is not None and len(prompt) > longest_prompt
        over = limits.max_length is not None and encoded.tokens > limits.max_length
        if not (over or over_prompt):
            return []
        if limits.truncation == "error":
            self.beyond += 1
            if len(self.over_limit) < _EXAMPLES:
                self.over_limit.append((encoded.row, encoded.tokens))
            return []
        if limits.truncation == "truncate" and over_prompt:
            assert longest_prompt is not None
            bos = self.encoder.tokenizer.bos_token_id
            keep = prompt[:1] if longest_prompt > 1 and bos is not None and prompt[0] == bos else []
            prompt = keep + prompt[len(prompt) - (longest_prompt - len(keep)) :]
        room = None if limits.max_length is None else max(0, limits.max_length - len(prompt))
        if room == 0 and "prompt_too_long" in self.report.reasons:
            encoded.reason = "prompt_too_long"
        elif limits.truncation == "drop":
            encoded.reason = "prompt_too_long" if over_prompt else "too_long"
        if encoded.reason is not None:
            return []
        names = (*self.report.completions, *(("reference",) if encoded.golden else ()))
        parts = zip(names, encoded.completions, strict=True)
        cut = ["prompt"] if len(prompt) < len(encoded.prompt) else []
        cut += [part for part, ids in parts if room is not None and len(ids) > room]
        encoded.prompt = prompt
        encoded.cut(room)
        return cut

    def too_long(self) -> DatasetError:
        """The error about rows beyond the limits."""
        rows, limits, report = self.over_limit, self.limits, self.report
        examples = ", ".join(f"row {row}: {counted(tokens, 'token')}" for row, tokens in rows)
        asked = [f"max_length={limits.max_length}"] if limits.max_length is not None else []
        fits = [f"max_length={max(report.longest, limits.max_length or 0)}"] if asked else []
        prompts = ""
        if isinstance(report, TokenizeReport):
            prompts = f", the longest prompt {report.longest_prompt:,}"
            if limits.max_prompt_length is not None:
                asked.append(f"max_prompt_length={limits.max_prompt_length}")
                fits.append(f"max_prompt_length={max(report.longest_prompt, limits.max_prompt_length)}")
        return DatasetError(
            f"{report.name}: {self.beyond:,} of {counted(report.rows_in, 'row')} longer than {' and '.join(asked)} "
            f"({examples}{', ...' if self.beyond > len(rows) else ''}; the longest has {report.longest:,}{prompts}). "
            f'Set {" and ".join(fits)} to keep them whole, or truncation="truncate" to cut them, or truncation="drop" '
            "to leave them out."
        )

    def notes(self) -> list[str]:
        """Sentences about the limits, the tokenizer, and the rows so far."""
        report, tokenizer, limits, notes = self.report, self.encoder.tokenizer, self.limits, []
        if limits.max_length is not None and limits.max_prompt_length is not None:
            room = limits.max_length - limits.max_prompt_length
            notes.append(
                f"Every answer has room for at least {counted(room, 'token')} (max_length={limits.max_length} less "
                f"max_prompt_length={limits.max_prompt_length})."
            )
        notes += [f"{report.reasons[reason][0]}: {detail[:300]}" for reason, detail in self.details.items()]
        if self.plain and getattr(tokenizer, "chat_template", None):
            notes.append(
                f"{counted(self.plain, 'row is', 'rows are')} {PLAIN_TEXT}, although "
                f"the tokenizer has a chat template. {report.as_chat}"
            )
        if self.encoder.eos is None:
            notes.append(
                "The tokenizer has no eos token, so the end of an answer is not trained. Set tokenizer.eos_token."
            )
        return notes


def example_of(record: PreferencePair | Example) -> Example:
    """The example of a row, which is tokenised."""
    return record.example if isinstance(record, PreferencePair) else record


def _encode_in_processes(pairs: PairDataset, encoder: Encoder, processes: int) -> Iterator[tuple[Example, Encoded]]:
    """As `Encoder.encode` over all pairs, through `Dataset.map`, in a temporary file instead of the user's cache."""
    from datasets import Features, List, Value

    ids = List(Value("int32"))
    kinds = {int: Value("int64"), str: Value("string"), bool: Value("bool"), list: List(ids)}
    example = asdict(Encoded(0, reason=""))
    features = {key: kinds[type(value)] for key, value in example.items()} | {"prompt": ids}
    with tempfile.TemporaryDirectory(prefix="preftune-tokens-") as folder:
        encoded = pairs.needed.map(
            _encode_table,
            fn_kwargs={"reader": pairs.reader, "encoder": encoder, "numbers": pairs.numbers},
            batched=True,
            batch_size=_BATCH,
            with_indices=True,
            num_proc=min(processes, len(pairs)),
            remove_columns=pairs.needed.column_names,
            features=Features(features),
            load_from_cache_file=False,
            cache_file_name=f"{folder}/encoded.arrow",
            new_fingerprint=uuid.uuid4().hex,  # nothing is looked up later, so nothing needs to be hashed
            desc=f"Tokenizing {pairs.name}",
        )
        for pair, row in zip(pairs, encoded, strict=True):
            yield pair.example, Encoded(**row)


def _encode_table(
    table: dict[str, list[Any]],
    indices: list[int],
    *,
    reader: RowReader,
    encoder: Encoder,
    numbers: NDArray[np.int64] | None,
) -> dict[str, list[Any]]:
    at = indices if numbers is None else numbers[indices].tolist()
    pairs = (reader.read(row, number) for row, number in zip(rows_of(table), at, strict=True))
    rows = [asdict(encoded) for encoded in encoder.encode([pair.example for pair in pairs])]
    return {key: [row[key] for row in rows] for key in rows[0]}


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_THREADS = 2
"""Number of threads. More gain nothing: Python runs one of them at a time, and the tokeniser has its own threads."""

Batch = list[Example]


def encode_ahead(encoder: Encoder, batches: Iterable[Batch]) -> Iterator[tuple[Batch, list[Encoded]]]:
    """Every batch with its token ids, in order; at most three batches are held. Raises: as `Encoder.encode`."""
    waiting: deque[tuple[Batch, Future[list[Encoded]]]] = deque()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="preftune-encode") as pool:
        for batch in batches:
            waiting.append((batch, pool.submit(encoder.encode, batch)))
            if len(waiting) > _THREADS:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()

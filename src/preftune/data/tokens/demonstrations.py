"""Demonstrations -> token ids within a limit, and a report of everything that was dropped or cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from preftune.data.demonstrations.dataset import DemonstrationDataset
from preftune.data.tokens import spans
from preftune.data.tokens.cache import LEAST_PAIRS, kept_tokens, keys_of_rows, keys_of_tokenizer
from preftune.data.tokens.demonstration_report import REASONS, DemonstrationReport
from preftune.data.tokens.encode_demonstrations import Covered, DemonstrationEncoder, EncodedDemonstration
from preftune.data.tokens.groups import GroupDataset
from preftune.data.tokens.pairs import Limits, Truncation
from preftune.data.tokens.report import Tally
from preftune.data.tokens.shorten import shortening
from preftune.errors import DatasetError
from preftune.types import TokenizedGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH = 500
_SHOW_PROGRESS = 2000
"""Rows from which a progress bar is shown (on a terminal only)."""


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

    Whatever stands before the first trained token is the group's prompt; tokens between trained ones are context
    (`TokenizedGroup.scored`). The ids are those of the whole row's text, whatever is trained of it.

    Args:
        max_length: tokens of a row; None for no limit.
        truncation: for longer rows. "error" raises; "drop" leaves the row out; "truncate" cuts its end off.
        completion_only_loss: train what follows the prompt (None: where the data have prompts), or everything (False).
        assistant_only_loss: in conversations train the assistant's turns (None, True), or everything (False).
        chat_template: instead of the tokeniser's own (Jinja).
    Returns: the groups, and the report; rows that cannot train are left out and counted by reason.
    Raises:
        ConfigError: an impossible limit, or a loss that the data cannot have.
        DatasetError: conversations without a chat template; with truncation="error", rows beyond the limit; nothing
            left to train on.
    """
    limits = Limits(max_length, None, truncation)
    report = DemonstrationReport(name=rows.name, rows_in=len(rows), notes=list(rows.notes))
    for reason, out in rows.left.items():
        report.dropped[reason] = Tally(out.count, list(out.rows))
        report.rows_in += out.count
    encoder = DemonstrationEncoder(tokenizer, chat_template=chat_template)
    encoder.name, encoder.shorten = rows.name, shortening(tokenizer, max_length)
    encoder.covered = Covered(completion_only_loss, assistant_only_loss)
    return _Run(encoder, limits, report).over(rows)


def tokenize_or_recall_demonstrations(
    rows: DemonstrationDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = 1024,
    truncation: Truncation = "truncate",
    completion_only_loss: bool | None = None,
    assistant_only_loss: bool | None = None,
    chat_template: str | None = None,
) -> tuple[GroupDataset, DemonstrationReport, bool]:
    """`tokenize_demonstrations`, unless the same was tokenised before and is still on disk.

    Returns: the groups, the report, and whether they were on disk.
    """

    def tokenize() -> tuple[GroupDataset, DemonstrationReport]:
        return tokenize_demonstrations(
            rows,
            tokenizer,
            max_length=max_length,
            truncation=truncation,
            completion_only_loss=completion_only_loss,
            assistant_only_loss=assistant_only_loss,
            chat_template=chat_template,
        )

    facts = None
    if len(rows) >= LEAST_PAIRS and (of_tokenizer := keys_of_tokenizer(tokenizer, chat_template)) is not None:
        settings = (max_length, truncation, completion_only_loss, assistant_only_loss, chat_template)
        of_rows = keys_of_rows(rows.needed, (rows.reader.facts, rows.places.tolist(), sorted(rows.left)))
        facts = ["demonstrations", of_rows, of_tokenizer, repr(settings)]
    return kept_tokens(facts, tokenize, DemonstrationReport, name=rows.name, notes=rows.notes)


class _Run:
    """One pass over the rows."""

    def __init__(self, encoder: DemonstrationEncoder, limits: Limits, report: DemonstrationReport) -> None:
        self.encoder, self.limits, self.report = encoder, limits, report
        self.details: dict[str, str] = {}
        self.plain = 0
        self.over_limit: list[tuple[int, int]] = []
        """(row, tokens) of rows beyond the limit, when that is an error."""

    def over(self, rows: DemonstrationDataset) -> tuple[GroupDataset, DemonstrationReport]:
        groups = GroupDataset.from_groups(self._groups(rows))
        if self.over_limit:
            raise self._too_long()
        report = self.report
        report.rows_out, report.total_tokens = len(groups), groups.total_tokens
        report.scored_tokens = groups.scored_tokens
        self._add_notes()
        if not len(groups):
            raise DatasetError(f"Nothing is left to train on. {' '.join(report.lines())}")
        shares = {"50%": 0.5, "90%": 0.9, "99%": 0.99}
        found = np.quantile(groups.lengths, list(shares.values()), method="inverted_cdf")
        report.lengths = dict(zip(shares, map(int, found), strict=True))
        return groups, report

    def _groups(self, rows: DemonstrationDataset) -> Iterator[TokenizedGroup]:
        from tqdm.auto import tqdm

        show = None if len(rows) >= _SHOW_PROGRESS else True  # None: on a terminal only
        with tqdm(total=len(rows), desc=f"Tokenizing {rows.name}", unit="row", disable=show) as bar:
            for batch in rows.batches(_BATCH):
                for row, encoded in zip(batch, self.encoder.encode_demonstrations(batch), strict=True):
                    self.plain += not row.is_chat
                    group = self._group(encoded, row.id if row.id is not None else str(row.row))
                    if group is not None:
                        yield group
                bar.update(len(batch))

    def _group(self, encoded: EncodedDemonstration, name: str) -> TokenizedGroup | None:
        """The row's group, counted; None for a row that cannot train."""
        report, row = self.report, encoded.row
        cut = False
        if encoded.reason is None:
            report.longest = max(report.longest, len(encoded.ids))
            cut = self._limit(encoded)
        if encoded.reason is not None:
            report.drop(encoded.reason, row)
            if encoded.detail:
                self.details.setdefault(encoded.reason, encoded.detail)
            return None
        for tally, counted in (
            (report.truncated, cut),
            (report.moved_boundary, encoded.moved),
            (report.eos_added, encoded.eos_added),
            (report.trimmed, encoded.trimmed),
            (report.first_turn, encoded.first_turn),
            (report.context, encoded.context),
            (report.ends_cut, encoded.ends_cut),
            (report.typed_marks, encoded.typed_marks),
            (report.shortened, encoded.shortened),
        ):
            if counted:
                tally.add(row)
        if encoded.unwritten:
            report.unwritten.setdefault(encoded.unwritten, Tally()).add(row)
        report.turns += encoded.turns
        begin = encoded.scored[0]
        scored = spans.pairs(spans.after(begin, encoded.scored))
        return TokenizedGroup(encoded.ids[:begin], (encoded.ids[begin:],), (), id=name, scored=(scored,))

    def _limit(self, encoded: EncodedDemonstration) -> bool:
        """Applies the limit in place: cuts (True), or sets the reason to drop."""
        limit = self.limits.max_length
        if limit is None or len(encoded.ids) <= limit:
            return False
        if self.limits.truncation == "error":
            self.over_limit.append((encoded.row, len(encoded.ids)))
        if self.limits.truncation != "truncate":
            encoded.reason = "too_long"
            return False
        encoded.ids, encoded.scored = encoded.ids[:limit], spans.within(limit, encoded.scored)
        if not encoded.scored:
            encoded.reason = "no_answer_left"
        return True

    def _too_long(self) -> DatasetError:
        rows, report = self.over_limit, self.report
        examples = ", ".join(f"row {row}: {tokens:,} tokens" for row, tokens in rows[:5])
        return DatasetError(
            f"{report.name}: {len(rows):,} of {report.rows_in:,} rows are longer than "
            f"max_length={self.limits.max_length} ({examples}{', ...' if len(rows) > 5 else ''}; the longest has "
            f'{report.longest:,}). Set max_length={report.longest} to keep them whole, or truncation="truncate" to cut '
            'them, or truncation="drop" to leave them out.'
        )

    def _add_notes(self) -> None:
        report, tokenizer = self.report, self.encoder.tokenizer
        for reason, detail in self.details.items():
            report.notes.append(f"{REASONS[reason][0]}: {detail[:300]}")
        if self.plain and getattr(tokenizer, "chat_template", None):
            report.notes.append(
                f"{self.plain:,} rows are plain text and are tokenised as they stand, although the tokenizer has a "
                "chat template. For a chat model give messages, or load_demonstrations(...).as_chat() (--as_chat)."
            )
        if self.encoder.eos is None:
            report.notes.append(
                "The tokenizer has no eos token, so the end of an answer is not trained. Set tokenizer.eos_token."
            )

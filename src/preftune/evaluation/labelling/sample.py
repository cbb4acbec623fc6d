"""Samples several answers to every prompt, each written when it is finished, so that a second call continues where the
first stopped.

samples.jsonl                 one object per answer: id, key, prompt, sample (its number), completion, tokens, finished;
                              answer: the completion without the thought, where a thinking model wrote one
samples.jsonl.manifest.json   the settings, where the prompts came from, and at the end what came out
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from preftune.amounts import counted
from preftune.errors import RequestError
from preftune.generation.answer_store import AnswerStore, Record
from preftune.generation.backends import EndpointAnswerer, ModelAnswerer
from preftune.generation.prompts import Prompt, Prompts
from preftune.generation.protocol import Answer
from preftune.generation.settings import resolved
from preftune.generation.spread.answers import SpreadAnswerer
from preftune.generation.thoughts import split_thoughts
from preftune.storage.jsonl import cut_torn_line, digest, prepare_folder, read_lines, write_json, write_lines
from preftune.version import __version__

Answerer: TypeAlias = ModelAnswerer | SpreadAnswerer | EndpointAnswerer


class Asked(NamedTuple):
    """One requested answer."""

    prompt: Prompt
    sample: int
    """Its number among the answers to this prompt, from 0."""
    seed: int
    """Derived from the run's seed, the prompt and the number, so that it is the same in every run."""

    @property
    def key(self) -> str:
        return f"{self.prompt.key}-{self.sample}"

    @property
    def row(self) -> dict[str, Any]:
        """The values for a generator besides the prompt."""
        return {**self.prompt.carried, "id": self.prompt.id, "seed": self.seed}


@dataclass(frozen=True, slots=True)
class SampleCounts:
    """The counts of a file of samples."""

    prompts: int
    completions: int
    distinct: int
    """Answers left when equal ones to the same prompt count once."""
    finished: int
    """Answers that ended by themselves instead of at the length limit."""
    empty: int
    tokens: int
    new: int
    """Answers that this run added."""

    def sentences(self) -> list[str]:
        """The counts in sentences, with advice."""
        per_prompt = self.completions / max(1, self.prompts)
        lines = [
            f"{counted(self.completions, 'completion')} of {counted(self.prompts, 'prompt')} ({per_prompt:.3g} each), "
            f"{self.distinct:,} distinct, {self.tokens / max(1, self.completions):.0f} tokens on average; {self.new:,} "
            "of them new."
        ]
        if self.distinct < 0.8 * self.completions:
            lines.append("Many completions are equal: a higher --temperature gives more variety.")
        if self.finished < 0.9 * self.completions:
            lines.append(
                f"{counted(self.completions - self.finished, 'completion was', 'completions were')} cut "
                "before the end, at --max_new_tokens or by a filter of the server. Raise the limit, or leave them out "
                "with preftune label --finished_only."
            )
        if self.empty:
            lines.append(
                f"{counted(self.empty, 'completion is', 'completions are')} empty; preftune label leaves them out."
            )
        return lines


def manifest_of(path: Path) -> Path:
    """The path of the settings of a file of samples or pairs."""
    return path.with_name(path.name + ".manifest.json")


def sample(
    prompts: Prompts,
    generator: Answerer,
    path: str | Path,
    *,
    k: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    before: Callable[[list[Asked]], None] | None = None,
) -> SampleCounts:
    """Writes `k` answers to every prompt to `path`, except those that exist.

    Args:
        generator: with `raw` answers. It gets all prompts, so that a model's batches do not depend on the existing
            answers, and a resumed run samples the same answers.
        path: a new file, or one started with the same prompts and settings.
        progress: called with answers done and answers in all.
        before: called once with the missing answers.
    Raises: RequestError if the file was not written by preftune sample, or was started with other settings.
    """
    path = Path(path)
    prepare_folder(path.parent)
    settings = {
        **_settings_of(generator),
        "k": k,
        "seed": seed,
        "prompts": f"{len(prompts.prompts)} ({digest([p.key for p in prompts.prompts])})",
    }
    asked = [Asked(prompt, number, _seed(seed, prompt, number)) for prompt in prompts.prompts for number in range(k)]
    store = AnswerStore(
        path, _resume(path, settings, {"source": prompts.name, "prompts": len(prompts.prompts)}), sealed=False
    )
    keys = [one.key for one in asked]
    missing = store.missing(keys)
    if before is not None:
        before([asked[number] for number in missing])
    ask = partial(generator.answer, [one.prompt.prompt for one in asked], [one.row for one in asked])
    store.complete(keys, ask, record=lambda number, answer: _row(asked[number], answer), progress=progress)
    _put_in_order(path, keys)
    counts = count(path, new=len(missing))
    manifest = json.loads(manifest_of(path).read_text(encoding="utf-8"))
    write_json(manifest_of(path), {**manifest, "counts": {k: v for k, v in asdict(counts).items() if k != "new"}})
    return counts


def _put_in_order(path: Path, keys: Sequence[str]) -> None:
    """Sorts the complete file by prompt and number: answers were written when they came."""
    rows = {f"{row['key']}-{row['sample']}": row for row in read_samples(path)}
    if list(rows) != list(keys):
        write_lines(path, (rows[key] for key in keys))


def count(path: Path, *, new: int = 0) -> SampleCounts:
    """Counts the samples of a file."""
    texts: dict[str, set[str]] = {}
    completions = finished = empty = tokens = 0
    for row in read_samples(path):
        completions += 1
        finished += bool(row["finished"])
        empty += not answer_in(row).strip()
        tokens += row["tokens"]
        texts.setdefault(row["key"], set()).add(row["completion"])
    return SampleCounts(
        prompts=len(texts),
        completions=completions,
        distinct=sum(map(len, texts.values())),
        finished=finished,
        empty=empty,
        tokens=tokens,
        new=new,
    )


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a file of samples, each answer once."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in read_lines(path):
        if _is_sample(row):
            found.setdefault((row["key"], row["sample"]), row)
    return list(found.values())


def answer_in(row: Mapping[str, Any]) -> str:
    """The answer of a row of samples, without the thought of a thinking model."""
    said = row.get("answer")
    return said if isinstance(said, str) else split_thoughts(str(row["completion"])).answer


def _is_sample(row: Mapping[str, Any]) -> bool:
    types: dict[str, Any] = {
        "key": str,
        "prompt": (str, list),
        "sample": int,
        "completion": str,
        "tokens": int,
        "finished": bool,
    }
    return all(isinstance(row.get(name), kind) for name, kind in types.items())


def _settings_of(generator: Answerer) -> dict[str, Any]:
    """All that shapes an answer, as JSON: a model by its content, the resolved generation config, the tokenizer and its
    chat template.
    """
    if isinstance(generator, SpreadAnswerer):
        return dict(generator.ask(_settings_of))
    if not isinstance(generator, ModelAnswerer):
        return {**generator.identity(), "generation": asdict(generator.settings)}
    from preftune.reference.fingerprint import fingerprint

    model, tokenizer = generator.source.model, generator.tokenizer()
    return {
        "model": generator.name,
        "fingerprint": fingerprint(model, adapters=True),
        "tokenizer": digest(_inside(tokenizer)),
        "chat_template": digest(tokenizer.chat_template),
        "generation": resolved(generator.settings, model, tokenizer),
    }


def _inside(tokenizer: Any) -> Any:
    """What decides about a tokenizer's ids; how it was last asked to pad and to cut does not."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return sorted(tokenizer.get_vocab().items())
    return {name: part for name, part in json.loads(backend.to_str()).items() if name not in ("padding", "truncation")}


def _resume(path: Path, settings: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Record]:
    """The answers that are there; a new file gets its manifest before its first row."""
    manifest = manifest_of(path)
    if not path.exists() or path.stat().st_size == 0:
        write_json(
            manifest,
            {"preftune": __version__, "created": int(time.time()), "settings": dict(settings), "data": dict(data)},
        )
        path.touch()
        return {}
    try:
        written = json.loads(manifest.read_text(encoding="utf-8"))["settings"]
        begun = {"tokenizer": settings.get("tokenizer"), **written}  # which earlier versions did not write
    except (OSError, ValueError, KeyError, TypeError):
        raise RequestError(
            f"{path} exists, but {manifest.name} next to it does not say that preftune sample wrote it. Give another "
            "file with -o."
        ) from None
    changed = differences(begun, settings)
    if changed:
        raise RequestError(
            f"{path} was started with other settings: {'; '.join(changed)}. Use the settings of the file, or give "
            "another file with -o."
        )
    cut_torn_line(path)
    return {f"{row['key']}-{row['sample']}": row for row in read_samples(path)}


def differences(begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two settings, each as "temperature was 0.7 and is 0.9", once for several models."""
    wanted = json.loads(json.dumps(wanted, default=str))  # as it looks when it has been written and read
    names = dict.fromkeys((*begun, *wanted))
    found = []
    for name in names:
        old, new = begun.get(name), wanted.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new)
        elif old != new:
            found.append(f"{name} was {old} and is {new}")
    return list(dict.fromkeys(found))


def _seed(seed: int, prompt: Prompt, number: int) -> int:
    """63 bits, so that it fits where a signed number is wanted."""
    text = f"{seed} {prompt.key} {number}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def _row(asked: Asked, answer: Answer) -> dict[str, Any]:
    prompt = asked.prompt
    row: dict[str, Any] = {
        "id": prompt.id,
        "key": prompt.key,
        "prompt": prompt.prompt,
        "sample": asked.sample,
        "completion": answer.text,
        "tokens": answer.tokens,
        "finished": answer.finished,
        **prompt.carried,
    }
    said = getattr(answer, "answer", None)
    if said is not None:
        row["answer"] = said
    return {**row, "row": dict(prompt.kept)} if prompt.kept else row

"""Ollama's Modelfile: weights, template, end tokens, context length and sampling settings, written and compared.

Ollama does not run Jinja. A chat template is expressed as the texts around every turn, which are found by rendering
conversations, and are refused if they do not render the same conversations again.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.data.chat.end_marks import EndMarks, closing_token
from preftune.data.chat.tool_calls import apply_template
from preftune.deploy.served import ServedModel, gguf_of
from preftune.deploy.text_faults import Fault
from preftune.errors import ModelError
from preftune.generation.generate import end_ids
from preftune.storage.atomic import write_whole
from preftune.types import Message

NAME = "Modelfile"
CONTEXT = 8192
"""Upper bound of `num_ctx`. Ollama's own default cuts long prompts without a message."""
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
"""Ollama's names of the settings of a generation config."""
_LONGEST = 20_000
"""In bytes. Parsing takes quadratic time on a hostile file: 0.4 s at this length, 35 s at ten times it."""
_INSTRUCTION = re.compile(r'^[ \t]*([A-Za-z]+)[ \t]+(?:"""((?s:.*?))"""|([^\n]*))[ \t]*$', re.M)


def modelfile(weights: str, tokenizer: Any, generation_config: Any, config: Mapping[str, Any]) -> str:
    """The text of a Modelfile.

    Args:
        weights: the name of the GGUF file, which is in the same folder.
        generation_config: of transformers; None for a model without one.
        config: the model's own.
    Raises: ModelError for a template that cannot be expressed.
    """
    template = go_template(derive_affixes(tokenizer))
    if '"""' in template:
        raise ModelError('The chat template contains """, which a Modelfile cannot hold. Export with --to gguf.')
    closing = closing_token(tokenizer)
    ends = sorted({*end_ids(generation_config, tokenizer), *([] if closing is None else [closing])})
    marks = [str(tokenizer.convert_ids_to_tokens(end)) for end in ends]
    inner = config.get("text_config") or config
    positions = inner.get("max_position_embeddings") or inner.get("n_positions") or CONTEXT
    settings = {"num_ctx": min(positions, CONTEXT), **_sampling(generation_config)}
    lines = [
        f"FROM ./{weights}",
        f'TEMPLATE """{template}"""',
        *(f"PARAMETER stop {json.dumps(mark, ensure_ascii=False)}" for mark in marks),
        *(f"PARAMETER {name} {value:g}" for name, value in settings.items()),
    ]
    return "\n".join(lines) + "\n"


def write_modelfile(folder: Path, *what: Any) -> None:
    """Writes the Modelfile of a folder; see `modelfile`."""
    write_whole(folder / NAME, modelfile(*what).encode())


def _sampling(config: Any) -> dict[str, float]:
    """The sampling settings of a generation config. Without a value, Ollama penalises repetitions."""
    found = {theirs: getattr(config, ours, None) for ours, theirs in _SAMPLING.items()}
    if getattr(config, "do_sample", None) is False:
        found["temperature"] = 0.0
    return {"repeat_penalty": 1.0} | {name: value for name, value in found.items() if value is not None}


def faults_of_modelfile(run: ServedModel, folder: Path) -> list[Fault]:
    """Compares the Modelfile of a folder with a GGUF file, if it has one, with what the run demands."""
    file = folder / NAME
    weights = gguf_of(folder) if file.is_file() else None
    if weights is None:
        return []
    if file.stat().st_size > _LONGEST:
        return [Fault("files", f"the Modelfile has {file.stat().st_size:,} bytes, which none needs.")]
    model: Any = run.source.model
    config = (model.get_base_model() if hasattr(model, "get_base_model") else model).config.to_dict()
    wanted = _read(modelfile(weights.name, run.tokenizer, run.source.generation_config, config))
    return list(_faults(_read(file.read_text(encoding="utf-8", errors="replace")), wanted, weights))


def _read(text: str) -> dict[str, list[str]]:
    """The values of every instruction; a parameter is the instruction `PARAMETER NAME`."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, block, line in _INSTRUCTION.findall(text):
        key, value = name.upper(), block or _unquoted(line.strip())
        if key == "PARAMETER":
            what, _, value = value.partition(" ")
            key, value = f"PARAMETER {what.lower()}", _unquoted(value.strip())
        found[key].append(value)
    return found


def _unquoted(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str) else text


def _faults(found: Mapping[str, Sequence[str]], wanted: Mapping[str, Sequence[str]], file: Path) -> Iterator[Fault]:
    own = found.get("FROM", [""])[-1]
    if (file.parent / own).resolve() != file.resolve():
        yield Fault("files", f"the Modelfile takes its weights from {own!r}, not from ./{file.name}.")
    if found.get("TEMPLATE", [])[-1:] != wanted["TEMPLATE"]:
        yield Fault("template", "the Modelfile's TEMPLATE does not render what the run's chat template renders.")
    if added := [name for name in ("SYSTEM", "MESSAGE") if name in found]:
        yield Fault("template", f"the Modelfile adds turns that the run does not have ({', '.join(added)}).")
    if "ADAPTER" in found:
        yield Fault("weights", f"the Modelfile adds an adapter to the weights ({found['ADAPTER'][-1]!r}).")
    stops, ends = set(found.get(_STOP, [])), set(wanted[_STOP])
    if stops != ends:
        said = [f"{word} {', '.join(map(repr, sorted(some)))}" for word, some in _differences(stops, ends) if some]
        yield Fault("end token", f"the Modelfile {' and '.join(said)} as a stop token.")
    names = {name for name in {*found, *wanted} if name.startswith("PARAMETER ") and name != _STOP}
    for name in sorted(names):
        one, other = (" ".join(values.get(name, [])[-1:]) for values in (found, wanted))
        if one != other and not _equal(one, other):
            what = name.removeprefix("PARAMETER ")
            yield Fault("generation", f"the Modelfile's {what} is {one or 'not set'}, and the run's {other or 'not'}.")


_STOP = "PARAMETER stop"


def _differences(stops: set[str], ends: set[str]) -> list[tuple[str, set[str]]]:
    return [("does not name", ends - stops), ("adds", stops - ends)]


def _equal(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return False


def go_template(affixes: Affixes) -> str:
    """The template as Ollama runs it over `.Messages`."""
    start = (
        f'{{{{- if or (not .Messages) (ne (index .Messages 0).Role "system") }}}}{_literal(affixes.lead)}{{{{ end }}}}'
    )
    branches: list[str] = []
    for role, (before, after) in affixes.turns.items():
        word = "else if" if branches else "- if"
        branches.append(f'{{{{{word} eq .Role "{role}" }}}}{_literal(before)}{{{{ .Content }}}}{_literal(after)}')
    loop = "{{- range .Messages }}" + "".join(branches) + "{{ end }}{{ end }}"
    return (start if affixes.lead else "") + loop + _literal(affixes.generation)


def _literal(text: str) -> str:
    """Text that Go's template language leaves as it is."""
    return text.replace("{{", '{{ "{{" }}')


_SYSTEM, _ASKED, _SAID, _AGAIN = "Zqsystem", "Zqasked", "Zqsaid", "Zqagain"
"""Contents of the turns that are rendered; no template writes them itself."""


@dataclass(frozen=True, slots=True)
class Affixes:
    """The conversation is `lead` (only without a system turn), the turns between their affixes, and `generation`."""

    lead: str
    turns: Mapping[str, tuple[str, str]]
    """Prefix and suffix by role: `user`, `assistant`, and `system` if the template takes one."""
    generation: str

    def render(self, turns: Sequence[Message]) -> str:
        """The prompt up to the beginning of the answer."""
        lead = "" if turns and turns[0]["role"] == "system" else self.lead
        parts = (
            before + str(turn["content"]) + after for turn in turns for before, after in [self.turns[turn["role"]]]
        )
        return lead + "".join(parts) + self.generation


def derive_affixes(tokenizer: Any) -> Affixes:
    """The affixes of a tokenizer's chat template, without the bos that the tokenizer, and so a server, adds itself.

    Every conversation that was rendered to find them is rendered again from them and compared.

    Raises: ModelError if the template is missing, or does more than put texts around turns.
    """
    if not tokenizer.chat_template:
        raise ModelError("The tokenizer has no chat template, so no Modelfile can be written. Export with --to gguf.")
    render = _renderer(tokenizer)
    asked, said, again = _turn("user", _ASKED), _turn("assistant", _SAID), _turn("user", _AGAIN)
    system = _turn("system", _SYSTEM)
    one, three = render([asked]), render([asked, said, again])
    with_system = render([system, asked])
    if one is None or three is None:
        raise _more_than_affixes()
    mark = EndMarks(tokenizer).closing or ""
    head, question, answer, tail = _parts(three, _ASKED, _SAID, _AGAIN)
    user_after, assistant_before = _split(question, mark)
    assistant_after, user_before = _split(answer, mark)
    if not head.endswith(user_before) or not tail.startswith(user_after):
        raise _more_than_affixes()
    turns = {"user": (user_before, user_after), "assistant": (assistant_before, assistant_after)}
    if with_system is not None and _SYSTEM in with_system:
        system_before, middle, _ = _parts(with_system, _SYSTEM, _ASKED)
        if middle.endswith(user_before):
            turns["system"] = system_before, middle.removesuffix(user_before)
    found = Affixes(head.removesuffix(user_before), turns, tail.removeprefix(user_after))
    tried = [[asked], [asked, said, again], [asked, said, again, _turn("assistant", "Zqend"), asked]]
    tried += [[system, asked], [system, asked, said, again]] if "system" in turns else []
    if any(render(conversation) != found.render(conversation) for conversation in tried):
        raise _more_than_affixes()
    return found


def _renderer(tokenizer: Any) -> Callable[[list[Message]], str | None]:
    """Renders a prompt; None for a conversation that the template refuses."""
    bos = str(tokenizer.bos_token or "") if list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id] else ""

    def render(turns: list[Message]) -> str | None:
        try:
            text = str(apply_template(tokenizer, turns, add_generation_prompt=True))
        except Exception:  # a template is a program; it may refuse a system turn
            return None
        return text.removeprefix(bos) if bos else text

    return render


def _parts(text: str, *contents: str) -> list[str]:
    """The texts before, between and after the contents."""
    found = []
    for content in contents:
        before, present, text = text.partition(content)
        if not present:
            raise _more_than_affixes()
        found.append(before)
    return [*found, text]


def _split(between: str, mark: str) -> tuple[str, str]:
    """The text between two turns as suffix and prefix: the suffix ends after the end mark and the blanks behind it."""
    before, present, after = between.partition(mark) if mark else ("", "", between)
    if not present:
        return "", between
    start = len(after) - len(after.lstrip())
    return before + mark + after[:start], after[start:]


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _more_than_affixes() -> ModelError:
    return ModelError(
        "The chat template does more than put texts around turns, so Ollama's template language cannot express it. "
        "Export with --to gguf: llama.cpp's server runs the template itself."
    )

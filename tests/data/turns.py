"""Conversations for tests, and what is scored of them as text: `⟦...⟧` around the scored tokens of a completion."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from preftune.data import GroupDataset, TokenizeReport, load_pairs, tokenize_pairs
from preftune.types import TokenizedGroup

from .tiny_bpe import CHATML, THINKING

Tok = PreTrainedTokenizerFast

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
"""Llama 3's shape: bos written by the template, no line break after a turn."""

MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED_TIGHTLY = MARKED.replace(
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}",
    "{{ m['content'] }}{% endgeneration %}{{ '<|im_end|>\n' }}",
)
"""The marks leave out the end of the turn, which must be trained all the same."""

DROPS_THOUGHTS = (
    "{% set last = namespace(user=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% set c = m['content'].split('</think>')[-1] | trim %}"
    "{% if m['role'] == 'assistant' and loop.index0 > last.user %}"
    "{{ '<think>' + (m['content'].split('</think>')[0].split('<think>')[-1] if '</think>' in m['content'] else '\n\n')"
    " + '</think>\n\n' }}{% endif %}"
    "{{ c if m['role'] == 'assistant' else m['content'] }}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Qwen 3's shape: a think block stays (or an empty one is written) only in answers after the last turn of the user."""

TEMPLATES = {
    "chatml": (CHATML, "<|im_end|>\n"),
    "llama 3": (LLAMA3, "<|im_end|>"),
    "marked": (MARKED, "<|im_end|>\n"),
    "marked without the end": (MARKED_TIGHTLY, "<|im_end|>\n"),
    "an empty think block in the prompt": (THINKING, "<|im_end|>\n"),
    "drops thoughts": (DROPS_THOUGHTS, "<|im_end|>\n"),
}


def turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def user(content: str) -> dict[str, Any]:
    return turn("user", content)


def assistant(content: str) -> dict[str, Any]:
    return turn("assistant", content)


def run(rows: Any, tokenizer: Tok, **options: Any) -> tuple[GroupDataset, TokenizeReport]:
    options.setdefault("max_length", None)
    return tokenize_pairs(load_pairs(rows), tokenizer, **options)


def shown(group: TokenizedGroup, tokenizer: Tok) -> list[str]:
    """The prompt, and each completion with its scored tokens in brackets."""
    texts = [tokenizer.decode(group.prompt_ids)]
    for index, ids in enumerate(group.completions):
        text, at = "", 0
        for begin, end in group.spans(index):
            text += tokenizer.decode(ids[at:begin]) + "⟦" + tokenizer.decode(ids[begin:end]) + "⟧"
            at = end
        texts.append(text + tokenizer.decode(ids[at:]))
    return texts


def shown_one(row: Any, tokenizer: Tok, **options: Any) -> list[str]:
    groups, _ = run([row], tokenizer, **options)
    return shown(groups[0], tokenizer)


PARTED = {
    "prompt": [user("Why?")],
    "chosen": [assistant("one"), user("more"), assistant("two")],
    "rejected": [assistant("three"), user("less"), assistant("four"), user("and?"), assistant("five")],
}

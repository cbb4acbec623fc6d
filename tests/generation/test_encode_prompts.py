"""The prompt that is trained is the prompt that is generated from, on every path that generates."""

from __future__ import annotations

import pytest

from preftune.cli.commands.chat_session import Speaker
from preftune.data import load_pairs, tokenize_pairs
from preftune.generation.encode_prompts import encode_prompts
from preftune.training.guard import samples
from preftune.training.online.prompts import prepare_prompts
from tests.data.tiny_bpe import CHATML, make_tokenizer

PLAIN = {"prompt": "What is the capital of France?", "chosen": " Paris.", "rejected": " Lyon."}
CHAT = {
    "prompt": [{"role": "user", "content": PLAIN["prompt"]}],
    "chosen": [{"role": "assistant", "content": "Paris."}],
    "rejected": [{"role": "assistant", "content": "Lyon."}],
}


@pytest.mark.parametrize("row", [PLAIN, CHAT], ids=["plain", "chat"])
@pytest.mark.parametrize("bos", [False, True], ids=["no-bos", "bos"])
@pytest.mark.parametrize("appends_eos", [False, True], ids=["no-eos", "eos"])
def test_one_rendering(monkeypatch, row, bos: bool, appends_eos: bool) -> None:
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = make_tokenizer(bos=bos, appends_eos=appends_eos, **special)
    tokenizer.chat_template = CHATML
    groups, _ = tokenize_pairs(load_pairs([row]), tokenizer)
    trained = list(groups[0].prompt_ids)

    assert encode_prompts(tokenizer, [row["prompt"]], None) == [trained]
    assert [list(ids) for ids in prepare_prompts([row], tokenizer, max_prompt_length=None).token_ids] == [trained]
    if row is CHAT:
        assert Speaker("x", None, tokenizer)._prompt_ids(row["prompt"]) == trained

    answer = samples.Completion("Paris.", 1, finished=True)
    monkeypatch.setattr(samples, "generate", lambda *args, **options: [answer])
    asked = samples.prompts_of(load_pairs([row]), 1, tokenizer)
    (sampled,) = samples.sampled_answers(None, tokenizer, asked, tokens=8, autocast=None)
    assert list(sampled.prompt_ids) == trained
    read_back = samples.prompts_of(groups, 1, tokenizer)
    assert encode_prompts(tokenizer, [read_back[0].asked], None) == [trained]

"""Small tokenizers made in memory: the data layer needs no model and no network."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
"""Renders the generation prompt with an empty think block that the full conversation lacks, as Qwen3 does."""

WORDS = """The quick brown fox jumps over the lazy dog while seven wizards make toxic brew for the evil queen and jack.
What is the capital of France? The capital of France is Paris. It is not Lyon, and it never was. yes it is, yes it was!
user assistant system Human: Assistant: You are a helpful assistant. Why does bread rise? Because yeast makes gas.
<think> </think> 0 1 2 3 4 5 6 7 8 9 answer question prompt chosen rejected good bad better worse"""


def make_tokenizer(*, bos: bool = False, appends_eos: bool = False, **special: str | None) -> PreTrainedTokenizerFast:
    """A byte-level BPE of some 400 tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([WORDS], trainer)
    core.add_special_tokens(
        [AddedToken(t, special=True) for t in ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<pad>")]
    )
    if bos or appends_eos:
        core.post_processor = processors.TemplateProcessing(
            single=("<s> " if bos else "") + "$A" + (" </s>" if appends_eos else ""),
            special_tokens=[("<s>", 0), ("</s>", 1)],
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)

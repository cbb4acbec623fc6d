"""A small Llama from scratch on film reviews: tokenizer, training that goes on where it was killed, perplexity.

A sentence is a group with one completion, so that preftune's engine trains it too: sentences end to end, no padding,
none sees another, and no logits of the size of tokens times vocabulary.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from experiment import Model

from preftune import load_model, load_tokenizer
from preftune.logps import make_engine, pack
from preftune.storage.atomic import write_whole
from preftune.types import TokenizedGroup

Say = Callable[[str], None]
_BOS, _EOS, _PAD = "<s>", "</s>", "<pad>"
_SAVE_EVERY_S = 60.0
_HELD_OUT = 1500
"""Held-out sentences for the perplexity."""


def trained_language_model(
    folder: Path, shape: Model, texts: Sequence[str], held_out: Sequence[str], *, say: Say
) -> tuple[Any, Any, dict[str, Any]]:
    """The model, its tokenizer and what is known about it; trained if the folder has none yet."""
    facts_file = folder / "facts.json"
    if not facts_file.exists():
        _train(folder, shape, texts, held_out, say=say)
    facts: dict[str, Any] = json.loads(facts_file.read_text(encoding="utf-8"))
    return load_model(str(folder)), load_tokenizer(str(folder)), facts


def _train(folder: Path, shape: Model, texts: Sequence[str], held_out: Sequence[str], *, say: Say) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    texts = spread(texts, shape.sentences or len(texts))
    tokenizer = train_tokenizer(texts, shape.vocabulary)
    model = new_model(shape, tokenizer)
    steps = _plan_steps(_groups(texts, tokenizer), shape)
    say(
        f"language model: {model.num_parameters():,} parameters, {len(steps):,} steps of {shape.tokens_per_step} tokens"
    )
    seconds = _optimise(model, steps, shape, folder / "unfinished.pt", say=say)
    perplexity = held_out_perplexity(model, _groups(spread(held_out, _HELD_OUT), tokenizer))
    say(f"language model: perplexity {perplexity:.1f} per token on held-out sentences, after {seconds:.0f} s")
    model.set_attn_implementation("sdpa")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    facts = {
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "training_sentences": len(texts),
        "training_tokens": sum(group.tokens for step in steps for group in step) // shape.epochs,
        "epochs": shape.epochs,
        "held_out_perplexity_per_token": round(perplexity, 2),
        "seconds": round(seconds, 1),
    }
    write_whole(folder / "facts.json", (json.dumps(facts, indent=1) + "\n").encode())
    (folder / "unfinished.pt").unlink(missing_ok=True)


def spread(texts: Sequence[str], most: int) -> list[str]:
    """So many texts at most, evenly from all over."""
    return [texts[index * len(texts) // most] for index in range(most)] if len(texts) > most else list(texts)


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """Byte-pair encoding of this corpus; one special token begins a sentence, one ends it, one fills."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_BOS, _EOS, _PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    begin = (_BOS, backend.token_to_id(_BOS))
    backend.post_processor = processors.TemplateProcessing(single=f"{_BOS} $A", special_tokens=[begin])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=_BOS, eos_token=_EOS, pad_token=_PAD)


def new_model(shape: Model, tokenizer: Any) -> Any:
    """Random weights, the same on every call."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.feed_forward,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.02,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def held_out_perplexity(model: Any, groups: Sequence[TokenizedGroup]) -> float:
    """exp of the mean negative log-probability per token, the end token counted."""
    engine = make_engine(model, "packed")
    model.eval()
    with torch.no_grad():
        scores = [engine(model, pack(groups[i : i + 48])).token_logps_T for i in range(0, len(groups), 48)]
    return math.exp(-float(torch.cat(scores).double().mean()))


def _groups(texts: Sequence[str], tokenizer: Any) -> list[TokenizedGroup]:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return [
        TokenizedGroup((bos,), ((*ids[:126], eos),), ())
        for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    ]


def _plan_steps(groups: Sequence[TokenizedGroup], shape: Model) -> list[list[TokenizedGroup]]:
    """Sentences of every step, in an order that is always the same."""
    order = random.Random(0)
    steps: list[list[TokenizedGroup]] = [[]]
    for _ in range(shape.epochs):
        tokens = 0
        for group in order.sample(groups, len(groups)):
            if tokens + group.tokens > shape.tokens_per_step:
                steps.append([])
                tokens = 0
            steps[-1].append(group)
            tokens += group.tokens
        steps.append([])
    return [step for step in steps if step]


def _optimise(model: Any, steps: Sequence[Sequence[TokenizedGroup]], shape: Model, kept: Path, *, say: Say) -> float:
    """AdamW with warmup and a cosine to a tenth; returns the seconds it took, those before a kill counted."""
    engine = make_engine(model, "packed")
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=shape.learning_rate, betas=(0.9, 0.98), fused=True,
    )  # fmt: skip
    begin, before = _read_state(kept, model, optimiser)
    if begin:
        say(f"language model: goes on at step {begin} of {len(steps)}")
    model.train()
    started = saved = time.perf_counter()
    for step in range(begin, len(steps)):
        for group in optimiser.param_groups:
            group["lr"] = shape.learning_rate * _schedule(step, len(steps), shape.warmup_steps)
        loss = -engine(model, pack(steps[step])).token_logps_T.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        now = time.perf_counter()
        if (step + 1) % max(1, len(steps) // 10) == 0:
            left = (now - started) / (step + 1 - begin) * (len(steps) - step - 1)
            say(f"language model: step {step + 1}/{len(steps)}, loss {float(loss.detach()):.2f}, {left:.0f} s left")
        if now - saved > _SAVE_EVERY_S:
            _write_state(kept, model, optimiser, step + 1, before + now - started)
            saved = time.perf_counter()
    return before + time.perf_counter() - started


def _schedule(step: int, steps: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def _write_state(kept: Path, model: Any, optimiser: Any, step: int, seconds: float) -> None:
    state = {"step": step, "seconds": seconds, "model": model.state_dict(), "optimiser": optimiser.state_dict()}
    temporary = kept.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(kept)


def _read_state(kept: Path, model: Any, optimiser: Any) -> tuple[int, float]:
    """Step to go on with, and seconds spent before; puts the weights back."""
    if not kept.exists():
        return 0, 0.0
    state = torch.load(kept, weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"]), float(state["seconds"])

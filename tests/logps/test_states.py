"""Hidden states where heads read them: the same packed, one by one, and from a plain forward pass."""

from __future__ import annotations

import pytest
import torch

from models_zoo import random_model
from preftune.logps import make_engine, pack, supports
from preftune.logps.states import completion_states, last_tokens, token_states, trunk_of
from preftune.types import TokenizedGroup

GROUPS = [
    TokenizedGroup([5, 6, 7], ([8, 9, 2], [10, 2]), ()),
    TokenizedGroup([4, 3], ([11],), ()),
    TokenizedGroup([12], ([13, 14, 15, 2], [16, 2]), (), scored=(((1, 3),), ())),
]


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "gemma3"])
def test_states_are_those_of_each_sequence_alone(name: str) -> None:
    model = random_model(name)
    assert supports(model).exact
    batch = pack(GROUPS)
    before, at_end = [], []
    with torch.no_grad():
        trunk = trunk_of(model)
        for group in GROUPS:
            for index, completion in enumerate(group.completions):
                states = trunk(input_ids=torch.tensor([[*group.prompt_ids, *completion]]))[0][0]
                first = len(group.prompt_ids) - 1
                before += [states[first + begin : first + end] for begin, end in group.spans(index)]
                at_end.append(states[-1])
        make_engine(model, "packed")
        for packed in (True, False):
            found = token_states(trunk, batch, packed=packed), completion_states(trunk, batch, packed=packed)
            torch.testing.assert_close(found[0], torch.cat(before), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found[1], torch.stack(at_end), rtol=1e-4, atol=1e-5)


def test_the_head_on_these_states_gives_the_engines_scores() -> None:
    model = random_model("llama")
    engine = make_engine(model, "packed")
    batch = pack(GROUPS)
    with torch.no_grad():
        logits = model.get_output_embeddings()(token_states(trunk_of(model), batch, packed=True))
        expected = logits.log_softmax(-1).gather(-1, batch.target_T[:, None])[:, 0]
        torch.testing.assert_close(engine(model, batch).token_logps_T, expected, rtol=1e-5, atol=1e-6)


def test_the_last_token_is_found_without_looking_for_padding() -> None:
    batch = pack(GROUPS)
    assert batch.input_ids[0, last_tokens(batch)].tolist() == [2, 2, 11, 2, 2]


def test_gradients_reach_the_trunk_the_same_way() -> None:
    gradients = []
    for packed in (True, False):
        model = random_model("llama")
        make_engine(model, "packed")
        batch = pack(GROUPS)
        token_states(trunk_of(model), batch, packed=packed).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in trunk_of(model).parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)

"""A model behind an address: llama.cpp's server and vLLM show token ids and scores, other servers answers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, TypeAlias

from preftune.deploy.served import Scores
from preftune.errors import EndpointError
from preftune.generation.endpoint.client import Endpoint
from preftune.generation.endpoint.parallel import in_parallel
from preftune.generation.protocol import Kept
from preftune.generation.settings import messages_of
from preftune.generation.thoughts import Spoken
from preftune.types import Text, TokenizedGroup

Engine: TypeAlias = Literal["llama.cpp", "vllm", ""]
_FORCE = 1e4
"""A bias that makes a token certain. llama.cpp reports the log-probability without the bias."""


class ServedEndpoint:
    """A model behind an OpenAI-compatible address."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.name = str(endpoint.name)

    @cached_property
    def engine(self) -> Engine:
        """Which engine answers; empty for one whose further addresses are unknown."""
        if "tokens" not in (
            self.endpoint.post("tokenize", {"content": "a", "model": self._model, "prompt": "a"}) or {}
        ):
            return ""
        return "llama.cpp" if "prompt" in (self.endpoint.post("apply-template", {"messages": _HELLO}) or {}) else "vllm"

    def text_ids(self, texts: Sequence[str]) -> list[list[int]] | None:
        if self.engine == "llama.cpp":
            return [self._llama_ids(text) for text in texts]
        if self.engine == "vllm":
            more = {"model": self._model, "add_special_tokens": False}
            return [_ids(self.endpoint.post("tokenize", {"prompt": text, **more})) for text in texts]
        return None

    def prompt_ids(self, prompts: Sequence[Text]) -> list[list[int]] | None:
        if self.engine == "llama.cpp":
            return [self._llama_ids(self._rendered(prompt)) for prompt in prompts]
        if self.engine == "vllm":
            more = {"model": self._model, "add_generation_prompt": True}
            return [
                _ids(self.endpoint.post("tokenize", {"messages": messages_of(prompt), **more})) for prompt in prompts
            ]
        return None

    def ending(self, tokens: Sequence[int]) -> list[int] | None:
        """Each token is forced twice: an answer that ends at it has one."""
        if self.engine != "llama.cpp":
            return None
        found = []
        for token in tokens:
            reply = self._forced(self._llama_ids("Hello"), token, n_predict=2)
            if "stop_type" not in reply:
                return None
            found += [token] if reply["stop_type"] == "eos" else []
        return found

    def scores(self, groups: Sequence[TokenizedGroup]) -> Scores | None:
        score = {"llama.cpp": self._llama_score, "vllm": self._vllm_score}.get(self.engine)
        if score is None:
            return None
        found = []
        for group in groups:
            try:
                one, two = score(group, 0), score(group, 1)
            except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
                raise EndpointError(
                    f"{self.name} reports log-probabilities in a form that cannot be read ({type(error).__name__}). "
                    "Check that nothing between changes its replies."
                ) from error
            if one is None or two is None:
                return None
            found.append((one, two))
        return found

    def answers(self, prompts: Sequence[Text], max_new_tokens: int) -> list[Kept]:
        found: dict[int, Kept] = {}

        def ask(number: int) -> Kept:
            reply = self.endpoint.chat(messages_of(prompts[number]), max_tokens=max_new_tokens, temperature=0.0)
            return Kept(Spoken(reply.text, reply.thought).whole, reply.tokens, reply.finished)

        in_parallel(ask, range(len(prompts)), workers=self.endpoint.conduct.concurrency, take=found.__setitem__)
        return [found[number] for number in range(len(prompts))]

    def close(self) -> None:
        self.endpoint.__exit__(None, None, None)

    @property
    def _model(self) -> str:
        return self.endpoint.name.model

    def _rendered(self, prompt: Text) -> str:
        reply = self.endpoint.post("apply-template", {"messages": messages_of(prompt)}) or {}
        if not isinstance(text := reply.get("prompt"), str):
            raise EndpointError(f"{self.name} cannot render a prompt with its chat template. Check the server's log.")
        return text

    def _llama_ids(self, text: str) -> list[int]:
        return _ids(self.endpoint.post("tokenize", {"content": text, "add_special": False, "parse_special": True}))

    def _llama_score(self, group: TokenizedGroup, side: int) -> float | None:
        """One request per token, which is forced; the server keeps the prompt in its cache."""
        ids, total = list(group.prompt_ids), 0.0
        for token in group.completions[side]:
            reply = self._forced(ids, token, n_predict=1, n_probs=1, cache_prompt=True)
            found = reply.get("completion_probabilities") or [{}]
            if found[0].get("id") != token or "logprob" not in found[0]:
                return None
            total += float(found[0]["logprob"])
            ids.append(int(token))
        return total

    def _forced(self, ids: Sequence[int], token: int, **options: Any) -> dict[str, Any]:
        """The reply to a prompt after which llama.cpp can only write one token."""
        request = {"prompt": list(ids), "temperature": 0, "logit_bias": [[int(token), _FORCE]], **options}
        return self.endpoint.post("completion", request) or {}

    def _vllm_score(self, group: TokenizedGroup, side: int) -> float | None:
        ids = [*group.prompt_ids, *group.completions[side]]
        request = {"model": self._model, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        choices = (self.endpoint.post("v1/completions", request) or {}).get("choices") or [{}]
        known = choices[0].get("prompt_logprobs") or []
        if len(known) != len(ids):
            return None
        return sum(float(known[at][str(ids[at])]["logprob"]) for at in range(len(group.prompt_ids), len(ids)))


_HELLO = [{"role": "user", "content": "Hello"}]


def _ids(reply: Mapping[str, Any] | None) -> list[int]:
    tokens = (reply or {}).get("tokens")
    if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < _MOST_TOKENS for token in tokens):
        raise EndpointError("The server reports token ids for some texts only. Check its log, and verify again.")
    return tokens


_MOST_TOKENS = 1 << 31

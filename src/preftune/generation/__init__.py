"""Answers to prompts from transformers, vLLM or an endpoint.

`protocol` defines a generator, and `backends` holds the generators. `encode_prompts` renders prompts for
generation; training renders rows in `data/tokens/encode.py`. Both apply the chat template with `rendered` of
`data/chat/tool_calls.py`. Sampling is seeded per row, so that a resumed run draws the same answers.

    answer_store     answers on disk by key, reused by a resumed run
    backends         answers from transformers and from endpoints
    early_exit       batches in which each row ends separately
    encode_prompts   prompts as token ids: the one renderer of generation
    endpoint         chat models behind an address
    finite_check     an error at the first logits that are not finite
    generate         transformers' generate, seeded per row
    lazy_model       a model that is loaded when it is needed, and its fingerprint
    own_prompts      the prompts that come with preftune
    prompts          prompts read from data in any known format
    protocol         the protocol of generators and answers
    seeded_sampling  random numbers that depend on the row, not on the batch; mixtures of two models
    shared_prompts   prompts of several rows, computed once
    settings         sampling settings and requests to endpoints
    spread           answers from the workers of a cluster
    thoughts         reasoning separated from the answer
    vllm_backend     answers from vLLM (experimental: not tested on a GPU here)
"""

__all__ = [
    "answer_store",
    "backends",
    "encode_prompts",
    "endpoint",
    "finite_check",
    "generate",
    "lazy_model",
    "own_prompts",
    "prompts",
    "protocol",
    "seeded_sampling",
    "settings",
    "spread",
    "thoughts",
    "vllm_backend",
]

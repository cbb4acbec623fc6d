"""Chat models behind an OpenAI-compatible address.

`client` sends one request, `parallel` many at a time, `budget` enforces limits on calls and price. `replies` treats
replies as untrusted.

    budget    limits on calls and price, and cost estimates
    client    one request: retries, rate limits, errors
    parallel  many requests at a time
    replies   reading of untrusted replies
"""

__all__ = ["budget", "client", "parallel", "replies"]

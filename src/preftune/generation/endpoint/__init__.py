"""Chat models behind an OpenAI-compatible address.

`client` sends one request, `parallel` many at a time, `budget` keeps to a price or a token limit. Replies are read
with suspicion in `replies`.

    budget    limits on calls, tokens and price, and what a job will cost
    client    one request: retries, rate limits, errors
    parallel  many requests at a time
    replies   a reply read with suspicion
"""

__all__ = ["budget", "client", "parallel", "replies"]

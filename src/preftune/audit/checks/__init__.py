"""The checks of an audit, a module each.

`check.Check` is what a check is; a new one is a class and a line in `registry`.

    cheats      features that tell chosen from rejected
    check       Check and Setting
    diversity   how different the prompts are
    duplicates  repeated prompts and pairs; leakage
    labels      agreement, strength, weights
    lengths     lengths and what limits cut
    reference   margins and accuracy of the model before training
    registry    CHECKS
    roles       turns of conversations
    rows        rows without a pair
    sides       empty, equal or nearly equal sides
    size        enough pairs
    sources     where rows come from
    text        damaged encoding, typed special tokens
    tokens      what the tokenizer makes of rows
"""

__all__ = ["check", "lengths", "registry"]

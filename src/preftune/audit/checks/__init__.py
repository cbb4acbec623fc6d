"""The checks of an audit, one in each module.

`check.Check` is their base class. A new check is a class and a line in `registry`.

    cheats      features that distinguish chosen from rejected
    check       Check and Setting
    diversity   diversity of the prompts
    duplicates  repeated prompts and pairs; leakage
    labels      agreement, strength, weights
    lengths     lengths, and the tokens that limits cut
    reference   margins and accuracy of the model before training
    registry    CHECKS
    roles       turns of conversations
    rows        rows without a pair
    sides       empty, equal or nearly equal sides
    size        number of pairs
    sources     sources of the rows
    text        damaged encoding, typed special tokens
    tokens      results of tokenising and of the chat template
"""

__all__ = ["check", "lengths", "registry"]

"""Pairs and demonstrations -> token ids, with every dropped or cut row counted in a report.

`encode` decides where prompt and answer meet and which tokens are trained, `pairs` and `demonstrations` run over a
dataset, and `cache` keeps the result on disk.

    assistant_turns        the assistant's turns in a rendered conversation
    cache                  tokens on disk
    demonstration_report   what was dropped or cut, for demonstrations
    demonstrations         demonstrations -> token ids
    encode                 one pair -> prompt, chosen and rejected ids; the boundary
    encode_ahead           one batch rendered while another is tokenised
    encode_demonstrations  one demonstration -> ids and trained spans
    group_by_prompt        rows that share a prompt as one group
    groups                 GroupDataset: groups in flat arrays
    pairs                  tokenize_pairs: limits, truncation, report
    report                 TokenizeReport: what was dropped or cut, for pairs
    shared_prefix          a prompt that two answers share is tokenised once
    shorten                fields that are too long for any limit, cut before tokenising
    spans                  spans of trained tokens
"""

__all__ = [
    "cache",
    "demonstration_report",
    "demonstrations",
    "encode",
    "group_by_prompt",
    "groups",
    "pairs",
    "report",
    "shorten",
    "spans",
]

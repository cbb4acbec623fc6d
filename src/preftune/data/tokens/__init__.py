"""Pairs and demonstrations -> token ids. Every dropped or cut row is counted in a report.

`encode` determines the boundary between prompt and answer and the trained tokens, `tokenize` processes a dataset, and
`cache` keeps the result on disk.

    assistant_turns        the assistant's turns in a rendered conversation
    cache                  tokens on disk
    encode                 one example -> ids of prompt and completions; the boundary
    encode_demonstrations  one demonstration -> ids and trained spans
    encoded                ids of one example, and the texts that they come from
    flat_arrays            arrays that grow, in a mapped file where they are large
    group_by_prompt        rows that share a prompt as one group
    groups                 GroupDataset: groups in flat arrays, which are mapped
    lists                  rated pairs of a prompt as one list of answers
    reasons                why a row cannot train
    report                 TokenizeReport, DemonstrationReport: what was dropped or cut
    shared_prefix          a prompt that two answers share is tokenised once
    shorten                fields that are too long for any limit, cut before tokenising
    spans                  spans of trained tokens
    tokenize               tokenize_pairs, tokenize_demonstrations: limits, truncation, report
"""

__all__ = [
    "cache",
    "encode",
    "encode_demonstrations",
    "encoded",
    "flat_arrays",
    "group_by_prompt",
    "groups",
    "lists",
    "reasons",
    "report",
    "shorten",
    "spans",
    "tokenize",
]

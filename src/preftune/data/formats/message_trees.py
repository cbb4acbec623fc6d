"""OpenAssistant/oasst1 and oasst2: trees of messages in which people ranked the answers to the same message.

Two layouts: a message per row (`message_id`, `parent_id`, `text`, `role` prompter or assistant, `rank`), as on the hub,
and a tree per row (`prompt` with `replies` in it), as in the project's own files. Every assistant message with ranked
siblings gives pairs with them: the prompt is the path from the root, rank 0 is the best, strength is the distance in
ranks. Messages that were deleted, or that reviewers rejected, are counted and left out; so are answers below them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from preftune.data.formats.adapter import Adapter, Left, Made, Row, Sample, number, rated_pairs, records

_ROLES = {"prompter": "user", "assistant": "assistant"}


def _is_messages(sample: Sample) -> bool:
    return sample.has("message_id", "parent_id", "text", "role", "rank")


def _is_trees(sample: Sample) -> bool:
    root = sample.first("prompt")
    return "message_tree_id" in sample and isinstance(root, Mapping) and "replies" in root


def _of_messages(rows: Iterable[Row]) -> Iterator[tuple[int, Made]]:
    messages: dict[Any, Row] = {}
    numbers: dict[Any, int] = {}
    replies: dict[Any, list[Row]] = {}
    for index, row in enumerate(rows):
        parent = row.get("parent_id")
        names = (row.get("message_id"), "" if parent is None else parent)
        if not all(isinstance(name, str | int) for name in names) or str(row.get("role")) not in _ROLES:
            yield index, Left("other_shape")
            continue
        messages[row["message_id"]] = row
        numbers[row["message_id"]] = index
    for message in messages.values():
        replies.setdefault(message.get("parent_id"), []).append(message)
    for parent, siblings in replies.items():
        index = numbers[siblings[0]["message_id"]]
        yield from ((numbers[message["message_id"]], Left("deleted")) for message in siblings if _gone(message))
        way = _way(parent, messages)
        if way is None:
            if sum(number(message.get("rank")) is not None for message in siblings) > 1:
                yield index, Left("orphan")
            continue
        yield from ((index, made) for made in _of_siblings(way, siblings, parent))


def _way(message_id: Any, messages: Mapping[Any, Row]) -> list[dict[str, Any]] | None:
    """The turns from the root to a message; None if one is missing or was deleted."""
    turns: list[dict[str, Any]] = []
    seen = set()
    while message_id is not None:
        message = messages.get(message_id)
        if message is None or _gone(message) or message_id in seen:
            return None
        seen.add(message_id)
        turns.append(_turn(message))
        message_id = message.get("parent_id")
    return turns[::-1]


def _of_tree(row: Row) -> Iterator[Made]:
    root = row.get("prompt")
    if not isinstance(root, Mapping) or root.get("text") is None:
        yield Left("other_shape")
        return
    if _gone(root):
        yield Left("deleted")
        return
    waiting: list[tuple[Row, list[dict[str, Any]]]] = [(root, [_turn(root)])]
    while waiting:
        message, way = waiting.pop(0)
        replies = [reply for reply in records(message.get("replies")) if isinstance(reply, Mapping)]
        present = [reply for reply in replies if not _gone(reply)]
        yield from [Left("deleted")] * (len(replies) - len(present))
        yield from _of_siblings(way, present, message.get("message_id"))
        waiting += [(reply, [*way, _turn(reply)]) for reply in present]


def _of_siblings(way: list[dict[str, Any]], siblings: list[Row], parent: Any) -> Iterator[Made]:
    """The pairs of the answers to one message. A single answer is not counted as left out: it only continues a
    conversation.
    """
    present = [message for message in siblings if not _gone(message)]
    if not way or way[-1]["role"] != "user" or len(present) < 2:
        return
    ranks = [number(message.get("rank")) for message in present]
    scored = [([_turn(message)], None if rank is None else -rank) for message, rank in zip(present, ranks, strict=True)]
    yield from rated_pairs(way, scored, id=parent)


def _turn(message: Row) -> dict[str, Any]:
    role = str(message.get("role"))
    return {"role": _ROLES.get(role, role), "content": message.get("text")}


def _gone(message: Row) -> bool:
    return bool(message.get("deleted")) or message.get("review_result") is False


_MESSAGE = ("message_id", "parent_id", "text", "role", "rank", "deleted", "review_result")

ADAPTERS = (
    Adapter(
        "oasst", "a message of a tree, with its rank", _is_messages, table=_of_messages, uses=lambda sample: _MESSAGE
    ),
    Adapter(
        "oasst-trees",
        "a tree of messages with ranks",
        _is_trees,
        rows=_of_tree,
        uses=lambda sample: ("message_tree_id", "prompt"),
    ),
)

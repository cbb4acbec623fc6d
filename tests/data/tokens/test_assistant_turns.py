"""Preferences over several turns: the assistant's turns after the parting point are scored, and nothing else is.

What is scored is shown as text: `⟦...⟧` around the scored tokens of a completion.
"""

from __future__ import annotations

from typing import Any

import pytest

from preftune.data import DIALOGUE_TEMPLATE, load_demonstrations
from preftune.data.tokens.tokenize import tokenize_demonstrations
from preftune.errors import DatasetError
from tests.data.tiny_bpe import make_tokenizer
from tests.data.turns import (
    DROPS_THOUGHTS,
    MARKED,
    MARKED_TIGHTLY,
    PARTED,
    TEMPLATES,
    Tok,
    assistant,
    run,
    shown,
    shown_one,
    turn,
    user,
)


def test_a_conversation_by_hand_token_by_token() -> None:
    """A token per letter, so that every token of the mask can be written down."""
    tokenizer = make_tokenizer(eos_token="</s>")
    template = (
        "{% for m in messages %}{{ m['role'][0] | upper + m['content'] }}"
        "{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'A' }}{% endif %}"
    )
    row = {
        "prompt": [user("Q")],
        "chosen": [assistant("XY"), user("Z"), assistant("V")],
        "rejected": [assistant("K"), user("Z"), turn("tool", "J"), assistant("")],
    }
    groups, _ = run([row], tokenizer, chat_template=template)
    pieces = [tokenizer.convert_ids_to_tokens(ids) for ids in (groups[0].prompt_ids, *groups[0].completions)]
    assert pieces == [
        ["U", "Q", "A"],
        ["X", "Y", "</s>", "U", "Z", "A", "V", "</s>"],
        ["K", "</s>", "U", "Z", "T", "J", "A", "</s>"],
    ]
    assert groups[0].scored == (((0, 3), (6, 8)), ((0, 2), (7, 8)))


def test_the_mask_of_a_chatml_conversation(chat: Tok) -> None:
    groups, report = run([PARTED], chat)
    assert shown(groups[0], chat) == [
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        "⟦one<|im_end|>\n⟧<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n⟦two<|im_end|>\n⟧",
        "⟦three<|im_end|>\n⟧<|im_start|>user\nless<|im_end|>\n<|im_start|>assistant\n⟦four<|im_end|>\n⟧"
        "<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n⟦five<|im_end|>\n⟧",
    ]
    assert report.several_turns.rows == [0]
    assert "In 1 row (0) the two sides diverge before the last answer: every turn of the assistant" in report.lines()[1]
    assert report.to_json()["several_turns"] == {"count": 1, "rows": [0]}


def test_a_single_answer_has_no_spans(chat: Tok) -> None:
    row = {"prompt": "Why?", "chosen": [assistant("one")], "rejected": [assistant("two")]}
    groups, report = run([row], chat)
    assert groups[0].scored == ()
    assert not report.several_turns.count


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_scores_the_answers_and_their_ends(chat: Tok, name: str) -> None:
    template, end = TEMPLATES[name]
    chat.chat_template = template
    groups, _ = run([PARTED], chat)
    first = "<think>\n\n</think>\n\n" if name == "drops thoughts" else ""
    # the last answer is rendered as a single one would be; the earlier ones lost what the template drops
    expected = [["one", first + "two"], ["three", "four", first + "five"]]
    for index, answers in enumerate(expected):
        ids = groups[0].completions[index]
        assert [chat.decode(ids[begin:end]) for begin, end in groups[0].spans(index)] == [a + end for a in answers]
        trained = [token for begin, end in groups[0].spans(index) for token in ids[begin:end]]
        assert trained.count(chat.eos_token_id) == len(answers)


def test_the_whole_text_is_the_rendered_conversation(chat: Tok) -> None:
    """However the spans are found, no token is lost, added or changed."""
    for template, _ in TEMPLATES.values():
        chat.chat_template = template
        groups, _ = run([PARTED], chat)
        for side, completion in zip(("chosen", "rejected"), groups[0].completions, strict=True):
            messages = [*PARTED["prompt"], *PARTED[side]]
            text = chat.apply_chat_template(messages, tokenize=False)
            assert [*groups[0].prompt_ids, *completion] == chat(text, add_special_tokens=False)["input_ids"]


def test_thoughts_of_earlier_answers_that_the_template_drops(chat: Tok) -> None:
    chat.chat_template = DROPS_THOUGHTS
    row = {
        "prompt": [user("Why?")],
        "chosen": [assistant("<think>good</think>one"), user("more"), assistant("<think>better</think>two")],
        "rejected": [assistant("three"), user("less"), assistant("four")],
    }
    assert shown_one(row, chat)[1] == (
        "⟦one<|im_end|>\n⟧<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"
        "⟦<think>better</think>\n\ntwo<|im_end|>\n⟧"
    )


def test_the_dialogue_template_of_base_models(plain: Tok) -> None:
    assert shown_one(PARTED, plain, chat_template=DIALOGUE_TEMPLATE)[:2] == [
        "\n\nHuman: Why?\n\nAssistant:",
        "⟦ one</s>⟧\n\nHuman: more\n\nAssistant:⟦ two</s>⟧",
    ]


def test_transcripts_that_part_early(plain: Tok) -> None:
    head = "\n\nHuman: Why?\n\nAssistant:"
    row = {
        "chosen": head + " one\n\nHuman: more\n\nAssistant: two",
        "rejected": head + " three\n\nHuman: less\n\nAssistant: four",
    }
    groups, report = run([row], plain, chat_template=DIALOGUE_TEMPLATE)
    assert shown(groups[0], plain) == [
        head,
        "⟦ one</s>⟧\n\nHuman: more\n\nAssistant:⟦ two</s>⟧",
        "⟦ three</s>⟧\n\nHuman: less\n\nAssistant:⟦ four</s>⟧",
    ]
    assert report.several_turns.count == 1


def test_the_eos_is_trained_once_per_turn_where_a_template_writes_it_only_between_turns() -> None:
    tokenizer = make_tokenizer(eos_token="</s>")
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
        "{% if not loop.last %}{{ '</s>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '</s><|im_start|>assistant\n' }}{% endif %}"
    )
    groups, report = run([PARTED], tokenizer, chat_template=template)
    assert shown(groups[0], tokenizer)[1] == "⟦one</s>⟧<|im_start|>user\nmore</s><|im_start|>assistant\n⟦two</s>⟧"
    assert report.eos_added.count == 1


def test_what_both_sides_say_alike_is_not_scored_and_belongs_to_the_prompt(chat: Tok) -> None:
    same = [assistant("one"), user("more")]
    row = {"prompt": [user("Why?")], "chosen": [*same, assistant("two")], "rejected": [*same, assistant("three")]}
    groups, report = run([row], chat)
    prompt, chosen, rejected = shown(groups[0], chat)
    assert prompt.endswith("assistant\none<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n")
    assert (chosen, rejected) == ("⟦two<|im_end|>\n⟧", "⟦three<|im_end|>\n⟧")
    assert groups[0].scored == ()
    assert not report.several_turns.count


def test_sides_that_part_at_a_turn_of_the_user(chat: Tok) -> None:
    row = {
        "chosen": [user("Why?"), assistant("one"), user("more"), assistant("two")],
        "rejected": [user("Why?"), assistant("one"), user("less"), assistant("two")],
    }
    groups, _ = run([row], chat)
    assert shown(groups[0], chat)[1:] == [
        "more<|im_end|>\n<|im_start|>assistant\n⟦two<|im_end|>\n⟧",
        "less<|im_end|>\n<|im_start|>assistant\n⟦two<|im_end|>\n⟧",
    ]


def test_one_answer_against_a_whole_conversation(chat: Tok) -> None:
    row = {**PARTED, "rejected": [assistant("no")]}
    groups, _ = run([row], chat)
    assert shown(groups[0], chat)[2] == "⟦no<|im_end|>\n⟧"
    assert len(groups[0].spans(0)) == 2
    assert groups[0].scored[1] == ()


def test_an_answer_that_continues_the_prompt_and_goes_on(chat: Tok) -> None:
    row = {
        "prompt": [user("Why?"), assistant("Be")],
        "chosen": [assistant("cause"), user("more"), assistant("two")],
        "rejected": [assistant("tter"), user("more"), assistant("four")],
    }
    prompt, chosen, _ = shown_one(row, chat)
    assert prompt.endswith("assistant\nBe")
    assert chosen == "⟦cause<|im_end|>\n⟧<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n⟦two<|im_end|>\n⟧"


@pytest.mark.parametrize("template", ["drops thoughts", "chatml"])
def test_calls_are_the_assistants_and_results_are_context(chat: Tok, template: str) -> None:
    calls = "{% if m.tool_calls %}{{ '<call>' + m.tool_calls[0].function.name + '</call>' }}{% endif %}"
    text = TEMPLATES[template][0]
    mark = "{{ '<|im_end|>\n' }}" if template == "drops thoughts" else " + '<|im_end|>\n' }}"
    chat.chat_template = text.replace(mark, (" }}" if template == "chatml" else "") + calls + "{{ '<|im_end|>\n' }}")
    chat.chat_template = chat.chat_template.replace("for message in", "for m in").replace("message[", "m[")

    def call(name: str) -> dict[str, Any]:
        return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": name}}]}

    row = {
        "prompt": [user("Why?")],
        "chosen": [call("f"), turn("tool", "1"), user("so?"), assistant("one")],
        "rejected": [call("g"), turn("tool", "2"), user("so?"), assistant("two")],
    }
    chosen = shown_one(row, chat)[1]
    assert chosen.startswith("⟦<call>f</call><|im_end|>\n⟧<|im_start|>tool\n1<|im_end|>\n<|im_start|>user\nso?")
    assert chosen.endswith("one<|im_end|>\n⟧")
    assert chosen.count("⟦") == 2


def test_a_template_that_moves_the_system_turn_to_the_last_question(chat: Tok) -> None:
    """As Mistral's do: no beginning of a conversation is rendered as it is within the whole."""
    chat.chat_template = (
        "{% set last = namespace(user=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
        "{% set last.user = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}{% if m['role'] == 'user' %}"
        "{{ '[Q]' + (messages[0]['content'] if loop.index0 == last.user else '') + m['content'] + '[/Q]' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
    )
    row = {**PARTED, "prompt": [turn("system", "You are"), user("Why?")]}
    assert shown_one(row, chat) == [
        "[Q]Why?[/Q]",
        "⟦ one<|im_end|>⟧[Q]You aremore[/Q]⟦ two<|im_end|>⟧",
        "⟦ three<|im_end|>⟧[Q]less[/Q]⟦ four<|im_end|>⟧[Q]You areand?[/Q]⟦ five<|im_end|>⟧",
    ]


MISTRAL = (
    "{{ '<s>' }}{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% set last = namespace(user=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set last.user = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[T]' + tools[0]['function']['name'] + '[/T]' if tools and loop.index0 == last.user else '' }}"
    "{{ '[Q]' + (system if loop.last else '') + m['content'] + '[/Q]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + '<|im_end|>' }}{% endif %}{% endfor %}"
)
"""Mistral v0.3's shape: tools stand before the last question, the system turn in it, and only as long as it is last."""

TOOLS = [{"type": "function", "function": {"name": "find", "description": "Finds.", "parameters": {}}}]


def test_tools_that_move_to_the_last_question_are_not_trained_as_an_answer(chat: Tok) -> None:
    chat.chat_template = MISTRAL
    row = {"prompt": [user("Why?")], "tools": TOOLS, "chosen": [assistant("one")]}
    row["rejected"] = [assistant("three"), user("less"), assistant("four")]
    prompt, chosen, rejected = shown_one(row, chat)
    assert prompt + chosen == "<s>[T]find[/T][Q]Why?[/Q]⟦ one<|im_end|>⟧"
    assert prompt + rejected == "<s>[Q]Why?[/Q]⟦ three<|im_end|>⟧[T]find[/T][Q]less[/Q]⟦ four<|im_end|>⟧"


def test_a_question_whose_system_turn_the_answer_drives_out_is_not_trained(chat: Tok) -> None:
    chat.chat_template = MISTRAL
    row = {"prompt": [turn("system", "You are"), user("Why?")], "chosen": [assistant("one")]}
    row["rejected"] = [assistant("two")]
    groups, report = run([row], chat)
    assert shown(groups[0], chat) == ["<s>[Q]Why?[/Q]", "⟦ one<|im_end|>⟧", "⟦ two<|im_end|>⟧"]
    assert groups[0].scored == ()
    assert report.moved_boundary.count == 1


def test_an_answer_that_goes_on_where_the_text_before_it_is_lost(chat: Tok) -> None:
    chat.chat_template = MISTRAL
    row = {
        "prompt": [user("Why?"), assistant("Be")],
        "tools": TOOLS,
        "chosen": [assistant("cause")],
        "rejected": [assistant("tter"), user("less"), assistant("four")],
    }
    prompt, chosen, rejected = shown_one(row, chat)
    assert prompt + chosen == "<s>[T]find[/T][Q]Why?[/Q] Be⟦cause<|im_end|>⟧"
    assert prompt + rejected == "<s>[Q]Why?[/Q] Be⟦tter<|im_end|>⟧[T]find[/T][Q]less[/Q]⟦ four<|im_end|>⟧"


def test_a_single_answer_that_cannot_be_found_is_dropped(chat: Tok) -> None:
    """The question changes once an answer follows, and the answer is not written as it stands."""
    chat.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] if loop.last else 'asked' }}"
        "{% else %}{{ m['content'] | reverse }}{% endif %}{% endfor %}"
    )
    row = {"prompt": [user("Why?")], "chosen": [assistant("one")], "rejected": [assistant("two")]}
    with pytest.raises(DatasetError, match="the assistant's turns cannot be located"):
        run([row], chat)


def test_a_template_that_hides_its_turns_drops_the_row_and_says_the_fix(chat: Tok) -> None:
    chat.chat_template = (
        "{% for m in messages %}{% if messages | length > 2 %}{{ loop.revindex ~ m['role'] + m['content'] | reverse }}"
        "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    plain_row = {"prompt": "Why?", "chosen": [assistant("one")], "rejected": [assistant("two")]}
    groups, report = run([PARTED, plain_row], chat)
    assert [group.id for group in groups] == ["1"]
    assert report.dropped["answers_not_found"].rows == [0]
    assert "Mark them in the template with {% generation %}" in "\n".join(report.lines())
    with pytest.raises(DatasetError, match="the assistant's turns cannot be located"):
        run([PARTED], chat)


ENDS_ONCE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ '</s>' }}{% endif %}"
)
"""Phi-3's shape: the eos follows once, at the very end of the text."""

RETURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{{ '</s>' if loop.last and m['role'] == 'assistant' and not add_generation_prompt else '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""gpt-oss's shape: the last answer ends with another mark than the others."""


def with_end(chat: Tok) -> Tok:
    chat.add_special_tokens({"eos_token": "</s>"})
    return chat


@pytest.mark.parametrize(
    ("template", "ends"), [(ENDS_ONCE, ["<|im_end|>\n", "<|im_end|>\n</s>"]), (RETURNS, ["<|im_end|>", "</s>"])]
)
def test_a_mark_that_ends_the_last_turn_only_hides_no_turn(template: str, ends: list[str], chat: Tok) -> None:
    chat = with_end(chat)
    chat.chat_template = template
    turns = [user("q"), assistant("one"), user("r"), assistant("two")]
    groups, report = tokenize_demonstrations(load_demonstrations([{"messages": turns}]), chat)
    assert not report.dropped
    spans = [chat.decode(groups[0].completions[0][begin:end]) for begin, end in groups[0].spans(0)]
    assert spans == ["one" + ends[0], "two" + ends[1]]
    _, chosen, rejected = shown_one(PARTED, chat)
    assert [part.split("⟧")[0] for part in chosen.split("⟦")[1:]] == ["one" + ends[0], "two" + ends[1]]
    assert [part.split("⟧")[0] for part in rejected.split("⟦")[1:]] == [
        "three" + ends[0], "four" + ends[0], "five" + ends[1],
    ]  # fmt: skip


MARKED_ENDS = (
    ENDS_ONCE.replace("+ m['content'] + '<|im_end|>\n' }}", "}}{{ m['content'] + '<|im_end|>\n' }}")
    .replace(
        "{{ m['content'] + '<|im_end|>\n' }}",
        "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}"
        "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}",
    )
    .replace("{{ '</s>' }}", "{% generation %}{{ '</s>' }}{% endgeneration %}")
)


@pytest.mark.parametrize(
    ("template", "trained"),
    [
        (MARKED, ["one<|im_end|>", "two<|im_end|>"]),
        (MARKED_TIGHTLY, ["one", "two"]),
        (MARKED.replace("{% if add_generation_prompt %}", "{% if false %}"), ["one<|im_end|>", "two<|im_end|>"]),
        (MARKED_ENDS, ["one<|im_end|>\n", "two<|im_end|>\n</s>"]),
    ],
)
def test_what_a_template_marks_is_trained_to_the_letter(template: str, trained: list[str], chat: Tok) -> None:
    chat = with_end(chat)
    chat.chat_template = template
    turns = [user("q"), assistant("one"), user("r"), assistant("two")]
    groups, report = tokenize_demonstrations(load_demonstrations([{"messages": turns}]), chat)
    assert not report.dropped
    (group,) = groups
    assert [chat.decode(group.completions[0][begin:end]) for begin, end in group.spans(0)] == trained
    text = chat.apply_chat_template(turns, tokenize=False)
    assert chat.decode([*group.prompt_ids, *group.completions[0]]) == text


def test_marks_in_some_turns_only_are_not_enough(chat: Tok) -> None:
    """The loss covers every answer after the parting point, whatever a template's author had in mind."""
    chat.chat_template = MARKED.replace("{% if m['role'] == 'assistant' %}", "{% if loop.last %}")
    assert shown_one(PARTED, chat)[1].count("⟦") == 2


def test_a_token_over_the_edge_of_a_turn_is_not_trained(bare: Tok) -> None:
    """'cap' ends one answer and 'ital' begins the next turn: one token, which is both, and so neither's end."""
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    row = {
        "prompt": [user("What is the ")],
        "chosen": [assistant("question cap"), user("ital "), assistant("of")],
        "rejected": [assistant("answer"), user(" "), assistant("yes")],
    }
    prompt, chosen, _ = shown_one(row, bare, chat_template=template)
    assert prompt + chosen.replace("⟦", "").replace("⟧", "") == "What is the question capital of</s>"
    assert len(bare(" capital")["input_ids"]) == 1
    assert chosen.split("⟧")[1].startswith(" capital")


@pytest.mark.sample(0)
@pytest.mark.slow
def test_the_real_small_models_template() -> None:
    from transformers import AutoTokenizer

    from preftune.models.gguf import demo_model

    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    prompt, chosen, _ = shown_one(PARTED, tokenizer)
    assert prompt.endswith("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n")
    assert chosen == ("⟦one<|im_end|>\n⟧<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n⟦two<|im_end|>\n⟧")

"""Which tokens are learned: masks built by hand on a byte-level tokenizer, under templates of several kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapterhub.engine import data
from adapterhub.engine.data import IGNORED, Example, LengthGroupedOrder, encode_rows, pad
from adapterhub.engine.rows import Message, Row
from adapterhub.errors import BuildError, InvalidFileError
from adapterhub.spec.recipe import DataSpec
from tests.factory import tiny_llama

pytestmark = pytest.mark.engine

SPEC = DataSpec(train="train.jsonl")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def chat(*turns: str, place: str = "rows.jsonl:1") -> Row:
    """Make a chat of `role content` turns."""
    pairs = (turn.split(" ", 1) for turn in turns)
    return Row(place=place, messages=tuple(Message(role=role, content=content) for role, content in pairs))


def learned(tokenizer: Any, example: Example) -> list[str]:
    """Return the runs of labelled tokens as text."""
    runs: list[list[int]] = [[]]
    for token, label in zip(example.input_ids, example.labels, strict=True):
        assert label in (token, IGNORED)
        if label == IGNORED:
            runs.append([])
        else:
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs if run]


def test_the_mask_of_a_chat_is_the_one_made_by_hand(tokenizer: Any) -> None:
    """A byte is its own token, 257 and 258 stand each turn: the expected ids are written down, not rendered."""
    row = chat("user Hi!", "assistant Yo", "user Hi!", "assistant Hi!")

    def turn(role: str, content: str, *, learn: bool) -> tuple[list[int], list[int]]:
        head, body = [257, *f"{role}\n".encode()], [*content.encode(), 258]
        ids = [*head, *body, ord("\n")]
        return ids, [IGNORED] * len(head) + (body if learn else [IGNORED] * len(body)) + [IGNORED]

    ids, labels = [], []
    for message in row.messages:
        more_ids, more_labels = turn(message.role, message.content, learn=message.role == "assistant")
        ids += more_ids
        labels += more_labels
    example = encode_rows([row], tokenizer, SPEC, max_length=512).items[0]
    assert list(example.input_ids) == ids
    assert list(example.labels) == labels
    assert learned(tokenizer, example) == ["Yo<|im_end|>", "Hi!<|im_end|>"]
    assert example.trained == 3 + 4


def test_the_end_of_a_turn_is_learned_where_it_is_also_the_padding(tokenizer: Any) -> None:
    tokenizer.pad_token = tokenizer.eos_token
    rows = [chat("user a", "assistant b"), chat("user a", "assistant a longer one")]
    examples = encode_rows(rows, tokenizer, SPEC, max_length=512).items
    batch = pad(examples, pad_id=data.pad_id(tokenizer))
    end = tokenizer.eos_token_id
    assert data.pad_id(tokenizer) == end
    assert [(row == end).sum().item() for row in batch["labels"]] == [1, 1]
    for row in range(2):
        assert batch["labels"][row][batch["attention_mask"][row] == 0].eq(IGNORED).all()
        assert batch["attention_mask"][row].sum().item() == len(examples[row].input_ids)


ROLES_CHECKED = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m['role'] }}]{{ m['content'] | trim }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
# Rewrites what stands before the last turn, as templates of reasoning models do: no prefix of a chat is rendered alike.
COUNTS_TURNS = (
    "{{ messages | length }}:{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
DROPS_ANSWERS = (
    "{% for m in messages %}[{{ m['role'] }}]{% if m['role'] != 'assistant' %}{{ m['content'] }}<|im_end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
SHOUTS = (
    "{{ messages | length }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | upper }}<|im_end|>{% endfor %}"
)
NEVER_ENDS = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.parametrize("template", [ROLES_CHECKED, COUNTS_TURNS])
def test_templates_that_trim_or_rewrite_are_met(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    row = chat("user assistant", "assistant one", "user one", "assistant two words")
    example = encode_rows([row], tokenizer, SPEC, max_length=512).items[0]
    assert learned(tokenizer, example) == ["one<|im_end|>", "two words<|im_end|>"]


def test_the_two_ways_to_find_a_turn_agree(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        chat("system be brief", "user assistant", "assistant user\nassistant", "user ü", "assistant ñandú 🦩 "),
        chat("assistant first", "user second"),
    ]
    by_prefix = encode_rows(rows, tokenizer, SPEC, max_length=512)
    monkeypatch.setattr(data, "_turn_by_prefix", lambda *_: None)
    assert encode_rows(rows, tokenizer, SPEC, max_length=512) == by_prefix


def test_a_turn_without_an_end_token_is_learned_whole(tokenizer: Any) -> None:
    tokenizer.chat_template = NEVER_ENDS
    example = encode_rows([chat("user a", "assistant b", "user c")], tokenizer, SPEC, max_length=512).items[0]
    assert learned(tokenizer, example) == ["b\n"]


def test_a_row_with_nothing_to_learn_fails_and_is_shown(tokenizer: Any) -> None:
    tokenizer.chat_template = DROPS_ANSWERS
    with pytest.raises(BuildError, match="no token of this row") as caught:
        encode_rows([chat("user what", "assistant that", place="rows.jsonl:7")], tokenizer, SPEC, max_length=512)
    assert caught.value.where == "rows.jsonl:7"
    assert "[user]what<|im_end|>[assistant]" in caught.value.details[0]


def test_a_turn_that_cannot_be_found_is_an_error_with_the_row(tokenizer: Any) -> None:
    tokenizer.chat_template = SHOUTS
    with pytest.raises(InvalidFileError, match="cannot be found") as caught:
        encode_rows([chat("user what", "assistant that", place="rows.jsonl:3")], tokenizer, SPEC, max_length=512)
    assert caught.value.where == "rows.jsonl:3"
    everything = DataSpec(train="train.jsonl", train_on="all")
    example = encode_rows([chat("user what", "assistant that")], tokenizer, everything, max_length=512).items[0]
    assert example.labels == example.input_ids


def test_every_row_that_the_template_refuses_is_named(tokenizer: Any) -> None:
    tokenizer.chat_template = ROLES_CHECKED
    rows = [chat("user a", "assistant b", place=f"rows.jsonl:{n}") for n in range(4)]
    rows[1] = chat("user a", "user b", "assistant c", place="rows.jsonl:1")
    rows[3] = chat("assistant a", place="rows.jsonl:3")
    with pytest.raises(InvalidFileError, match="refuses 2 rows") as caught:
        encode_rows(rows, tokenizer, SPEC, max_length=512)
    assert caught.value.details == (
        "rows.jsonl:1: roles must alternate",
        "rows.jsonl:3: roles must alternate",
    )


def test_chats_need_a_template(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(InvalidFileError, match="no chat template"):
        encode_rows([chat("user a", "assistant b")], tokenizer, SPEC, max_length=512)


def test_prompts_are_read_and_completions_learned(tokenizer: Any) -> None:
    rows = [Row(place="r:1", prompt="2+2=", text="4"), Row(place="r:2", text="Once")]
    first, second = encode_rows(rows, tokenizer, SPEC, max_length=512).items
    assert learned(tokenizer, first) == ["4<|im_end|>"]
    assert tokenizer.decode(first.input_ids) == "2+2=4<|im_end|>"
    assert learned(tokenizer, second) == ["Once<|im_end|>"]
    assert second.trained == len("Once<") - 1  # nothing predicts a first token
    everything = DataSpec(train="train.jsonl", train_on="all")
    whole = encode_rows(rows[:1], tokenizer, everything, max_length=512).items[0]
    assert learned(tokenizer, whole) == ["2+2=4<|im_end|>"]


def test_cut_rows_are_counted_and_empty_ones_dropped(tokenizer: Any) -> None:
    rows = [
        chat("user a", "assistant b", place="r:1"),
        chat("user a", "assistant " + "long " * 20, place="r:2"),
        chat("user " + "long " * 20, "assistant b", place="r:3"),
    ]
    examples = encode_rows(rows, tokenizer, SPEC, max_length=40)
    assert [item.place for item in examples.items] == ["r:1", "r:2"]
    assert len(examples.items[1].input_ids) == len(examples.items[1].labels) == 40
    assert (examples.truncated, examples.dropped) == (("r:2", "r:3"), ("r:3",))
    with pytest.raises(BuildError, match="within its first 40 tokens") as caught:
        encode_rows(rows[2:], tokenizer, SPEC, max_length=40)
    assert "<|im_start|>user" in caught.value.details[0]


def test_batches_hold_rows_of_like_length_and_every_row_once() -> None:
    lengths = [(7 * i) % 101 + 1 for i in range(203)]
    order = LengthGroupedOrder(lengths, 8, seed=3)
    first, second = list(order), list(order)
    assert sorted(first) == sorted(second) == list(range(203))
    assert first != second
    again = LengthGroupedOrder(lengths, 8, seed=3)
    assert [list(again), list(again)] == [first, second]
    assert list(LengthGroupedOrder(lengths, 8, seed=4)) != first
    spreads = [
        max(lengths[i] for i in batch) - min(lengths[i] for i in batch)
        for batch in (first[start : start + 8] for start in range(0, 200, 8))
    ]
    assert max(spreads) <= 6  # unsorted batches of eight spread over 80
    whole = [sum(lengths[i] for i in first[start : start + 8]) for start in range(0, 200, 8)]
    assert whole != sorted(whole)  # the batches themselves are shuffled

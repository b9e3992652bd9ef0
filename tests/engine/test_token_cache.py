"""Tokens read back are the tokens that were made; whatever they follow from names another entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapterhub.engine.data import Examples
from adapterhub.engine.row_kinds import LabelledRow, Message, Row
from adapterhub.engine.tasks import task_engine
from adapterhub.engine.token_cache import TokenCache
from adapterhub.spec.data import DataSpec

pytestmark = pytest.mark.engine

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SPEC = DataSpec(train="r.jsonl")


def tokenizer(template: str | None = None, words: str = "a b c d user assistant :") -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<unk>", "<eos>", *words.split()])}
    whole = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="<unk>", eos_token="<eos>")
    made.chat_template = template
    return made


class Counting:
    """A task that counts how often it is asked."""

    def __init__(self, name: str) -> None:
        self.name, self.task, self.asked = name, task_engine(name), 0

    def encode(self, *args: Any, **keys: Any) -> Examples:
        self.asked += 1
        return self.task.encode(*args, **keys)


def rows(*texts: str) -> tuple[Row, ...]:
    return tuple(Row(place=f"r.jsonl:{i}", prompt="a", text=text) for i, text in enumerate(texts, start=1))


ROWS = rows("b c", "c d a b", "d")


def both(folder: Path, name: str, given: Sequence[Row], made: Any, **keys: Any) -> tuple[Examples, Examples]:
    """Return what a cache gives the first time and the second, of which only the first asks the task."""
    cache, task = TokenCache(folder=folder, min_rows=1), Counting(name)
    found = [cache.encode(name, task, given, made, SPEC, **{"max_length": 64, **keys}) for _ in range(2)]  # type: ignore[arg-type]
    assert task.asked == 1
    return found[0], found[1]


def test_what_is_read_back_is_what_was_made(tmp_path: Path) -> None:
    first, second = both(tmp_path, "CAUSAL_LM", (*ROWS, ROWS[1]), tokenizer(), max_length=3)
    assert first == second and len(first.truncated) == 3
    labelled = tuple(
        LabelledRow(place=f"r:{i}", text=text, pair=pair, label=label)
        for i, (text, pair, label) in enumerate([("a b", None, "x"), ("a", "c d", "y"), ("b b b b b", None, "x")])
    )
    first, second = both(tmp_path, "SEQ_CLS", labelled, tokenizer(), labels=("x", "y"), max_length=4)
    assert first == second and [item.labels[-1] for item in second.items] == [0, 1, 0]
    chat = (Message(role="user", content="a"), Message(role="assistant", content="b c"))
    first, second = both(tmp_path, "CAUSAL_LM", (Row(place="r:1", messages=chat),), tokenizer(TEMPLATE))
    assert first == second and first.trained > 0
    # A row with nothing left to learn has no tokens, and is told.
    long = (Row(place="r:0", prompt="a " * 70, text="b"), *ROWS)
    first, second = both(tmp_path, "CAUSAL_LM", long, tokenizer())
    assert (
        first == second
        and first.dropped == ("r:0",)
        and [item.place for item in first.items] == [row.place for row in ROWS]
    )


def test_whatever_tokens_follow_from_is_another_entry(tmp_path: Path) -> None:
    cache = TokenCache(folder=tmp_path, min_rows=1)

    def entry(given: Sequence[Row] = ROWS, made: Any = None, spec: DataSpec = SPEC, **keys: Any) -> str:
        before = {path.name for path in tmp_path.iterdir()}
        task = Counting("CAUSAL_LM")
        cache.encode("CAUSAL_LM", task, given, made or tokenizer(), spec, **{"max_length": 64, **keys})  # type: ignore[arg-type]
        assert task.asked == 1, "an entry of something else was taken"
        (name,) = {path.name for path in tmp_path.iterdir()} - before
        return name

    names = [
        entry(),
        entry((*ROWS[:2], replace(ROWS[2], text="a"))),  # an edited file
        entry(tuple(reversed(ROWS))),
        entry(made=tokenizer(words="d c b a")),
        entry(made=tokenizer(TEMPLATE)),
        entry(max_length=32),
        entry(spec=replace(SPEC, train_on="all")),
        entry(labels=("x", "y")),
    ]
    assert len(set(names)) == len(names)
    task = Counting("CAUSAL_LM")
    used = tokenizer()
    used(["a b"] * 2, truncation=True, max_length=1)  # what was asked of a tokenizer is not what it is
    cache.encode("CAUSAL_LM", task, ROWS, used, SPEC, max_length=64)  # type: ignore[arg-type]
    assert task.asked == 0


@pytest.mark.parametrize("damage", ["empty", "cut", "bits", "text"])
def test_a_broken_entry_is_made_again(tmp_path: Path, damage: str) -> None:
    whole, _ = both(tmp_path, "CAUSAL_LM", ROWS, tokenizer())
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    middle = data.index(b"ids.npy") + 60
    flipped = data[:middle] + bytes(byte ^ 0xFF for byte in data[middle : middle + 8]) + data[middle + 8 :]
    path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "bits": flipped, "text": b"no array"}[damage])
    assert both(tmp_path, "CAUSAL_LM", ROWS, tokenizer()) == (whole, whole)
    assert [path.name for path in tmp_path.iterdir()] == [path.name]


def test_what_is_not_kept(tmp_path: Path) -> None:
    small = TokenCache(folder=tmp_path / "small", min_rows=4)
    small.encode("CAUSAL_LM", task_engine("CAUSAL_LM"), ROWS, tokenizer(), SPEC, max_length=64)
    assert not small.folder.exists()
    # A template that tells the day makes other tokens tomorrow.
    dated = TokenCache(folder=tmp_path / "dated", min_rows=1)
    made = tokenizer("{{ strftime_now('%d') }}" + TEMPLATE)
    dated.encode("CAUSAL_LM", task_engine("CAUSAL_LM"), ROWS, made, SPEC, max_length=64)
    assert not dated.folder.exists()
    # A folder that cannot be written costs nothing but time.
    (tmp_path / "file").write_text("")
    blocked = TokenCache(folder=tmp_path / "file" / "below", min_rows=1)
    assert blocked.encode("CAUSAL_LM", task_engine("CAUSAL_LM"), ROWS, tokenizer(), SPEC, max_length=64).items


def test_the_longest_unused_entries_go(tmp_path: Path) -> None:
    both(tmp_path, "CAUSAL_LM", ROWS, tokenizer())
    (first,) = tmp_path.iterdir()
    bound = round(2.5 * first.stat().st_size)
    cache, task = TokenCache(folder=tmp_path, min_rows=1, max_bytes=bound), task_engine("CAUSAL_LM")
    for length in (32, 16):
        cache.encode("CAUSAL_LM", task, ROWS, tokenizer(), SPEC, max_length=length)
    assert not first.exists()
    assert len(list(tmp_path.iterdir())) == 2

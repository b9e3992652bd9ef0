"""Questions and texts: windows, labels, losses held against transformers' own, and the best span by brute force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapterhub.engine.row_kinds import Answer, AnswerRow
from adapterhub.engine.tasks import task_engine
from adapterhub.engine.tasks._answers import MAX_ANSWER_TOKENS, Span, best_of, best_spans, windows_of
from adapterhub.engine.tasks.question_ans import WindowExample
from adapterhub.errors import BuildError
from adapterhub.spec.data import DataSpec
from tests.engine.tasks.tiny_bert import tiny_bert

pytestmark = pytest.mark.engine
TASK = task_engine("QUESTION_ANS")
SPEC = DataSpec(train="r.jsonl")
TEXT = "a b c d e f g rome h i j k l m"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def row(text: str = TEXT, answer: str | None = "rome", line: int = 1) -> AnswerRow:
    answers = () if answer is None else (Answer(text=answer, start=text.index(answer)),)
    return AnswerRow(place=f"r.jsonl:{line}", prompt="in ?", text=text, answers=answers)


def encode(tokenizer: Any, *rows: AnswerRow, max_length: int = 64) -> list[WindowExample]:
    items = TASK.encode(rows, tokenizer, SPEC, max_length=max_length).items
    return [item for item in items if isinstance(item, WindowExample)]


def test_a_long_text_is_read_in_windows_that_overlap(tokenizer: Any) -> None:
    found = encode(tokenizer, row(), row(answer=None, line=2), max_length=13)
    mine = [example for example in found if example.place == "r.jsonl:1"]
    told = [tokenizer.decode([i for i, p in zip(x.input_ids, x.window.text, strict=True) if p]) for x in mine]
    # Thirteen tokens less [CLS] in ? [SEP] … [SEP] leave eight, of which a third of thirteen comes again.
    assert told == ["a b c d e f g rome", "e f g rome h i j k", "h i j k l m"]
    spans = [(x.start, x.end) for x in mine]
    assert spans == [(11, 11), (7, 7), (0, 0)]
    assert all(tokenizer.decode([x.input_ids[x.start]]) in ("rome", "[CLS]") for x in mine)
    assert {(x.start, x.end) for x in found if x.place == "r.jsonl:2"} == {(0, 0)}
    assert [place for x in mine for place in [x.window.text[x.start]] if place] == [(14, 18), (14, 18)]


def test_a_question_without_room_for_its_text_is_refused(tokenizer: Any) -> None:
    with pytest.raises(BuildError, match="a question of 2 tokens leaves no room for its text in 10"):
        encode(tokenizer, row(), max_length=10)


def test_losses_are_transformers_own(folder: Path, tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForQuestionAnswering

    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    examples = encode(tokenizer, row(), row("in rome", line=2))
    batch = TASK.collate(examples, pad_id=0)
    with torch.inference_mode():
        judged = TASK.judge(model, batch)
        alone = [
            model(
                input_ids=torch.tensor([x.input_ids]),
                start_positions=torch.tensor([x.start]),
                end_positions=torch.tensor([x.end]),
            ).loss
            for x in examples
        ]
    assert judged.counts.tolist() == [2, 2]
    assert judged.losses.view(2, 2).mean(1).tolist() == pytest.approx([float(loss) for loss in alone], abs=1e-5)


def test_the_best_span_is_that_of_all(tokenizer: Any) -> None:
    import torch

    (window,) = windows_of(tokenizer, ["in ?"], ["a b c d e f g h i j k l m n o p"], max_length=64)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        logits = torch.randn(2, len(window.input_ids), generator=generator)
        (found,) = best_spans(logits[:1], logits[1:], [window])
        inside = [i for i, place in enumerate(window.text) if place]
        pairs = [(i, j) for i in inside for j in inside if i <= j < i + MAX_ANSWER_TOKENS]
        first, last = max(pairs, key=lambda pair: float(logits[0, pair[0]] + logits[1, pair[1]]))
        assert (found.start, found.end) == (window.text[first][0], window.text[last][1])  # type: ignore[index]
        assert found.score == pytest.approx(float(logits[0, first] + logits[1, last]))
        assert found.null_score == pytest.approx(float(logits[:, 0].sum()))
        allowed = [0, *inside]
        shares = [logits[side, allowed].softmax(0)[allowed.index(at)] for side, at in ((0, first), (1, last))]
        assert found.probability == pytest.approx(float(shares[0] * shares[1]), abs=1e-6)


def span(score: float, null: float) -> Span:
    return Span(start=0, end=1, score=score, probability=0.5, null_score=null, null_probability=0.5)


def test_no_answer_counts_by_the_window_that_is_least_sure_of_it() -> None:
    assert best_of([span(3.0, 9.0), span(1.0, 2.0)]) == span(3.0, 9.0)
    assert best_of([span(3.0, 9.0), span(1.0, 4.0)]) is None


def test_scores_are_of_rows_not_of_windows(tokenizer: Any) -> None:
    import torch

    examples = encode(tokenizer, row(), row(answer=None, line=2), max_length=13)
    predictions = []
    for example in examples:
        logits = torch.full((2, 13), -9.0)
        logits[0, example.start] = logits[1, example.end] = 9.0
        predictions.append((logits[0], logits[1]))
    assert TASK.scores(predictions, examples, ()) == {"f1": 1.0, "exact_match": 1.0}
    measured = TASK.main_measure(predictions, examples, ())  # type: ignore[attr-defined]
    assert sum(part[1] for part in measured.parts) == 2.0
    # No answer is right for one of the two rows; all of the text has one of fourteen words.
    assert TASK.naive_scores((), examples, ()) == {"f1": 0.5, "exact_match": 0.5}
